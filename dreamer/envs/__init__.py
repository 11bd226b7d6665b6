"""Environments: `make` one by name, or wrap your own in an `Adapter`; a `VectorEnv` steps many.

Nothing here knows networks.
"""

import difflib
from typing import Any

import gymnasium

from dreamer.config import EnvConfig
from dreamer.envs.adapter import Adapter
from dreamer.envs.errors import EnvError
from dreamer.envs.probes import PROBES
from dreamer.envs.vector import VectorEnv

_PREFIX = "gym_"
_HOW = (
    "Name a task gym_ID for any Gymnasium id (gym_CartPole-v1; gym_MODULE:ID imports MODULE first), or use a built-in: "
    + ", ".join(PROBES)
)
# Packages that bring a namespace of ids, for those who have not installed it.
_NAMESPACES = {"ALE": 'pip install "gymnasium[atari]"', "dm_control": 'pip install "shimmy[dm-control]"'}


def tasks() -> list[str]:
    """Names that `make` accepts, sorted: the built-in tasks, and ``gym_ID`` for every registered Gymnasium id."""
    return sorted([*PROBES, *(_PREFIX + task for task in gymnasium.registry)])


def make(task: str, config: EnvConfig, *, render: bool = False) -> Adapter:
    """Make the environment of a task.

    Args:
        task: ``gym_ID``, or the name of a built-in task; see `tasks`.
        config: action repeat and checks.
        render: whether ``render()`` of the result returns frames, uint8 ``[H, W, 3]``.

    Raises:
        EnvError: there is no such task (names the nearest), a package is missing (names the command that installs it),
            it cannot render, or its spaces are not supported.
    """
    render_mode = "rgb_array" if render else None
    if task in PROBES:
        env = PROBES[task](render_mode=render_mode)
    elif task.startswith(_PREFIX):
        env = _make_gymnasium(task, render_mode)
    else:
        raise EnvError(f"There is no task '{task}'.{_nearest(task)} {_HOW}.")
    if render and env.render_mode != "rgb_array":
        modes = env.metadata.get("render_modes", [])
        raise EnvError(
            f"Task '{task}' cannot render images: its render modes are {modes}, expected 'rgb_array' in them."
        )
    return Adapter(env, config, name=task)


def _make_gymnasium(task: str, render_mode: str | None) -> gymnasium.Env:
    name = task.removeprefix(_PREFIX)
    try:
        kwargs: dict[str, Any] = {"render_mode": render_mode} if render_mode else {}
        # The adapter checks more than Gymnasium's checker, at every step and not only at the first.
        return gymnasium.make(name, disable_env_checker=True, **kwargs)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
        package = _NAMESPACES.get(name.partition("/")[0])
        hint = f" Install it with: {package}." if package else _nearest(task)
        raise EnvError(f"There is no task '{task}': {error}{hint} {_HOW}.") from error
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        command = f"pip install {(getattr(error, 'name', None) or 'PACKAGE').partition('.')[0]}"
        hint = "" if "pip install" in str(error) else f" Install it with: {command}."
        raise EnvError(
            f"Task '{task}' needs a package that is not installed: {str(error).rstrip('.')}.{hint}"
        ) from error
    except gymnasium.error.Error as error:
        raise EnvError(f"Task '{task}' cannot be made: {error} {_HOW}.") from error


def _nearest(task: str) -> str:
    known = tasks()
    # Somebody who forgot the prefix should hear about it first.
    near = [_PREFIX + task] if _PREFIX + task in known else difflib.get_close_matches(task, known, n=3)
    return f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""


__all__ = ["Adapter", "EnvError", "VectorEnv", "make", "tasks"]
