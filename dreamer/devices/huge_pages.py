"""Memory in huge pages: large arrays on the CPU cost less in pages of 2 MB than in pages of 4 kB.

XLA allocates the memory of an update again each time, and Linux has to prepare every page of it: a fifth of the time of
an update of size 1m. With huge pages it is a twentieth. The C library decides about them once, when a process starts.
"""

import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

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


def is_watched() -> bool:
    """Whether a debugger, a profiler or a measurement of coverage follows this program; a restart would shake it off.

    What they were told so far, such as breakpoints, would be lost, and with it the terminal they talk to.
    """
    # Since Python 3.12, they may use this in place of the older hooks; tools have numbers below 6.
    monitoring = getattr(sys, "monitoring", None)
    tools = [monitoring.get_tool(number) for number in range(6)] if monitoring else []
    return sys.gettrace() is not None or sys.getprofile() is not None or any(tools)


def is_started_directly(command: Sequence[str], arguments: Sequence[str]) -> bool:
    """Whether a command line starts this program, and not another one that runs it: a debugger, or a notebook.

    Args:
        command: of the process, as `sys.orig_argv` has it.
        arguments: of this program, as `sys.argv` has them.
    """
    before = list(command[1 : len(command) - len(arguments) + 1])
    # ``python [options] -m MODULE``, where `sys.argv[0]` is the file of the module; or ``python [options] FILE``; or
    # ``python [options] -c PROGRAM``, where it is ``-c``.
    *options, last = before or [""]
    if options and re.fullmatch("-[A-Za-z]*[mc]", options[-1]):  # Also ``-um``, which is ``-u -m``.
        options.pop()
    elif last != arguments[0]:
        return False
    # What is left are options of Python, two of which take a separate argument.
    return all(
        (word.startswith("-") and word != "-m") or previous in ("-W", "-X")
        for previous, word in zip(["", *options], options, strict=False)
    )


def restart_with_huge_pages() -> None:
    """Restart this program, as the same process with the same arguments, if it then gets huge pages.

    Does nothing the second time, on systems without them, where the user has set ``GLIBC_TUNABLES`` to anything, and if
    another program runs this one or watches it.
    """
    direct = bool(sys.orig_argv and sys.argv) and is_started_directly(sys.orig_argv, sys.argv)
    if needs_request(os.environ) and sys.executable and direct and not is_watched():
        sys.stdout.flush()
        sys.stderr.flush()
        os.environ[_VARIABLE] = _SETTING
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
