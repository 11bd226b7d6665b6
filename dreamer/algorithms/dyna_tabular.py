"""Dyna-Q and Dyna-Q+ on the mazes of the textbook: learn a table of values from real steps, and from remembered ones.

It needs neither networks nor replay, so it does not follow the protocol of `dreamer.algorithms.base`: `learn` is the
whole run, as one program, and `jax.vmap` over keys makes many of them.

Source: Sutton and Barto 2018, "Reinforcement learning: an introduction", second edition, sections 8.2 and 8.3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

ACTIONS = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
"""Rows and columns that up, down, left and right move by."""


class Gridworld(NamedTuple):
    """A grid of cells, some of which are walls; a step into one, or off the grid, leads nowhere."""

    walls: Bool[np.ndarray, "R C"]
    start: tuple[int, int]
    goal: tuple[int, int]
    """Arriving here earns 1, and the next step begins at the start."""

    @classmethod
    def of(cls, drawing: str) -> "Gridworld":
        """The maze of a drawing: ``#`` is a wall, ``S`` the start and ``G`` the goal."""
        cells = np.array([list(line.strip()) for line in drawing.split()])
        start, goal = (tuple(np.argwhere(cells == letter)[0].tolist()) for letter in "SG")
        return cls(cells == "#", start, goal)

    def moves(self) -> Int32[np.ndarray, "S A"]:
        """The cell, counted row by row, that each action leads to from each cell."""
        cells = np.indices(self.walls.shape).reshape(2, -1).T  # [S, 2]
        beyond = cells[:, None] + ACTIONS  # [S, A, 2]
        inside = np.clip(beyond, 0, np.array(self.walls.shape) - 1)
        blocked = (inside != beyond).any(-1) | self.walls[inside[..., 0], inside[..., 1]]
        arrived = np.where(blocked[..., None], cells[:, None], inside)
        return np.ravel_multi_index(tuple(np.moveaxis(arrived, -1, 0)), self.walls.shape).astype(np.int32)

    def cell(self, place: tuple[int, int]) -> int:
        """Number of a cell, counted row by row."""
        return int(np.ravel_multi_index(place, self.walls.shape))


DYNA = Gridworld.of(".......#G ..#....#. S.#....#. ..#...... .....#... .........")
"""Figure 8.2; the goal is 14 steps away."""
BLOCKING = (
    Gridworld.of("........G ......... ......... ########. ......... ...S....."),
    Gridworld.of("........G ......... ......... .######## ......... ...S....."),
)
"""Figure 8.4: the short way is blocked, and a longer one opens."""
SHORTCUT = BLOCKING[1], Gridworld.of("........G ......... ......... .#######. ......... ...S.....")
"""Figure 8.5: a shorter way opens beside the one that is known."""


class DynaState(NamedTuple):
    """Everything that changes; tables have a row for each cell and a column for each action."""

    value: Float32[Array, "S A"]
    arrived: Int32[Array, "S A"]
    """The model: where each action led, at first nowhere."""
    earned: Float32[Array, "S A"]
    """The model: the reward that it earned, at first none."""
    tried: Int32[Array, "S A"]
    """The latest time that it was tried; -1: never."""
    cell: Int32[Array, ""]


def learn(
    mazes: tuple[Gridworld, ...],
    steps: tuple[int, ...],
    key: Array,
    *,
    planning: int,
    bonus: float = 0.0,
    alpha: float = 0.1,
    epsilon: float = 0.1,
    discount: float = 0.95,
) -> Float32[Array, "T"]:
    """The reward of each step of a run; it is 1 where an episode ends.

    Args:
        mazes: of one size, one after another.
        steps: in each of them; T in all.
        key: random key.
        planning: remembered steps (n) that are learned from after each real one; 0 is plain Q learning.
        bonus: kappa of Dyna-Q+: a remembered step earns ``kappa sqrt(tau)`` more if it was tried tau steps ago, and
            actions that were never tried are remembered as leading nowhere; 0 is Dyna-Q.
        alpha: step size.
        epsilon: share of random actions.
        discount: of the return.
    """
    moves = jnp.asarray(np.stack([maze.moves() for maze in mazes]))
    start, goal = mazes[0].cell(mazes[0].start), mazes[0].cell(mazes[0].goal)
    cells, actions = moves.shape[1:]

    def choose(uniform: Array, allowed: Bool[Array, "n"]) -> Int32[Array, ""]:
        """The one among those allowed that a uniform draw in [0, 1) stands for."""
        count = jnp.cumsum(allowed)
        return (count <= uniform * count[-1]).sum()

    def back_up(value: Array, cell: Array, action: Array, reward: Array, arrived: Array) -> Array:
        # The goal ends an episode: no action is ever taken there, and its values stay 0.
        error = reward + discount * value[arrived].max() - value[cell, action]
        return value.at[cell, action].add(alpha * error)

    def step(state: DynaState, inputs: tuple[Array, Array, Array]) -> tuple[DynaState, Array]:
        key, maze, time = inputs
        draws = jax.random.uniform(key, (1 + planning, 2))
        explores = draws[0, 0] < epsilon
        row = state.value[state.cell]
        action = choose(draws[0, 1], explores | (row == row.max()))  # Ties are broken at random.
        place = state.cell, action
        arrived = moves[maze, state.cell, action]
        reward = (arrived == goal).astype(jnp.float32)
        value = back_up(state.value, *place, reward, arrived)
        model = DynaState(
            value,
            arrived=state.arrived.at[place].set(arrived),
            earned=state.earned.at[place].set(reward),
            tried=state.tried.at[place].set(time),
            cell=jnp.where(arrived == goal, start, arrived),
        )
        seen = (model.tried >= 0).any(1)

        def plan(value: Array, draw: Array) -> tuple[Array, None]:
            cell = choose(draw[0], seen)
            action = choose(draw[1], (model.tried[cell] >= 0) | (bonus > 0))
            idle = time - model.tried[cell, action]
            reward = model.earned[cell, action] + bonus * jnp.sqrt(idle.astype(jnp.float32))
            return back_up(value, cell, action, reward, model.arrived[cell, action]), None

        value, _ = jax.lax.scan(plan, value, draws[1:])
        return model._replace(value=value), reward

    nowhere = jnp.broadcast_to(jnp.arange(cells, dtype=jnp.int32)[:, None], (cells, actions))
    zeros = jnp.zeros((cells, actions))
    state = DynaState(zeros, nowhere, zeros, jnp.full((cells, actions), -1, jnp.int32), jnp.asarray(start, jnp.int32))
    total = sum(steps)
    maze = jnp.asarray(np.repeat(np.arange(len(mazes)), steps))
    _, rewards = jax.lax.scan(step, state, (jax.random.split(key, total), maze, jnp.arange(total)))
    return rewards


def episode_lengths(rewards: Float32[np.ndarray, "T"]) -> Int32[np.ndarray, "n"]:
    """Steps of each episode that ended, from the rewards of a run."""
    return np.diff(np.flatnonzero(rewards), prepend=-1).astype(np.int32)


__all__ = ["BLOCKING", "DYNA", "SHORTCUT", "DynaState", "Gridworld", "episode_lengths", "learn"]
