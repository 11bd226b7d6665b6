"""The cores that this process may use, which can be fewer than the machine has."""

import os


def numbers() -> list[int]:
    """Their numbers, sorted; empty on systems that do not say (macOS, Windows)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def count() -> int:
    """How many there are; all of the machine's on systems that do not say."""
    return len(numbers()) or os.cpu_count() or 1
