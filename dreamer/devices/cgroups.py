"""Control groups of Linux, by which containers and batch systems limit what a process may use.

A process belongs to one group of each hierarchy (version 1: one hierarchy per resource; version 2: one for all), and
the limits of the groups above it hold as well. Inside of a container, the group that the process is told of may have
another path than the files that can be seen.
"""

import pathlib
from typing import NamedTuple

ROOT = pathlib.Path("/")


class ControlGroup(NamedTuple):
    """A control group of this process."""

    version: int
    directory: pathlib.Path

    def number(self, name: str) -> int | None:
        """A number in one of its files; None if it is absent, or says that there is no limit."""
        try:
            return int((self.directory / name).read_text())
        except (OSError, ValueError):
            return None

    def table(self, name: str) -> dict[str, int]:
        """Numbers by name in one of its files; empty if it is absent."""
        try:
            rows = [line.split() for line in (self.directory / name).read_text().splitlines()]
            return {row[0]: int(row[1]) for row in rows if len(row) == 2}
        except (OSError, ValueError):
            return {}


def groups(resource: str, root: pathlib.Path = ROOT) -> list[ControlGroup]:
    """The groups of this process that limit a resource, its own first, then those above it.

    Args:
        resource: ``memory`` or ``cpu``.
        root: of the file system.
    """
    found = []
    for version, path in _memberships(resource, root):
        for mount in _mounts(resource, version, root):
            own = _within(path, mount)
            for directory in (own, *own.parents):
                found.append(ControlGroup(version, directory))
                if directory == mount.point:
                    break
    return list(dict.fromkeys(found))


class _Mount(NamedTuple):
    """A hierarchy that can be seen."""

    top: pathlib.PurePosixPath
    """The group whose files are at its top."""
    point: pathlib.Path
    """Where it is mounted."""


def _memberships(resource: str, root: pathlib.Path) -> list[tuple[int, pathlib.PurePosixPath]]:
    """Versions and paths of the groups of this process; a line is ``4:memory:/path``, in version 2 ``0::/path``."""
    found = []
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        resources, _, path = rest.partition(":")
        if number == "0" and not resources:
            found.append((2, pathlib.PurePosixPath(path)))
        elif resource in resources.split(","):
            found.append((1, pathlib.PurePosixPath(path)))
    return found


def _mounts(resource: str, version: int, root: pathlib.Path) -> list[_Mount]:
    """Where a hierarchy is mounted; a line is ``30 23 0:26 TOP POINT rw ... - cgroup2 SOURCE OPTIONS``."""
    found = []
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        places = before.split()
        kind, *rest = after.split() or [""]
        options = rest[-1].split(",") if rest else []
        if len(places) < 5 or kind != ("cgroup2" if version == 2 else "cgroup"):
            continue
        if version == 2 or resource in options:
            point = root / places[4].replace("\\040", " ").lstrip("/")
            found.append(_Mount(pathlib.PurePosixPath(places[3]), point))
    return found


def _within(path: pathlib.PurePosixPath, mount: _Mount) -> pathlib.Path:
    """The directory of a group; the top of the hierarchy if what can be seen does not reach to its path."""
    if path.is_relative_to(mount.top) and ".." not in path.parts:
        own = mount.point / path.relative_to(mount.top)
        if own.is_dir():
            return own
    return mount.point


def _lines(path: pathlib.Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


__all__ = ["ControlGroup", "groups"]
