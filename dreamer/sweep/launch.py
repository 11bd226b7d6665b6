"""Starts one trial: ``python -m dreamer.sweep.launch PARENT CORES COMMAND ...`` is replaced by COMMAND.

The process is bound to its cores before it has any threads, and gets SIGTERM, at which it saves, when its parent dies.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_SET_DEATH_SIGNAL = 1
"""``PR_SET_PDEATHSIG`` of ``linux/prctl.h``."""


def words(cores: Sequence[int], command: Sequence[str]) -> list[str]:
    """The command line that starts a command as a child of this process, on these cores; on all if there are none."""
    numbers = ",".join(map(str, cores)) or "all"
    return [sys.executable, "-m", "dreamer.sweep.launch", str(os.getpid()), numbers, *command]


def main(argv: Sequence[str] | None = None) -> int:
    """Replace this process by the command; returns only if the parent has died already."""
    parent, cores, *command = sys.argv[1:] if argv is None else argv
    if cores != "all":
        with contextlib.suppress(OSError, AttributeError):  # The cores were taken away meanwhile, or it is not Linux.
            os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != int(parent):  # The parent died before prctl took effect.
        return os.EX_TEMPFAIL
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
