"""Files that people name: ``~`` is their home, only plain files are read, and nothing is written through a link."""

import contextlib
import errno
import os
import pathlib
import stat
from collections.abc import Iterator

from dreamer.config.fields import ConfigError

Path = str | os.PathLike[str]


def expand(path: Path) -> pathlib.Path:
    """A path in which a leading ``~`` or ``~user`` is a home directory, as in a shell.

    Raises:
        ConfigError: there is no such user.
    """
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"'{os.fspath(path)}' cannot be used: {str(error).rstrip('.')}. Write the directory in full, or ./~NAME "
            "for a name that begins with ~."
        ) from error


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """The contents of a plain file, or of one that a link leads to.

    Args:
        path: the file.
        most: bytes that it may have; None: any number.

    Raises:
        OSError: it cannot be read, is too large, or is something else. A pipe is not waited for.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody to write to it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, f"it is {kind_of(mode)}, expected a file", os.fspath(path))
    with open(descriptor, "rb") as file:
        # Read one byte more than is allowed: a file can grow, and some files do not know their size.
        data = file.read() if most is None else file.read(most + 1)
    if most is not None and len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes, which is too large", os.fspath(path))
    return data


def read_text(path: Path, most: int | None = None, errors: str = "strict") -> str:
    """As `read_bytes`, as UTF-8 text.

    Raises:
        OSError: see `read_bytes`.
        UnicodeDecodeError: it is not UTF-8, and ``errors`` is ``strict``.
    """
    return read_bytes(path, most).decode("utf-8", errors)


def kind_of(mode: int) -> str:
    """What a file of this mode is, in words: a file, a directory, a link, a pipe, a socket or a device."""
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a directory", stat.S_IFLNK: "a link"}
    kinds |= {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def obstacle(path: Path, *, directory: bool = False) -> str:
    """What is at a path instead of a file (or a directory), in words; empty if that or nothing is there.

    A link is followed nowhere: what would be written through it belongs to somebody else.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return ""
    return "" if (stat.S_ISDIR(mode) if directory else stat.S_ISREG(mode)) else kind_of(mode)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """A draft next to a file, which replaces it at the end of the block; after an error, the file is as it was.

    The draft has the suffix of the file, by which libraries choose a format. What a killed process has left of one goes
    with the next.

    Raises:
        OSError: something other than a file is there, or it cannot be written.
    """
    target = pathlib.Path(path)
    if found := obstacle(target):
        raise OSError(errno.EEXIST, f"it is {found}, expected a file or nothing", str(target))
    draft = target.with_name(f".new-{target.name}")
    # A link that somebody has put there is removed, and not written through.
    draft.unlink(missing_ok=True)
    try:
        yield draft
        os.replace(draft, target)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a file by one with this text, in UTF-8, with escapes for what that cannot hold; see `replacing`.

    Raises:
        OSError: see `replacing`.
    """
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace")


__all__ = ["expand", "kind_of", "obstacle", "read_bytes", "read_text", "replacing", "write_text"]
