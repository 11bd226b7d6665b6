"""Saving without standing still: the loop goes on while one background thread writes a checkpoint."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import psutil

from dreamer.checkpoints import Written


class Saved(NamedTuple):
    """A checkpoint that was written, and what it took."""

    written: Written
    seconds: float
    """From the start until it was on the disk under its name."""
    held_seconds: float
    """The part of it for which the loop stood still."""

    def metrics(self) -> dict[str, float]:
        """For the log."""
        return {
            "save/seconds": self.seconds,
            "save/held_seconds": self.held_seconds,
            "save/bytes": self.written.bytes,
        }


class Saver:
    """Writes one checkpoint at a time, in the background or, where that cannot be, at once.

    Args:
        background: False lets every `start` wait. Several hosts need that: they must all take the same steps in the
            same order, and a thread of its own would take some between theirs.
    """

    def __init__(self, background: bool = True):
        self.background = background
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._began = self._held = 0.0
        self._writing: Future[tuple[Written, float]] | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written, or was and nobody asked how it went: then none can be started."""
        return self._writing is not None

    def start(self, prepare: Callable[[bool], Any], write: Callable[[Any], Written], background: bool = True) -> None:
        """Begin to save; `outcome` tells how it went.

        Args:
            prepare: fetches what is to be written, independent of what the loop does next if it is told True.
            write: writes that.
            background: False waits for this one, for contents too large to be held twice.

        Raises:
            RuntimeError: the saver is busy.
        """
        if self.busy:
            raise RuntimeError("A checkpoint is still being written: ask for its outcome first.")
        self._began = time.perf_counter()
        background = background and self.background
        contents = prepare(background)

        def job() -> tuple[Written, float]:
            return write(contents), time.perf_counter()

        self._writing = self._thread.submit(job)
        if not background:
            self._writing.exception()
        self._held = time.perf_counter() - self._began

    def outcome(self, wait: bool = False) -> Saved | None:
        """The checkpoint that was written since it was last asked for; None if there is none, or not yet.

        Args:
            wait: for the one that is being written.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._writing is None or not (wait or self._writing.done()):
            return None
        # Interrupted while it waits, it still knows that there is one.
        self._writing.exception()
        done, self._writing = self._writing, None
        written, end = done.result()
        return Saved(written, end - self._began, self._held)

    def close(self) -> None:
        """Wait for what is being written, and end the thread."""
        self._thread.shutdown()


def room_for_copy(arrays: Iterable[np.ndarray | jax.Array]) -> bool:
    """Whether arrays take less than half of the memory that is available, so that a copy of them does no harm."""
    return 2 * sum(array.nbytes for array in arrays) < psutil.virtual_memory().available


__all__ = ["Saved", "Saver", "room_for_copy"]
