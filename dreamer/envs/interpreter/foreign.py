"""An environment in a process of another Python, seen from the trainer."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import subprocess
import weakref
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any

import gymnasium

from dreamer.config import EnvConfig
from dreamer.envs.errors import EnvError, NotRestorable
from dreamer.envs.functions import extra_path
from dreamer.envs.interpreter.messages import build, receive, send
from dreamer.envs.names import SUITES, split

OLDEST_PYTHON = (3, 10)

OLDEST = {"numpy": (1, 23), "gymnasium": (0, 29)}
"""Oldest versions of packages that were tried."""

_START = pathlib.Path(__file__).with_name("start.py")

_LONGEST_START = 60.0
"""Seconds within which a Python must say what it is."""

_GOODBYE = 10.0
"""Seconds that the process gets to close its environment and end."""


class ForeignEnv(gymnasium.Env):
    """An environment that another Python makes and steps, in a separate process.

    It has the spaces and methods of the environment there, and raises what that raises, under the same name. Of the
    ``info`` of a step, only what the project uses arrives, see `dreamer.envs.info`.

    Args:
        task: name of the task.
        config: ``python``, and the options of the environment.
        render: whether ``render()`` returns frames.

    Attributes:
        needs_rehearsal, normalizers, action_repeat: as found there; see `dreamer.envs.adapter`.

    Raises:
        EnvError: there is no such Python, it is too old, it lacks NumPy or Gymnasium, or it cannot make the task.
    """

    def __init__(self, task: str, config: EnvConfig, *, render: bool = False) -> None:
        if SUITES.get(split(task)[0], "").startswith("native"):
            raise EnvError(f"env.python={config.python} cannot be used with task '{task}', which is written in JAX.")
        self._python = _find(config.python)
        self._connection, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = _start(self._python, theirs)
        # An environment that is never closed ends its process, too: that reads the end of the connection.
        weakref.finalize(self, self._connection.close)
        try:
            self._approve()
            options = {key: value for key, value in dataclasses.asdict(config).items() if key != "python"}
            made = self._ask("make", task, options, render, extra_path(task))
        except BaseException as error:
            self._end()
            if isinstance(error, EnvError):
                # The command is for another Python.
                raise EnvError(str(error).replace("pip install", f"{self._python} -m pip install")) from None
            raise
        self.observation_space = build(made["observation_space"])
        self.action_space = build(made["action_space"])
        self.render_mode = made["render_mode"]
        self.metadata = {"render_modes": made["render_modes"]}
        self.action_repeat = made["action_repeat"]
        self.needs_rehearsal = made["needs_rehearsal"]
        self.normalizers = made["normalizers"]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self._ask("reset", seed, options)

    def step(self, action: Any) -> Any:
        return self._ask("step", action)

    def render(self) -> Any:
        return self._ask("render")

    def get_state(self) -> dict[str, Any]:
        """State of the environment there; raises `NotRestorable`."""
        return self._ask("get_state")

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state; raises `NotRestorable`."""
        self._ask("set_state", state)

    def close(self) -> None:
        """Close the environment and end its process; raises what closing it raised."""
        try:
            if not self._connection.closed and self._process.poll() is None:
                self._ask("close")
        finally:
            self._end()

    def _approve(self) -> None:
        """Let the process go on; raises `EnvError` if it has not what it needs."""
        try:
            if not self._connection.poll(_LONGEST_START):
                raise EOFError
            versions = json.loads(self._connection.recv_bytes())
        except (EOFError, OSError):
            raise EnvError(
                f"env.python={self._python} is no Python 3 ({self._ending()}), expected the path of one, for example "
                "that of a virtual environment, DIRECTORY/bin/python."
            ) from None
        _require_versions(self._python, versions)
        self._connection.send_bytes(b"go on")

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            send(self._connection, (method, *arguments))
            done, *answer = receive(self._connection)
        except (EOFError, OSError):
            raise ProcessEnded(f"its process ({self._python}) ended without a word ({self._ending()})") from None
        if done:
            return answer[0]
        kind, sentence, trace = answer
        if kind in ("EnvError", "NotRestorable"):
            raise {"EnvError": EnvError, "NotRestorable": NotRestorable}[kind](sentence)
        error = type(kind, (ForeignError,), {})(sentence)  # Messages name the error by its type.
        error.add_note(f"In {self._python}:\n{trace}")
        raise error

    def _ending(self) -> str:
        """How the process ended; it is killed if it has not."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        code = self._process.poll()
        if code is None:
            self._process.kill()
            return "no answer"
        hint = ", usually because memory ran out" if code == -signal.SIGKILL else ""
        return f"exit code {code}{hint}"

    def _end(self) -> None:
        self._connection.close()
        try:
            self._process.wait(_GOODBYE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class ForeignError(Exception):
    """Something that an environment raised in another Python; subclasses are called as it was there."""


class ProcessEnded(ForeignError):
    """The process of an environment is gone."""


def _find(python: str) -> str:
    """The path of a Python; raises `EnvError` if there is no such file."""
    if os.path.isdir(python):
        raise EnvError(
            f"env.python={python} is a directory, expected the path of a Python, such as "
            f"{os.path.join(python, 'bin', 'python')}."
        )
    found = shutil.which(python)
    if found is None:
        what = "cannot be executed" if os.path.exists(python) else "does not exist"
        raise EnvError(
            f"env.python={python} {what}: name the Python of an environment that has the packages of the task, or "
            "leave it out to use this one."
        )
    return found


def _start(python: str, theirs: Connection) -> subprocess.Popen:
    socket = theirs.fileno()
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
    try:
        return subprocess.Popen(
            [python, str(_START), str(socket)], stdin=subprocess.DEVNULL, pass_fds=[socket], env=environ
        )
    except OSError as error:
        raise EnvError(f"env.python={python} cannot be started: {error.strerror}.") from error


def _require_versions(python: str, versions: dict[str, Any]) -> None:
    """Raise `EnvError` unless a Python and its packages are new enough, and say how to fix that."""
    if tuple(versions["python"]) < OLDEST_PYTHON:
        raise EnvError(
            f"env.python={python} is Python {_dotted(versions['python'])}, expected {_dotted(OLDEST_PYTHON)} or newer: "
            "make a virtual environment with one."
        )
    for name, least in OLDEST.items():
        found = versions.get(name)
        if found is not None and tuple(map(int, re.findall(r"\d+", found)[:2])) >= least:
            continue
        oldest = _dotted(least)
        what = f"version {found} of {name}" if found else f"no usable {name} ({versions['missing'][name]})"
        raise EnvError(
            f"env.python={python} has {what}, expected {oldest} or newer: install it with "
            f"pip install '{name}>={oldest}'."
        )


def _dotted(version: Iterable[int]) -> str:
    return ".".join(map(str, version))


__all__ = ["OLDEST", "OLDEST_PYTHON", "ForeignEnv", "ForeignError", "ProcessEnded"]
