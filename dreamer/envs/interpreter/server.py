"""The process of another Python: makes one environment, and does with it what it is asked to."""

import os
import random
import select
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import gymnasium
import numpy as np

from dreamer import envs
from dreamer.config import AtariConfig, DMCConfig, EnvConfig, MiniGridConfig
from dreamer.envs import names
from dreamer.envs.adapter import normalizers
from dreamer.envs.errors import EnvError, NotRestorable
from dreamer.envs.functions import describe_error
from dreamer.envs.info import KEYS
from dreamer.envs.interpreter.messages import describe, plain, receive, send
from dreamer.envs.restore import attributes
from dreamer.envs.spaces import action_codec, observation_codec
from dreamer.envs.views import ObservationView
from dreamer.spaces import MASK

_GOODBYE = 10.0
"""Seconds that an environment gets for what it is doing after the trainer has gone."""


class Server:
    """One environment; every method answers one kind of request, see `ForeignEnv`."""

    def __init__(self) -> None:
        self._env: gymnasium.Env = gymnasium.Env()  # until `make`
        self._seeded = False

    def make(self, task: str, config: dict[str, Any], render: bool, place: str) -> dict[str, Any]:
        """Make the environment; ``place``: a directory with modules of the user. Answers what it looks like."""
        if place:
            sys.path.append(place)
        sections = {"dmc": DMCConfig, "atari": AtariConfig, "minigrid": MiniGridConfig}
        parts = {name: section(**config[name]) for name, section in sections.items()}
        names.EXTRAS.clear()  # This package is not installed here: what is missing is installed by its own name.
        own = EnvConfig(**{**config, **parts})
        self._env = env = envs.make_gymnasium(task, own, render=render)
        # Spaces that cannot be described are refused here, unless wrappers on the other side make others of them.
        if not own.wrappers and isinstance(space := getattr(env, "observation_space", None), gymnasium.Space):
            observation_codec(space, task, ObservationView(own, task))
        if not own.wrappers and isinstance(space := getattr(env, "action_space", None), gymnasium.Space):
            action_codec(space, task)
        repeat = getattr(env.unwrapped, "action_repeat", None)
        return {
            "observation_space": describe(getattr(env, "observation_space", None)),
            "action_space": describe(getattr(env, "action_space", None)),
            "render_mode": env.render_mode,
            "render_modes": list(env.metadata.get("render_modes") or []),
            "action_repeat": repeat if isinstance(repeat, int | np.integer) else None,
            "needs_rehearsal": attributes.needs_rehearsal(env),
            "normalizers": list(normalizers(env)),
        }

    def reset(self, seed: int | None, options: dict[str, Any] | None) -> Any:
        if seed is not None and not self._seeded:
            # For environments that draw from global generators, which belong to this environment alone here.
            self._seeded = True
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
        return _with_short_info(self._env.reset(seed=seed, options=options))

    def step(self, action: Any) -> Any:
        return _with_short_info(self._env.step(action))

    def render(self) -> Any:
        return plain(self._env.render())

    def get_state(self) -> dict[str, Any]:
        return attributes.get_state(self._env)

    def set_state(self, state: dict[str, Any]) -> None:
        attributes.set_state(self._env, state)

    def close(self) -> None:
        self._env.close()


def _with_short_info(result: Any) -> Any:
    """The answer of an environment, with what is used of the info: the rest may be anything."""
    if isinstance(result, tuple) and result and isinstance(result[-1], dict):
        *answer, info = result
        result = (*answer, {key: _plain_or_text(info[key]) for key in (*KEYS, MASK) if key in info})
    return plain(result)


def _plain_or_text(value: Any) -> Any:
    """What stands in an info, which may mean anything; what is not plain data is ignored by its reader."""
    try:
        return plain(value)
    except EnvError:
        return f"{value!r:.80}"


def serve(connection: Connection) -> None:
    """Answer requests until the trainer closes the connection or dies."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        # They are sent to every process of a terminal or job, but only the trainer handles them. A handler, because
        # processes that the environment starts would inherit that they are ignored.
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_follow_trainer, args=(connection.fileno(),), daemon=True).start()
    server = Server()
    method = ""
    try:
        while method != "close":
            method, *arguments = receive(connection)
            send(connection, _answer(server, method, arguments))
    except (EOFError, OSError):
        server.close()


def _answer(server: Server, method: str, arguments: list[Any]) -> tuple[Any, ...]:
    """``(True, result)``, or ``(False, kind, sentence, traceback)`` of what went wrong."""
    try:
        return True, getattr(server, method)(*arguments)
    except EnvError as error:
        kind = "NotRestorable" if isinstance(error, NotRestorable) else "EnvError"
        return False, kind, str(error), ""
    except (Exception, SystemExit) as error:
        _, _, text = describe_error(error).partition(": ")
        return False, type(error).__name__, text, traceback.format_exc()


def _follow_trainer(socket: int) -> None:
    """End this process after the trainer has gone, even if the environment hangs."""
    poll = select.poll()
    poll.register(socket, 0)  # Nothing but that the other end was closed.
    poll.poll()
    time.sleep(_GOODBYE)
    os._exit(1)


__all__ = ["Server", "serve"]
