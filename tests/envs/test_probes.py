"""The built-in environments have the returns that their docstrings promise."""

import gymnasium
import numpy as np
import pytest

from dreamer.config import EnvConfig
from dreamer.envs import EnvError, make
from dreamer.envs.suites.probes import Catch


def returns(task, policy, episodes=50):
    """Returns of episodes with ``policy(history of observations) -> action``, flat observations."""
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
        assert terminated
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


def test_masked_forbids_the_previous_action():
    best = lambda history: int(not history[-1]["action_mask"][0])  # noqa: E731
    assert (returns("probe_masked", best, 3) == 3).all()
    rng = np.random.default_rng(0)
    allowed = returns("probe_masked", lambda history: rng.choice(np.flatnonzero(history[-1]["action_mask"])), 200)
    assert abs(allowed.mean()) < 0.5
    with pytest.raises(ValueError, match="action 0 is forbidden after itself"):
        returns("probe_masked", lambda history: 0, 1)


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


@pytest.mark.parametrize("task", ["probe_catch", "probe_cartpole_hidden", "gym_CartPole-v1"])
def test_rendering(task):
    env = make(task, EnvConfig(), render=True)
    env.reset(seed=0)
    frame = env.render()
    env.close()
    assert frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3 and frame.max() > 0


def test_environments_that_cannot_render_say_so():
    with pytest.raises(EnvError, match="Task 'probe_memory' cannot render images"):
        make("probe_memory", EnvConfig(), render=True)
