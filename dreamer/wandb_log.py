"""Sends metrics to Weights & Biases from a thread of its own, which training never waits for.

The service may be out of reach, the client may not be logged in, and a call may take for ever. Whatever happens there,
the run goes on, says so once, and has everything in ``metrics.jsonl``.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

MOST_WAITING = 10_000
"""Lines that wait to be sent; further ones are dropped."""


class WandbLog:
    """One run at Weights & Biases.

    Args:
        options: keyword arguments of ``wandb.init``.
        say: prints a message; called from the thread as well.
    """

    def __init__(self, options: Mapping[str, Any], say: Callable[[str], object]):
        self._options = options
        self._say = say
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue(MOST_WAITING)
        self._complained = False
        self._given_up = False
        # A daemon, so that a call which hangs does not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, line: dict[str, Any]) -> None:
        """Send a line some time; returns at once."""
        if self._given_up:
            return
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._complain(f"{MOST_WAITING:,} lines wait for Weights & Biases; further ones are not sent")

    def close(self, seconds: float = 30.0) -> None:
        """Finish the run there, if that takes no longer than so many seconds."""
        deadline = time.monotonic() + seconds
        try:
            self._lines.put(None, timeout=seconds)
            self._thread.join(max(0.0, deadline - time.monotonic()))
        except queue.Full:
            pass
        if self._thread.is_alive():
            self._complain(f"Weights & Biases did not finish within {seconds:.0f} seconds")

    def _work(self) -> None:
        try:
            import wandb as client  # Slow to import, and most runs do without.

            run = client.init(**self._options)
        # The client may raise anything, also what asks a process to end, and none of it may end training.
        except BaseException as error:
            self._given_up = True
            self._complain(f"Weights & Biases cannot be used ({_in_one_line(error)})")
            return
        while (line := self._lines.get()) is not None:
            try:
                run.log(line)
            except BaseException as error:
                self._complain(f"A line could not be sent to Weights & Biases ({_in_one_line(error)})")
        try:
            run.finish()
        except BaseException as error:
            self._complain(f"The run could not be finished at Weights & Biases ({_in_one_line(error)})")

    def _complain(self, what: str) -> None:
        if not self._complained:
            self._complained = True
            self._say(f"{what}. Training goes on without; metrics.jsonl has everything.")


def _in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")


__all__ = ["WandbLog"]
