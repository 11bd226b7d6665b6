"""Memory that a compiled program will take, known before it runs for the first time.

A run that would be killed for lack of memory in its tenth hour, when replay is full, is refused in its first minute.
"""

import contextlib
import ctypes
import gc
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from dreamer.config import ConfigError


class Plan(NamedTuple):
    """Bytes on one device, or on a host whose CPUs are the devices."""

    program: int
    """What running the program takes beside arguments that are there already."""
    replay: int
    """What replay will still claim in the same memory."""
    available: int

    @property
    def missing(self) -> int:
        """Bytes that there are too few; 0 or less if all fits."""
        return self.program + self.replay - self.available

    def check(self, batch_size: int, batch_length: int) -> None:
        """Raise `ConfigError` if the program does not fit beside a full replay.

        Args:
            batch_size: ``replay.batch_size``, for the message.
            batch_length: ``replay.batch_length``, likewise.
        """
        if self.missing <= 0:
            return
        beside = f" and {_gigabytes(self.replay)} for a full replay" if self.replay else ""
        smaller = ", or replay.capacity" if self.replay else ""
        raise ConfigError(
            f"An update with batches of {batch_size} x {batch_length} needs {_gigabytes(self.program)} of memory "
            f"beside the training state{beside}; {_gigabytes(self.available)} are available, "
            f"{_gigabytes(self.missing)} are missing. Lower replay.batch_size or replay.batch_length{smaller}, or "
            "choose a smaller preset size/... ."
        )


def beside_arguments(compiled: Any) -> int:
    """Bytes that a program takes on each of its devices while it runs, not counting its arguments.

    Results that take the place of donated arguments are not counted either. Counted by XLA when it plans its buffers;
    libraries that it calls may take a little more.

    Args:
        compiled: a `jax.stages.Compiled`.
    """
    stats = compiled.memory_analysis()
    if stats is None:  # A backend that does not plan.
        return 0
    return stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of what has their shapes and dtypes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB"


def compiled(jitted: Any, *args: Any, **static: Any) -> Any:
    """Trace and compile a program for arguments of these shapes, and give the memory that this took back to the system.

    Of what LLVM allocates in millions of pieces, the C library keeps most for later: 1.1 GB after an update of size
    12m, which would add to the peak of the whole run.

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
    """Python looks for no cycles to free, which is a third of the time of tracing, where next to nothing is garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def give_back() -> None:
    """Hand memory that was freed back to the system; does nothing where the C library is not GNU's."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
