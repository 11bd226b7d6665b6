"""What a run needs whichever loop it has: its directory, the lock on it, the request to stop, and its result."""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import shlex
import signal
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

from dreamer import checkpoints
from dreamer import config as configs
from dreamer.agent.runtime import Agent
from dreamer.config import Config, ConfigError, RunConfig
from dreamer.evaluate import Evaluation
from dreamer.logs.logger import RECENT

FREE_TO_CHANGE = (
    *("logdir", "run.", "logger.", "devices", "distributed", "optimizer.moments"),
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
    ended: str = ""
    """What ended it: ``env_steps``, ``episodes``, ``hours`` or ``score``, which are keys of ``run``, or a signal."""
    members: tuple["Result", ...] = ()
    """Results of all members, if it was a population; the fields above are those of the first, and its directory."""


SIGNALS = {"SIGINT": 130, "SIGTERM": os.EX_TEMPFAIL}
"""Exit status of a run that was saved because of a signal. Somebody who presses Ctrl-C wants it to end, as 130 says to
a shell. A scheduler that sends SIGTERM wants its machine: 75 means "try again later" in sysexits.h. The 143 of a
process that SIGTERM has killed would not tell that the run was saved."""


class StopRequest:
    """Whether somebody wants the run to stop.

    Attributes:
        signal: name of the signal that asked for it; empty as long as nobody did.
        where: who got the signal, if it was another host.
    """

    signal = ""
    where = ""

    def __bool__(self) -> bool:
        return bool(self.signal)

    def __str__(self) -> str:
        return f"{self.signal}{self.where}"

    @property
    def code(self) -> int:
        """A number for `hosts.Hosts.table`: 0 without a request, else 1 or more."""
        return [*SIGNALS, self.signal].index(self.signal) + 1 if self.signal else 0

    def hear(self, code: int) -> None:
        """Take over a request of another host, unless there is one of this host."""
        if code and not self.signal:
            self.signal, self.where = [*SIGNALS, "a failure"][code - 1], " on another host"

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """SIGINT and SIGTERM are requests here, and the third of them raises `KeyboardInterrupt`.

        The second changes nothing but the display, so that an impatient hand, or a scheduler that repeats itself, does
        not lose what is being saved.
        """
        count = 0

        def request(number: int, frame: Any) -> None:
            nonlocal count
            count += 1
            self.signal = self.signal or signal.Signals(number).name
            if count == 2:
                # Not through the buffers of Python, which this may have interrupted.
                with contextlib.suppress(OSError):
                    os.write(2, b"\nThe run stops and is saved after this turn. A third signal ends it at once.\n")
            if count > 2:
                raise KeyboardInterrupt

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


def budget_spent(run: RunConfig, env_steps: int, episodes: int) -> str:
    """The rule by which a run that has counted so much is over, as the name of its key; empty if it is not."""
    if env_steps >= run.env_steps:
        return "env_steps"
    return "episodes" if run.episodes and episodes >= run.episodes else ""


EARLY = ("", "hours", "score")
"""The rules of `early_end`, and none: a number for `hosts.Hosts.table`."""


def early_end(run: RunConfig, seconds: float, recent: Collection[float]) -> str:
    """The rule by which a run is over after so many seconds, or because of its recent returns; empty if it is not.

    Args:
        run: the config.
        seconds: of training, over all resumes.
        recent: returns of the last episodes, at most as many as count.
    """
    if run.hours and seconds >= 3600 * run.hours:
        return "hours"
    return "score" if len(recent) >= RECENT and sum(recent) / len(recent) >= run.score else ""


def write_config(logdir: pathlib.Path, config: Config) -> None:
    """Write ``config.yaml``. A resumed run that cannot keeps the old one, which is the same up to budgets.

    Raises:
        ConfigError: it cannot be written, and there was none.
    """
    path = logdir / "config.yaml"
    try:
        fresh = path.with_name(".config.yaml.new")
        fresh.write_text(configs.to_yaml(config))
        os.replace(fresh, path)
    except OSError as error:
        if not path.exists():
            raise ConfigError(
                f"{path} cannot be written: {error.strerror}. Free space or choose another logdir."
            ) from error


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
