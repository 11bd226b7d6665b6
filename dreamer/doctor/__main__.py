"""Is this machine fit for training? ``python -m dreamer.doctor [--no-smoke] [--json] [--runs DIR]``."""

import os
import sys

if not __package__:  # Started as a file: Python would look for its own types.py and others beside this file.
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))

import argparse
import json
import pathlib
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from dreamer.config import ConfigError, paths
from dreamer.doctor import accelerator, installation, machine, rendering
from dreamer.doctor.findings import MachineFinding
from dreamer.doctor.smoke import smoke
from dreamer.logs.terminal import exit_status

_COLORS = {"ok": "green", "note": "cyan", "problem": "red"}


def examine(runs: pathlib.Path, *, with_smoke: bool = True) -> Iterator[MachineFinding]:
    """Everything the doctor checks, one thing after another.

    Args:
        runs: directory where runs go.
        with_smoke: also train a tiny agent.
    """
    yield from installation.versions()
    yield from machine.cores()
    yield from machine.memory()
    yield from machine.huge_pages()
    yield from machine.disk(runs)
    yield from accelerator.accelerator()
    yield from rendering.rendering()
    yield from installation.extras()
    if with_smoke:
        yield from smoke(runs)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 nothing is wrong, 1 something is, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m dreamer.doctor",
        description="Checks versions, devices, renderers, disk and memory, trains a tiny agent, and says in one "
        "sentence each what is wrong and how to fix it.",
    )
    parser.add_argument("--no-smoke", action="store_true", help="do not train a tiny agent (up to a minute)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs"), help="where runs go (default runs)")
    args = parser.parse_args(argv)
    try:
        runs = paths.expand(args.runs)
    except ConfigError as error:
        parser.error(str(error))
    findings = []
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False, emoji=False)
    for finding in examine(runs, with_smoke=not args.no_smoke):
        findings.append(finding)
        if not args.json:
            topic = Text(f"{finding.topic:<13}")
            console.print(Text(f"{finding.level:<8}", _COLORS[finding.level]), topic, finding.text, sep="")
    problems = sum(finding.level == "problem" for finding in findings)
    if args.json:
        plain = [{**finding._asdict(), "data": dict(finding.data)} for finding in findings]
        print(json.dumps({"problems": problems, "findings": plain}))
    else:
        console.print(f"{problems} problem(s) to fix." if problems else "Nothing is wrong.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
