"""Worker processes, each with one or more members of a `VectorEnv`.

Parent and worker share `Slots`, and talk over one pipe: an empty message wakes the worker, which carries out the
commands in its slots and answers with a `Report`, as an empty message if there is nothing to report. Any other message
is about states of environments: it asks for them, or holds those from which the environments continue.
"""

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import pickle
import random
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cloudpickle  # type: ignore[import-untyped]
import gymnasium
import numpy as np

from dreamer.config import EnvConfig
from dreamer.envs.adapter import Adapter, adapt
from dreamer.envs.errors import EnvError, NotRestorable
from dreamer.envs.vector.member import Member, explain, refuse_different, unrestorable
from dreamer.envs.vector.slots import Slots


class Recipe(NamedTuple):
    """What a worker needs to make its environments.

    ``made`` is the pickled ``make_env``; name and spaces are those of the first environment, which all must equal.
    """

    made: bytes
    config: EnvConfig
    name: str
    observation_space: gymnasium.Space
    action_space: gymnasium.Space

    @classmethod
    def of(cls, make_env: Callable[[], Any], config: EnvConfig, like: Adapter) -> "Recipe":
        """The recipe for more environments like one; raises `EnvError` if ``make_env`` cannot be pickled."""
        try:
            made = cloudpickle.dumps(make_env)
        except (pickle.PicklingError, TypeError, ValueError) as error:
            raise EnvError(
                f"make_env cannot be sent to worker processes ({error}), expected something that cloudpickle can "
                f"pickle: create what it needs inside it, or use env.workers=sync."
            ) from error
        return cls(made, config, like.name, like.observation_space, like.action_space)

    def make(self) -> Adapter:
        """Make one; raises whatever making it raises."""
        env = adapt(pickle.loads(self.made), self.config)
        refuse_different(env, self.observation_space, self.action_space)
        return env


class Report(NamedTuple):
    """What does not fit into slots, by index of the environment: logs of episodes, and failures.

    A failure is ``(sentence, traceback, making)``; the last is whether it happened when the environment was made.
    """

    logs: dict[int, dict[str, float]]
    failures: dict[int, tuple[str, str, bool]]


class Worker:
    """A running worker process, seen from the parent.

    Args:
        indices: its environments.
        recipe: how they are made.
        slots: memory shared with it.

    Raises:
        EnvError: it cannot be started.
    """

    def __init__(self, indices: Sequence[int], recipe: Recipe, slots: Slots) -> None:
        self.indices = list(indices)
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = _context().Process(target=serve, args=(theirs, self.indices, recipe, slots), daemon=True)
        try:
            with _without_main():
                self._process.start()
        except (EOFError, OSError) as error:
            self._pipe.close()
            raise EnvError(
                f"The worker processes of {recipe.name} cannot be started ({type(error).__name__}: {error}): use "
                f"env.workers=sync to see whether the environment itself works."
            ) from error
        finally:
            theirs.close()

    def fileno(self) -> int:
        """File descriptor that can be read when the worker has answered or died."""
        return self._pipe.fileno()

    def wake(self) -> None:
        """Have it carry out the commands in its slots."""
        with contextlib.suppress(OSError):  # Of a worker that died; `receive` will tell.
            self._pipe.send_bytes(b"")

    def receive(self) -> Report | None:
        """Its answer, for which it must have been woken; None if it died instead."""
        try:
            message = self._pipe.recv_bytes()
        except (EOFError, OSError):
            return None
        return Report(*pickle.loads(message)) if message else _NOTHING

    def ask(self, states: dict[int, Any] | None) -> None:
        """Have its environments continue from states by index, or ask for their states; `answer` must follow."""
        with contextlib.suppress(OSError):  # Of a worker that died; `answer` will tell.
            self._pipe.send_bytes(pickle.dumps(states))

    def answer(self, patience: float) -> dict[int, Any]:
        """States by index, of none after they were set.

        Raises:
            NotRestorable: an environment refused.
            EnvError: the worker is dead, or it was killed, as it did not answer within ``patience`` seconds.
        """
        try:
            if self._pipe.poll(patience):
                found = pickle.loads(self._pipe.recv_bytes())
                if isinstance(found, str):
                    raise NotRestorable(found)
                return found
            self._kill()
        except (EOFError, OSError):
            pass
        raise EnvError(f"The worker of the environments {self.indices} did not answer: it hangs, or is dead.")

    def leave(self) -> None:
        """Tell it to close its environments and end; `stop` must follow."""
        self._pipe.close()

    def stop(self, patience: float) -> int | None:
        """End it after at most ``patience`` seconds; returns the exit code if it ended by itself, otherwise None."""
        self.leave()
        self._process.join(patience)
        code = self._process.exitcode
        if code is None:
            self._kill()
            self._process.join()
        self._process.close()
        return code

    def _kill(self) -> None:
        if pid := self._process.pid:
            with contextlib.suppress(OSError):  # Processes that its environments started are in its group.
                os.killpg(pid, signal.SIGKILL)
            self._process.kill()


_NOTHING = Report({}, {})


def serve(pipe: multiprocessing.connection.Connection, indices: Sequence[int], recipe: Recipe, slots: Slots) -> None:
    """The worker process: obeys until the parent closes the pipe or dies."""
    # Ctrl-C is sent to every process of the terminal; what it means is the parent's business.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgrp()
    threading.Thread(target=_follow_parent, daemon=True).start()
    # Environments that draw from global randomness: all workers would have inherited the fork server's.
    random.seed(int(slots.seed[indices[0]]))
    np.random.seed(slots.seed[indices[0]])  # noqa: NPY002
    members = {index: Member(slots, index, recipe.make) for index in indices}
    with contextlib.suppress(EOFError, OSError):
        while True:
            message = pipe.recv_bytes()
            pipe.send_bytes(_states(message, members) if message else _obey(members, recipe.name, slots))
    for member in members.values():
        with contextlib.suppress(Exception):
            member.close()


def _obey(members: dict[int, Member], name: str, slots: Slots) -> bytes:
    """Have all members carry out their commands; returns the report."""
    report = _NOTHING
    first = next(iter(members))
    for index, member in members.items():
        slots.turn[first] = index
        try:
            log = member.obey()
        except (Exception, SystemExit) as error:
            where = member.env.where() if member.env else f"Environment {name}, when it was made"
            failure = (explain(error, where, index), traceback.format_exc(), member.env is None)
            report = Report(report.logs, {**report.failures, index: failure})
        else:
            if log:
                report = Report({**report.logs, index: log}, report.failures)
    slots.turn[first] = -1
    return pickle.dumps(tuple(report)) if report is not _NOTHING else b""


def _states(message: bytes, members: dict[int, Member]) -> bytes:
    """Set states of members, or get them; returns them, or a sentence that says why not."""
    given: dict[int, Any] | None = pickle.loads(message)
    try:
        with unrestorable("saved" if given is None else "restored"):
            if given is None:
                return pickle.dumps({index: member.get_state() for index, member in members.items()})
            for index, state in given.items():
                members[index].set_state(state)
            return pickle.dumps({})
    except NotRestorable as error:
        return pickle.dumps(str(error))


def _follow_parent() -> None:
    """End this process and those of its environments when the parent is gone, even if an environment hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(os.getpgrp(), signal.SIGKILL)


@functools.cache
def _context() -> Any:
    """A fork server, which imports this module once for all workers.

    Never a fork of this process: JAX runs threads, and a fork of a process with threads may deadlock.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


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


__all__ = ["Recipe", "Report", "Worker", "serve"]
