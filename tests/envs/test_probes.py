"""The built-in environments have the returns that their docstrings promise."""

import gymnasium
import numpy as np
import pytest

from dreamer.config import EnvConfig
from dreamer.envs import EnvError, make
from dreamer.envs.suites import probes
from dreamer.envs.suites.probes import Catch


def returns(task, policy, episodes=50, end=(True, False)):
    """Returns of episodes with ``policy(history of observations) -> action``, flat observations.

    Every episode must end with ``end``: terminated, truncated.
    """
    env = make(task, EnvConfig())
    result = []
    for episode in range(episodes):
        obs, _ = env.reset(seed=0 if episode == 0 else None)
        history, total, over = [obs], 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step({"action": policy(history)})
            history.append(obs)
            total += reward
            over = terminated or truncated
        assert (terminated, truncated) == end
        result.append(total)
    return np.array(result)


def test_constant():
    assert (returns("probe_constant", lambda history: 0, 3) == 1).all()


def test_two_step_pays_at_the_end():
    env = make("probe_two_step", EnvConfig())
    obs, _ = env.reset()
    seen = [obs["vector"].item()]
    answers = [env.step({"action": 0}) for _ in range(2)]
    assert seen + [answer[0]["vector"].item() for answer in answers] == [0.0, 0.5, 1.0]
    assert [answer[1:3] for answer in answers] == [(0.0, False), (1.0, True)]


def test_action_depends_on_the_observation():
    assert (returns("probe_action", lambda history: int(history[-1]["vector"][0] > 0)) == 1).all()
    assert (returns("probe_action", lambda history: int(history[-1]["vector"][0] < 0)) == -1).all()
    assert abs(returns("probe_action", lambda history: 0, 400).mean()) < 0.2


def test_memory_needs_the_first_observation():
    assert (returns("probe_memory", lambda history: int(history[0]["vector"][0] > 0)) == 1).all()
    blind = returns("probe_memory", lambda history: int(history[-1]["vector"][0] > 0), 400)
    assert abs(blind.mean()) < 0.2
    env = make("probe_memory", EnvConfig())
    cue = env.reset(seed=3)[0]["vector"]
    later = [env.step({"action": 0})[0]["vector"].tolist() for _ in range(5)]
    assert abs(cue[0]) == 1 and later == [[0, 0], [0, 0], [0, 0], [0, 1], [0, 0]]


@pytest.mark.parametrize("delay", [1, 2, 4, 8, 16, 32])
def test_cue_needs_the_first_observation(delay):
    task = f"probe_cue{delay}"
    assert (returns(task, lambda history: int(history[0]["vector"][0] < 0), 20) == 1).all()
    assert (returns(task, lambda history: int(history[0]["vector"][0] > 0), 20) == -1).all()
    blind = returns(task, lambda history: int(history[-1]["vector"][0] < 0), 400)
    assert abs(blind.mean()) < 0.2


@pytest.mark.parametrize("delay", [1, 2, 4, 8, 16, 32])
def test_cue_says_when_the_action_counts(delay):
    env = make(f"probe_cue{delay}", EnvConfig())
    cue, flag, counts = env.reset(seed=3)[0]["vector"]
    assert (abs(cue), flag, counts) == (1, 1, 0)
    answers = [env.step({"action": int(cue < 0)}) for _ in range(delay + 1)]
    assert [answer[0]["vector"].tolist() for answer in answers] == [*[[0, 0, 0]] * (delay - 1), [0, 0, 1], [0, 0, 0]]
    assert [answer[1:4] for answer in answers] == [*[(0, False, False)] * delay, (1, True, False)]


def weigh(history):
    """Play `probe_bandit` as well as possible: what was seen of one arm says as much about the other."""
    lead = 0
    for step in history[1:]:
        pulled = 1 if lead > 0 else -1
        lead += pulled if step["vector"].any() else -pulled
    return int(lead > 0)


def test_bandit_is_better_with_memory():
    rng = np.random.default_rng(0)
    time_limit = (False, True)
    best = returns("probe_bandit", weigh, 400, time_limit)
    assert abs(best.mean() - 26.8) < 0.6
    shown = lambda history: history[-1]["vector"]  # noqa: E731
    stay = lambda history: int(shown(history).argmax()) if shown(history).any() else rng.integers(2)  # noqa: E731
    assert abs(returns("probe_bandit", stay, 400, time_limit).mean() - 23) < 0.6
    assert abs(returns("probe_bandit", lambda history: rng.integers(2), 400, time_limit).mean() - 20) < 0.6
    assert abs(returns("probe_bandit", lambda history: 0, 400, time_limit).mean() - 20) < 1.2


