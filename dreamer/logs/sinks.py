"""Sends what is logged to other programs, each from a thread of its own, which training never waits for.

A service may be out of reach, a disk may be full, and a call may take for ever. Whatever happens there, the run goes
on, says so once, and has everything in ``metrics.jsonl``.
"""

import pathlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

MOST_WAITING = 10_000
"""Entries that wait to be sent; further ones are dropped."""


class DataTable(NamedTuple):
    """Rows of numbers and words under names."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Entry(NamedTuple):
    """A line of the log, and what belongs to it."""

    line: Mapping[str, Any]
    """Finite numbers and strings by name, with the counter ``env_steps`` if it belongs to a time."""
    pictures: Mapping[str, pathlib.Path] = {}
    """PNG and GIF files by name."""
    tables: Mapping[str, DataTable] = {}


class Client(Protocol):
    """A connection to another program. Its methods may raise, and may hang."""

    def log(self, entry: Entry) -> None:
        """Send an entry."""

    def finish(self) -> None:
        """Nothing more will come."""


class Sink:
    """A queue of entries, and a thread that sends them.

    Args:
        name: what messages call the other program.
        connect: makes the connection; called in the thread, so it may take its time.
        say: prints a message; called from the thread as well.
    """

    def __init__(self, name: str, connect: Callable[[], Client], say: Callable[[str], object]):
        self._name = name
        self._connect = connect
        self._say = say
        self._entries: queue.Queue[Entry | None] = queue.Queue(MOST_WAITING)
        self._complained = False
        self._given_up = False
        # A daemon, so that a call which hangs does not keep the process alive.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def log(self, entry: Entry) -> None:
        """Send an entry some time; returns at once."""
        if self._given_up:
            return
        try:
            self._entries.put_nowait(entry)
        except queue.Full:
            self._complain(f"{MOST_WAITING:,} lines wait for {self._name}; further ones are not sent")

    def close(self, seconds: float = 30.0) -> None:
        """Send what waits and finish, if that takes no longer than so many seconds."""
        deadline = time.monotonic() + seconds
        try:
            self._entries.put(None, timeout=seconds)
            self._thread.join(max(0.0, deadline - time.monotonic()))
        except queue.Full:
            pass
        if self._thread.is_alive():
            self._complain(f"{self._name} did not finish within {seconds:.0f} seconds")

    def _work(self) -> None:
        try:
            client = self._connect()
        # A client may raise anything, also what asks a process to end, and none of it may end training.
        except BaseException as error:
            self._given_up = True
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
        if not self._complained:
            self._complained = True
            self._say(f"{what}. Training goes on without; metrics.jsonl has everything.")


def in_one_line(error: BaseException) -> str:
    """Type and beginning of the message of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(": ")


__all__ = ["Client", "DataTable", "Entry", "Sink", "in_one_line"]
