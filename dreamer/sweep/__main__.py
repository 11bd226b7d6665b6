"""Many runs from one file: ``python -m dreamer.sweep FILE [--jobs N] [--print | --report | --ray | --wandb FILE]``."""

import os
import sys

if not __package__:  # Started as a file: Python would look for its own types.py and others beside this file.
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))

import argparse
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from dreamer.config import ConfigError, paths
from dreamer.logs.terminal import exit_status
from dreamer.sweep import cluster, file, local, report, wandb_file
from dreamer.sweep.board import FILES, OUTPUT, Board
from dreamer.sweep.plan import SweepPlan, Trial
from dreamer.sweep.search import search
from dreamer.training.directory import LogdirInUse, exclusive, refuse
from dreamer.training.stopping import StopRequest

MOST_JOBS = 10_000
"""Trials at a time, for each of which there is a process."""


def sweep(
    plan: SweepPlan,
    jobs: int = 1,
    *,
    command: Sequence[str] = local.TRAIN,
    retry_failed: bool = False,
    ray: dict[str, Any] | None = None,
    console: Console | None = None,
) -> int:
    """Run the remaining trials of a sweep, and report.

    Args:
        plan: the result of `file.read`.
        jobs: trials that run at a time.
        command: the training command, to which the arguments of a trial are added.
        retry_failed: run the trials again that failed before.
        ray: arguments of `cluster.run`; None: run on this machine.
        console: where to print; None: standard error for progress, standard output for the table.

    Returns:
        The exit status: 0 if all trials are done, 1 if some failed, 75 and 130 if stopped by SIGTERM and SIGINT.

    Raises:
        ConfigError, LogdirInUse: nothing was started.
        OSError: the state of the sweep or its report cannot be written.
    """
    say = (console or Console(stderr=True, highlight=False, markup=False, soft_wrap=True)).print
    with exclusive(plan.logdir, FILES):
        board = Board(plan, search(plan), say, retry_failed=retry_failed)
        for trial in board.trials:
            refuse(trial.logdir / OUTPUT)
        board.write()
        done = board.counts()["done"]
        before = f", {done} of them done before" if done else ""
        say(f"{plan.source}: {board.planned} trials{before}, {jobs} at a time, in {plan.logdir}")
        stop = StopRequest()
        if board.unfinished:
            runner = local.run if ray is None else cluster.run
            stop = runner(board, jobs, command, say, **(ray or {}))
        show(board, console)
        if stop:
            say(f"Stopped by {stop}. Run the same command to continue.")
        return local.exit_status(stop, board.counts()["failed"] + board.counts()["stopped"])


def show(board: Board, console: Console | None = None) -> None:
    """Write the report, and print its table."""
    paths = report.write(board)
    console = console or Console(highlight=False, markup=False)
    console.print(report.table(board, report.results(board)))
    for line in report.failures(board):
        console.print(line, soft_wrap=True)
    console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status of `sweep`, or 2 for an error that was explained."""
    parser = argparse.ArgumentParser(
        prog="python -m dreamer.sweep",
        description="Runs a grid, a random or an Optuna search over config keys and seeds, and compares the runs. "
        "A sweep that was stopped continues with the same command.",
    )
    parser.add_argument("file", type=pathlib.Path, help="sweep file, or the name of one in configs/sweeps")
    parser.add_argument("--logdir", type=pathlib.Path, help="directory of the sweep (default runs/NAME)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials that run at a time (default 1)")
    parser.add_argument("--retry-failed", action="store_true", help="also run trials again that failed before")
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--print", action="store_true", help="only print the command of each trial, one per line")
    other.add_argument("--report", action="store_true", help="only report on the trials so far")
    other.add_argument("--wandb", metavar="FILE", help="only write a file for 'wandb sweep'; - for the terminal")
    other.add_argument("--ray", action="store_true", help="run with Ray Tune, here or on the cluster of --address")
    parser.add_argument("--address", help="with --ray: address of a cluster, or auto (default: this machine alone)")
    parser.add_argument("--cpus", type=float, default=1.0, help="with --ray: CPUs of each trial (default 1)")
    parser.add_argument("--gpus", type=float, default=0.0, help="with --ray: GPUs of each trial (default 0)")
    args = parser.parse_args(argv)
    if not 1 <= args.jobs <= MOST_JOBS:
        parser.error(f"--jobs is {args.jobs}, expected 1 to {MOST_JOBS}")
    if not (0 <= args.cpus < math.inf and 0 <= args.gpus < math.inf):
        parser.error(f"--cpus and --gpus are {args.cpus:g} and {args.gpus:g}, expected finite numbers from 0 on")
    if not args.ray and (args.address or args.cpus != 1 or args.gpus):
        parser.error("--address, --cpus and --gpus go with --ray")
    try:
        plan = file.read(args.file, args.logdir)
        if args.print:
            print("\n".join(trial.command() for trial in all_trials(plan)))
        elif args.wandb:
            written = wandb_file.render(plan)
            if args.wandb == "-":
                print(written, end="")
            else:
                paths.write_text(paths.expand(args.wandb), written)
                print(f"Start it with: wandb sweep {args.wandb}", file=sys.stderr)
        elif args.report:
            if not plan.logdir.is_dir():
                raise ConfigError(f"{plan.logdir} does not exist, so there is nothing to report: run the sweep first.")
            show(Board(plan, search(plan)))
        else:
            ray = {"address": args.address, "cpus": args.cpus, "gpus": args.gpus} if args.ray else None
            return sweep(plan, args.jobs, retry_failed=args.retry_failed, ray=ray)
    except (ConfigError, LogdirInUse, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def all_trials(plan: SweepPlan) -> list[Trial]:
    """All trials in the order in which they would be started.

    Raises:
        ConfigError: the search is Optuna's, whose trials depend on scores.
    """
    if plan.search == "optuna":
        raise ConfigError(
            f"{plan.source}: what Optuna tries depends on scores, so no list can be printed: use search: random."
        )
    settings = [plan.setting(index, values) for index, values in enumerate(plan.points())]
    return [plan.trials_of(setting)[place] for place in range(len(plan.seeds)) for setting in settings]


if __name__ == "__main__":
    sys.exit(exit_status(main))
