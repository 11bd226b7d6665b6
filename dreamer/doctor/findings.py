"""What the doctor says, and how it asks: one sentence for each thing, and programs that may crash run beside it."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple


class Finding(NamedTuple):
    """One sentence about a machine, what it is about, and the numbers in it.

    ``ok``: as it should be. ``note``: good to know. ``problem``: something will fail or be slow; the sentence says how
    to mend it.
    """

    level: Literal["ok", "note", "problem"]
    topic: str
    text: str
    data: Mapping[str, Any] = MappingProxyType({})


class Answer(NamedTuple):
    """How a program ended."""

    status: int | None
    """None: it did not end in time, or is not there."""
    out: str
    error: str
    """The last line of what it said about itself, or what became of it."""


def ask(command: Sequence[str], environ: Mapping[str, str] | None = None, seconds: float = 120.0) -> Answer:
    """Run a program; whatever it does, there is an answer."""
    try:
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return Answer(None, "", f"it did not end within {seconds:.0f} seconds")
    except OSError as error:
        return Answer(None, "", f"{command[0]} cannot be started: {error.strerror}")
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    said = lines[-1][:160] if lines else f"it ended with status {done.returncode}"
    if done.returncode < 0:
        said = f"signal {-done.returncode} killed it"
    return Answer(done.returncode, done.stdout, said)


def ask_python(code: str, environ: Mapping[str, str], seconds: float = 120.0) -> Answer:
    """Run Python code in a process of its own, which a library that aborts takes down alone."""
    return ask([sys.executable, "-c", code], environ, seconds)


__all__ = ["Answer", "Finding", "ask", "ask_python"]
