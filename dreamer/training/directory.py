"""The log directory of a run: its lock, its config, its best checkpoint, and the command that resumes it."""

import contextlib
import fcntl
import os
import pathlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence

from dreamer import checkpoints
from dreamer import config as configs
from dreamer.config import Config, ConfigError, paths
from dreamer.envs.functions import CUSTOM, extra_path, is_same_function

FREE_TO_CHANGE = (
    *("logdir", "run.", "logger.", "devices", "distributed", "optimizer.moments"),
    *("env.workers", "env.per_worker", "env.timeout", "env.failures", "env.check", "env.rehearse", "env.python"),
)
"""Config keys, or prefixes of them, that a resumed run may change, except for ``run.loop``."""


FOLDERS = ("checkpoints", "pictures", "pictures-new", "profile", "replay", "report", "tensorboard", "wandb")
"""Directories that a run, or a report of it, makes in a log directory."""

OWN_FOLDERS = (*FOLDERS[:4], "replay")
"""Those in which a run writes to files that it finds there."""

FILES = (".lock", "config.yaml", "learning_curve.png", "load.txt", "metrics.jsonl", "wandb_id.txt")
"""Files that a run writes in a log directory."""


class LogdirInUse(RuntimeError):
    """Another process is training in this directory."""


class LogdirGone(checkpoints.CheckpointError):
    """The log directory was removed or replaced while the run was writing to it."""


class Claim:
    """A log directory that this process has locked.

    Args:
        logdir: the directory.
        lock: its open lock.
    """

    def __init__(self, logdir: pathlib.Path, lock: int):
        self._logdir = logdir
        self._lock = lock

    def check(self) -> None:
        """Raise `LogdirGone` if the directory is not the one that was locked: what is there now is not ours."""
        try:
            if os.path.samestat(os.fstat(self._lock), os.stat(self._logdir / ".lock")):
                return
            what = "was replaced by another directory"
        except OSError as error:
            what = f"is gone ({error.strerror})"
        raise LogdirGone(
            f"logdir={self._logdir} {what} while the run was writing to it, so the run cannot be saved there and ends. "
            "What was in it is lost, unless it was moved and can be moved back: then resume it. Otherwise start again."
        )


def write_config(logdir: pathlib.Path, config: Config) -> None:
    """Write ``config.yaml``. If a resumed run cannot, it keeps the old one, which differs only in `FREE_TO_CHANGE`.

    Raises:
        ConfigError: it cannot be written, and there is no old one.
    """
    path = logdir / "config.yaml"
    try:
        paths.write_text(path, configs.to_yaml(config))
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
def exclusive(logdir: pathlib.Path, files: Sequence[str] = FILES) -> Iterator[Claim]:
    """Create and lock a log directory, and clear what saves of killed processes left.

    The lock ends with the process, however that ends.

    Args:
        logdir: the directory.
        files: what is going to be written there.

    Raises:
        LogdirInUse: another process holds it.
        ConfigError: the directory cannot be created or written, or something in it is not what a run would write to.
    """
    try:
        logdir.mkdir(parents=True, exist_ok=True)
        refuse_what_is_not_ours(logdir, files)
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
        checkpoints.remove_drafts(logdir)
        yield Claim(logdir, lock.fileno())


def refuse_what_is_not_ours(logdir: pathlib.Path, files: Sequence[str] = FILES) -> None:
    """Raise `ConfigError` if a link, a pipe or a device is where a run writes, or a directory where a file belongs.

    A run would write through a link into a file that is not its own, and wait forever at a pipe. The log directory
    itself may be a link. What has other names than a run uses is none of its business.
    """
    for name in (*FOLDERS, *files):
        refuse(logdir / name, directory=name in FOLDERS)
    for folder in OWN_FOLDERS:
        for parent, directories, found in os.walk(logdir / folder):
            for name in directories:
                refuse(pathlib.Path(parent, name), directory=True)
            for name in found:
                refuse(pathlib.Path(parent, name))


def refuse(path: pathlib.Path, *, directory: bool = False) -> None:
    """Raise `ConfigError` if something other than a file (or a directory) is where a run writes one."""
    if got := paths.obstacle(path, directory=directory):
        expected = "a directory" if directory else "a file"
        raise ConfigError(
            f"{path} is {got}, expected {expected} or nothing, because a run writes there. Remove it, or choose "
            "another logdir; to keep runs on another disk, let the whole logdir be a link."
        )


def refuse_other_config(saved: Config, config: Config, logdir: pathlib.Path) -> None:
    """Raise `ConfigError` naming every key that a resumed run must not change but would."""
    changed = configs.differences(saved, config)
    wrong = [
        f"{key}: {old} in the checkpoint, {new} now"
        for key, (old, new) in changed.items()
        if (not key.startswith(FREE_TO_CHANGE) or key == "run.loop")
        and not (key == "task" and is_same_function(saved.task, config.task))
    ]
    if wrong:
        again = resume_command(logdir, saved.task)
        raise ConfigError(
            "\n  ".join([f"{logdir} holds a checkpoint of another config; {len(wrong)} key(s) differ:", *wrong])
            + f"\nContinue with the saved config: {again}; or start a new run in another logdir."
        )


def note_best(logdir: pathlib.Path, step: int, score: float, say: Callable[[str], None]) -> None:
    """Record the score of a checkpoint, so that the best one stays; says if another one is, or if that fails."""
    try:
        before = checkpoints.best(logdir)
        if not checkpoints.mark_best(logdir, step, score) and before is not None:
            say(f"The checkpoint of step {before.step:,} stays the best one, with a mean return of {before.score:.1f}.")
    except checkpoints.CheckpointError as error:
        say(str(error))


def resume_command(logdir: str | pathlib.Path, task: str) -> str:
    """The command that resumes a run; in Python, if no other process could import its environment."""
    if task.startswith(CUSTOM):
        config = f'dreamer.load_config(["{pathlib.Path(logdir, "config.yaml")}"], ["logdir={logdir}"])'
        return f"dreamer.train(env={_custom_name(task)}, config={config})"
    return _command(task, "dreamer.train", "--resume", str(logdir))


def evaluate_command(logdir: str | pathlib.Path, task: str, episodes: int = 20) -> str:
    """The command that scores a run, or Python as in `resume_command`."""
    if task.startswith(CUSTOM):
        return f'dreamer.evaluate(dreamer.load("{logdir}"), {_custom_name(task)}, {episodes})'
    return _command(task, "dreamer.evaluate", str(logdir), "--episodes", str(episodes))


def _command(task: str, *words: str) -> str:
    """A command that finds the function of a task where this process did."""
    place = extra_path(task)
    before = f"{os.environ['PYTHONPATH']}{os.pathsep}" if os.environ.get("PYTHONPATH") else ""
    path = f"PYTHONPATH={shlex.quote(f'{before}{place}')} " if place else ""
    return f"{path}python -m {shlex.join(words)}"


def _custom_name(task: str) -> str:
    name = task.removeprefix(CUSTOM)
    return name if name.isidentifier() else "env"
