"""Sends the log to other programs, each from a separate thread that training never waits for.

A service may be out of reach, a disk may be full, and a call may never return. Whatever happens there, the run
continues, reports it once, and has everything in ``metrics.jsonl``.
"""

import pathlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

MOST_WAITING = 10_000
"""Entries that may wait to be sent; further ones are dropped."""


class DataTable(NamedTuple):
    """Rows of numbers and words, and the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Entry(NamedTuple):
    """A line of the log with its pictures and tables."""

    line: Mapping[str, Any]
    """Finite numbers and strings by name, with the counter ``env_steps`` if it belongs to a time of the run."""
    pictures: Mapping[str, pathlib.Path] = {}
    """PNG and GIF files by name."""
    tables: Mapping[str, DataTable] = {}


class Client(Protocol):
    """A connection to another program. Its methods may raise, and may hang."""

    def log(self, entry: Entry) -> None:
        """Send an entry."""

    def finish(self) -> None:
        """Close the connection: no entry follows."""


class Sink:
    """A queue of entries, and a thread that sends them.

    Args:
        name: of the other program, for messages.
        connect: makes the connection; called in the thread, so it may be slow.
        say: prints a message; also called from the thread.
    """

    def __init__(self, name: str, connect: Callable[[], Client], say: Callable[[str], object]):
        self._name = name
        self._connect = connect
        self._say = say
        self._entries: queue.Queue[Entry | None] = queue.Queue(MOST_WAITING)
        self._has_complained = False
        self._has_failed = False
        self._dropped = 0
        # A daemon, so that a call that hangs does not keep the process alive.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def log(self, entry: Entry) -> None:
        """Queue an entry; returns at once."""
        if self._has_failed:
            return
        try:
            self._entries.put_nowait(entry)
        except queue.Full:
            self._dropped += 1
            self._complain(f"{MOST_WAITING:,} lines wait for {self._name}; further ones are not sent")

    def close(self, seconds: float = 30.0) -> None:
        """Send the waiting entries and close the connection; gives up after this many seconds."""
        deadline = time.monotonic() + seconds
        try:
            self._entries.put(None, timeout=seconds)
            self._thread.join(max(0.0, deadline - time.monotonic()))
        except queue.Full:
            pass
        if self._thread.is_alive():
            self._complain(f"{self._name} did not finish within {seconds:.0f} seconds")
        if self._dropped:
            self._say(f"{self._dropped:,} line(s) were not sent to {self._name}; metrics.jsonl has them.")
            self._dropped = 0

    def _work(self) -> None:
        try:
            client = self._connect()
        # A client may raise anything, even SystemExit, and nothing of it may end training.
        except BaseException as error:
            self._has_failed = True
            self._complain(f"{self._name} cannot be used ({in_one_line(error)})")
            return
        while (entry := self._entries.get()) is not None:
            try:
                client.log(entry)
            except BaseException as error:
                self._complain(f"A line could not be sent to {self._name} ({in_one_line(error)})")
        try:
            client.finish()
        except BaseException as error:
            self._complain(f"{self._name} could not finish ({in_one_line(error)})")

    def _complain(self, what: str) -> None:
        if not self._has_complained:
            self._has_complained = True
            self._say(f"{what}. Training continues without it; metrics.jsonl has everything.")


def in_one_line(error: BaseException) -> str:
    """Type and beginning of the message of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")


__all__ = ["Client", "DataTable", "Entry", "Sink", "in_one_line"]
