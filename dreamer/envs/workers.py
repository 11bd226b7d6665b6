"""What happens to one of the N environments of a `VectorEnv`, and the processes that asynchronous ones live in."""

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import pickle
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode

from dreamer.config import EnvConfig
from dreamer.envs.adapter import Adapter, adapt
from dreamer.envs.errors import EnvError

_PATIENCE = 10.0
"""Seconds until a worker that does not end is killed."""


class Member(gymnasium.Wrapper):
    """One environment of the N: says little, because the library merges infos slowly, and explains its failures."""

    def __init__(self, env: Adapter, repeat: int, index: int, remote: bool) -> None:
        super().__init__(env)
        self._adapter = env
        self._repeat = repeat
        self._index = index
        self._remote = remote

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Observation and an empty info, or one that holds the error."""
        try:
            return self._adapter.reset(seed=seed, options=options)[0], {}
        except Exception as error:
            return _blank(self.observation_space), self._explain(error)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Like `Adapter.step`, with an info that holds ``env_steps`` or ``error`` if they have to be told."""
        try:
            obs, reward, terminated, truncated, info = self._adapter.step(action)
        except Exception as error:
            return _blank(self.observation_space), 0.0, False, True, self._explain(error)
        # Sent only where an episode's end cut the repeats short: everywhere else the number is known.
        taken = info["env_steps"]
        return obs, reward, terminated, truncated, {} if taken == self._repeat else {"env_steps": taken}

    def _explain(self, error: Exception) -> dict[str, str]:
        """Raise `EnvError` here; from a worker return it as text, because exceptions need not survive pickling."""
        text = _text(error, self._index, self._adapter.where(), self._remote)
        if self._remote:
            return {"error": text}
        raise EnvError(text) from error


class Remote:
    """Makes the environment of one worker, there. Errors are answered at the first reset, like all others."""

    def __init__(self, made: bytes, config: EnvConfig, index: int, name: str, spaces: tuple[Any, Any]) -> None:
        self._made = made
        self._config = config
        self._index = index
        self._name = name
        self._spaces = spaces
        self._home = os.getpid()

    def __call__(self) -> gymnasium.Env:
        """The environment, or a stand-in for it that tells why there is none."""
        if os.getpid() == self._home:  # the library looks at the spaces before it starts workers
            return _Broken(self._spaces, "")
        try:
            env = adapt(pickle.loads(self._made), self._config)
            refuse_different(env, *self._spaces)
        except Exception as error:
            where = f"Environment {self._name}, when it was made"
            return _Broken(self._spaces, _text(error, self._index, where, remote=True))
        return Member(env, self._config.repeat, self._index, remote=True)


class _Broken(gymnasium.Env):
    """Stands for an environment that could not be made: has its spaces, and the error as answer."""

    def __init__(self, spaces: tuple[gymnasium.Space, gymnasium.Space], message: str) -> None:
        self.observation_space, self.action_space = spaces
        self._message = message

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return _blank(self.observation_space), {"error": self._message}


def refuse_different(env: Adapter, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> None:
    """Raise `EnvError` unless the environment has these spaces, bounds included."""
    for role, got, expected in (
        ("observation", env.observation_space, observation_space),
        ("action", env.action_space, action_space),
    ):
        if got != expected:
            raise EnvError(
                f"Environment {env.name} was made with the {role} space {got}, expected {expected} as the first one "
                f"has: make_env must return environments with equal spaces."
            )


def start(make_env: Callable[[], Any], config: EnvConfig, like: Adapter) -> AsyncVectorEnv:
    """Start ``config.count`` workers with environments that have the name and spaces of ``like``; raises `EnvError`."""
    try:
        made = cloudpickle.dumps(make_env)
    except (pickle.PicklingError, TypeError, ValueError) as error:
        raise EnvError(
            f"make_env cannot be sent to worker processes ({error}), expected something that cloudpickle can pickle: "
            f"create what it needs inside it, or use env.workers=sync."
        ) from error
    spaces = (like.observation_space, like.action_space)
    makers = [Remote(made, config, i, like.name, spaces) for i in range(config.count)]
    before = set(multiprocessing.active_children())
    try:
        with _without_main():
            return AsyncVectorEnv(
                makers, shared_memory=True, copy=False, context=_context(), autoreset_mode=AutoresetMode.NEXT_STEP
            )
    except BaseException as error:
        codes = end([child for child in multiprocessing.active_children() if child not in before])
        if isinstance(error, (EOFError, OSError)):
            raise EnvError(
                f"The worker processes of {like.name} did not start (exit codes {codes}): use env.workers=sync to see "
                f"whether the environment itself works."
            ) from error
        raise


def stop(envs: AsyncVectorEnv, gently: bool) -> list[int]:
    """Close the environments if ``gently`` (the workers must be idle), and end the workers in any case.

    Returns the exit codes of workers that had ended by themselves.
    """
    if gently:
        with contextlib.suppress(EOFError, OSError):  # of a worker that is gone already
            envs.close(timeout=_PATIENCE)
    envs.closed = True
    codes = end(envs.processes)
    for pipe in envs.parent_pipes:
        pipe.close()
    return codes


def end(processes: Sequence[multiprocessing.process.BaseProcess]) -> list[int]:
    """End processes, gently and then not; returns the exit codes of those that had ended by themselves."""
    # One that ended may need a moment until the fork server says so.
    multiprocessing.connection.wait([process.sentinel for process in processes], timeout=1.0)
    codes = [process.exitcode for process in processes if process.exitcode is not None]
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(timeout=_PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()
    return codes


def _context() -> str:
    """A fork server, which imports this module once for all workers; where there is none, fresh processes.

    Never a fork of this process: JAX runs threads, and a fork of a process with threads may deadlock.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    return "forkserver"


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep `multiprocessing` from importing the main script again in every worker.

    cloudpickle sends what is defined there by value, so workers do not need it; importing it would cost seconds per
    worker, and starts the training again in scripts without a ``__name__`` guard.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _text(error: Exception, index: int, where: str, remote: bool) -> str:
    if isinstance(error, EnvError):
        return f"{error} (environment number {index})"
    text = f"{where}: {type(error).__name__}: {error} (environment number {index}); fix the environment."
    if remote:
        text += f" In the worker process:\n{''.join(traceback.format_exception(error))}"
    return text


def _blank(space: Any) -> dict[str, np.ndarray]:
    return {key: np.zeros(sub.shape, sub.dtype) for key, sub in space.spaces.items()}


__all__ = ["Member", "Remote", "end", "refuse_different", "start", "stop"]
