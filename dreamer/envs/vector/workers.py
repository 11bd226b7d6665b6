"""Worker processes, each with one or more environments of a `VectorEnv`.

Parent and worker share `Slots` and talk over one pipe. An empty message wakes the worker, which executes the commands
in its slots and answers with a `WorkerReport`, or an empty message if there is nothing to report. Any other message is
about states of environments: it asks for them, or holds those to continue from.
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
from dreamer.envs.errors import EnvError, NotRestorable, SameEnvironment
from dreamer.envs.restore.rehearsal import rehearse
from dreamer.envs.vector.slots import Slots
from dreamer.envs.vector.sub_env import SubEnv, explain, require_spaces, state_errors

_GOODBYE = 5.0
"""Seconds that a process gets to end after it has answered."""

_MADE = b"made"
"""What a rehearsal sends once there is an environment."""


class Recipe(NamedTuple):
    """What a worker needs to make its environments.

    ``pickled`` is ``make_env``; name and spaces are those of the first environment, which all others must have too.
    """

    pickled: bytes
    config: EnvConfig
    name: str
    observation_space: gymnasium.Space
    action_space: gymnasium.Space

    @classmethod
    def of(cls, make_env: Callable[[], Any], config: EnvConfig, like: Adapter) -> "Recipe":
        """The recipe for more environments like ``like``; raises `EnvError` if ``make_env`` cannot be pickled."""
        try:
            pickled = cloudpickle.dumps(make_env)
        except (pickle.PicklingError, TypeError, ValueError) as error:
            raise EnvError(
                f"make_env cannot be sent to worker processes ({error}), expected something that cloudpickle can "
                f"pickle: create what it needs inside it, or use env.workers=sync."
            ) from error
        return cls(pickled, config, like.name, like.observation_space, like.action_space)

    def make(self) -> Adapter:
        """Make one environment; raises whatever making it raises."""
        env = adapt(pickle.loads(self.pickled), self.config)
        require_spaces(env, self.observation_space, self.action_space)
        return env


class WorkerReport(NamedTuple):
    """What does not fit into slots: logs of episodes and failures, by index of the environment, and notes.

    A failure is ``(sentence, traceback, making)``; ``making`` is whether it happened while the environment was made. A
    note is ``(key, sentence)``, see `Adapter.take_notes`.
    """

    logs: dict[int, dict[str, float]]
    failures: dict[int, tuple[str, str, bool]]
    notes: list[tuple[str, str]]


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
        """File descriptor that becomes readable when the worker has answered or died."""
        return self._pipe.fileno()

    def wake(self) -> None:
        """Have it execute the commands in its slots."""
        with contextlib.suppress(OSError):  # The worker has died, which `receive` will notice.
            self._pipe.send_bytes(b"")

    def receive(self) -> WorkerReport | None:
        """Its answer to `wake`; None if it died instead."""
        try:
            message = self._pipe.recv_bytes()
        except (EOFError, OSError):
            return None
        return WorkerReport(*pickle.loads(message)) if message else _NOTHING

    def ask(self, states: dict[int, Any] | None) -> None:
        """Have its environments continue from states by index, or ask for their states; `answer` must follow."""
        with contextlib.suppress(OSError):  # The worker has died, which `answer` will notice.
            self._pipe.send_bytes(pickle.dumps(states))

    def answer(self, patience: float) -> dict[int, Any]:
        """States by index; empty after they were set.

        Raises:
            NotRestorable: an environment refused.
            EnvError: the worker is dead, or was killed because it did not answer within ``patience`` seconds.
        """
        try:
            if self._pipe.poll(patience):
                answer = pickle.loads(self._pipe.recv_bytes())
                if isinstance(answer, str):
                    raise NotRestorable(answer)
                return answer
            self._kill()
        except (EOFError, OSError):
            pass
        raise EnvError(f"The worker of the environments {self.indices} did not answer: it hangs, or is dead.")

    def leave(self) -> None:
        """Ask it to close its environments and end; `stop` must follow."""
        self._pipe.close()

    def stop(self, patience: float) -> int | None:
        """End it after at most ``patience`` seconds; returns the exit code if it ended on its own, otherwise None."""
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
            with contextlib.suppress(OSError):  # Its group includes processes that its environments started.
                os.killpg(pid, signal.SIGKILL)
            self._process.kill()


def rehearse_apart(recipe: Recipe, making: float, playing: float) -> None:
    """`rehearse` in a separate process, so that an environment may crash or hang without harm.

    Args:
        recipe: how environments are made.
        making: seconds that making one may take.
        playing: seconds that all the rest may take.

    Raises:
        NotRestorable, SameEnvironment: see `rehearse`; also if the process died or was ended.
    """
    ours, theirs = multiprocessing.Pipe()
    process = _context().Process(target=_rehearse_here, args=(theirs, recipe), daemon=True)
    with ours:
        with theirs, _without_main():
            process.start()
        outcome: EnvError | None = NotRestorable(f"A trial of saving and restoring {recipe.name} did not end in time.")
        with contextlib.suppress(EOFError, OSError):
            if ours.poll(making) and ours.recv_bytes() == _MADE and ours.poll(playing):
                outcome = pickle.loads(ours.recv_bytes())
    process.join(_GOODBYE)
    if process.exitcode is None:
        process.kill()
        process.join()
    elif process.exitcode:
        outcome = NotRestorable(
            f"A trial of saving and restoring {recipe.name} ended its process (exit code {process.exitcode})."
        )
    process.close()
    if outcome is not None:
        raise outcome


def _rehearse_here(pipe: multiprocessing.connection.Connection, recipe: Recipe) -> None:
    """The process: says when an environment is made, and what came out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    os.setpgrp()
    outcome: EnvError | None = None
    try:
        first = recipe.make()
        pipe.send_bytes(_MADE)
        rehearse(first, recipe.make)
    except (NotRestorable, SameEnvironment) as error:
        outcome = error
    except Exception as error:  # Workers will report the same.
        outcome = NotRestorable(f"A trial of saving and restoring {recipe.name} failed: {error}")
    pipe.send_bytes(pickle.dumps(outcome))


