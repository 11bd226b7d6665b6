"""Disk, memory, huge pages and cores."""

import fcntl
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

from dreamer.devices import cgroups
from dreamer.devices import cores as own_cores
from dreamer.devices.memory import host_memory
from dreamer.doctor.findings import MachineFinding

_GB = 1e9

LEAST_DISK = 5.0
"""Gigabytes that two checkpoints of the largest agents and a small replay take."""

LEAST_MEMORY = 2.0
"""Gigabytes that the smallest agents and the libraries take."""

LEAST_SPEED = 20.0
"""Megabytes per second; at this speed, a checkpoint of the default size takes a minute and a half."""

_WRITTEN = 64
"""Mebibytes written to measure the disk."""

HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
ROOT = cgroups.ROOT


def disk(directory: pathlib.Path) -> Iterator[MachineFinding]:
    """Space, speed and locks where runs go.

    Args:
        directory: where runs go; if it does not exist yet, the nearest parent that does is checked.
    """
    while not directory.is_dir() and directory != directory.parent:
        directory = directory.parent
    place = directory.resolve()
    try:
        free = shutil.disk_usage(directory).free / _GB
        speed, locks = _try(directory)
    except OSError as error:
        text = f"{place} cannot be written ({error.strerror}): choose logdir=DIR elsewhere."
        yield MachineFinding("problem", "disk", text)
        return
    data = {"directory": str(place), "free_gb": free, "mb_per_second": speed}
    yield MachineFinding("ok", "disk", f"{place}: {free:,.0f} GB free, writes at {speed:,.0f} MB/s.", data)
    if free < LEAST_DISK:
        text = f"Only {free:.1f} GB are free in {place}, and replay and checkpoints need {LEAST_DISK:g} or more: "
        yield MachineFinding("problem", "disk", f"{text}make room, or choose logdir=DIR elsewhere.")
    if speed < LEAST_SPEED:
        text = f"{place} writes at only {speed:.0f} MB/s: choose logdir=DIR on a local disk, and copy runs afterwards."
        yield MachineFinding("problem", "disk", text)
    if not locks:
        text = f"{place} has no file locks, which keep two runs out of one directory: mount it with them, or choose "
        yield MachineFinding("problem", "disk", f"{text}logdir=DIR elsewhere.")


def _try(directory: pathlib.Path) -> tuple[float, bool]:
    """Megabytes per second, flushed to the disk, and whether a file can be locked."""
    block = os.urandom(2**20)
    with tempfile.NamedTemporaryFile(dir=directory, prefix=".dreamer-doctor-") as file:
        begin = time.perf_counter()
        for _ in range(_WRITTEN):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        speed = _WRITTEN * 2**20 * 1e-6 / (time.perf_counter() - begin)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return speed, False
        return speed, True


def memory() -> Iterator[MachineFinding]:
    """Memory available, within the limit of a container if there is one."""
    found = host_memory(ROOT)
    available = found.available / _GB
    total = found.total / _GB
    where = " that this container may use" if found.limited else ""
    data = {"available_gb": available, "total_gb": total}
    yield MachineFinding("ok", "memory", f"{available:.1f} GB available of {total:.1f} GB{where}.", data)
    if available < LEAST_MEMORY:
        text = f"Only {available:.1f} GB of memory are available: a run needs {LEAST_MEMORY:g} or more: "
        yield MachineFinding("problem", "memory", f"{text}close other programs or give the container more.")


def huge_pages() -> Iterator[MachineFinding]:
    """Whether large arrays on the CPU may have huge pages; see `dreamer.devices.huge_pages`."""
    try:
        setting = HUGE_PAGES.read_text()
    except OSError:
        yield MachineFinding("note", "huge pages", "This system does not say whether it has transparent huge pages.")
        return
    chosen = setting.partition("[")[2].partition("]")[0]
    if chosen in ("madvise", "always"):
        yield MachineFinding("ok", "huge pages", f"Transparent huge pages are on ({chosen}).", {"setting": chosen})
    else:
        text = f"Transparent huge pages are off ({chosen}), and updates on the CPU take up to a fifth longer: "
        yield MachineFinding("note", "huge pages", f"{text}echo madvise | sudo tee {HUGE_PAGES}", {"setting": chosen})


def cores() -> Iterator[MachineFinding]:
    """Cores of the machine, those of this process, and how much of them a container may use."""
    total = os.cpu_count() or 1
    own = own_cores.count()
    quota = min(filter(None, map(_quota, cgroups.groups("cpu", ROOT))), default=None)
    text = f"{own} of {total} core(s)" + (f", of whose time {quota:g} core(s)' worth may be used" if quota else "")
    yield MachineFinding("ok", "cores", f"{text}.", {"cores": own, "quota": quota})
    if quota is not None and quota < 0.75 * own:
        text = f"XLA starts {own} threads, and the container throttles them to {quota:g} cores' worth of time: start "
        yield MachineFinding("note", "cores", f"{text}commands with taskset -c 0-{max(0, round(quota) - 1)}.")


def _quota(group: cgroups.ControlGroup) -> float | None:
    """How many cores' worth of time a control group may use; None: any."""
    try:
        if group.version == 1:
            limit, period = ((group.directory / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        else:
            limit, period = (group.directory / "cpu.max").read_text().split()
        return int(limit) / int(period) if int(limit) > 0 and int(period) > 0 else None
    except (OSError, ValueError):  # Without a limit, version 2 has the word max there.
        return None


__all__ = ["cores", "disk", "huge_pages", "memory"]
