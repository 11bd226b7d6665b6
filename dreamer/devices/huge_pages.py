"""Memory in huge pages: large arrays on the CPU cost less when they need a page every 2 MB and not every 4 kB.

XLA asks for the memory of an update anew each time, and Linux has to prepare every page of it: a fifth of the time of
an update of size 1m. With huge pages it is a twentieth. The C library decides about them once, when a process starts.
"""

import os
import pathlib
import sys
from collections.abc import Mapping

_VARIABLE = "GLIBC_TUNABLES"
_SETTING = "glibc.malloc.hugetlb=1"
_KERNEL = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def wanted(environ: Mapping[str, str], kernel: pathlib.Path = _KERNEL) -> bool:
    """Whether a process has to ask for huge pages to get them, and has not been told what to ask for.

    Linux gives them to everybody (``always``), to nobody (``never``), or to those who ask (``madvise``).
    """
    if _VARIABLE in environ:
        return False
    try:
        return "[madvise]" in kernel.read_text()
    except OSError:
        return False


def restart_with_huge_pages() -> None:
    """Start this program anew, as the same process with the same arguments, if it then gets huge pages.

    Does nothing the second time, on systems without them, and where the user has set ``GLIBC_TUNABLES``, to whatever.
    """
    if wanted(os.environ) and sys.orig_argv and sys.executable:
        sys.stdout.flush()
        sys.stderr.flush()
        os.environ[_VARIABLE] = _SETTING
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