_NOTHING = WorkerReport({}, {}, [])


def serve(pipe: multiprocessing.connection.Connection, indices: Sequence[int], recipe: Recipe, slots: Slots) -> None:
    """The worker process: executes commands until the parent closes the pipe or dies."""
    # Ctrl-C is sent to every process of the terminal; only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgrp()
    threading.Thread(target=_follow_parent, daemon=True).start()
    # For environments that draw from global generators: otherwise all workers would inherit the fork server's state.
    random.seed(int(slots.seed[indices[0]]))
    np.random.seed(slots.seed[indices[0]])  # noqa: NPY002
    sub_envs = {index: SubEnv(slots, index, recipe.make) for index in indices}
    with contextlib.suppress(EOFError, OSError):
        while True:
            message = pipe.recv_bytes()
            pipe.send_bytes(_states(message, sub_envs) if message else _execute(sub_envs, recipe.name, slots))
    for sub_env in sub_envs.values():
        with contextlib.suppress(Exception):
            sub_env.close(quiet=True)  # Another instance was closed in the parent, which has said what fails.


def _execute(sub_envs: dict[int, SubEnv], name: str, slots: Slots) -> bytes:
    """Have all environments execute their commands; returns the pickled report."""
    report = _NOTHING
    first = next(iter(sub_envs))
    for index, sub_env in sub_envs.items():
        slots.turn[first] = index
        try:
            log = sub_env.execute()
        except (Exception, SystemExit) as error:
            where = sub_env.env.where() if sub_env.env else f"Environment {name}, when it was made"
            failure = (explain(error, where, index), traceback.format_exc(), sub_env.env is None)
            report = report._replace(failures={**report.failures, index: failure})
        else:
            if log:
                report = report._replace(logs={**report.logs, index: log})
        if notes := sub_env.take_notes():
            report = report._replace(notes=[*report.notes, *notes])
    slots.turn[first] = -1
    return pickle.dumps(tuple(report)) if report is not _NOTHING else b""


def _states(message: bytes, sub_envs: dict[int, SubEnv]) -> bytes:
    """Set or get states of environments; returns the states, or a sentence that says why not, pickled."""
    given: dict[int, Any] | None = pickle.loads(message)
    try:
        with state_errors("saved" if given is None else "restored"):
            if given is None:
                return pickle.dumps({index: sub_env.get_state() for index, sub_env in sub_envs.items()})
            for index, state in given.items():
                sub_envs[index].set_state(state)
            return pickle.dumps({})
    except NotRestorable as error:
        return pickle.dumps(str(error))


def _follow_parent() -> None:
    """End this process and those of its environments when the parent dies, even if an environment hangs."""
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

    cloudpickle sends what is defined there by value, so workers do not need it. Importing it would take seconds per
    worker, and restart the training in scripts without a ``__name__`` guard.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


__all__ = ["Recipe", "Worker", "WorkerReport", "rehearse_apart", "serve"]
