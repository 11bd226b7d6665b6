"""Memory Maze (Pasukonis et al., 2023): find coloured objects in a maze, over and over, in the order shown."""

import importlib.util
import logging
import sys

import dm_env
import gymnasium

from dreamer.config import EnvConfig
from dreamer.envs.errors import UnknownTask
from dreamer.envs.suites.dmc import DMEnv, require_renderer

_SIZES = ("9x9", "11x11", "13x13", "15x15")

_SPEC = importlib.util.find_spec("memory_maze")
if _SPEC is None:
    raise ModuleNotFoundError("No module named 'memory_maze'", name="memory_maze")
_PACKAGE = importlib.util.module_from_spec(_SPEC)
"""The package memory_maze, without running its ``__init__``.

On import it registers its tasks with the library gym, which is unmaintained and not needed here, and fails if gym is
missing.
"""


def tasks() -> list[str]:
    """Names of all tasks: ``maze_9x9`` to ``maze_15x15``."""
    return sorted(f"maze_{size}" for size in _SIZES)


def make(name: str, config: EnvConfig, render_mode: str | None) -> gymnasium.Env:
    """Make a maze by its size, for example ``maze_9x9``.

    Observation: uint8 ``image [64, 64, 3]``, the view of the agent with a border in the colour of the object to find.
    Actions: nothing, forward, left, right, forward and left, forward and right; four per second.
    Reward: 1 for the object, after which another is to be found. Ends: truncated after 1000, 2000, 3000 or 4000
    steps. Rendering for people shows the maze from above.

    Raises:
        UnknownTask: there is no such size.
        EnvError: nothing here can render.
    """
    if name not in tasks():
        raise UnknownTask(f"Memory Maze has no task '{name}'.")
    require_renderer()
    sys.modules.setdefault("memory_maze", _PACKAGE)
    build = getattr(importlib.import_module("memory_maze.tasks"), f"memory_{name}")

    def load(seed: int | None) -> dm_env.Environment:
        return build(seed=seed, image_only_obs=True)

    logging.getLogger("absl").addFilter(_is_relevant)
    return DMEnv(load, config.repeat, render_mode=render_mode)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Drops the warning about the rolling ball that dm_control logs at every reset."""
    return "Cannot set velocity on Entity with no free joint" not in str(record.msg)


__all__ = ["make", "tasks"]
