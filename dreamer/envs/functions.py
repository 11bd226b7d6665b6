"""Users' functions, named as ``package.module:function``."""

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from dreamer.envs.errors import EnvError


def load_function(path: str, task: str) -> Callable[..., Any]:
    """Import a function, from the working directory too.

    Args:
        path: ``package.module:function``.
        task: the task that names it, for messages.

    Raises:
        EnvError: the module cannot be imported, or has no such function (names the nearest).
    """
    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise EnvError(
            f"Task '{task}' cannot be made: importing {module_name} failed with {type(error).__name__}: {error}. "
            f"Expected package.module:function, with the package installed or in the working directory."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if callable(getattr(found, name)) and not name.startswith("_")]
            near = difflib.get_close_matches(part, names, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise EnvError(f"Task '{task}' cannot be made: {module_name} has no '{part}'.{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise EnvError(
            f"Task '{task}' names a {type(found).__name__}, expected a function that returns an environment."
        )
    return found


__all__ = ["load_function"]
