"""Manifests: every file of a directory with its size and SHA-256, so that nothing damaged is mistaken for intact.

``manifest.json`` is written last, when everything else is on the disk. It also holds its own digest, and is accepted
only if writing it again would give the same bytes.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import Any

from dreamer.config import paths

NAME = "manifest.json"

_DAMAGE = {0, errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EBADMSG, errno.EINVAL}
"""Errors that are about the file; others, such as a lack of permission, are about the reader."""


class DamageError(ValueError):
    """A directory is not what its manifest says; the message names the file."""


def write(directory: pathlib.Path) -> int:
    """Put all files of a directory on the disk, then its manifest, which makes it complete.

    Returns:
        Bytes of all files, including the manifest.

    Raises:
        OSError: the file system refused.
    """
    sync(directory)
    files = {name: _describe(directory / name) for name in _names(directory)}
    write_durably(directory / NAME, _render(files))
    return sum(entry["bytes"] for entry in files.values()) + (directory / NAME).stat().st_size


def verify(directory: pathlib.Path) -> None:
    """Compare every file of a directory with its manifest.

    Raises:
        DamageError: a file is missing, unknown, unreadable, or not what was written.
        OSError: it cannot be read, for reasons other than damage.
    """
    expected = _read(directory / NAME)
    with _damage_errors("it"):
        found = _names(directory)
    for name in sorted(expected.keys() | set(found)):
        if name not in expected:
            raise DamageError(f"'{name}' is not in its manifest")
        if name not in found:
            raise DamageError(f"'{name}' is missing")
        with _damage_errors(f"'{name}'"):
            # The size first: it reveals a truncated file without reading the rest.
            size = (directory / name).stat().st_size
            if size != expected[name]["bytes"]:
                raise DamageError(f"'{name}' has {size} bytes, expected {expected[name]['bytes']}")
            if _describe(directory / name) != expected[name]:
                raise DamageError(f"'{name}' is not what was written: its checksum differs")


def write_durably(path: pathlib.Path, text: str) -> None:
    """Replace a file atomically: after a crash or a loss of power, it holds the old text or the new one."""
    with paths.replacing(path) as draft, open(draft, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_names(path.parent)


def sync(directory: pathlib.Path) -> None:
    """Put all files of a directory, and their names, on the disk."""
    for name in _names(directory):
        sync_names(directory / name)
    for path, _, _ in os.walk(directory, topdown=False):
        sync_names(pathlib.Path(path))


def sync_names(path: pathlib.Path) -> None:
    """Put the names in a directory on the disk, not the files; or one file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _names(directory: pathlib.Path) -> list[str]:
    """Files below a directory by their relative path, without the manifest."""

    def fail(error: OSError) -> None:
        raise error

    found = []
    for parent, directories, files in os.walk(directory, onerror=fail):
        # A link to a directory is listed among the directories, but not followed.
        links = [name for name in directories if os.path.islink(os.path.join(parent, name))]
        found += [(pathlib.Path(parent) / name).relative_to(directory).as_posix() for name in (*files, *links)]
    return sorted(name for name in found if name != NAME)


def _describe(path: pathlib.Path) -> dict[str, Any]:
    """Size and digest of a plain file."""
    # Opening a pipe would block forever, and a link may lead anywhere.
    if not stat.S_ISREG(path.lstat().st_mode):
        raise OSError(0, "it is not a plain file")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _render(files: dict[str, Any]) -> str:
    body = json.dumps(files, sort_keys=True)
    return json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "files": files}, indent=1, sort_keys=True)


def _read(path: pathlib.Path) -> dict[str, Any]:
    with _damage_errors(f"'{NAME}'"):
        _describe(path)
        data = path.read_bytes()
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        files = json.loads(data.decode())["files"]
        if _render(files).encode() == data and all(set(entry) == {"bytes", "sha256"} for entry in files.values()):
            return files
    raise DamageError(f"'{NAME}' is not what was written")


@contextlib.contextmanager
def _damage_errors(what: str) -> Iterator[None]:
    """Turn errors caused by damage into `DamageError`; others pass."""
    try:
        yield
    except OSError as error:
        if (error.errno or 0) not in _DAMAGE:
            raise
        lost = isinstance(error, FileNotFoundError)
        raise DamageError(f"{what} {'is missing' if lost else f'cannot be read ({error.strerror})'}") from error
