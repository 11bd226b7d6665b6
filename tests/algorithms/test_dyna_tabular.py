"""The mazes of the textbook, and what its figures show."""

import functools

import jax
import numpy as np
import pytest

from dreamer.algorithms.dyna_tabular import BLOCKING, DYNA, SHORTCUT, episode_lengths, learn


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
