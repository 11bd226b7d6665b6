"""A page about a run and a report card of its world model: ``python -m dreamer.report LOGDIR``.

Writes ``LOGDIR/report/index.html``, one file that opens anywhere and loads nothing from a server, and ``report.json``
with all its numbers. docs/report.md says what they mean.
"""

import os
import sys

if not __package__:  # Started as a file: Python would look for its own types.py and others beside this file.
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))

import argparse
import json
import pathlib

from dreamer import checkpoints, envs
from dreamer.config import ConfigError
from dreamer.devices.compile_cache import keep_compiled_programs
from dreamer.evaluate.scores import which_checkpoint
from dreamer.logs.pictures import FilmError
from dreamer.logs.terminal import exit_status
from dreamer.report import page
from dreamer.report.writing import ReportError, write_report

MOST_EPISODES = 10_000
"""Episodes of a report, all of which are in memory together."""


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dreamer.report", description=__doc__.partition("\n")[0])
    parser.add_argument("logdir", type=pathlib.Path, help="directory of a run")
    parser.add_argument("--out", metavar="DIR", type=pathlib.Path, help="where to write (default LOGDIR/report)")
    parser.add_argument("--episodes", type=int, default=16, help="fresh episodes to play (default 16)")
    parser.add_argument(
        "--checkpoint",
        metavar="WHICH",
        type=which_checkpoint,
        default="newest",
        help="newest (default), best by the evaluations of the run, or the number of a step",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes and of all random draws (default 0)")
    parser.add_argument(
        "--env", metavar="TASK", default="", help="package.module:function that makes the environment of the run"
    )
    args = parser.parse_args(argv)
    if not 1 <= args.episodes <= MOST_EPISODES:
        parser.error(f"--episodes is {args.episodes}, expected 1 to {MOST_EPISODES}")
    if not 0 <= args.seed < 2**32:
        parser.error(f"--seed is {args.seed}, expected 0 to {2**32 - 1}")
    if argv is None:
        keep_compiled_programs()
    try:
        path = write_report(
            args.logdir,
            out=args.out,
            checkpoint=args.checkpoint,
            episodes=args.episodes,
            seed=args.seed,
            task=args.env,
        )
    except (ReportError, FilmError, checkpoints.CheckpointError, ConfigError, envs.EnvError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    summary = json.loads((path.parent / "report.json").read_text(encoding="utf-8"))
    for text in summary["warnings"]:
        print(f"Warning: {text}", file=sys.stderr)
    for finding in summary["findings"]:
        shown = "-" if finding["value"] is None else page.format_number(finding["value"])
        print(f"{finding['verdict']:<8} {shown:>8}  {finding['title']}")
    print(f"Report: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
