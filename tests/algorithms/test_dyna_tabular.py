"""The mazes of the textbook, and what its figures show."""

import functools

import jax
import numpy as np
import pytest

from dreamer import algorithms
from dreamer import config as configs
from dreamer.algorithms.dyna_tabular import BLOCKING, DYNA, SHORTCUT, episode_lengths, learn
from dreamer.config import ConfigError
from dreamer.types import Batch, Space


def shortest(maze):
    """Steps from the start to the goal, by flooding the maze."""
    moves, reached, steps = maze.moves(), {maze.cell(maze.start)}, 0
    while maze.cell(maze.goal) not in reached:
        reached |= {int(cell) for at in reached for cell in moves[at]}
        steps += 1
    return steps


def rewards_of(mazes, steps, seeds, **options):
    """Rewards ``[seeds, T]``."""
    run = functools.partial(learn, mazes, steps, **options)
    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), seeds)))


def test_the_mazes_are_those_of_the_book():
    assert (~DYNA.walls).sum() == 47
    assert shortest(DYNA) == 14
    assert [shortest(maze) for maze in BLOCKING] == [10, 16]
    assert [shortest(maze) for maze in SHORTCUT] == [16, 10]


def test_a_wall_and_the_edge_lead_nowhere():
    moves, cell = DYNA.moves(), DYNA.cell
    assert moves[cell((2, 0))].tolist() == [cell((1, 0)), cell((3, 0)), cell((2, 0)), cell((2, 1))]
    assert moves[cell((2, 1)), 3] == cell((2, 1))


def test_episodes_end_where_a_reward_was_earned():
    assert episode_lengths(np.array([0, 0, 1, 1, 0, 1, 0], np.float32)).tolist() == [3, 1, 2]


PLACES = {"place": Space("discrete", (), 4)}
MOVE = {"move": Space("discrete", (), 2)}


def make(*overrides, obs=PLACES, actions=MOVE):
    config = configs.load(["dyna_tabular"], ["tabular.alpha=0.5", "behavior.return_horizon=10", *overrides])
    return config, algorithms.make(config, obs, actions)


def step(before, move, reward, after, *, ends=False, resets=False):
    """A batch of one transition."""
    no = np.zeros((1, 2), bool)
    second = np.array([[False, True]])
    return Batch(
        obs={"place": np.array([[before, after]], np.int32)},
        prev_action={"move": np.array([[0, move]], np.int32)},
        reward=np.array([[0, reward]], np.float32),
        is_first=second & resets,
        is_last=no,
        is_terminal=second & ends,
        stored=(),
    )


def learned(planning, *batches, bonus=0.0):
    """Tables after an update with each batch."""
    config, algorithm = make(f"tabular.planning={planning}", f"tabular.bonus={bonus}")
    state = algorithm.init(jax.random.key(0))
    for batch in batches:
        state, _, _ = algorithm.update(state, batch, jax.random.key(1), config)
    return state.nets.behavior


def test_a_step_is_learned_from_and_remembered():
    tables = learned(0, step(2, 1, 1.0, 3, ends=True), step(1, 1, 0.0, 2), step(0, 1, 5.0, 3, resets=True))
    # Half of a reward of 1; then half of 0.9 times that. Nothing led to the reset.
    np.testing.assert_allclose(tables.value, np.array([[0, 0], [0, 0.225], [0, 0.5], [0, 0]]))
    assert tables.tried.tolist() == [[-1, -1], [-1, 1], [-1, 0], [-1, -1]]
    assert int(tables.arrived[1, 1]) == 2
    assert bool(tables.ended[2, 1])


def test_planning_carries_values_back():
    tables = learned(100, step(2, 1, 1.0, 3, ends=True), step(1, 1, 0.0, 2), step(0, 1, 0.0, 1))
    np.testing.assert_allclose(tables.value[:3, 1], [0.81, 0.9, 1], atol=1e-3)
    assert (tables.value[:, 0] == 0).all()


def test_the_bonus_is_for_what_was_never_tried_too():
    tables = learned(100, step(2, 1, 0.0, 2), bonus=0.1)
    assert tables.value[2, 0] > 0


def test_the_best_action_is_taken_and_ties_are_broken_at_random():
    config, algorithm = make()
    state = algorithm.init(jax.random.key(0))
    state, _, _ = algorithm.update(state, step(2, 1, 1.0, 3, ends=True), jax.random.key(1), config)
    obs = {"place": np.repeat(np.array([2, 0], np.int32), 200)}
    action, _, _ = algorithm.policy(state.nets, (), obs, jax.numpy.zeros(400, bool), jax.random.key(0), "mode")
    assert (action["move"][:200] == 1).all()
    assert 60 < int(action["move"][200:].sum()) < 140


@pytest.mark.parametrize(
    ("obs", "actions", "message"),
    [
        ({"vector": Space("vector", (2,))}, MOVE, "observations that are classes.* vector are none"),
        ({"board": Space("discrete", (9,), 10)}, MOVE, "1,000,000,000 are too many for a table"),
        ({"action_mask": Space("discrete", (2,), 2)}, MOVE, "the observation action_mask is a mask"),
        (PLACES, {"push": Space("continuous", (1,))}, "expected one discrete action"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_sentence(obs, actions, message):
    with pytest.raises(ConfigError, match=message):
        make(obs=obs, actions=actions)


@pytest.mark.slow
def test_planning_needs_fewer_episodes():
    """Figure 8.2: the length of the third episode, and the first one of at most 16 steps; 30 seeds."""
    third, first = {}, {}
    for planning, steps in ((0, 30_000), (5, 8000), (50, 4000)):
        runs = [episode_lengths(row) for row in rewards_of((DYNA,), (steps,), 30, planning=planning)]
        third[planning] = np.mean([lengths[2] for lengths in runs])
        first[planning] = np.median([np.argmax(lengths <= 16) + 1 for lengths in runs])
    assert third[50] < 20 < third[5] < third[0]
    assert first[50] < first[5] < first[0]


@pytest.mark.slow
@pytest.mark.parametrize(("mazes", "steps"), [(BLOCKING, (1000, 2000)), (SHORTCUT, (3000, 3000))])
def test_the_bonus_finds_what_has_changed(mazes, steps):
    """Figures 8.4 and 8.5: Dyna-Q+ earns more after the change."""
    options = {"planning": 10, "alpha": 0.5}
    plain, curious = (rewards_of(mazes, steps, 20, bonus=bonus, **options) for bonus in (0.0, 1e-3))
    after = steps[0]
    assert curious[:, after:].sum(1).mean() > 1.1 * plain[:, after:].sum(1).mean()
