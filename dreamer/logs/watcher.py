"""Draws predictions of the world model while a run trains.

The prediction is one small program on the device. Fetching, drawing and writing happen in a separate thread, and the
loop only checks from time to time whether they are done.
"""

import os
import pathlib
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamer.logs import pictures as dream_pictures
from dreamer.logs.logger import Logger
from dreamer.logs.plots import plot_training
from dreamer.types import Batch, Metrics, Spaces

SEQUENCES = 2
"""Sequences of a batch that are predicted."""

FIRST_SECONDS = 60.0
"""Seconds until the first pictures, at most: at the beginning of a run, people watch."""

SENT_EVERY = 12
"""One in this many sets goes to TensorBoard and Weights & Biases."""


class Prediction(NamedTuple):
    """An open-loop prediction, which may still be computing."""

    batch: Batch
    context: int
    predictions: dict[str, jax.Array]
    metrics: Metrics


class PictureSet(NamedTuple):
    """Pictures on the disk, and the metrics of the predictions that they show."""

    metrics: dict[str, float]
    pictures: dict[str, pathlib.Path]
    """``open_loop/KEY`` for each observation key, and ``training``."""
    unpredicted: tuple[str, ...]
    """Observation keys of which there is no picture, as the agent does not predict them."""
    seconds: float
    """Time of drawing and writing, in parallel to training."""


def context_of(batch_length: int) -> int:
    """Steps of a sequence that the model sees before it predicts the rest: a quarter."""
    return max(1, batch_length // 4)


class Watcher:
    """Draws pictures in the background, one set at a time, in ``LOGDIR/pictures``; each set replaces the last one.

    Args:
        logdir: directory of the run.
        spaces: observation spaces.
        title: heading of plots.
        every: seconds between two sets; 0: none.
    """

    def __init__(self, logdir: pathlib.Path, spaces: Spaces, title: str, every: float):
        self._logdir = logdir
        self._spaces = spaces
        self._title = title
        self._every = every
        self._thread = ThreadPoolExecutor(1, "pictures")
        self._drawing: Future[PictureSet] | None = None
        self._sets = 0
        self._next = time.perf_counter() + min(FIRST_SECONDS, every)

    @property
    def enabled(self) -> bool:
        """Whether pictures are drawn at all."""
        return self._every > 0

    @property
    def due(self) -> bool:
        """Whether it is time for the next set, and the last one has been collected."""
        return self.enabled and self._drawing is None and time.perf_counter() >= self._next

    def turn(self, predict: Callable[[], Prediction], log: Logger, counters: Callable[[], dict[str, Any]]) -> None:
        """Between two turns of a loop: start drawing if it is time, and log a finished set.

        Args:
            predict: makes the prediction to draw.
            log: of the run.
            counters: of the run, for the line.
        """
        if self.due:
            self.start(predict())
        self.collect(log, counters)

    def finish(self, predict: Callable[[], Prediction], log: Logger, counters: Callable[[], dict[str, Any]]) -> None:
        """At the end of a run: draw a last set, if pictures are enabled, and wait for it."""
        if self.enabled:
            self.collect(log, counters, wait=True)
            self.start(predict())
            self.collect(log, counters, wait=True)

    def start(self, prediction: Prediction) -> None:
        """Start drawing; `collect` logs the set when it is finished.

        Raises:
            RuntimeError: the last set has not been collected yet.
        """
        if self._drawing is not None:
            raise RuntimeError("Pictures are still being drawn: call collect first.")
        self._next = time.perf_counter() + self._every
        self._drawing = self._thread.submit(self._draw, prediction)

    def collect(self, log: Logger, counters: Callable[[], dict[str, Any]], *, wait: bool = False) -> None:
        """Log the set that was drawn since the last call, if there is one; a failure is reported, and its set left out.

        Args:
            log: of the run.
            counters: of the run, for the line.
            wait: for the set that is being drawn.
        """
        if self._drawing is None or not (wait or self._drawing.done()):
            return
        drawing = self._drawing
        self._drawing = None
        try:
            drawn = drawing.result()
        except (OSError, ValueError) as error:
            log.say(f"Pictures could not be drawn ({error}). Training continues; the next ones will be tried.")
            return
        self._sets += 1
        if drawn.unpredicted and self._sets == 1:
            keys = ", ".join(drawn.unpredicted)
            log.say(f"There are no pictures of {keys}, of which the agent gives no predictions; curves are drawn.")
        # Services keep every set, and a day has hundreds.
        sent = drawn.pictures if wait or self._sets % SENT_EVERY == 1 else None
        log.write({**counters(), **drawn.metrics, "pictures/seconds": drawn.seconds}, sent)

    def close(self) -> None:
        """Wait for the set that is being drawn, and end the thread."""
        self._thread.shutdown()

    def _draw(self, prediction: Prediction) -> PictureSet:
        batch = prediction.batch
        obs, is_first, predictions, metrics = jax.device_get(
            (batch.obs, batch.is_first, prediction.predictions, prediction.metrics)
        )
        begin = time.perf_counter()
        directory = self._logdir / "pictures"
        new = self._logdir / "pictures-new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()  # Without parents: a log directory that was removed is not made again.
        paths = dream_pictures.write(new, self._spaces, obs, predictions, prediction.context, is_first, rows=SEQUENCES)
        if training := plot_training(self._logdir, new / "training.png", self._title):
            paths.append(training)
        directory.mkdir(exist_ok=True)
        for path in paths:  # A viewer sees the old picture or the new one, never a part.
            os.replace(path, directory / path.name)
        shutil.rmtree(new, ignore_errors=True)
        pictures = {
            path.stem if path.stem == "training" else f"open_loop/{path.stem}": directory / path.name for path in paths
        }
        numbers = {name: float(np.asarray(value)) for name, value in metrics.items()}
        unpredicted = tuple(key for key in self._spaces if key not in predictions)
        return PictureSet(numbers, pictures, unpredicted, time.perf_counter() - begin)


__all__ = ["SEQUENCES", "PictureSet", "Prediction", "Watcher", "context_of"]
