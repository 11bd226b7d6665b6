"""The log directory of a run: its lock, its config, its best checkpoint, and the command that resumes it."""

import contextlib
import fcntl
import os
import pathlib
import shlex
import time
from collections.abc import Callable, Iterator

from dreamer import checkpoints
from dreamer import config as configs
from dreamer.config import Config, ConfigError

FREE_TO_CHANGE = (
    *("logdir", "run.", "logger.", "devices", "distributed", "optimizer.moments"),
    *("env.workers", "env.per_worker", "env.timeout", "env.failures", "env.check"),
)
"""Config keys, or prefixes of them, that a resumed run may change, except for ``run.loop``."""


class LogdirInUse(RuntimeError):
    """Another process is training in this directory."""


def write_config(logdir: pathlib.Path, config: Config) -> None:
    """Write ``config.yaml``. If a resumed run cannot, it keeps the old one, which differs only in `FREE_TO_CHANGE`.

    Raises:
        ConfigError: it cannot be written, and there is no old one.
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
    """``runs/TIME-TASK-SEED``, a directory that does not exist yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = pathlib.Path("runs") / f"{stamp}-{config.task.replace('/', '_')}-{config.seed}"
    path = base
    number = 0
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return str(path)


@contextlib.contextmanager
def exclusive(logdir: pathlib.Path) -> Iterator[None]:
    """Create and lock a log directory; the lock ends with the process, however that ends.

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
                f"logdir={logdir} cannot be locked: {error.strerror}. Choose a logdir on a file system with locks; a "
                "network file system may have to be mounted with them."
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
            + f"\nContinue with the saved config: {resume_command(logdir)}; or start a new run in another logdir."
        )


def note_best(logdir: pathlib.Path, step: int, score: float, say: Callable[[str], None]) -> None:
    """Record the score of a checkpoint, so that the best one stays; says if another one is, or if that fails."""
    try:
        before = checkpoints.best(logdir)
        if not checkpoints.mark_best(logdir, step, score) and before is not None:
            say(f"The checkpoint of step {before.step:,} stays the best one, with a mean return of {before.score:.1f}.")
    except checkpoints.CheckpointError as error:
        say(str(error))


def resume_command(logdir: pathlib.Path) -> str:
    """The command that resumes a run."""
    return f"python -m dreamer.train --resume {shlex.quote(str(logdir))}"
