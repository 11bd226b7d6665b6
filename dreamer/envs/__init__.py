"""Environments: `make` one by name, or wrap your own in an `Adapter`; a `VectorEnv` steps many.

A task is ``SUITE_NAME`` (``dmc_walker_walk``), or ``package.module:function`` for a function without arguments that
returns a Gymnasium environment; `dreamer.envs.names` tells them apart. Each suite is one file, imported when it is
needed, with two functions: ``tasks() -> list of names`` and ``make(name, config, render_mode) -> gymnasium.Env``. An
environment may offer more than Gymnasium requires:

* an attribute ``action_repeat``: it repeats every action that often itself, sums the rewards, and reports in
  ``info["env_steps"]`` how often it really applied the action;
* ``info["log"]`` at the last step of an episode: numbers by name, which the run logs;
* an observation key ``action_mask``: which classes of a discrete action are allowed now;
* methods ``get_state() -> state`` and ``set_state(state)``, with which a resumed run continues in the middle of an
  episode; a state is plain data, see `dreamer.envs.restore.states`.

A suite may also have ``summarize(logs) -> numbers by name``: what to log about all ``info["log"]`` of a run so far.

Nothing here knows about networks.
"""

from collections.abc import Callable, Mapping

import gymnasium

from dreamer.config import EnvConfig
from dreamer.envs.adapter import Adapter, adapt
from dreamer.envs.errors import EnvError, NotRestorable, UnknownTask
from dreamer.envs.functions import (
    call_function,
    explain_failure,
    load_function,
    maker_of,
    refuse_frames_missing,
    require_gymnasium,
    takes_render_mode,
    task_of,
)
from dreamer.envs.interpreter import ForeignEnv
from dreamer.envs.names import load_suite, missing_package, nearest, split, tasks, unknown
from dreamer.envs.vector import VectorEnv

WITH_KWARGS = ("gym", "minigrid")
"""Suites that pass ``env.kwargs`` on."""


def make(task: str, config: EnvConfig, *, render: bool = False) -> Adapter:
    """Make the environment of a task.

    Args:
        task: ``SUITE_NAME`` or ``package.module:function``; see `tasks` and `dreamer.envs.names`.
        config: action repeat, checks, and the suites' options; with ``python``, another Python makes and steps it.
        render: whether ``render()`` of the result returns frames, uint8 ``[H, W, 3]``.

    Raises:
        EnvError: there is no such task (names the nearest), a package is missing (names the command that installs it),
            the code of the environment raised (names the error and the line), what it makes is no Gymnasium
            environment or cannot render, its spaces are not supported, or ``config.python`` cannot be used.
    """
    env = ForeignEnv(task, config, render=render) if config.python else make_gymnasium(task, config, render=render)
    return Adapter(env, config, name=task)


def make_gymnasium(task: str, config: EnvConfig, *, render: bool = False) -> gymnasium.Env:
    """The environment of a task as `make` makes it in this process, without an `Adapter`."""
    suite, name = split(task)
    if suite:
        return _make_in_suite(task, suite, name, config, render)
    if ":" not in task:
        raise unknown(task)
    function = load_function(task, task)
    options = {**config.kwargs, **({"render_mode": "rgb_array"} if render and takes_render_mode(function) else {})}
    env = require_gymnasium(call_function(function, task, **options), task)
    if render:
        refuse_frames_missing(env, function, task)
    return env


def _make_in_suite(task: str, suite: str, name: str, config: EnvConfig, render: bool) -> gymnasium.Env:
    if config.kwargs and suite not in WITH_KWARGS:
        raise EnvError(
            f"env.kwargs={config.kwargs} cannot be used with task '{task}': only tasks by the ids of Gymnasium and "
            "MiniGrid, and functions (package.module:function), take keyword arguments."
        )
    module = load_suite(suite)
    with explain_failure(f"Task '{task}'"):
        try:
            env = module.make(name, config, "rgb_array" if render else None)
        except UnknownTask as error:
            raise unknown(task, str(error)) from error
        except ImportError as error:
            raise missing_package(f"Task '{task}'", error) from error
    if render and env.render_mode != "rgb_array":
        modes = env.metadata.get("render_modes", [])
        raise EnvError(
            f"Task '{task}' cannot render images: its render modes are {modes}, expected 'rgb_array' among them."
        )
    return env


def summarizer(task: str) -> Callable[[list[Mapping[str, float]]], Mapping[str, float]] | None:
    """The function ``summarize`` of a task's suite; None for most suites, which have none, and for those not here."""
    suite, _ = split(task)
    try:
        return getattr(load_suite(suite), "summarize", None) if suite else None
    except EnvError:  # The package is there for another Python (``env.python``) only.
        return None


__all__ = [
    "Adapter",
    "EnvError",
    "NotRestorable",
    "VectorEnv",
    "adapt",
    "make",
    "make_gymnasium",
    "maker_of",
    "nearest",
    "split",
    "summarizer",
    "task_of",
    "tasks",
]
