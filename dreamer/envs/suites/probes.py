"""Built-in environments that need only Gymnasium: two small tasks worth learning, and probes of known value.

Each docstring gives the highest mean return per episode. Probes isolate one ability: if an agent fails one, the name
says what is broken.
"""

import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from dreamer.config import EnvConfig
from dreamer.envs.errors import UnknownTask
from dreamer.spaces import MASK


class Catch(gymnasium.Env):
    """A ball falls, a paddle catches it: +1 for a catch, -1 for a miss, ``drops`` drops per episode.

    Observation: uint8 image ``[size * cell, size * cell, channels]`` of a grid of ``size x size`` cells. Cells are
    larger than a pixel on purpose: an object of one pixel adds so little to the squared error that a world model is
    right to ignore it. The ball is one bright cell that starts in a random column of the top row, falls one row per
    step, drifts sideways by -1, 0 or +1 columns per step, drawn once per drop, and bounces off the walls. The paddle is
    3 cells wide, in the bottom row, and stays where it is between drops.
    Actions: 0 left, 1 stay, 2 right, one column per step.
    Ends: terminated after ``drops * (size - 1)`` steps. Highest return: ``drops``, because the paddle can always be in
    time: it moves as fast as the ball, and ``size - 1`` steps are enough to cross the image.
    """

    def __init__(
        self, size: int = 8, cell: int = 2, channels: int = 1, drops: int = 4, render_mode: str | None = None
    ) -> None:
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 15}
        self.observation_space = spaces.Box(0, 255, (size * cell, size * cell, channels), np.uint8)
        self.action_space = spaces.Discrete(3)
        self.render_mode = render_mode
        self._size = size
        self._cell = cell
        self._channels = channels
        self._drops = drops

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._paddle = self._size // 2
        self._left = self._drops
        self._drop()
        return self._image(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._paddle = int(np.clip(self._paddle + action - 1, 1, self._size - 2))
        if not 0 <= self._column + self._drift < self._size:
            self._drift *= -1
        self._column += self._drift
        self._row += 1
        if self._row < self._size - 1:
            return self._image(), 0.0, False, False, {}
        reward = 1.0 if abs(self._column - self._paddle) <= 1 else -1.0
        image = self._image()
        self._left -= 1
        self._drop()
        # The last image of an episode shows the catch or the miss; between drops, the next ball is shown instead.
        return image if not self._left else self._image(), reward, not self._left, False, {}

    def render(self) -> np.ndarray:
        """The grid as RGB, 16 pixels per cell."""
        return self._grid()[..., None].repeat(16, 0).repeat(16, 1).repeat(3, 2)

    def _drop(self) -> None:
        self._row = 0
        self._column = int(self.np_random.integers(self._size))
        self._drift: int = int(self.np_random.integers(-1, 2))

    def _grid(self) -> np.ndarray:
        grid = np.zeros((self._size, self._size), np.uint8)
        grid[-1, self._paddle - 1 : self._paddle + 2] = 128
        grid[self._row, self._column] = 255
        return grid

    def _image(self) -> np.ndarray:
        image = self._grid().repeat(self._cell, 0).repeat(self._cell, 1)
        return image[..., None].repeat(self._channels, 2)


class HideVelocities(gymnasium.ObservationWrapper):
    """CartPole-v1 without the two velocities: observation ``[2]``, cart position and pole angle; highest return 500.

    A single observation does not determine the best action, so only an agent with memory can balance the pole.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(gymnasium.make("CartPole-v1", disable_env_checker=True, render_mode=render_mode))
        full: Any = self.env.observation_space
        self.observation_space = spaces.Box(full.low[[0, 2]], full.high[[0, 2]], dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Keep position and angle."""
        return observation[[0, 2]]


class _Probe(gymnasium.Env):
    """Episodes of a fixed number of steps with vector observations and discrete actions; subclasses define the rest."""

    length: int
    actions: int = 2
    width: int = 1
    """Numbers in an observation."""
    truncates: bool = False
    """Whether the last step ends the episode by a time limit, truncated, instead of terminated."""

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (self.width,), np.float32)
        self.action_space = spaces.Discrete(self.actions)
        self.render_mode = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._time = 0
        self._begin()
        return self._obs(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._time += 1
        over = self._time == self.length
        reward = self._reward(int(action))
        return self._obs(), reward, over and not self.truncates, over and self.truncates, {}

    def _begin(self) -> None:
        """Draw the random numbers of the episode."""

    def _obs(self) -> np.ndarray:
        return np.zeros(self.width, np.float32)

    def _reward(self, action: int) -> float:
        raise NotImplementedError


class Constant(_Probe):
    """Observation 0, reward 1, over after one step: return 1, and the value before the step is exactly 1."""

    length = 1

    def _reward(self, action: int) -> float:
        return 1.0


class TwoStep(_Probe):
    """Reward 0, then 1, then over; observation: the time, 0, 0.5 and 1. Return 1.

    Values: 1 before the second step and one discount before the first.
    """

    length = 2

    def _obs(self) -> np.ndarray:
        return np.full(1, self._time / 2, np.float32)

    def _reward(self, action: int) -> float:
        return float(self._time == 2)


class Action(_Probe):
    """Observation -1 or 1 at random; +1 for action 0 at -1 and action 1 at 1, otherwise -1; one step. Best return 1."""

    length = 1

    def _begin(self) -> None:
        self._cue = int(self.np_random.integers(2))

    def _obs(self) -> np.ndarray:
        return np.full(1, 2 * self._cue - 1, np.float32)

    def _reward(self, action: int) -> float:
        return 1.0 if action == self._cue else -1.0


class Memory(_Probe):
    """The first observation shows -1 or 1, then 0 for three steps; the last action must repeat the cue.

    Observation ``[2]``: cue, and 1 when the action counts. The fifth action earns +1 if it is 0 after the cue -1 or 1
    after the cue 1, otherwise -1. Best return 1; without memory 0.
    """

    length = 5
    width = 2

    def _begin(self) -> None:
        self._cue = int(self.np_random.integers(2))

    def _obs(self) -> np.ndarray:
        return np.array([2 * self._cue - 1 if self._time == 0 else 0, self._time == self.length - 1], np.float32)

    def _reward(self, action: int) -> float:
        if self._time < self.length:
            return 0.0
        return 1.0 if action == self._cue else -1.0


class Cue(_Probe):
    """The first observation shows 1 or -1, and the action ``delay`` steps later must repeat the cue.

    Observation ``[3]``: at the first step the cue and 1, then zeros, except for the third number, which is 1 at step
    ``delay``, when the action counts. That action earns +1 if it is 0 after the cue 1 or 1 after the cue -1, otherwise
    -1, and ends the episode, terminated. Best return 1; without memory 0.
    """

    width = 3

    def __init__(self, delay: int, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.length = delay + 1

    def _begin(self) -> None:
        self._cue = int(self.np_random.integers(2))

    def _obs(self) -> np.ndarray:
        first = self._time == 0
        return np.array([1 - 2 * self._cue if first else 0, first, self._time == self.length - 1], np.float32)

    def _reward(self, action: int) -> float:
        if self._time < self.length:
            return 0.0
        return 1.0 if action == self._cue else -1.0


class Bandit(_Probe):
    """Two arms pay 1, one with probability 0.7 and one with 0.3; which is the better is drawn in every episode.

    Observation ``[2]``: the latest reward, at the index of the arm pulled; zeros at first. Ends truncated after 40
    steps: nothing shows the time, and the arms would go on paying. Always the better arm earns 28 on average; 26.8 is
    the best return of an agent that must find it, from all it has seen. Without memory, pulling an arm again if it has
    just paid, and otherwise either, earns 23; random pulls earn 20.
    """

    length = 40
    width = 2
    truncates = True

    def _begin(self) -> None:
        self._better = int(self.np_random.integers(2))
        self._shown = np.zeros(self.width, np.float32)

    def _obs(self) -> np.ndarray:
        return self._shown

    def _reward(self, action: int) -> float:
        reward = float(self.np_random.random() < (0.7 if action == self._better else 0.3))
        self._shown = np.zeros(self.width, np.float32)
        self._shown[action] = reward
        return reward


class RepeatPrevious(_Probe):
    """Every observation shows one of 4 symbols, and the action must name the one shown 4 steps before.

    Observation ``[4]``: one-hot, uniformly random. Of the 32 actions, the first 4 earn nothing, as there is nothing to
    name; each of the other 28 earns 1/28 if right, otherwise -1/28. Ends truncated: nothing shows the time, and the
    task could go on. Best return 1; without memory, or at random, -0.5.

    Source: RepeatPrevious of Morad et al. 2023, "POPGym: Benchmarking Partially Observable Reinforcement Learning",
    whose code truncates, too. There, symbols are the suits of cards, dealt from a deck without replacement.
    """

    length = 32
    actions = 4
    width = 4
    truncates = True
    lag = 4
    """Steps between a symbol and the action that names it."""

    def _begin(self) -> None:
        self._symbols = self.np_random.integers(self.actions, size=self.length + 1)

    def _obs(self) -> np.ndarray:
        return np.eye(self.width, dtype=np.float32)[self._symbols[self._time]]

    def _reward(self, action: int) -> float:
        named = self._time - 1 - self.lag
        if named < 0:
            return 0.0
        return (1.0 if action == self._symbols[named] else -1.0) / (self.length - self.lag)


class Masked(gymnasium.Env):
    """No action twice in a row, or a ValueError is raised: observation ``action_mask [3]`` forbids the last action.

    Actions 0, 1 and 2 earn 1, 0 and -1; ends terminated after 6 steps. Best return 3, from alternating 0 and 1;
    random allowed actions average 0. Without the mask, an agent would always take action 0.
    """

    length = 6

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Dict({MASK: spaces.MultiBinary(3)})
        self.action_space = spaces.Discrete(3)
        self.render_mode = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self._time = 0
        self._mask = np.ones(3, np.int8)
        return {MASK: self._mask}, {}

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict]:
        if not self._mask[action]:
            raise ValueError(f"action {action} is forbidden after itself")
        self._time += 1
        self._mask = np.ones(3, np.int8)
        self._mask[action] = 0
        return {MASK: self._mask}, 1.0 - int(action), self._time == self.length, False, {}


class Maze(gymnasium.Env):
    """A maze in 10 x 10 cells, always the same: 1 at the goal, and nothing before it. For exploration.

    Observation: row and column of the cell, two class indices of 10 from the top left; walls do not show.
    Actions: 0 up, 1 right, 2 down, 3 left; a step into a wall or out of the grid leads nowhere.
    Episodes begin at the top left and end terminated at the goal, at the bottom right, or truncated after 100 steps.
    The maze is one winding corridor of 55 cells, so that the way to the goal takes 54 steps. Best return 1;
    random actions see some 20 cells in 5,000 steps, and never the goal. Success is reported.
    """

    length = 100

    def __init__(self, render_mode: str | None = None) -> None:
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 15}
        self.observation_space = spaces.MultiDiscrete(np.array(MAZE.shape))
        self.action_space = spaces.Discrete(len(MOVES))
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._time = 0
        self._cell = np.array(START)
        return self._cell, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._time += 1
        ahead = np.clip(self._cell + MOVES[action], 0, np.array(MAZE.shape) - 1)
        if MAZE[tuple(ahead)]:
            self._cell = ahead
        found = tuple(self._cell) == GOAL
        return self._cell, float(found), found, not found and self._time == self.length, {"is_success": found}

    def render(self) -> np.ndarray:
        """The maze as RGB, 16 pixels per cell: walls black, the goal green, the agent red."""
        image = np.repeat(np.where(MAZE, 255, 0).astype(np.uint8)[..., None], 3, -1)
        image[GOAL] = 0, 160, 0
        image[tuple(self._cell)] = 200, 0, 0
        return image.repeat(16, 0).repeat(16, 1)


