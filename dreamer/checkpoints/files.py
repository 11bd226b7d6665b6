"""The checkpoints in a run's directory: which there are, which of them stay, and which is the best.

``LOGDIR/checkpoints/STEP`` is complete, as a checkpoint gets this name last. The other names are ``STEP-new`` and
``STEP-hostINDEX-new`` while it is written, ``STEP-old`` while another of the same step replaces it (still complete,
and used if there is no other), ``STEP-gone`` while it is deleted, and ``STEP-damaged`` for one that a resumed run found
damaged: those are left to the user.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import zipfile
from typing import NamedTuple

from dreamer.checkpoints import manifest
from dreamer.config import paths

_COMPLETE = re.compile(r"\d{12}(-old)?")
_LEFTOVER = re.compile(r"\d{12}-(new|gone|host\d+-new)(\..*)?")
_BEST = "best.json"


UNREADABLE = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError),
    zipfile.BadZipFile,
)
"""What reading files raises that are not as a run writes them, or that the system does not give."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, found or used; the message says what to do."""


class Best(NamedTuple):
    """The best checkpoint of a run by evaluation."""

    step: int
    score: float
    """Mean over the episodes of its evaluation."""


def directory(logdir: str | os.PathLike[str]) -> pathlib.Path:
    """Where the checkpoints of a run are."""
    return paths.expand(logdir).resolve() / "checkpoints"


def name_of(step: int) -> str:
    """Name of the checkpoint of a step; names sort like steps."""
    return f"{step:012d}"


def step_of(path: pathlib.Path) -> int:
    """Step of a checkpoint by its name."""
    return int(path.name[:12])


def complete(logdir: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The complete checkpoints of a run, the newest first; only reading one tells whether it was damaged since."""
    root = directory(logdir)
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if _COMPLETE.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: (step_of(path), not path.name.endswith("-old")), reverse=True)


def exists(logdir: str | os.PathLike[str]) -> bool:
    """Whether ``logdir`` has a complete checkpoint."""
    return bool(complete(logdir))


def steps(logdir: str | os.PathLike[str]) -> set[int]:
    """Steps of the complete checkpoints in ``logdir``."""
    return {step_of(path) for path in complete(logdir)}


def keep(logdir: str | os.PathLike[str], step: int, count: int) -> None:
    """Delete checkpoints except the last ``count`` and the best one, and what interrupted saves have left.

    Args:
        logdir: directory of the run.
        step: the one that was just written; newer ones, left by an attempt that a crash undid, are deleted.
        count: how many stay, including this one.
    """
    found = complete(logdir)
    marked = best(logdir)
    last = sorted({step_of(path) for path in found if step_of(path) <= step})[-count:]
    stay: dict[int, pathlib.Path] = {}
    for path in found:
        if step_of(path) in last or (marked and step_of(path) == marked.step):
            stay.setdefault(step_of(path), path)
    for path in directory(logdir).iterdir():
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif path in found and path not in stay.values():
            # A checkpoint must be complete as long as it has its name.
            gone = path.with_name(f"{path.name[:12]}-gone")
            shutil.rmtree(gone, ignore_errors=True)
            with contextlib.suppress(OSError):  # The next save tries again.
                path.rename(gone)
                shutil.rmtree(gone, ignore_errors=True)


def remove_drafts(logdir: str | os.PathLike[str]) -> None:
    """Delete what saves that were killed or have failed left; call it while no save is under way."""
    root = directory(logdir)
    with contextlib.suppress(FileNotFoundError):
        for path in list(root.iterdir()):
            if _LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path, ignore_errors=True)


def discard(logdir: str | os.PathLike[str], step: int) -> None:
    """Take back a checkpoint that was just written; the one of the same step that it replaced, if any, comes back."""
    target = directory(logdir) / name_of(step)
    old = target.with_name(f"{target.name}-old")
    gone = target.with_name(f"{target.name}-gone")
    with contextlib.suppress(OSError):  # The next start tries again.
        shutil.rmtree(gone, ignore_errors=True)
        target.rename(gone)
        if old.exists():
            old.rename(target)
        shutil.rmtree(gone, ignore_errors=True)


def identity(path: pathlib.Path) -> tuple[int, int] | None:
    """What tells a directory from another one that gets its name; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def set_aside(path: pathlib.Path) -> pathlib.Path:
    """Rename a damaged checkpoint so that it is ignored but kept; returns its new path.

    Raises:
        CheckpointError: the file system refused.
    """
    number = 1
    aside = path.with_name(f"{path.name[:12]}-damaged")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name[:12]}-damaged-{number}")
    try:
        path.rename(aside)
    except OSError as error:
        raise CheckpointError(
            f"The damaged checkpoint {path} could not be renamed to {aside.name}: {error.strerror}. Move it away, then "
            "resume."
        ) from error
    return aside


def best(logdir: str | os.PathLike[str]) -> Best | None:
    """The best checkpoint of a run, as `mark_best` recorded it; None if there is none, or it was deleted."""
    try:
        saved = json.loads(paths.read_text(directory(logdir) / _BEST))
        found = Best(int(saved["step"]), float(saved["score"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return found if found.step in steps(logdir) and math.isfinite(found.score) else None


def mark_best(logdir: str | os.PathLike[str], step: int, score: float) -> bool:
    """Record the score of a checkpoint: the one with the highest score stays, however many newer ones there are.

    A second evaluation of the best one replaces its score.

    Args:
        logdir: directory of the run.
        step: number of the checkpoint that was evaluated.
        score: its mean score, compared with those of other steps: evaluate all in the same way.

    Returns:
        Whether this is now the best one.

    Raises:
        CheckpointError: there is no checkpoint of this step, or the file system refused.
    """
    if step not in steps(logdir):
        raise CheckpointError(f"There is no checkpoint of step {step} in {directory(logdir)} to mark as the best.")
    before = best(logdir)
    if not math.isfinite(score) or (before is not None and before.step != step and score <= before.score):
        return False
    try:
        manifest.write_durably(directory(logdir) / _BEST, json.dumps({"step": step, "score": score}))
    except OSError as error:
        raise CheckpointError(
            f"The best checkpoint could not be noted in {directory(logdir) / _BEST}: {error.strerror}."
        ) from error
    return True
