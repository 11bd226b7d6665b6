"""Gymnasium's registry: every registered id, and those that a named module registers."""

from typing import Any

import gymnasium

from dreamer.config import EnvConfig
from dreamer.envs.errors import EnvError, UnknownTask

_NAMESPACES = {"ALE": 'pip install "gymnasium[atari]"', "dm_control": 'pip install "shimmy[dm-control]"'}
"""Commands that install the packages behind namespaces of ids."""


def tasks() -> list[str]:
    """All registered ids."""
    return sorted(gymnasium.registry)


def make(name: str, config: EnvConfig, render_mode: str | None) -> gymnasium.Env:
    """Make a registered environment; raises `EnvError`."""
    try:
        kwargs: dict[str, Any] = {"render_mode": render_mode} if render_mode else {}
        # The adapter checks more than Gymnasium's checker does, and at every step instead of only the first.
        return gymnasium.make(name, disable_env_checker=True, **kwargs)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
        package = _NAMESPACES.get(name.partition("/")[0])
        raise UnknownTask(f"{error}{f' Install it with: {package}.' if package else ''}") from error
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        command = f"pip install {(getattr(error, 'name', None) or 'PACKAGE').partition('.')[0]}"
        hint = "" if "pip install" in str(error) else f" Install it with: {command}."
        raise EnvError(
            f"Task 'gym_{name}' needs a package that is not installed: {str(error).rstrip('.')}.{hint}"
        ) from error
    except gymnasium.error.Error as error:
        raise EnvError(f"Task 'gym_{name}' cannot be made: {error}") from error
