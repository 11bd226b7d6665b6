"""Runs the trials of a sweep on this machine, some at a time, each an ordinary ``python -m dreamer.train``."""

import contextlib
import fcntl
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from dreamer.config import paths
from dreamer.devices import cores as own_cores
from dreamer.sweep import launch
from dreamer.sweep.board import OUTPUT, Board
from dreamer.sweep.plan import Trial
from dreamer.training.stopping import SIGNALS, StopRequest

TRAIN = (sys.executable, "-m", "dreamer.train")

_PAUSE = 0.1
"""Seconds between two checks of the running trials."""

_PATIENCE = 30.0
"""Seconds between messages of a sweep that is stopping and waits for its trials."""

_MEMORY = 0.9
"""Fraction of a GPU's memory that is divided among its jobs; by default, JAX takes three quarters for each."""


class Share(NamedTuple):
    """One job's share of the machine."""

    cores: tuple[int, ...]
    """Empty: all of them."""
    environ: Mapping[str, str]


class Job(NamedTuple):
    """A running trial."""

    trial: Trial
    process: subprocess.Popen
    slot: int
    start: float


def shares(jobs: int, environ: Mapping[str, str] = os.environ) -> list[Share]:
    """Divide cores and GPUs among jobs.

    XLA starts a thread for every core that a process may use. Jobs that compete for the same cores are slower than jobs
    with fewer cores each.
    """
    cores = own_cores.numbers()
    count = len(cores)
    gpus = _gpus(environ) if jobs > 1 else []
    divided = []
    for slot in range(jobs):
        # Consecutive slices whose sizes differ by one at most.
        part = cores[slot * count // jobs : (slot + 1) * count // jobs] if 1 < jobs <= count else []
        variables = {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if gpus else {}
        set_by_user = {"XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE"} & environ.keys()
        if gpus and jobs > len(gpus) and not set_by_user:
            variables["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{_MEMORY / math.ceil(jobs / len(gpus)):.3f}"
        divided.append(Share(tuple(part), variables))
    return divided


def run(
    board: Board, jobs: int = 1, command: Sequence[str] = TRAIN, say: Callable[[str], object] = print
) -> StopRequest:
    """Run all trials of a board that are not done, until none is left or a signal arrives.

    Args:
        board: gives the trials, and records how each ends.
        jobs: how many run at a time.
        command: the training command, to which the arguments of a trial are added.
        say: prints a line.

    Returns:
        The signal that stopped the sweep, if any; the running trials were saved.
    """
    slots = shares(jobs)
    running: dict[int, Job] = {}
    elsewhere: dict[str, str] = {}
    stop = StopRequest()
    last_message = 0.0
    with stop.listening():
        while True:
            for job in list(running.values()):
                status = job.process.poll()
                if status is not None:
                    del running[job.slot]
                    board.record_end(job.trial, status, time.monotonic() - job.start, stopping=bool(stop))
            if stop and not last_message:
                last_message = time.monotonic()
                for job in running.values():
                    job.process.send_signal(signal.SIGTERM)
                if running:
                    say(f"Stopped by {stop}; waiting until {len(running)} running trial(s) are saved ...")
            if stop and last_message and time.monotonic() > last_message + _PATIENCE:
                last_message = time.monotonic()
                say(f"Still waiting for {', '.join(job.trial.name for job in running.values())}.")
            if not running and (stop or not board.unfinished):
                return stop
            if not stop:
                _fill(board, slots, running, elsewhere, command, say)
            time.sleep(_PAUSE)


def _fill(
    board: Board,
    slots: Sequence[Share],
    running: dict[int, Job],
    elsewhere: dict[str, str],
    command: Sequence[str],
    say: Callable[[str], object],
) -> None:
    """Start trials until all slots are taken; trials that an earlier sweep has left running take slots too."""
    for name in [name for name in elsewhere if not owner(board.plan.logdir / name)]:
        del elsewhere[name]
        board.refresh(name)
    while len(running) + len(elsewhere) < len(slots) and (trial := board.next(elsewhere)) is not None:
        if other := owner(trial.logdir):
            elsewhere[trial.name] = other
            say(f"{trial.name} is already run by process {other}; waiting for it.")
            continue
        slot = min(set(range(len(slots))) - running.keys())
        running[slot] = _start(trial, slot, slots[slot], command)
        board.record_start(trial)


def _start(trial: Trial, slot: int, share: Share, command: Sequence[str]) -> Job:
    trial.logdir.mkdir(parents=True, exist_ok=True)
    words = launch.words(share.cores, [*command, *trial.words])
    with open(trial.logdir / OUTPUT, "ab") as output:
        # In a separate session, Ctrl-C in the terminal reaches only the sweep, which passes it on once.
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **share.environ},
            start_new_session=True,
        )
    return Job(trial, process, slot, time.monotonic())


def owner(logdir: pathlib.Path) -> str:
    """The process that holds the lock of a log directory; empty if none does."""
    if paths.obstacle(logdir / ".lock"):  # The trial itself says so; opening a pipe would wait forever.
        return ""
    try:
        with open(logdir / ".lock") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read().strip() or "unknown"
    except OSError:
        pass
    return ""


def _gpus(environ: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that a process may use; none if JAX_PLATFORMS selects another platform."""
    if environ.get("JAX_PLATFORMS", "cuda").partition(",")[0] not in ("cuda", "gpu"):
        return []
    if "CUDA_VISIBLE_DEVICES" in environ:
        return [name for name in environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.split()
    return []


def exit_status(stop: StopRequest, failed: int) -> int:
    """Exit status of the sweep: 0 if all trials are done, 1 if some failed, else that of the signal, see `SIGNALS`."""
    return SIGNALS.get(stop.signal, 1 if failed else 0)


__all__ = ["TRAIN", "Share", "exit_status", "owner", "run", "shares"]
