"""Environments: `make` one by name, or wrap your own in an `Adapter`; a `VectorEnv` steps many.

A task is ``SUITE_NAME`` (``dmc_walker_walk``), or ``package.module:function`` for a function without arguments that
returns a Gymnasium environment; `dreamer.envs.names` tells them apart. Each suite is one file, imported when it is
needed, with two functions: ``tasks() -> list of names`` and ``make(name, config, render_mode) -> gymnasium.Env``. A
suite, or a function with a parameter ``num_envs``, may also return many environments in one object; see
`dreamer.envs.vector.batched`. An environment may offer more than Gymnasium requires:

* an attribute ``action_repeat``: it repeats every action that often itself, sums the rewards, and reports in
  ``info["env_steps"]`` how often it really applied the action;
* ``info["log"]`` at the last step of an episode: numbers by name, which the run logs;
* an observation key ``action_mask``: which classes of a discrete action are allowed now;
* methods ``get_state() -> state`` and ``set_state(state)``, with which a resumed run continues in the middle of an
  episode; a state is plain data, see `dreamer.envs.restore.states`.

A suite may also have ``summarize(logs) -> numbers by name``: what to log about all ``info["log"]`` of a run so far.

Nothing here knows about networks.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium

from dreamer.config import EnvConfig
from dreamer.envs.adapter import Adapter, adapt, close
from dreamer.envs.errors import EnvError, NotRestorable, UnknownTask
from dreamer.envs.functions import (
    call_function,
    explain_failure,
    load_function,
    maker_of,
    refuse_frames_missing,
    require_gymnasium,
    takes,
    takes_render_mode,
    task_of,
)
from dreamer.envs.interpreter import ForeignEnv
from dreamer.envs.names import load_suite, missing_package, nearest, split, tasks, unknown
from dreamer.envs.vector import Batched, VectorEnv
from dreamer.envs.vector.batched import is_batched

IN_JAX = ("jax", "craftax", "playground")
"""Suites of environments in JAX."""

WITH_KWARGS = ("gym", "vec", "envpool", "minigrid")
"""Suites that pass ``env.kwargs`` on."""


def make(task: str, config: EnvConfig, *, render: bool = False) -> Adapter:
    """Make the one environment of a task.

    Args:
        task: ``SUITE_NAME`` or ``package.module:function``; see `tasks` and `dreamer.envs.names`.
        config: action repeat, checks, and the suites' options; with ``python``, another Python makes and steps it.
        render: whether ``render()`` of the result returns frames, uint8 ``[H, W, 3]``.

    Raises:
        EnvError: there is no such task (names the nearest), a package is missing (names the command that installs it),
            the code of the environment raised (names the error and the line), what it makes is no Gymnasium
            environment or cannot render, its spaces are not supported, or ``config.python`` cannot be used.
    """
    env = make_any(task, config, render=render)
    if isinstance(env, Batched):
        env.close(quiet=True)
        raise EnvError(
            f"Task '{task}' is {env.num_envs} environments in one object, expected one: train on it, evaluate it, or "
            f"step it with dreamer.envs.VectorEnv(dreamer.make_env(config), config.env, seed)."
        )
    return env


def make_any(task: str, config: EnvConfig, *, render: bool = False, num_envs: int | None = None) -> Adapter | Batched:
    """As `make`, but the task may also stand for many environments in one object.

    Args:
        task: as for `make`.
        config: as for `make`.
        render: as for `make`.
        num_envs: how many there shall be in one object; None: ``config.count``.

    Raises:
        EnvError: as for `make`; or frames are wanted of many in one object.
    """
    if num_envs is not None:
        config = dataclasses.replace(config, count=num_envs)
    if config.python:
        return _adapt(ForeignEnv(task, config, render=render), config, task, render)
    env = _make_raw(task, config, render)
    if not is_batched(env):
        return _adapt(env, config, task, render)
    if render:
        close(env, task, quiet=True)
        raise EnvError(f"Task '{task}' cannot render images: it is many environments in one object, expected one.")
    return Batched(env, config, name=task)


def _adapt(env: Any, config: EnvConfig, task: str, render: bool) -> Adapter:
    adapter = Adapter(env, config, name=task)
    if render and adapter.render_mode != "rgb_array":
        adapter.close(quiet=True)
        raise EnvError(
            f"Task '{task}' cannot render images within env.wrappers={[*config.wrappers]}: these give "
            f"render_mode={adapter.render_mode!r}, expected 'rgb_array' as before: derive them from gymnasium.Wrapper."
        )
    return adapter


def make_gymnasium(task: str, config: EnvConfig, *, render: bool = False) -> gymnasium.Env:
    """The environment of a task as `make` makes it in this process, without an `Adapter`."""
    env = _make_raw(task, config, render)
    if is_batched(env):
        close(env, task, quiet=True)
        raise EnvError(
            f"Task '{task}' is many environments in one object, expected one because of env.python: let the function "
            f"return a single environment, of which env.count are made."
        )
    return require_gymnasium(env, task)


def _make_raw(task: str, config: EnvConfig, render: bool) -> Any:
    """What a suite or a function makes: one environment, or many in one object, without an adapter."""
    suite, name = split(task)
    if config.observe_state and suite not in IN_JAX:
        raise EnvError(
            f"env.observe_state=true cannot be used with task '{task}': only environments in JAX show their state: use "
            f"task={'_NAME, '.join(IN_JAX)}_NAME."
        )
    if suite:
        return _make_in_suite(task, suite, name, config, render)
    if ":" in task:
        return _call(task, config, render)
    raise unknown(task)


def _call(task: str, config: EnvConfig, render: bool) -> Any:
    """What a function of a user returns."""
    function = load_function(task, task)
    number = {"num_envs": config.count} if takes(function, "num_envs") else {}
    mode = {"render_mode": "rgb_array"} if render and takes_render_mode(function) else {}
    env = call_function(function, task, **{**number, **config.kwargs, **mode})
    if is_batched(env):
        return env
    env = require_gymnasium(env, task)
    if render:
        refuse_frames_missing(env, function, task)
    return env


def _make_in_suite(task: str, suite: str, name: str, config: EnvConfig, render: bool) -> Any:
    if config.kwargs and suite not in WITH_KWARGS:
        raise EnvError(
            f"env.kwargs={config.kwargs} cannot be used with task '{task}': only tasks by the ids of Gymnasium, "
            "EnvPool and MiniGrid, and functions (package.module:function), take keyword arguments."
        )
    module = load_suite(suite)
    with explain_failure(f"Task '{task}'"):
        try:
            env = module.make(name, config, "rgb_array" if render else None)
        except UnknownTask as error:
            raise unknown(task, str(error)) from error
        except ImportError as error:
            raise missing_package(f"Task '{task}'", error) from error
    if render and not is_batched(env) and env.render_mode != "rgb_array":
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
    "Batched",
    "EnvError",
    "NotRestorable",
    "VectorEnv",
    "adapt",
    "make",
    "make_any",
    "make_gymnasium",
    "maker_of",
    "nearest",
    "split",
    "summarizer",
    "task_of",
    "tasks",
]