def test_bandit_has_one_better_arm_per_episode():
    env = make("probe_bandit", EnvConfig())
    totals = np.zeros((200, 2))
    for episode in range(200):
        obs, _ = env.reset(seed=episode)
        assert obs["vector"].tolist() == [0, 0]
        for t in range(40):
            obs, reward, terminated, truncated, _ = env.step({"action": t % 2})
            assert obs["vector"].tolist() == [reward * (t % 2 == 0), reward * (t % 2)]
            assert (terminated, truncated) == (False, t == 39)
            totals[episode, t % 2] += reward
    assert abs(totals.max(1).mean() / 20 - 0.7) < 0.03 and abs(totals.min(1).mean() / 20 - 0.3) < 0.03
    assert 70 < (totals[:, 1] > totals[:, 0]).sum() < 130


def test_repeat_needs_the_symbol_of_four_steps_before():
    rng = np.random.default_rng(0)

    def name(back):
        return lambda history: int(history[max(len(history) - 1 - back, 0)]["vector"].argmax())

    time_limit = (False, True)
    np.testing.assert_allclose(returns("probe_repeat", name(4), 20, time_limit), 1)
    for policy in (name(0), name(3), name(5), lambda history: 2, lambda history: rng.integers(4)):
        assert abs(returns("probe_repeat", policy, 200, time_limit).mean() + 0.5) < 0.06


def test_repeat_pays_once_there_is_something_to_name():
    env = make("probe_repeat", EnvConfig())
    seen = [env.reset(seed=0)[0]["vector"]]
    rewards = []
    for _ in range(32):
        obs, reward, *_ = env.step({"action": 1})
        seen.append(obs["vector"])
        rewards.append(reward)
    assert (np.sort(seen) == [0, 0, 0, 1]).all() and set(np.argmax(seen, 1)) == {0, 1, 2, 3}
    right = np.argmax(seen, 1)[:28] == 1
    np.testing.assert_allclose(rewards, [0] * 4 + list(np.where(right, 1 / 28, -1 / 28)))


def test_masked_forbids_the_previous_action():
    best = lambda history: int(not history[-1]["action_mask"][0])  # noqa: E731
    assert (returns("probe_masked", best, 3) == 3).all()
    rng = np.random.default_rng(0)
    allowed = returns("probe_masked", lambda history: rng.choice(np.flatnonzero(history[-1]["action_mask"])), 200)
    assert abs(allowed.mean()) < 0.5
    with pytest.raises(ValueError, match="action 0 is forbidden after itself"):
        returns("probe_masked", lambda history: 0, 1)


def distances(start):
    """Steps from a cell to every free cell of the maze that can be reached, by breadth-first search."""
    found, border = {start: 0}, [start]
    while border:
        cell = border.pop(0)
        for move in probes.MOVES:
            ahead = tuple(int(x) for x in np.add(cell, move))
            if min(ahead) >= 0 and max(ahead) < 10 and probes.MAZE[ahead] and ahead not in found:
                found[ahead] = found[cell] + 1
                border.append(ahead)
    return found


def test_every_cell_of_the_maze_can_be_reached_and_the_goal_is_far():
    found = distances(probes.START)
    assert probes.MAZE.shape == (10, 10)
    assert len(found) == probes.MAZE.sum()
    assert found[probes.GOAL] == probes.WAY == max(found.values())


def test_the_shortest_way_through_the_maze_earns_1():
    left = distances(probes.GOAL)
    env = make("probe_maze", EnvConfig())
    cell = tuple(env.reset()[0]["discrete"])
    for step in range(probes.WAY):
        ahead = [tuple(int(x) for x in np.add(cell, move)) for move in probes.MOVES]
        best = min(range(4), key=lambda action: left.get(ahead[action], 1000))
        obs, reward, terminated, truncated, _ = env.step({"action": best})
        cell = tuple(obs["discrete"])
        assert cell == ahead[best]
        over = step == probes.WAY - 1
        assert (reward, terminated, truncated) == (float(over), over, False)
    assert cell == probes.GOAL
    assert env.episode_log["episode/success"] == 1


def test_walls_of_the_maze_lead_nowhere_and_time_runs_out():
    env = make("probe_maze", EnvConfig())
    env.reset()
    answers = [env.step({"action": action}) for action in (0, 3) * 50]
    assert {tuple(obs["discrete"]) for obs, *_ in answers} == {probes.START}
    assert [answer[1:4] for answer in answers] == [*[(0, False, False)] * 99, (0, False, True)]


