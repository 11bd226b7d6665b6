"""The tasks of `dreamer.envs.suites.probes` in JAX: the same rules step by step, with other random numbers.

Observations, rewards and highest returns are described there.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt8

from dreamer.envs.suites.probes import CUE_DELAYS, GOAL, MAZE, MOVES, START
from dreamer.types import MASK, Action, Observation, Space, Spaces

StepResult = tuple[Any, Observation, Float32[Array, ""], Bool[Array, ""], Bool[Array, ""]]
"""What a step returns: state, observation, reward, terminated, truncated."""

_NEVER = np.zeros((), bool)
"""Truncation of tasks that end terminated, and termination of those that end by a time limit."""


class CatchState(NamedTuple):
    """Positions of everything; columns and rows count from 0 at the top left."""

    paddle: Int32[Array, ""]
    """Column of its middle."""
    row: Int32[Array, ""]
    column: Int32[Array, ""]
    drift: Int32[Array, ""]
    """Columns per step: -1, 0 or 1."""
    left: Int32[Array, ""]
    """Drops of the episode that have not ended."""


class JaxCatch:
    """`dreamer.envs.suites.probes.Catch`; see there."""

    def __init__(self, size: int = 8, cell: int = 2, drops: int = 4) -> None:
        self.obs_spaces: Spaces = {"image": Space("image", (size * cell, size * cell, 1))}
        self.action_spaces: Spaces = {"action": Space("discrete", (), 3)}
        self._size = size
        self._cell = cell
        self._drops = drops

    def reset(self, key: Array) -> tuple[CatchState, Observation]:
        """A new ball, the paddle in the middle."""
        column, drift = self._drop(key)
        state = CatchState(_int(self._size // 2), _int(0), column, drift, _int(self._drops))
        return state, {"image": self._image(state)}

    def step(self, state: CatchState, action: Action, key: Array) -> StepResult:
        """Move paddle and ball; a ball in the last row is caught or missed, and the next one drops."""
        paddle = jnp.clip(state.paddle + action["action"] - 1, 1, self._size - 2)
        # A ball that would leave the grid turns round first.
        ahead = state.column + state.drift
        drift = jnp.where((ahead < 0) | (ahead >= self._size), -state.drift, state.drift)
        moved = CatchState(paddle, state.row + 1, state.column + drift, drift, state.left)
        landed = moved.row == self._size - 1
        caught = jnp.where(jnp.abs(moved.column - paddle) <= 1, 1.0, -1.0)
        # A landed ball is replaced by a new one at the top.
        column, drift = self._drop(key)
        dropped = CatchState(paddle, _int(0), column, drift, state.left - 1)
        following: CatchState = jax.tree.map(lambda new, old: jnp.where(landed, new, old), dropped, moved)
        over = following.left == 0
        # The last image of an episode shows the catch or the miss; between drops, the next ball is shown instead.
        seen: CatchState = jax.tree.map(lambda old, new: jnp.where(over, old, new), moved, following)
        reward = jnp.where(landed, caught, 0.0)
        return following, {"image": self._image(seen)}, reward, over, jnp.asarray(_NEVER)

    def render(self, state: CatchState) -> UInt8[Array, "height width 3"]:
        """The grid as RGB, 16 pixels per cell."""
        return self._grid(state)[..., None].repeat(16, 0).repeat(16, 1).repeat(3, 2)

    def _drop(self, key: Array) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
        """Column and drift of a new ball."""
        column_key, drift_key = jax.random.split(key)
        return jax.random.randint(column_key, (), 0, self._size), jax.random.randint(drift_key, (), -1, 2)

    def _grid(self, state: CatchState) -> UInt8[Array, "size size"]:
        place = jnp.arange(self._size)
        ball = (place[:, None] == state.row) & (place[None] == state.column)
        paddle = (place[:, None] == self._size - 1) & (jnp.abs(place[None] - state.paddle) <= 1)
        return jnp.where(ball, 255, jnp.where(paddle, 128, 0)).astype(jnp.uint8)

    def _image(self, state: CatchState) -> UInt8[Array, "height width 1"]:
        return self._grid(state).repeat(self._cell, 0).repeat(self._cell, 1)[..., None]


class TimedState(NamedTuple):
    """Steps taken, and the cue of the episode, 0 or 1."""

    time: Int32[Array, ""]
    cue: Int32[Array, ""]


class _Timed:
    """Episodes of a fixed number of steps with a vector, two actions and a hidden cue; subclasses define the rest."""

    length: int
    width: int = 1

    def __init__(self) -> None:
        self.obs_spaces: Spaces = {"vector": Space("vector", (self.width,))}
        self.action_spaces: Spaces = {"action": Space("discrete", (), 2)}

    def reset(self, key: Array) -> tuple[TimedState, Observation]:
        """Draw the cue."""
        state = TimedState(_int(0), jax.random.randint(key, (), 0, 2))
        return state, {"vector": self._obs(state)}

    def step(self, state: TimedState, action: Action, key: Array) -> StepResult:
        """Let time pass."""
        state = TimedState(state.time + 1, state.cue)
        reward = self._reward(state, jnp.asarray(action["action"]))
        return state, {"vector": self._obs(state)}, reward, state.time == self.length, jnp.asarray(_NEVER)

    def _obs(self, state: TimedState) -> Float32[Array, "width"]:
        return jnp.zeros(self.width, jnp.float32)

    def _reward(self, state: TimedState, action: Int32[Array, ""]) -> Float32[Array, ""]:
        """Reward of the step that led to ``state``."""
        raise NotImplementedError


class JaxConstant(_Timed):
    """`dreamer.envs.suites.probes.Constant`; see there."""

    length = 1

    def _reward(self, state: TimedState, action: Int32[Array, ""]) -> Float32[Array, ""]:
        return jnp.ones((), jnp.float32)


class JaxTwoStep(_Timed):
    """`dreamer.envs.suites.probes.TwoStep`; see there."""

    length = 2

    def _obs(self, state: TimedState) -> Float32[Array, "width"]:
        return jnp.full(1, 0.5) * state.time

    def _reward(self, state: TimedState, action: Int32[Array, ""]) -> Float32[Array, ""]:
        return (state.time == self.length).astype(jnp.float32)


class JaxAction(_Timed):
    """`dreamer.envs.suites.probes.Action`; see there."""

    length = 1

    def _obs(self, state: TimedState) -> Float32[Array, "width"]:
        return jnp.full(1, 2.0 * state.cue - 1)

    def _reward(self, state: TimedState, action: Int32[Array, ""]) -> Float32[Array, ""]:
        return jnp.where(action == state.cue, 1.0, -1.0)


class JaxMemory(_Timed):
    """`dreamer.envs.suites.probes.Memory`; see there."""

    length = 5
    width = 2

    def _obs(self, state: TimedState) -> Float32[Array, "width"]:
        shown = jnp.where(state.time == 0, 2.0 * state.cue - 1, 0.0)
        return jnp.stack([shown, (state.time == self.length - 1).astype(jnp.float32)])

    def _reward(self, state: TimedState, action: Int32[Array, ""]) -> Float32[Array, ""]:
        return jnp.where(state.time < self.length, 0.0, jnp.where(action == state.cue, 1.0, -1.0))


class JaxCue(_Timed):
    """`dreamer.envs.suites.probes.Cue`; see there."""

    width = 3

    def __init__(self, delay: int) -> None:
        super().__init__()
        self.length = delay + 1

    def _obs(self, state: TimedState) -> Float32[Array, "width"]:
        first = state.time == 0
        counts = state.time == self.length - 1
        shown = jnp.where(first, 1.0 - 2.0 * state.cue, 0.0)
        return jnp.stack([shown, first.astype(jnp.float32), counts.astype(jnp.float32)])

    def _reward(self, state: TimedState, action: Int32[Array, ""]) -> Float32[Array, ""]:
        return jnp.where(state.time < self.length, 0.0, jnp.where(action == state.cue, 1.0, -1.0))


class BanditState(NamedTuple):
    """Steps taken, and the arm that pays more often, 0 or 1."""

    time: Int32[Array, ""]
    better: Int32[Array, ""]


class JaxBandit:
    """`dreamer.envs.suites.probes.Bandit`; see there."""

    length = 40

    def __init__(self) -> None:
        self.obs_spaces: Spaces = {"vector": Space("vector", (2,))}
        self.action_spaces: Spaces = {"action": Space("discrete", (), 2)}

    def reset(self, key: Array) -> tuple[BanditState, Observation]:
        """Draw the better arm."""
        return BanditState(_int(0), jax.random.randint(key, (), 0, 2)), {"vector": jnp.zeros(2, jnp.float32)}

    def step(self, state: BanditState, action: Action, key: Array) -> StepResult:
        """Pull an arm."""
        arm = jnp.asarray(action["action"])
        paid = jax.random.uniform(key) < jnp.where(arm == state.better, 0.7, 0.3)
        reward = paid.astype(jnp.float32)
        state = BanditState(state.time + 1, state.better)
        shown = jnp.where(jnp.arange(2) == arm, reward, 0.0)
        return state, {"vector": shown}, reward, jnp.asarray(_NEVER), state.time == self.length


class RepeatState(NamedTuple):
    """Steps taken, and the symbol of every observation of the episode, 0 to 3."""

    time: Int32[Array, ""]
    symbols: Int32[Array, "observations"]


class JaxRepeatPrevious:
    """`dreamer.envs.suites.probes.RepeatPrevious`; see there."""

    length = 32
    classes = 4
    lag = 4

    def __init__(self) -> None:
        self.obs_spaces: Spaces = {"vector": Space("vector", (self.classes,))}
        self.action_spaces: Spaces = {"action": Space("discrete", (), self.classes)}

    def reset(self, key: Array) -> tuple[RepeatState, Observation]:
        """Draw all symbols."""
        state = RepeatState(_int(0), jax.random.randint(key, (self.length + 1,), 0, self.classes))
        return state, {"vector": self._obs(state)}

    def step(self, state: RepeatState, action: Action, key: Array) -> StepResult:
        """Compare the action with an earlier symbol, and show the next one."""
        named = state.time - self.lag
        right = jnp.asarray(action["action"]) == state.symbols[jnp.maximum(named, 0)]
        reward = jnp.where(named < 0, 0.0, jnp.where(right, 1.0, -1.0) / (self.length - self.lag))
        state = RepeatState(state.time + 1, state.symbols)
        return state, {"vector": self._obs(state)}, reward, jnp.asarray(_NEVER), state.time == self.length

    def _obs(self, state: RepeatState) -> Float32[Array, "classes"]:
        return (jnp.arange(self.classes) == state.symbols[state.time]).astype(jnp.float32)


class MaskedState(NamedTuple):
    """Steps taken, and the previous action, -1 at first."""

    time: Int32[Array, ""]
    previous: Int32[Array, ""]


class JaxMasked:
    """`dreamer.envs.suites.probes.Masked`; see there. A forbidden action cannot raise here: it earns -1000."""

    length = 6

    def __init__(self) -> None:
        self.obs_spaces: Spaces = {MASK: Space("discrete", (3,), 2)}
        self.action_spaces: Spaces = {"action": Space("discrete", (), 3)}

    def reset(self, key: Array) -> tuple[MaskedState, Observation]:
        """Everything is allowed."""
        state = MaskedState(_int(0), _int(-1))
        return state, {MASK: self._mask(state)}

    def step(self, state: MaskedState, action: Action, key: Array) -> StepResult:
        """Reward the action, and forbid it for the next step."""
        chosen = jnp.asarray(action["action"])
        reward = jnp.where(chosen == state.previous, -1000.0, 1.0 - chosen)
        state = MaskedState(state.time + 1, chosen)
        return state, {MASK: self._mask(state)}, reward, state.time == self.length, jnp.asarray(_NEVER)

    def _mask(self, state: MaskedState) -> Int32[Array, "3"]:
        return (jnp.arange(3) != state.previous).astype(jnp.int32)


class MazeState(NamedTuple):
    """Steps taken, and row and column of the cell."""

    time: Int32[Array, ""]
    cell: Int32[Array, "2"]


class JaxMaze:
    """`dreamer.envs.suites.probes.Maze`; see there."""

    length = 100

    def __init__(self) -> None:
        self.obs_spaces: Spaces = {"discrete": Space("discrete", (2,), len(MAZE))}
        self.action_spaces: Spaces = {"action": Space("discrete", (), len(MOVES))}

    def reset(self, key: Array) -> tuple[MazeState, Observation]:
        """Back to the start."""
        state = MazeState(_int(0), jnp.asarray(START, jnp.int32))
        return state, {"discrete": state.cell}

    def step(self, state: MazeState, action: Action, key: Array) -> StepResult:
        """Move, unless there is a wall."""
        ahead = jnp.clip(state.cell + jnp.asarray(MOVES, jnp.int32)[action["action"]], 0, len(MAZE) - 1)
        cell = jnp.where(jnp.asarray(MAZE)[ahead[0], ahead[1]], ahead, state.cell)
        found = (cell == jnp.asarray(GOAL)).all()
        state = MazeState(state.time + 1, cell)
        return state, {"discrete": cell}, found.astype(jnp.float32), found, ~found & (state.time == self.length)


def _int(value: int) -> Int32[Array, ""]:
    return jnp.asarray(value, jnp.int32)


PROBES: dict[str, Callable[[], Any]] = {
    "action": JaxAction,
    "bandit": JaxBandit,
    "catch": JaxCatch,
    "constant": JaxConstant,
    **{f"cue{delay}": functools.partial(JaxCue, delay) for delay in CUE_DELAYS},
    "masked": JaxMasked,
    "maze": JaxMaze,
    "memory": JaxMemory,
    "repeat": JaxRepeatPrevious,
    "two_step": JaxTwoStep,
}
"""What makes each probe, by name, as in `dreamer.envs.suites.probes`."""


__all__ = [
    "PROBES",
    "CatchState",
    "JaxAction",
    "JaxBandit",
    "JaxCatch",
    "JaxConstant",
    "JaxCue",
    "JaxMasked",
    "JaxMaze",
    "JaxMemory",
    "JaxRepeatPrevious",
    "JaxTwoStep",
    "StepResult",
]
