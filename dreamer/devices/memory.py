"""The memory that a compiled program will take, known before it first runs.

A run that would be killed for lack of memory in its tenth hour, when replay is full, is refused in its first minute.
"""

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from dreamer.config import ConfigError


class MemoryPlan(NamedTuple):
    """Bytes on one device, or on a host whose CPUs are the devices."""

    program: int
    """What running the program takes in addition to its arguments, which are in memory already."""
    replay: int
    """What replay will still claim in the same memory."""
    available: int

    @property
    def shortfall(self) -> int:
        """Missing bytes; 0 or less if all fits."""
        return self.program + self.replay - self.available

    def check(self, batch_size: int, batch_length: int) -> None:
        """Raise `ConfigError` if the program does not fit alongside a full replay.

        Args:
            batch_size: ``replay.batch_size``, for the message.
            batch_length: ``replay.batch_length``, likewise.
        """
        if self.shortfall <= 0:
            return
        replay = f" and {_gigabytes(self.replay)} for a full replay" if self.replay else ""
        smaller = ", or replay.capacity" if self.replay else ""
        raise ConfigError(
            f"An update with batches of {batch_size} x {batch_length} needs {_gigabytes(self.program)} of memory "
            f"on top of the training state{replay}; {_gigabytes(self.available)} are available, "
            f"{_gigabytes(self.shortfall)} are missing. Lower replay.batch_size or replay.batch_length{smaller}, or "
            "choose a smaller preset size/... ."
        )


def working_bytes(program: Any) -> int:
    """Bytes that a program takes on each of its devices while it runs, not counting its arguments.

    Results that take the place of donated arguments are not counted either. The figure is that of XLA's buffer
    assignment; libraries that XLA calls may take a little more.

    Args:
        program: a `jax.stages.Compiled`.
    """
    stats = program.memory_analysis()
    if stats is None:  # A backend without buffer assignment.
        return 0
    # Aliased results live in the buffers of donated arguments.
    return stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of their `jax.ShapeDtypeStruct`."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB"


def compile_program(jitted: Any, *args: Any, **static: Any) -> Any:
    """Trace and compile a program for arguments of these shapes, and return the memory that this took to the system.

    LLVM allocates millions of small pieces, most of which the C library keeps for later: 1.1 GB after an update of
    size 12m, which would add to the peak of the whole run.

    Args:
        jitted: what `jax.jit` returns.
        *args: arguments, or their shapes.
        **static: arguments by name.

    Returns:
        The `jax.stages.Compiled`.
    """
    with _no_collection():
        program = jitted.lower(*args, **static).compile()
    give_back()
    return program


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Pause Python's search for reference cycles: a third of the time of tracing, which leaves almost no garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def give_back() -> None:
    """Return freed memory to the system; does nothing where the C library is not GNU's."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
