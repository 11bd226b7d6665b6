"""What the doctor says, one sentence per finding, and how it asks: programs that may crash run in their own process."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple


class MachineFinding(NamedTuple):
    """One sentence about a machine, its topic, and the numbers in it.

    ``ok``: as it should be. ``note``: good to know. ``problem``: something will fail or be slow; the sentence says how
    to fix it.
    """

    level: Literal["ok", "note", "problem"]
    topic: str
    text: str
    data: Mapping[str, Any] = MappingProxyType({})


class Answer(NamedTuple):
    """How a program ended."""

    status: int | None
    """None: it did not end in time, or could not be started."""
    out: str
    error: str
    """The last line it wrote to stderr, or how it ended."""


def ask(command: Sequence[str], environ: Mapping[str, str] | None = None, seconds: float = 120.0) -> Answer:
    """Run a program for at most some seconds; whatever it does, there is an answer."""
    try:
        result = subprocess.run(
            command, env=environ, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return Answer(None, "", f"it did not end within {seconds:.0f} seconds")
    except OSError as failure:
        return Answer(None, "", f"{command[0]} cannot be started: {failure.strerror}")
    lines = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    error = lines[-1][:160] if lines else f"it ended with status {result.returncode}"
    if result.returncode < 0:
        error = f"signal {-result.returncode} killed it"
    return Answer(result.returncode, result.stdout, error)


def ask_python(code: str, environ: Mapping[str, str], seconds: float = 120.0) -> Answer:
    """Run Python code in its own process, so that a library that aborts does not take the doctor down with it."""
    return ask([sys.executable, "-c", code], environ, seconds)


__all__ = ["Answer", "MachineFinding", "ask", "ask_python"]
