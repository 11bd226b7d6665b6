"""Draws what the world model predicts while training goes on.

The prediction is one small program on the device. Fetching it, drawing, and writing happen in a thread of their own,
and the loop only asks now and then whether that is done.
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
"""The first pictures come early: then people still look."""

SENT_EVERY = 12
"""Of so many sets, one goes to TensorBoard and Weights & Biases."""


class Prediction(NamedTuple):
    """An open-loop prediction, which may still be computing."""

    batch: Batch
    context: int
    predictions: dict[str, jax.Array]
    metrics: Metrics


class Drawn(NamedTuple):
    """Pictures on the disk, and the metrics of what they show."""

    metrics: dict[str, float]
    pictures: dict[str, pathlib.Path]
    """``open_loop/KEY`` for each observation key, and ``training``."""
    unpredicted: tuple[str, ...]
    """Observation keys of which there is no picture, as the agent does not predict them."""
    seconds: float
    """What fetching, drawing and writing took, beside training."""


def context_of(batch_length: int) -> int:
    """Steps of a sequence that the model sees before it goes on blindly: a quarter."""
    return max(1, batch_length // 4)


class Watcher:
    """Makes pictures in the background, one set at a time, in ``LOGDIR/pictures``; each replaces the one before.

    Args:
        logdir: directory of the run.
        spaces: observation spaces.
        title: heading of plots.
        every: seconds between two sets; 0: none.
    """

    def __init__(self, logdir: pathlib.Path, spaces: Spaces, title: str, every: float):
        self._logdir, self._spaces, self._title, self._every = logdir, spaces, title, every
        self._thread = ThreadPoolExecutor(1, "pictures")
        self._drawing: Future[Drawn] | None = None
        self._sets = 0
        self._next = time.perf_counter() + min(FIRST_SECONDS, every)

    @property
    def wanted(self) -> bool:
        """Whether pictures are made at all."""
        return self._every > 0

    @property
    def due(self) -> bool:
        """Whether it is time for the next set, and nothing is known to be drawn."""
        return self.wanted and self._drawing is None and time.perf_counter() >= self._next

    def turn(self, predict: Callable[[], Prediction], log: Logger, counters: Callable[[], dict[str, Any]]) -> None:
        """Between two turns of a loop: begin to draw if it is time, and write down what was drawn.

        Args:
            predict: predicts what is drawn.
            log: of the run.
            counters: of the run, for the line.
        """
        if self.due:
            self.start(predict())
        self.hear(log, counters)

    def finish(self, predict: Callable[[], Prediction], log: Logger, counters: Callable[[], dict[str, Any]]) -> None:
        """As `turn`, when a run is over: a last set of its end, if any are made, and waits for it."""
        if self.wanted:
            self.hear(log, counters, wait=True)
            self.start(predict())
            self.hear(log, counters, wait=True)

    def start(self, prediction: Prediction) -> None:
        """Begin to draw; `hear` writes it down when it is done.

        Raises:
            RuntimeError: the set before was not heard of yet.
        """
        if self._drawing is not None:
            raise RuntimeError("Pictures are still being drawn: call hear first.")
        self._next = time.perf_counter() + self._every
        self._drawing = self._thread.submit(self._draw, prediction)

    def hear(self, log: Logger, counters: Callable[[], dict[str, Any]], wait: bool = False) -> None:
        """Write down the set that was drawn since last asked, if there is one; one that failed is told and left out.

        Args:
            log: of the run.
            counters: of the run, for the line.
            wait: for the set that is being drawn.
        """
        if self._drawing is None or not (wait or self._drawing.done()):
            return
        done, self._drawing = self._drawing, None
        try:
            drawn = done.result()
        except (OSError, ValueError) as error:
            log.say(f"Pictures could not be drawn ({error}). Training goes on, and the next ones will be tried.")
            return
        self._sets += 1
        if drawn.unpredicted and self._sets == 1:
            keys = ", ".join(drawn.unpredicted)
            log.say(f"The agent does not predict observations, so there are no pictures of {keys}; curves are drawn.")
        # They stay there for ever, and a day has hundreds.
        sent = drawn.pictures if wait or self._sets % SENT_EVERY == 1 else None
        log.write({**counters(), **drawn.metrics, "pictures/seconds": drawn.seconds}, sent)

    def close(self) -> None:
        """Wait for what is being drawn, and end the thread."""
        self._thread.shutdown()

    def _draw(self, prediction: Prediction) -> Drawn:
        batch, context = prediction.batch, prediction.context
        obs, is_first, predictions, metrics = jax.device_get(
            (batch.obs, batch.is_first, prediction.predictions, prediction.metrics)
        )
        begin = time.perf_counter()
        directory, new = self._logdir / "pictures", self._logdir / "pictures-new"
        shutil.rmtree(new, ignore_errors=True)
        paths = dream_pictures.write(new, self._spaces, obs, predictions, context, is_first, rows=SEQUENCES)
        if training := plot_training(self._logdir, new / "training.png", self._title):
            paths.append(training)
        directory.mkdir(exist_ok=True)
        for path in paths:  # Whoever looks meanwhile sees the old picture or the new one.
            os.replace(path, directory / path.name)
        shutil.rmtree(new, ignore_errors=True)
        pictures = {
            path.stem if path.stem == "training" else f"open_loop/{path.stem}": directory / path.name for path in paths
        }
        numbers = {name: float(np.asarray(value)) for name, value in metrics.items()}
        unpredicted = tuple(key for key in self._spaces if key not in predictions)
        return Drawn(numbers, pictures, unpredicted, time.perf_counter() - begin)


__all__ = ["SEQUENCES", "Drawn", "Prediction", "Watcher", "context_of"]