class Dummy(gymnasium.Env):
    """Every supported kind of space, nested, with random observations; for tests of plumbing.

    Reward: 1 for every step. Ends: terminated or truncated (by a fair coin) after 10 steps. Return 10.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Dict(
            {
                "camera": spaces.Box(0, 255, (16, 16, 3), np.uint8),
                "gray": spaces.Box(0, 255, (16, 16), np.uint8),
                "body": spaces.Dict(
                    {
                        "joints": spaces.Box(-1.0, 1.0, (2, 3), np.float64),
                        "touch": spaces.MultiBinary(4),
                        "pair": spaces.Tuple([spaces.Discrete(3, start=-1), spaces.Box(-5, 5, (), np.int64)]),
                    }
                ),
                "cards": spaces.MultiDiscrete([5, 5]),
                "dice": spaces.MultiDiscrete([2, 6]),
            }
        )
        self.action_space = spaces.Dict(
            {
                "arm": spaces.Tuple([spaces.Box(-2.0, 6.0, (3,), np.float64), spaces.Discrete(4, start=1)]),
                "keys": spaces.MultiBinary(2),
                "menu": spaces.MultiDiscrete([3, 2]),
                "dials": spaces.MultiDiscrete([4, 4]),
            }
        )
        self.render_mode = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        """See `gymnasium.Env.step`; refuses actions outside the space, so that tests notice them."""
        if not self.action_space.contains(action):
            raise ValueError(f"action {action} is not in {self.action_space}")
        self._time += 1
        over = self._time == 10
        terminal = over and bool(self.np_random.integers(2))
        return self.observation_space.sample(), 1.0, terminal, over and not terminal, {"time": self._time}


_MAZE = """
..........
#########.
..........
.#########
..........
#########.
..........
.#########
..........
#########.
"""

MAZE = np.array([[cell != "#" for cell in row] for row in _MAZE.split()])
"""Which cells of `Maze` are free, ``[10, 10]``."""

START = (0, 0)
GOAL = (9, 9)
WAY = 54
"""Steps from one to the other."""

MOVES = np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])
"""Rows and columns that each action moves by."""


CUE_DELAYS = (1, 2, 4, 8, 16, 32)
"""Delays of the probes ``cue1`` to ``cue32``."""

_PROBES: dict[str, Callable[..., gymnasium.Env]] = {
    "action": Action,
    "bandit": Bandit,
    "cartpole_hidden": HideVelocities,
    "catch": Catch,
    "constant": Constant,
    **{f"cue{delay}": functools.partial(Cue, delay) for delay in CUE_DELAYS},
    "dummy": Dummy,
    "masked": Masked,
    "maze": Maze,
    "memory": Memory,
    "repeat": RepeatPrevious,
    "two_step": TwoStep,
}


def tasks() -> list[str]:
    """Names of all probes."""
    return sorted(_PROBES)


def make(name: str, config: EnvConfig, render_mode: str | None) -> gymnasium.Env:
    """Make a probe; raises `UnknownTask`."""
    if name not in _PROBES:
        raise UnknownTask(f"There is no probe '{name}'.")
    return _PROBES[name](render_mode=render_mode)


__all__ = [
    "CUE_DELAYS",
    "GOAL",
    "MAZE",
    "MOVES",
    "START",
    "WAY",
    "Action",
    "Bandit",
    "Catch",
    "Constant",
    "Cue",
    "Dummy",
    "HideVelocities",
    "Masked",
    "Maze",
    "Memory",
    "RepeatPrevious",
    "TwoStep",
    "make",
    "tasks",
]