def test_random_walks_stay_near_the_start_of_the_maze():
    rng = np.random.default_rng(0)
    env = make("probe_maze", EnvConfig())
    seen, successes, over = {probes.START}, 0.0, True
    for _ in range(5000):
        if over:
            env.reset()
        obs, reward, terminated, truncated, _ = env.step({"action": rng.integers(4)})
        seen.add(tuple(obs["discrete"]))
        successes += reward
        over = terminated or truncated
    assert successes == 0
    assert len(seen) < 0.4 * probes.MAZE.sum()


def ball(image):
    return tuple(int(i[0]) for i in np.nonzero(image[..., 0] == 255))


def catch(history):
    """Play `probe_catch` from the last two images alone."""
    image, previous = (step["image"][::2, ::2] for step in (history[-1], history[-2:][0]))  # cells of 2 x 2 pixels
    size = len(image)
    row, column = ball(image)
    if row == 0:
        return 1  # its direction is unknown yet
    drift = column - ball(previous)[1]
    for _ in range(size - 1 - row):
        if not 0 <= column + drift < size:
            drift = -drift
        column += drift
    paddle = int(np.nonzero(image[-1, :, 0])[0].mean())
    return 1 + int(np.sign(column - paddle))


def test_catch_can_always_be_caught():
    assert (returns("probe_catch", catch, 60) == 4).all()
    assert returns("probe_catch", lambda history: 1, 60).mean() < 0


@pytest.mark.parametrize("channels", [1, 3])
def test_catch_shows_ball_and_paddle(channels):
    env = Catch(cell=1, channels=channels)
    image, _ = env.reset(seed=1)
    assert image.shape == (8, 8, channels) and image.dtype == np.uint8
    assert (image[0] == 255).all(-1).sum() == 1 and (image[-1] == 128).all(-1).sum() == 3
    lengths = [env.step(1)[2] for _ in range(4 * 7)]
    assert lengths == [False] * 27 + [True]


def test_catch_cells_are_squares_of_pixels():
    small, large = (Catch(cell=cell).reset(seed=1)[0] for cell in (1, 2))
    assert large.shape == (16, 16, 1)
    np.testing.assert_array_equal(large, small.repeat(2, 0).repeat(2, 1))


def test_catch_bounces_off_the_walls():
    env = Catch(cell=1, drops=100)
    image, _ = env.reset(seed=0)
    paths = [[ball(image)[1]]]
    for t in range(1, 700):
        row, column = ball(env.step(1)[0])
        assert row == t % 7
        paths[-1].append(column)
        if row == 0:
            paths.append([paths[-1].pop()])
    moves = [np.diff(path) for path in paths]
    assert {int(move[0]) for move in moves} == {-1, 0, 1}
    assert all(len(set(np.abs(move))) == 1 for move in moves)  # straight, or diagonal all the way
    assert any(len(set(move)) == 2 for move in moves)  # some of them turned
    assert {path[0] for path in paths} == set(range(8))


def test_cartpole_without_velocities():
    raw = gymnasium.make("CartPole-v1")
    env = make("probe_cartpole_hidden", EnvConfig())
    expected, _ = raw.reset(seed=5)
    obs, _ = env.reset(seed=5)
    np.testing.assert_array_equal(obs["vector"], expected[[0, 2]])
    for _ in range(8):
        expected, *answer = raw.step(1)
        obs, *got = env.step({"action": 1})
        np.testing.assert_array_equal(obs["vector"], expected[[0, 2]])
        assert got[:3] == answer[:3]


def test_dummy_ends_both_ways():
    env = make("probe_dummy", EnvConfig())
    env.action_space.seed(0)
    ends = set()
    for episode in range(12):
        env.reset(seed=episode)
        for _ in range(10):
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            assert reward == 1
        ends.add((terminated, truncated))
    assert ends == {(True, False), (False, True)}


@pytest.mark.parametrize("task", ["probe_catch", "probe_cartpole_hidden", "probe_maze", "gym_CartPole-v1"])
def test_rendering(task):
    env = make(task, EnvConfig(), render=True)
    env.reset(seed=0)
    frame = env.render()
    env.close()
    assert frame.dtype == np.uint8
    assert frame.ndim == 3
    assert frame.shape[2] == 3
    assert frame.max() > 0


def test_environments_that_cannot_render_say_so():
    with pytest.raises(EnvError, match="Task 'probe_memory' cannot render images"):
        make("probe_memory", EnvConfig(), render=True)
