"""Dyna-Q and Dyna-Q+: learn a table of values from real steps, and from remembered ones.

`dyna_tabular` is the algorithm for any task whose observations and actions are classes. It differs from the textbook in
that steps come from replay: the newest, and others again. What is replayed counts as tried again, with this outcome; so
where a task changes, a small `replay.capacity` forgets what was true before.

`learn` is a whole run on a maze of the textbook as one program, without networks and without replay; `jax.vmap` over
keys makes many of them.

Source: Sutton and Barto 2018, "Reinforcement learning: an introduction", second edition, sections 8.2 and 8.3.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from dreamer.agent import guard
from dreamer.algorithms.base import Algorithm
from dreamer.algorithms.dqn import only_action
from dreamer.algorithms.transitions import transitions
from dreamer.config import Config, ConfigError
from dreamer.types import Action, Batch, Metrics, Mode, Number, Observation, Parts, Spaces, TrainState, mask_keys

LARGEST_TABLE = 10**7
"""Numbers of the largest table."""

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


class Tables(NamedTuple):
    """What is learned: a row for each cell, or state, and a column for each action."""

    value: Float32[Array, "S A"]
    arrived: Int32[Array, "S A"]
    """The model: where each action led, at first nowhere."""
    earned: Float32[Array, "S A"]
    """The model: the reward that it earned, at first none."""
    ended: Bool[Array, "S A"]
    """The model: whether the task ended there."""
    tried: Int32[Array, "S A"]
    """The latest time that it was tried; -1: never."""

    @classmethod
    def fresh(cls, states: int, actions: int) -> "Tables":
        """Nothing is known."""
        nowhere = jnp.broadcast_to(jnp.arange(states, dtype=jnp.int32)[:, None], (states, actions))
        zeros = jnp.zeros((states, actions))
        return cls(zeros, nowhere, jnp.copy(zeros), zeros > 0, jnp.full((states, actions), -1, jnp.int32))

    def back_up(self, state: Array, action: Array, reward: Array, *, alpha: Number, discount: Number) -> "Tables":
        """A step of Q learning on the remembered outcome of an action, with this reward."""
        place = state, action
        future = jnp.where(self.ended[place], 0.0, self.value[self.arrived[place]].max())
        error = reward + discount * future - self.value[place]
        return self._replace(value=self.value.at[place].add(alpha * error))

    def remember(
        self, state: Array, action: Array, reward: Array, *, arrived: Array, ended: Array, time: Array
    ) -> "Tables":
        """The outcome of an action in place of what was known of it."""
        place = state, action
        return self._replace(
            arrived=self.arrived.at[place].set(arrived),
            earned=self.earned.at[place].set(reward),
            ended=self.ended.at[place].set(ended),
            tried=self.tried.at[place].set(time),
        )

    def plan(
        self, draws: Float32[Array, "n 2"], time: Array, *, bonus: float, alpha: Number, discount: Number
    ) -> "Tables":
        """Learn from n remembered steps, of states and actions drawn evenly; see `learn` for the bonus."""
        seen = (self.tried >= 0).any(1)

        def step(tables: "Tables", draw: Array) -> tuple["Tables", None]:
            state = choose(draw[0], seen)
            action = choose(draw[1], (self.tried[state] >= 0) | (bonus > 0))
            idle = time - self.tried[state, action]
            reward = self.earned[state, action] + bonus * jnp.sqrt(idle.astype(jnp.float32))
            return tables.back_up(state, action, reward, alpha=alpha, discount=discount), None

        return jax.lax.scan(step, self, draws)[0]


def choose(uniform: Array, allowed: Bool[Array, "n"]) -> Int32[Array, ""]:
    """The one among those allowed that a uniform draw in [0, 1) stands for."""
    count = jnp.cumsum(allowed)
    return (count <= uniform * count[-1]).sum()


def dyna_tabular(config: Config, obs_spaces: Spaces, action_spaces: Spaces) -> Algorithm:
    """The algorithm for one task; with ``tabular.bonus`` it is Dyna-Q+.

    Args:
        config: the run's config.
        obs_spaces: observation spaces, all of classes.
        action_spaces: one discrete action of one number.

    Raises:
        ConfigError: observations are not classes, there are too many states for a table, or the action is another.
    """
    name, space = only_action(config, action_spaces, continuous="sac")
    others = sorted(key for key, space in obs_spaces.items() if space.kind != "discrete" or space.is_grid)
    sizes = [space.classes for space in obs_spaces.values() for _ in range(math.prod(space.shape))]
    states = math.prod(sizes)
    if others or states * space.classes > LARGEST_TABLE:
        found = f"{', '.join(others)} are none" if others else f"{states:,} are too many for a table"
        raise ConfigError(
            f"algorithm={config.algorithm} cannot be used: expected observations that are classes, at most "
            f"{LARGEST_TABLE:,} together with actions, and {found}. Use algorithm=dqn or dyna_q."
        )
    if masked := mask_keys(obs_spaces, action_spaces):
        raise ConfigError(
            f"algorithm={config.algorithm} cannot be used: its table knows no forbidden actions, and the observation "
            f"{next(iter(masked.values()))} is a mask. Use algorithm=dqn, or leave the mask out with env.ignore."
        )

    def number(obs: Observation) -> Int32[Array, "*batch"]:
        """The state of observations."""
        digits: list[Array] = []
        for key, space in obs_spaces.items():
            value = jnp.asarray(obs[key])
            flat = value.reshape(*value.shape[: value.ndim - len(space.shape)], -1)
            digits += [flat[..., i] for i in range(flat.shape[-1])]
        return jnp.ravel_multi_index(tuple(digits), tuple(sizes), mode="clip").astype(jnp.int32)

    def init(key: Array) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        tables = Tables.fresh(states, space.classes)
        return TrainState(zero, Parts(behavior=tables), Parts(), skipped_in_row=jnp.copy(zero), opt_state=())

    def policy(
        nets: Parts, memory: tuple[()], obs: Observation, is_first: Array, key: Array, mode: Mode
    ) -> tuple[Action, tuple[()], tuple[()]]:
        values = nets.behavior.value[number(obs)]
        draws = jax.random.uniform(key, (2, len(values)))
        explores = (draws[0] < config.tabular.epsilon) & (mode == "sample")
        allowed = explores[:, None] | (values == values.max(-1, keepdims=True))  # Ties are broken at random.
        return {name: jax.vmap(choose)(draws[1], allowed).astype(jnp.int32)}, memory, ()

    def update(state: TrainState, batch: Batch, key: Array, config: Config) -> tuple[TrainState, tuple[()], Metrics]:
        """A step of Q learning on every transition of the batch in turn, then on remembered ones."""
        chosen = config.tabular
        rates = {"alpha": chosen.alpha, "discount": 1 - 1 / config.behavior.return_horizon}
        seen = transitions(batch)

        def learn_from(tables: Tables, step: tuple[Array, ...]) -> tuple[Tables, None]:
            at, action, reward, arrived, ended, happened = step
            remembered = tables.remember(at, action, reward, arrived=arrived, ended=ended, time=state.step)
            learned = remembered.back_up(at, action, reward, **rates)
            return guard.choose(happened, learned, tables), None

        steps = number(seen.obs), seen.action[name], seen.reward, number(seen.next_obs), seen.is_terminal, seen.happened
        tables, _ = jax.lax.scan(learn_from, state.nets.behavior, steps)
        draws = jax.random.uniform(jax.random.fold_in(key, state.step), (chosen.planning, 2))
        tables = tables.plan(draws, state.step, bonus=chosen.bonus, **rates)
        metrics = {
            "tabular/change": jnp.abs(tables.value - state.nets.behavior.value).max(),
            "tabular/tried": (tables.tried >= 0).mean(dtype=jnp.float32),
        }
        return state._replace(step=state.step + 1, nets=Parts(behavior=tables)), (), metrics

    return Algorithm(init, initial=lambda batch: (), policy=policy, update=update)


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

    def step(carry: tuple[Tables, Array], inputs: tuple[Array, Array, Array]) -> tuple[tuple[Tables, Array], Array]:
        tables, cell = carry
        key, maze, time = inputs
        draws = jax.random.uniform(key, (1 + planning, 2))
        explores = draws[0, 0] < epsilon
        row = tables.value[cell]
        action = choose(draws[0, 1], explores | (row == row.max()))  # Ties are broken at random.
        arrived = moves[maze, cell, action]
        ended = arrived == goal
        reward = ended.astype(jnp.float32)
        tables = tables.remember(cell, action, reward, arrived=arrived, ended=ended, time=time)
        tables = tables.back_up(cell, action, reward, alpha=alpha, discount=discount)
        tables = tables.plan(draws[1:], time, bonus=bonus, alpha=alpha, discount=discount)
        return (tables, jnp.where(ended, start, arrived)), reward

    total = sum(steps)
    maze = jnp.asarray(np.repeat(np.arange(len(mazes)), steps))
    carry = Tables.fresh(cells, actions), jnp.asarray(start, jnp.int32)
    _, rewards = jax.lax.scan(step, carry, (jax.random.split(key, total), maze, jnp.arange(total)))
    return rewards


def episode_lengths(rewards: Float32[np.ndarray, "T"]) -> Int32[np.ndarray, "n"]:
    """Steps of each episode that ended, from the rewards of a run."""
    return np.diff(np.flatnonzero(rewards), prepend=-1).astype(np.int32)


__all__ = ["BLOCKING", "DYNA", "SHORTCUT", "Gridworld", "Tables", "dyna_tabular", "episode_lengths", "learn"]
