"""Saving without a pause: the loop continues while one background thread writes a checkpoint."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from dreamer.checkpoints import Written
from dreamer.devices.memory import host_memory


@runtime_checkable
class Prepare(Protocol):
    """Fetches what is to be written."""

    def __call__(self, *, copy: bool) -> Any:
        """The contents; with ``copy``, independent of what the loop does next."""


class Saved(NamedTuple):
    """A checkpoint that was written, and what it took."""

    written: Written
    seconds: float
    """From the start until it was on the disk under its final name."""
    held_seconds: float
    """Those of them during which the loop stood still."""

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
        background: False makes every `start` wait. Several hosts need that: they must all take the same steps in the
            same order, and those of a background thread could come between.
    """

    def __init__(self, *, background: bool = True):
        self.background = background
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._start_time = 0.0
        self._held_seconds = 0.0
        self._job: Future[tuple[Written, float]] | None = None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written, or its outcome was not collected: then none can be started."""
        return self._job is not None

    def start(self, prepare: Prepare, write: Callable[[Any], Written], *, background: bool = True) -> None:
        """Begin to save; `outcome` returns the result.

        Args:
            prepare: fetches what is to be written.
            write: writes that.
            background: False waits for this save, for contents too large for a copy.

        Raises:
            RuntimeError: the saver is busy.
        """
        if self.busy:
            raise RuntimeError("A checkpoint is still being written: ask for its outcome first.")
        self._start_time = time.perf_counter()
        background = background and self.background
        contents = prepare(copy=background)

        def job() -> tuple[Written, float]:
            return write(contents), time.perf_counter()

        self._job = self._thread.submit(job)
        if not background:
            self._job.exception()  # Waits; `outcome` raises the error.
        self._held_seconds = time.perf_counter() - self._start_time

    def outcome(self, *, wait: bool = False) -> Saved | None:
        """Collect the checkpoint that was started last; None if there is none, or it is still being written.

        Args:
            wait: wait for the one that is being written.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._job is None or not (wait or self._job.done()):
            return None
        # An interrupt during this wait leaves the job to be collected later.
        self._job.exception()
        job = self._job
        self._job = None
        written, end = job.result()
        return Saved(written, seconds=end - self._start_time, held_seconds=self._held_seconds)

    def close(self) -> None:
        """Wait for the checkpoint that is being written, and end the thread."""
        self._thread.shutdown()


def room_for_copy(arrays: Iterable[np.ndarray | jax.Array]) -> bool:
    """Whether arrays take less than half of the available memory, so that a copy of them does no harm."""
    return 2 * sum(array.nbytes for array in arrays) < host_memory().available


__all__ = ["Prepare", "Saved", "Saver", "room_for_copy"]
