"""The cores that this process may use: all of the machine's, or fewer."""

import os


def numbers() -> list[int]:
    """Numbers of these cores, sorted; empty on systems that do not tell (macOS, Windows)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def count() -> int:
    """Number of these cores; on systems that do not tell, of all cores."""
    return len(numbers()) or os.cpu_count() or 1
