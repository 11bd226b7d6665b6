"""Environments: `make` one by name, or wrap your own in an `Adapter`; a `VectorEnv` steps many.

A task is ``SUITE_NAME`` (``dmc_walker_walk``), or ``package.module:function`` for a function without arguments that
returns a Gymnasium environment. Each suite is one file, imported when it is needed, with two functions:
``tasks() -> list of names`` and ``make(name, config, render_mode) -> gymnasium.Env``. An environment may offer more
than Gymnasium requires:

* an attribute ``action_repeat``: it repeats every action that often itself, sums the rewards, and reports in
  ``info["env_steps"]`` how often it really applied the action;
* ``info["log"]`` at the last step of an episode: numbers by name, which the run logs;
* an observation key ``action_mask``: which classes of a discrete action are allowed now;
* methods ``get_state() -> state`` and ``set_state(state)``, with which a resumed run continues in the middle of an
  episode; a state is plain data, see `dreamer.envs.restore.states`.

A suite may also have ``summarize(logs) -> numbers by name``: what to log about all ``info["log"]`` of a run so far.

Nothing here knows about networks.
"""

import difflib
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from dreamer.config import EnvConfig
from dreamer.envs.adapter import Adapter, adapt
from dreamer.envs.errors import EnvError, NotRestorable, UnknownTask
from dreamer.envs.functions import load_function
from dreamer.envs.vector import VectorEnv

_SUITES = {
    "dmc": "suites.dmc",
    "atari": "suites.atari",
    "crafter": "suites.crafter",
    "minigrid": "suites.minigrid",
    "memory": "suites.memory_maze",
    "craftax": "native.from_craftax",
    "playground": "native.from_playground",
    "jax": "native",
    "probe": "suites.probes",
    "gym": "suites.gym",
}
"""Module of each suite by its prefix. Gymnasium comes last: importing another suite may add to its registry."""

_EXTRAS = {
    "ale_py": "suites.atari",
    "craftax": "craftax",
    "crafter": "suites.crafter",
    "gymnax": "gymnax",
    "memory_maze": "memory",
    "minigrid": "suites.minigrid",
    "mujoco_playground": "playground",
}
"""Extra of this package that installs a module."""

_HOW = (
    "A task is gym_ID for any Gymnasium id (gym_CartPole-v1; gym_MODULE:ID imports MODULE first), dmc_DOMAIN_TASK, "
    "atari_GAME, crafter_reward, minigrid_ID, memory_maze_SIZE, craftax_NAME, playground_NAME, jax_NAME, probe_NAME, "
    "your.module:function for a function that returns a Gymnasium environment, or jax_your.module:function for one "
    "that returns a NativeEnv"
)


def tasks() -> list[str]:
    """Names that `make` accepts, sorted, from all suites that are installed."""
    names = []
    for prefix in _SUITES:
        try:
            names += [f"{prefix}_{name}" for name in _suite(prefix).tasks()]
        except EnvError:
            continue  # not installed
    return sorted(names)


def make(task: str, config: EnvConfig, *, render: bool = False) -> Adapter:
    """Make the environment of a task.

    Args:
        task: ``SUITE_NAME`` or ``package.module:function``; see `tasks`.
        config: action repeat, checks, and the suites' options.
        render: whether ``render()`` of the result returns frames, uint8 ``[H, W, 3]``.

    Raises:
        EnvError: there is no such task (names the nearest), a package is missing (names the command that installs it),
            the environment cannot render, or its spaces are not supported.
    """
    prefix, _, name = task.partition("_")
    render_mode = "rgb_array" if render else None
    if ":" in task and prefix not in ("gym", "jax"):
        env = _call(task, render_mode)
    elif prefix in _SUITES and name:
        try:
            env = _suite(prefix).make(name, config, render_mode)
        except UnknownTask as error:
            raise EnvError(f"There is no task '{task}': {error}{_suggestion(task)} {_HOW}.") from error
        except ImportError as error:
            raise _missing_package(f"Task '{task}'", error) from error
    else:
        raise EnvError(f"There is no task '{task}'.{_suggestion(task)} {_HOW}.")
    if render and env.render_mode != "rgb_array":
        modes = env.metadata.get("render_modes", [])
        raise EnvError(
            f"Task '{task}' cannot render images: its render modes are {modes}, expected 'rgb_array' among them."
        )
    return Adapter(env, config, name=task)


def summarizer(task: str) -> Callable[[list[Mapping[str, float]]], Mapping[str, float]] | None:
    """The function ``summarize`` of a task's suite; None for most suites, which have none."""
    prefix = task.partition("_")[0]
    return getattr(_suite(prefix), "summarize", None) if prefix in _SUITES else None


@functools.cache
def _suite(prefix: str) -> ModuleType:
    """The module of a suite; raises `EnvError` that names the extra if its package is missing."""
    try:
        return importlib.import_module(f"dreamer.envs.{_SUITES[prefix]}")
    except ImportError as error:
        raise _missing_package(f"The suite '{prefix}'", error) from error


def _missing_package(what: str, error: ImportError) -> EnvError:
    module = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(module)
    command = f"pip install 'dreamer[{extra}]'" if extra else f"pip install {module or 'PACKAGE'}"
    return EnvError(
        f"{what} needs a package that is not installed: {str(error).rstrip('.')}. Install it with: {command}."
    )


def _call(task: str, render_mode: str | None) -> Any:
    """Make the environment of ``package.module:function``, which gets ``render_mode`` if it has such a parameter."""
    function = load_function(task, task)
    accepts = render_mode and "render_mode" in inspect.signature(function).parameters
    return function(render_mode=render_mode) if accepts else function()


def _suggestion(task: str) -> str:
    names = tasks()
    # The most likely mistake is a missing prefix, so look for that first.
    prefixed = [f"{prefix}_{task}" for prefix in _SUITES if f"{prefix}_{task}" in names]
    near = prefixed or difflib.get_close_matches(task, names, n=3)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


__all__ = ["Adapter", "EnvError", "NotRestorable", "VectorEnv", "adapt", "make", "summarizer", "tasks"]
