"""Starts one trial: ``python -m dreamer.sweep.launch PARENT CORES COMMAND ...``, of which COMMAND takes the place.

It is bound to its cores before it has any threads, and told to save (SIGTERM) when the process that started it dies.
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
    """The command line that starts a command as a child of this process, on some cores; on all if none is named."""
    named = ",".join(map(str, cores)) or "all"
    return [sys.executable, "-m", "dreamer.sweep.launch", str(os.getpid()), named, *command]


def main(argv: Sequence[str] | None = None) -> int:
    """Becomes the command; returns only if the parent has died already."""
    parent, cores, *command = sys.argv[1:] if argv is None else argv
    if cores != "all":
        with contextlib.suppress(OSError, AttributeError):  # Cores that were taken away meanwhile, or no Linux.
            os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
    if os.getppid() != int(parent):
        return os.EX_TEMPFAIL
    os.execv(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
