"""Environments written in JAX: pure functions of arrays, which can run inside one compiled program with the learner.

A `NativeEnv` uses the agent's format directly: observations and actions are dictionaries by flat key, as its
``obs_spaces`` and ``action_spaces`` say (see `dreamer.types.Space`), with continuous actions in [-1, 1]. There is no
codec between it and the agent, which would have to be traced too.

Tasks are called ``jax_NAME``, ``jax_package.module:function`` for users' own, and ``craftax_NAME`` or
``playground_NAME`` for the two suites in their own files. `build` makes the pure environment for the device loop;
`make` wraps it for everything that needs a Gymnasium environment: the host loop, evaluation, and `dreamer.envs.check`.
"""

import functools
import importlib
from typing import Any, Protocol, runtime_checkable

import gymnasium
from jaxtyping import Array, Bool, Float32

from dreamer.config import Config, ConfigError, EnvConfig
from dreamer.envs.errors import EnvError, UnknownTask
from dreamer.envs.functions import call_function, load_function
from dreamer.envs.names import split
from dreamer.types import Action, Observation, Spaces

SUITES = {"jax": "", "craftax": "from_craftax", "playground": "from_playground"}
"""Prefixes of tasks with a native environment, and the file here whose ``build(name)`` makes it; empty: this one."""

State = Any
"""State of one environment: a pytree of arrays, whose shapes and dtypes never change."""


@runtime_checkable
class NativeEnv(Protocol):
    """One environment as pure functions without a batch axis; `jax.vmap` makes many of it.

    It may offer more: ``render(state) -> uint8 [H, W, 3]``; and ``log(state) -> float32 [K]`` along with a tuple of K
    names, ``log_names``: numbers to log about an episode, computed from its last state.
    """

    @property
    def obs_spaces(self) -> Spaces:
        """Observation spaces by key, sorted."""

    @property
    def action_spaces(self) -> Spaces:
        """Action spaces by key, sorted."""

    def reset(self, key: Array) -> tuple[State, Observation]:
        """Begin an episode."""

    def step(
        self, state: State, action: Action, key: Array
    ) -> tuple[State, Observation, Float32[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """Apply an action, clipped to [-1, 1] if continuous.

        Returns:
            State, observation, reward, terminated, truncated. At the end of an episode, the observation is its last
            one, never the first of the next. The state after the end is not stepped again.
        """


def tasks() -> list[str]:
    """Names of the environments of this package, and of gymnax if that is installed."""
    from dreamer.envs.native import probes

    names = set(probes.PROBES)
    try:
        from dreamer.envs.native import from_gymnax
    except ImportError:
        return sorted(names)
    return sorted(names | set(from_gymnax.names()))


def build(name: str, suite: str = "jax") -> NativeEnv:
    """The pure environment of a task; one object per task.

    Args:
        name: the task without the prefix of its suite. For ``jax``, the name of a probe or of a gymnax environment, or
            ``package.module:function`` for a function without arguments (for example a class) that returns a
            `NativeEnv`.
        suite: one of `SUITES`.

    Raises:
        UnknownTask: there is no task of this name.
        EnvError: there is no such function, or it does not return a `NativeEnv`.
        ImportError: it needs a package that is not installed.
    """
    if suite != "jax":
        return importlib.import_module(f"{__name__}.{SUITES[suite]}").build(name)
    return _build(name)


@functools.cache
def _build(name: str) -> NativeEnv:
    if ":" in name:
        env = call_function(load_function(name, f"jax_{name}"), f"jax_{name}")
        if isinstance(env, gymnasium.Env):
            raise EnvError(
                f"Task 'jax_{name}' gives a gymnasium.Env, expected a NativeEnv: name it task={name}, without jax_."
            )
        if not isinstance(env, NativeEnv):
            missing = [part for part in ("obs_spaces", "action_spaces", "reset", "step") if not hasattr(env, part)]
            raise EnvError(
                f"Task 'jax_{name}' gives a {type(env).__name__} without {' and '.join(missing)}, expected a "
                "NativeEnv: see docs/device_loop.md."
            )
        return env
    from dreamer.envs.native import probes

    if name in probes.PROBES:
        return probes.PROBES[name]()
    from dreamer.envs.native import from_gymnax

    if name in from_gymnax.names():
        return from_gymnax.Gymnax(name)
    raise UnknownTask(f"There is no environment '{name}' in JAX.")


def make(name: str, config: EnvConfig, render_mode: str | None) -> gymnasium.Env:
    """The environment behind Gymnasium's interface; raises what `build` raises."""
    from dreamer.envs.native.hosted import host

    return host(build(name), config, render_mode)


def native_env(config: Config) -> NativeEnv:
    """The pure environment of a config's task, for the device loop.

    Raises:
        ConfigError: the task has none, or the config asks for something the device loop does not support.
        EnvError: there is no such task, or its package is missing.
    """
    suite, name = split(config.task)
    if suite not in SUITES:
        names = ", ".join(f"task={suite}_NAME" for suite in SUITES)
        own = f" If that function returns a NativeEnv, write task=jax_{name}." if ":" in name else ""
        raise ConfigError(
            f"run.loop=device needs an environment written in JAX ({names}), but task is '{config.task}'. Use "
            f"run.loop=host for this task.{own}"
        )
    if config.env.repeat != 1:
        raise ConfigError(f"env.repeat={config.env.repeat} cannot be used with run.loop=device: expected 1.")
    if config.env.kwargs:
        raise ConfigError(f"env.kwargs={config.env.kwargs} cannot be used with run.loop=device: leave it out.")
    if config.env.python:
        raise ConfigError(f"env.python={config.env.python} cannot be used with run.loop=device: leave it out.")
    if config.env.time_limit:
        raise ConfigError(
            f"env.time_limit={config.env.time_limit} cannot be used with run.loop=device: expected 0. Let the "
            "environment truncate its episodes."
        )
    for option in ("wrappers", "keys", "ignore", "classes", "size", "gray", "layout", "mask_from_info"):
        value = getattr(config.env, option)
        if value != getattr(EnvConfig(), option):
            raise ConfigError(
                f"env.{option}={value} cannot be used with run.loop=device: leave it out, or use run.loop=host."
            )
    try:
        env = build(name, suite)
        if config.env.observe_state:
            from dreamer.envs.native.observed import observe_state

            return observe_state(env)
        return env
    except (UnknownTask, ImportError):
        from dreamer import envs

        envs.make(config.task, config.env)  # Raises an error that says what is wrong and suggests similar names.
        raise


__all__ = ["SUITES", "NativeEnv", "State", "build", "make", "native_env", "tasks"]
