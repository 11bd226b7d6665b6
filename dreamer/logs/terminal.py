"""Standard output and error of a command, which may be closed or full without changing its exit status.

After ``| head``, on a full disk, or when the terminal is gone, Python ends with a traceback and a status of its own. A
scheduler then takes a run that is done for one that has failed.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast


def exit_status(main: Callable[[], int]) -> int:
    """Run a command; what it prints is dropped from the moment on at which it cannot be written.

    Args:
        main: the command, which returns its exit status.

    Returns:
        That status.
    """
    _occupy_descriptors()
    sys.stdout = cast(TextIO, _Output(sys.stdout))
    sys.stderr = cast(TextIO, _Output(sys.stderr))
    try:
        return main()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


class _Output:
    """A text stream that writes to another one for as long as that works."""

    def __init__(self, stream: Any):
        # A closed descriptor has no stream.
        self._stream = io.StringIO() if stream is None else stream
        if isinstance(self._stream, io.TextIOWrapper):
            # Names of files may have bytes that no character stands for.
            self._stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        """After an error, let the stream lead nowhere: what it still holds is written at the end of the process."""
        try:
            yield
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


def _occupy_descriptors() -> None:
    """Open the standard descriptors that are closed: the next file would get their number, and what C prints."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        continue
    os.close(descriptor)


__all__ = ["exit_status"]
