"""Which renderer MuJoCo uses without a screen."""

import ctypes.util
import os
import sys
from collections.abc import Callable

from dreamer.envs.errors import EnvError

_LIBRARIES = {"egl": "EGL", "osmesa": "OSMesa"}
"""Library of each renderer that needs no screen, the faster one first."""


def choose(try_out: Callable[[], object] = lambda: None) -> None:
    """Without a screen, set MUJOCO_GL to a renderer that is installed and works, unless it is set already.

    The libraries read the variable when they are imported, or when they render first. Without it they would look for a
    window system, and with a renderer that does not work, not even tasks without images could be made.

    Args:
        try_out: raises anything if the renderer that MUJOCO_GL names by then does not work.
    """
    if os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY") or not sys.platform.startswith("linux"):
        return
    installed = [name for name, library in _LIBRARIES.items() if ctypes.util.find_library(library)]
    os.environ["MUJOCO_GL"] = installed[0] if installed else "disable"
    try:
        try_out()
    except Exception:  # For example in a container that has the library but no driver.
        os.environ["MUJOCO_GL"] = "disable"


def cannot_render(error: Exception) -> EnvError:
    """The error that says that MuJoCo cannot render, and what to install."""
    return EnvError(
        f"MuJoCo cannot render here ({type(error).__name__}: {error}). Without a screen, it needs one of the Debian "
        f"packages libegl1 (then set MUJOCO_GL=egl) or libosmesa6 (then set MUJOCO_GL=osmesa): install one, or choose "
        f"a task without images, such as one of dmc with env.dmc.obs=proprio."
    )


__all__ = ["cannot_render", "choose"]
