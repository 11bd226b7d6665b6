"""Is an environment fit for training? ``python -m dreamer.envs.check TASK [key=value ...] [--fast] [--json]``."""

import os
import sys

if not __package__:  # Started as a file: Python would look for its own types.py and others beside this file.
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "../../.."))

import argparse
import contextlib
import json
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from dreamer import config as configs
from dreamer.config import ConfigError
from dreamer.envs.check.examination import MOST_STEPS, examine

_COLORS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 can be trained on, 1 cannot, 2 wrong usage, or cannot even be made."""
    parser = argparse.ArgumentParser(
        prog="python -m dreamer.envs.check",
        usage="%(prog)s TASK [key=value ...] [--config PRESET] [--steps N] [--fast] [--json]",
        description="Plays a task with random actions and says what is wrong or surprising, one sentence per line.",
    )
    parser.add_argument("task", help="name of a task, or package.module:function that returns an environment")
    parser.add_argument(
        "--config", action="append", default=[], metavar="PRESET", help="preset to start from; may be repeated"
    )
    parser.add_argument(
        "--steps", type=int, default=MOST_STEPS, help=f"most agent steps to play (default {MOST_STEPS})"
    )
    parser.add_argument("--fast", action="store_true", help="do not measure how fast the environment steps")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args, overrides = parser.parse_known_args(argv)
    if args.steps < 1:
        parser.error(f"--steps is {args.steps}, expected at least 1")
    try:
        config = configs.load(args.config, [*overrides, f"task={args.task}"])
    except ConfigError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    findings = []
    # Environments may print; only findings go to standard output.
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False, emoji=False)
    with contextlib.redirect_stdout(sys.stderr):
        for finding in examine(args, config, overrides):
            findings.append(finding)
            if not args.json:
                console.print(Text(f"{finding.level:<8}", _COLORS[finding.level]), finding.text)
    trainable = all(finding.level != "error" for finding in findings)
    if args.json:
        plain = [{**finding._asdict(), "data": dict(finding.data)} for finding in findings]
        print(json.dumps({"task": args.task, "trainable": trainable, "findings": plain}))
    made = all(finding.level != "error" or finding.topic != "make" for finding in findings)
    return 0 if trainable else 1 if made else 2


if __name__ == "__main__":
    sys.exit(main())
