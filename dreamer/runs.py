"""What a run needs whichever loop it has: its directory, the lock on it, the request to stop, and its result."""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from dreamer import checkpoint as checkpoints
from dreamer import config as configs
from dreamer.agent import Agent
from dreamer.config import Config, ConfigError
from dreamer.evaluate import Evaluation

FREE_TO_CHANGE = (
    *("logdir", "run.", "devices", "distributed", "optimizer.moments"),
    *("env.workers", "env.per_worker", "env.timeout", "env.failures", "env.check"),
)
"""Config keys, or prefixes of them, that a resumed run may change; except for ``run.loop``."""


class LogdirInUse(RuntimeError):
    """Another process trains in this directory."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run leaves."""

    agent: Agent
    logdir: pathlib.Path
    evaluation: Evaluation | None
    interrupted: bool
    members: tuple["Result", ...] = ()
    """Results of all members, if it was a population; the fields above are those of the first, and its directory."""


class StopRequest:
    """Whether somebody wants the run to stop.

    Attributes:
        signal: name of the signal that asked for it; empty as long as nobody did.
    """

    signal = ""

    def __bool__(self) -> bool:
        return bool(self.signal)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """SIGINT and SIGTERM are requests here; a second one interrupts at once."""

        def request(number: int, frame: Any) -> None:
            if self.signal:
                raise KeyboardInterrupt
            self.signal = signal.Signals(number).name

        previous = {}
        with contextlib.suppress(ValueError):  # Not in the main thread: then signals are not ours to handle.
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, request)
        try:
            yield
        finally:
            for number, handler in previous.items():
                # None: whoever handled it before was not Python, and cannot be put back.
                if handler is not None:
                    signal.signal(number, handler)


def default_logdir(config: Config) -> str:
    """``runs/TIME-TASK-SEED``, a directory that is not there yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = pathlib.Path("runs") / f"{stamp}-{config.task.replace('/', '_')}-{config.seed}"
    path, number = base, 1
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return str(path)


@contextlib.contextmanager
def exclusive(logdir: pathlib.Path) -> Iterator[None]:
    """Create and lock a log directory; the lock goes with the process, however it ends.

    Raises:
        LogdirInUse: another process holds it.
        ConfigError: the directory cannot be created or written.
    """
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        lock = open(logdir / ".lock", "a+")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"logdir={logdir} cannot be used: {error.strerror}. Choose another logdir.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise LogdirInUse(
                f"logdir={logdir} is in use by another run (process {owner}). Wait for it, stop it, or choose another "
                "logdir."
            ) from None
        except OSError as error:
            raise ConfigError(
                f"logdir={logdir} cannot be locked: {error.strerror}. Choose a logdir on a file system with locks; one "
                "from a network may have to be mounted with them."
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def refuse_other_config(saved: Config, config: Config, logdir: pathlib.Path) -> None:
    """Raise `ConfigError` naming every key that a resumed run must not change but would."""
    changed = configs.differences(saved, config)
    wrong = [
        f"{key}: {old} in the checkpoint, {new} now"
        for key, (old, new) in changed.items()
        if not key.startswith(FREE_TO_CHANGE) or key == "run.loop"
    ]
    if wrong:
        raise ConfigError(
            "\n  ".join([f"{logdir} holds a checkpoint of another config; {len(wrong)} key(s) differ:", *wrong])
            + f"\nGo on with the saved config: {resume_command(logdir)}; or start anew in another logdir."
        )


def note_best(logdir: pathlib.Path, step: int, score: float, say: Callable[[str], None]) -> None:
    """Tell of an evaluation of the checkpoint of a step, so that the best one stays; says if that cannot be noted."""
    try:
        before = checkpoints.best(logdir)
        if not checkpoints.mark_best(logdir, step, score) and before is not None:
            say(f"The checkpoint of step {before.step:,} stays the best one, with a mean return of {before.score:.1f}.")
    except checkpoints.CheckpointError as error:
        say(str(error))


def resume_command(logdir: pathlib.Path) -> str:
    """The command that goes on with a run."""
    return f"python -m dreamer.train --resume {shlex.quote(str(logdir))}"
