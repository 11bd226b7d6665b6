"""The memory that is free, and the memory that a compiled program will take, known before it first runs.

A run that would be killed for lack of memory in its tenth hour, when replay is full, is refused in its first minute.
"""

import contextlib
import ctypes
import gc
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import psutil

from dreamer.config import ConfigError
from dreamer.devices import cgroups


class HostMemory(NamedTuple):
    """Bytes of memory of this host that this process may use."""

    total: int
    available: int
    """What it may still take, from itself and from files that the system keeps in memory and can read again."""
    limited: bool
    """Whether a container or a batch system allows less than the host has."""


_LIMITS = {1: ("memory.limit_in_bytes",), 2: ("memory.max", "memory.high")}
_USAGE = {1: "memory.usage_in_bytes", 2: "memory.current"}
_FILES = {1: ("total_active_file", "total_inactive_file"), 2: ("active_file", "inactive_file")}
"""Names, by version of control groups, of limits, of what is in use, and of the part of that which can be dropped."""


def host_memory(root: pathlib.Path = cgroups.ROOT) -> HostMemory:
    """The memory of this host, or what the tightest of the limits of a container leaves of it.

    Args:
        root: of the file system that describes control groups.
    """
    host = psutil.virtual_memory()
    total = int(host.total)
    available = int(host.available)
    for group in cgroups.groups("memory", root):
        limits = [limit for name in _LIMITS[group.version] if (limit := group.number(name)) is not None]
        if not limits:
            continue
        # Where there is no limit, version 1 has a number that is larger than any memory.
        limit = min(limits)
        held = group.table("memory.stat")
        files = sum(held.get(name, 0) for name in _FILES[group.version])
        used = max(0, (group.number(_USAGE[group.version]) or 0) - files)
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return HostMemory(total, available, limited=total < int(host.total))


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


def lower_program(jitted: Any, *args: Any, options: dict[str, Any] | None = None, **static: Any) -> Callable[[], Any]:
    """Trace a program for arguments of these shapes now; what is returned compiles it, in any thread.

    JAX's options that hold within a ``with`` belong to the thread that set them, and only a trace asks for them.

    LLVM allocates millions of small pieces, most of which the C library keeps for later: 1.1 GB after an update of
    size 12m, which would add to the peak of the whole run. This memory is returned to the system.

    Args:
        jitted: what `jax.jit` returns.
        *args: arguments, or their shapes.
        options: of the compiler.
        **static: arguments by name.

    Returns:
        A function that returns the `jax.stages.Compiled`.
    """
    with _no_collection():
        lowered = jitted.lower(*args, **static)

    def finish() -> Any:
        program = lowered.compile(options)
        give_back()
        return program

    return finish


def compile_program(jitted: Any, *args: Any, options: dict[str, Any] | None = None, **static: Any) -> Any:
    """Trace and compile a program now; see `lower_program`."""
    return lower_program(jitted, *args, options=options, **static)()


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
