"""Gymnasium's registry: every registered id, and those that a named module registers."""

from typing import Any

import gymnasium

from dreamer.config import EnvConfig
from dreamer.envs import rendering
from dreamer.envs.errors import EnvError, UnknownTask
from dreamer.envs.functions import is_importable

_NAMESPACES = {"ALE": 'pip install "gymnasium[atari]"', "dm_control": 'pip install "shimmy[dm-control]"'}
"""Commands that install the packages behind namespaces of ids."""

_REGISTRARS = {"ALE": "ale_py", "dm_control": "shimmy"}
"""Modules that register the ids of a namespace, where they are not called like it."""


def tasks() -> list[str]:
    """All registered ids."""
    return sorted(gymnasium.registry)


def make(name: str, config: EnvConfig, render_mode: str | None) -> gymnasium.Env:
    """Make a registered environment, and import the package that its namespace names if that has not registered it.

    Raises:
        UnknownTask: there is no such id.
        EnvError: a package is missing, or Gymnasium refuses to make it.
    """
    namespace, slash, _ = name.partition("/")
    module = _REGISTRARS.get(namespace, namespace)
    try:
        known = ":" in name or name in gymnasium.registry
        place = f"{module}:" if slash and not known and is_importable(module) else ""  # Gymnasium imports it.
        kwargs: dict[str, Any] = {**config.kwargs, **({"render_mode": render_mode} if render_mode else {})}
        # The adapter checks more than Gymnasium's checker does, and at every step instead of only the first.
        env = gymnasium.make(f"{place}{name}", disable_env_checker=True, **kwargs)
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv) as error:
        package = _NAMESPACES.get(name.partition("/")[0])
        raise UnknownTask(f"{error}{f' Install it with: {package}.' if package else ''}") from error
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        module, colon, function = name.partition(":")
        if colon and not is_importable(module):
            raise EnvError(
                f"Task 'gym_{name}' cannot be made: there is neither a module gym_{module} with a function {function}, "
                f"nor a module {module} that registers the id {function}; the package is not installed, and the file "
                "is not in the working directory."
            ) from error
        command = f"pip install {(getattr(error, 'name', None) or 'PACKAGE').partition('.')[0]}"
        hint = "" if "pip install" in str(error) else f" Install it with: {command}."
        raise EnvError(
            f"Task 'gym_{name}' needs a package that is not installed: {str(error).rstrip('.')}.{hint}"
        ) from error
    except TypeError as error:
        if render_mode is None or "'render_mode'" not in str(error):
            raise
        raise EnvError(
            f"Task 'gym_{name}' cannot render images: its __init__ has no parameter render_mode. Write def "
            "__init__(self, render_mode=None), and set self.render_mode = render_mode."
        ) from error
    except gymnasium.error.Error as error:
        raise EnvError(f"Task 'gym_{name}' cannot be made: {error}") from error
    if render_mode and hasattr(env.unwrapped, "mujoco_renderer"):
        _require_renderer(env)
    return env


def _require_renderer(env: gymnasium.Env) -> None:
    """Choose how MuJoCo renders, and raise `EnvError` if nothing here can; Gymnasium decides at the first frame."""
    rendering.choose()
    env.reset()
    try:
        env.render()
    except Exception as error:  # Every renderer fails in its own way.
        raise rendering.cannot_render(error) from error
