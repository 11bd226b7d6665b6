"""Gymnasium's vectors: any registered id, many of it in one object, as `gymnasium.make_vec` makes them."""

from typing import Any

import gymnasium

from dreamer.config import EnvConfig
from dreamer.envs.errors import EnvError, UnknownTask
from dreamer.envs.suites import gym


def tasks() -> list[str]:
    """All registered ids."""
    return gym.tasks()


def make(name: str, config: EnvConfig, render_mode: str | None) -> gymnasium.vector.VectorEnv:
    """Make ``config.count`` environments of a registered id, by its own vector if it has one.

    ``config.kwargs`` may have ``vectorization_mode`` and ``vector_kwargs``, as for `gymnasium.make_vec`.

    Raises:
        UnknownTask: there is no such id.
        EnvError: Gymnasium refuses to make it.
    """
    kwargs: dict[str, Any] = {"num_envs": config.count, **config.kwargs}
    if kwargs.get("vectorization_mode") == "async":
        # Not forks of this process: JAX runs threads, and a fork of a process with threads may deadlock.
        kwargs["vector_kwargs"] = {"context": "forkserver", **kwargs.get("vector_kwargs", {})}
    try:
        return gymnasium.make_vec(name, **kwargs)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
        raise UnknownTask(str(error)) from error
    except gymnasium.error.Error as error:
        raise EnvError(f"Task 'vec_{name}' cannot be made: {error}") from error
