"""When a run is over: requests to stop, and the rules of the config."""

import contextlib
import os
import signal
from collections.abc import Collection, Iterator
from typing import Any

from dreamer.config import RunConfig
from dreamer.logs.logger import RECENT

SIGNALS = {"SIGINT": 130, "SIGTERM": os.EX_TEMPFAIL}
"""Exit status of a run that was saved because of a signal. Somebody who presses Ctrl-C wants it to end, as 130 says to
a shell. A scheduler that sends SIGTERM wants its machine: 75 means "try again later" in sysexits.h. The 143 of a
process that SIGTERM has killed would not tell that the run was saved."""


class StopRequest:
    """Whether somebody wants the run to stop.

    Attributes:
        signal: name of the signal that asked for it; empty as long as nobody did.
        where: who got the signal, if it was another host.
    """

    signal = ""
    where = ""

    def __bool__(self) -> bool:
        return bool(self.signal)

    def __str__(self) -> str:
        return f"{self.signal}{self.where}"

    @property
    def code(self) -> int:
        """A number for `hosts.Hosts.table`: 0 without a request, else 1 or more."""
        return [*SIGNALS, self.signal].index(self.signal) + 1 if self.signal else 0

    def hear(self, code: int) -> None:
        """Take over a request of another host, unless there is one of this host."""
        if code and not self.signal:
            self.signal, self.where = [*SIGNALS, "a failure"][code - 1], " on another host"

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """SIGINT and SIGTERM are requests here, and the third of them raises `KeyboardInterrupt`.

        The second changes nothing but the display, so that an impatient hand, or a scheduler that repeats itself, does
        not lose what is being saved.
        """
        count = 0

        def request(number: int, frame: Any) -> None:
            nonlocal count
            count += 1
            self.signal = self.signal or signal.Signals(number).name
            if count == 2:
                # Not through the buffers of Python, which this may have interrupted.
                with contextlib.suppress(OSError):
                    os.write(2, b"\nThe run stops and is saved after this turn. A third signal ends it at once.\n")
            if count > 2:
                raise KeyboardInterrupt

        previous = {}
        with contextlib.suppress(ValueError):  # Not in the main thread: then signals are not ours to handle.
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, request)
        try:
            yield
        finally:
            for number, handler in previous.items():
                # None: whoever handled it before was not Python, and cannot be put back.
                if handler is not None:
                    signal.signal(number, handler)


def budget_spent(run: RunConfig, env_steps: int, episodes: int) -> str:
    """The rule by which a run that has counted so much is over, as the name of its key; empty if it is not."""
    if env_steps >= run.env_steps:
        return "env_steps"
    return "episodes" if run.episodes and episodes >= run.episodes else ""


EARLY = ("", "hours", "score")
"""The rules of `early_end`, and none: a number for `hosts.Hosts.table`."""


def early_end(run: RunConfig, seconds: float, recent: Collection[float]) -> str:
    """The rule by which a run is over after so many seconds, or because of its recent returns; empty if it is not.

    Args:
        run: the config.
        seconds: of training, over all resumes.
        recent: returns of the last episodes, at most as many as count.
    """
    if run.hours and seconds >= 3600 * run.hours:
        return "hours"
    return "score" if len(recent) >= RECENT and sum(recent) / len(recent) >= run.score else ""
