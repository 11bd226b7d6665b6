"""When a run is over: requests to stop, and the rules of the config."""

import contextlib
import os
import signal
from collections.abc import Callable, Collection, Iterator
from typing import Any

from dreamer.config import RunConfig
from dreamer.logs.logger import RECENT

SIGNALS = {
    "SIGINT": 130,
    "SIGTERM": os.EX_TEMPFAIL,
    "SIGHUP": os.EX_TEMPFAIL,
    "SIGUSR1": os.EX_TEMPFAIL,
}
"""Exit status of a run that was saved because of a signal. Ctrl-C is meant to end it, as 130 tells a shell. A scheduler
that sends SIGTERM, or SIGUSR1 as a warning, wants its machine back, and SIGHUP says that the terminal is gone: 75 means
"try again later" in sysexits.h. The 143 of a process killed by SIGTERM would not tell that the run was saved."""


class StopRequest:
    """Whether the run was asked to stop.

    Attributes:
        signal: name of the signal that asked for it; empty without a request.
        where: " on another host" if another host received the signal, else empty.
    """

    signal = ""
    where = ""

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, Any], None]] = {}

    def __bool__(self) -> bool:
        return bool(self.signal)

    def __str__(self) -> str:
        return f"{self.signal}{self.where}"

    @property
    def code(self) -> int:
        """A number for `hosts.Hosts.table`: 0 without a request, else 1 or more."""
        return [*SIGNALS, self.signal].index(self.signal) + 1 if self.signal else 0

    def receive(self, code: int) -> None:
        """Adopt a request from another host, unless this host has one."""
        if code and not self.signal:
            # The inverse of `code`; all that is no signal is a failure.
            self.signal = [*SIGNALS, "a failure"][code - 1]
            self.where = " on another host"

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within this context `SIGNALS` are requests, and the third of them raises `KeyboardInterrupt`.

        The second only prints a message, so that an impatient user, or a scheduler that repeats itself, does not lose
        what is being saved. A SIGHUP that is ignored, as under nohup, stays ignored.
        """
        count = 0

        def request(number: int, frame: Any) -> None:
            nonlocal count
            count += 1
            self.signal = self.signal or signal.Signals(number).name
            if count == 2:
                # Not through the buffers of Python: the handler may have interrupted a write to them.
                with contextlib.suppress(OSError):
                    os.write(2, b"\nThe run stops and is saved after this turn. A third signal ends it at once.\n")
            if count > 2:
                raise KeyboardInterrupt

        previous = {}
        with contextlib.suppress(ValueError):  # Only the main thread may handle signals.
            for name in SIGNALS:
                number = getattr(signal, name)
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    previous[number] = signal.signal(number, request)
        self._handlers = dict.fromkeys(previous, request)
        try:
            yield
        finally:
            self._handlers = {}
            for number, handler in previous.items():
                # None: the handler before was not installed from Python, and cannot be restored.
                if handler is not None:
                    signal.signal(number, handler)

    def keep_listening(self) -> None:
        """Take back the handlers of signals that someone else has taken since, as simulators do when they start.

        Cheap enough for every turn. Does nothing outside of `listening`.
        """
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def budget_spent(run: RunConfig, env_steps: int, episodes: int) -> str:
    """The rule by which a run with these counters is over, as the name of its key; empty if it is not over."""
    if env_steps >= run.env_steps:
        return "env_steps"
    return "episodes" if run.episodes and episodes >= run.episodes else ""


EARLY = ("", "hours", "score")
"""What `early_end` may return; hosts exchange the index, in `hosts.Hosts.table`."""


def early_end(run: RunConfig, seconds: float, recent: Collection[float]) -> str:
    """The rule by which a run is over because of its time or its recent returns; empty if it is not over.

    Args:
        run: the config.
        seconds: time spent training, over all resumes.
        recent: returns of the last episodes, at most as many as count.
    """
    if run.hours and seconds >= 3600 * run.hours:
        return "hours"
    return "score" if len(recent) >= RECENT and sum(recent) / len(recent) >= run.score else ""
