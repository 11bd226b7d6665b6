"""Memory in huge pages: large arrays on the CPU cost less in pages of 2 MB than in pages of 4 kB.

XLA allocates the memory of an update again each time, and Linux has to prepare every page of it: a fifth of the time of
an update of size 1m. With huge pages it is a twentieth. The C library decides about them once, when a process starts.
"""

import os
import pathlib
import sys
from collections.abc import Mapping

_VARIABLE = "GLIBC_TUNABLES"
_SETTING = "glibc.malloc.hugetlb=1"
_KERNEL = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def needs_request(environ: Mapping[str, str], kernel: pathlib.Path = _KERNEL) -> bool:
    """Whether a process gets huge pages only on request, and the user has not set ``GLIBC_TUNABLES``.

    Linux gives them to all processes (``always``), to none (``never``), or on request (``madvise``).
    """
    if _VARIABLE in environ:
        return False
    try:
        return "[madvise]" in kernel.read_text()
    except OSError:
        return False


def restart_with_huge_pages() -> None:
    """Restart this program, as the same process with the same arguments, if it then gets huge pages.

    Does nothing the second time, on systems without them, and where the user has set ``GLIBC_TUNABLES`` to anything.
    """
    if needs_request(os.environ) and sys.orig_argv and sys.executable:
        sys.stdout.flush()
        sys.stderr.flush()
        os.environ[_VARIABLE] = _SETTING
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
