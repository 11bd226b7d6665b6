"""Compares runs with the released scores of their task: ``python -m dreamer.compare RUN... [--out FILE] [--json]``."""

import os
import sys

if not __package__:  # Started as a file: Python would look for its own types.py and others beside this file.
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from dreamer.compare import curves, released
from dreamer.compare import plot as comparison_plot
from dreamer.compare.comparison import Aggregate, Comparison, aggregate, compare
from dreamer.config import ConfigError
from dreamer.logs.tables import number, render, span
from dreamer.logs.terminal import exit_status


def figures(comparison: Comparison) -> dict[str, Any]:
    """A comparison as ``--json`` prints it."""
    reference = comparison.reference
    return {
        "task": comparison.group.task,
        "setting": comparison.group.label,
        "runs": [
            {
                "directory": str(run.directory),
                "seed": run.config.seed,
                "frames": run.end,
                "episodes": len(run.scores),
                "crafter_score": run.suite_score,
            }
            for run in comparison.group.runs
        ],
        "reference": reference and {"suite": reference.suite, "task": reference.task, "method": reference.method},
        "differs": {key: {"released": there, "here": here} for key, (there, here) in comparison.differences().items()},
        "budgets": [
            {
                "frames": row.frames,
                "score": row.score,
                "scores": row.scores,
                "interval": row.interval,
                "episodes": row.episodes,
                "released": row.released and row.released._asdict(),
                "verdict": row.verdict,
                "success": row.success,
            }
            for row in comparison.rows
        ],
        "reach": [dataclasses.asdict(frames) for frames in comparison.frames_to_scores],
    }


def text(comparison: Comparison) -> str:
    """A comparison for people to read."""
    runs = comparison.group.runs
    reference = comparison.reference
    plural = "s" if len(runs) > 1 else ""
    seeds = ", ".join(str(run.config.seed) for run in runs)
    lines = [f"{comparison.title}: {len(runs)} run{plural}, seed{plural} {seeds}"]
    if reference is None:
        lines.append("  compared with nothing")
    else:
        other = f" on {reference.task}" if reference.task != comparison.group.task else ""
        several = f"mean of {reference.seeds.max()} seeds, band of one standard deviation between them"
        lines.append(f"  compared with {reference.name}{other}: {several if reference.seeds.max() > 1 else 'one seed'}")
        if differences := comparison.differences():
            parts = [f"{key}={_plain(there)} there, {_plain(here)} here" for key, (there, here) in differences.items()]
            lines.append(f"  other settings: {'; '.join(parts)}")
    if any(run.config.run.loop == "device" for run in runs):
        lines.append("  in the device loop, resets count as frames as well")
    lines += [
        f"  Crafter score {run.suite_score:.1f} % of {run.directory}" for run in runs if run.suite_score is not None
    ]
    lines += ["", _indent(_budgets(comparison)) if comparison.rows else "  no env steps yet"]
    if comparison.frames_to_scores:
        lines += ["", _indent(_efficiency(comparison))]
    return "\n".join(lines)


def _budgets(comparison: Comparison) -> str:
    several = len(comparison.group.runs) > 1
    counted = ["95 % interval", "runs"] if several else []
    head = ["frames", "here", *counted, "episodes", "success", "released", "band", ""]
    rows = []
    for row in comparison.rows:
        there = row.released
        band = (there.mean - there.std, there.mean + there.std) if there and there.seeds > 1 else None
        counts = [span(row.interval), str(len(row.scores))] if several else []
        note = f"{row.verdict or '-'}{', interpolated' if there and there.interpolated else ''}"
        released = number(there.mean) if there else "-"
        success = "" if row.success is None else f"{row.success:.0%}"
        own = [number(row.score), *counts, str(row.episodes), success]
        rows.append([f"{row.frames:,}", *own, released, span(band), note])
    return render(head, rows, left=(0, len(head) - 1))


def _efficiency(comparison: Comparison) -> str:
    rows = []
    for line in comparison.frames_to_scores:
        here = ", ".join("-" if frames is None else f"{frames:,}" for frames in line.runs)
        there = "-" if line.released is None else f"{line.released:,}"
        rows.append([f"{line.score:g}", here, there])
    return render(["frames to score", "here", "released"], rows)


def aggregate_text(total: Aggregate) -> str:
    """An aggregate for people to read."""
    atari = total.suite.startswith("atari") or "atari" in total.suite
    unit = "0 is a random player, 1 a human tester" if atari else "returns divided by 1000"
    head = ["frames", "tasks", "mean", "95 %", "released", "median", "95 %", "released"]
    rows = [
        [
            *(f"{row.frames:,}", str(len(row.tasks)), f"{row.mean:.3f}", span(row.mean_interval)),
            *(f"{row.released_mean:.3f}", f"{row.median:.3f}", span(row.median_interval)),
            f"{row.released_median:.3f}",
        ]
        for row in total.rows
    ]
    table = render(head, rows) if rows else "no released number of frames that all tasks have reached"
    return f"{total.title}: normalised ({unit}), {total.method} on the same tasks\n\n{_indent(table)}"


def _indent(block: str) -> str:
    return "\n".join(f"  {line}" for line in block.splitlines())


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dreamer.compare", description="Compares runs with the released scores of their task."
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="directory of a run, or of a population")
    parser.add_argument(
        "--reference",
        metavar="NAME",
        default="",
        help=f"{', '.join(released.suites())}; or SUITE/TASK; or none (default: chosen by the config)",
    )
    parser.add_argument("--method", default="", help="method to compare with, as ppo_fixhp (default: Dreamer)")
    parser.add_argument(
        "--reach",
        metavar="SCORE",
        type=_finite,
        action="append",
        default=[],
        help="print frames to this score; may be repeated (default for DeepMind Control: 200, 500, 700, 800, 900)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", metavar="FILE", help="draw the curves to a file, as compare.png")
    return parser


def compare_all(
    logdirs: Sequence[str], reference: str = "", method: str = "", reach: Sequence[float] = ()
) -> tuple[list[Comparison], list[Aggregate]]:
    """Read runs and compare them: each setting of a task on its own, and all tasks of a suite together.

    Args:
        logdirs: directories of runs and populations.
        reference: see `dreamer.compare.released.find`; ``none``: compare with nothing.
        method: the method to compare with; empty: Dreamer.
        reach: scores whose first frames are wanted.

    Raises:
        CurveError, NoReference, ConfigError: see `curves.read` and `released.find`.
    """
    runs = [run for logdir in dict.fromkeys(logdirs) for run in curves.read(logdir)]
    comparisons = []
    for group in curves.group(runs):
        found = None if reference == "none" else released.find(group.runs[0].config, reference, method)
        comparisons.append(compare(group, found, reach))
    return comparisons, aggregate(comparisons)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = _parser().parse_args(argv)
    try:
        comparisons, aggregates = compare_all(args.runs, args.reference, args.method, args.reach)
        if args.out:
            args.out = comparison_plot.draw(comparisons, aggregates, args.out)
    except (curves.CurveError, released.NoReference, ConfigError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        print(f"Error: The picture '{args.out}' cannot be written: {reason}.", file=sys.stderr)
        return 2
    for complaint in [text for each in comparisons for run in each.group.runs for text in run.complaints]:
        print(f"Warning: {complaint}", file=sys.stderr)
    if args.json:
        totals = [
            {"suite": total.suite, "method": total.method, "budgets": [dataclasses.asdict(row) for row in total.rows]}
            for total in aggregates
        ]
        print(json.dumps({"comparisons": [figures(comparison) for comparison in comparisons], "aggregates": totals}))
        return 0
    window = f"{curves.WINDOW:.0%}"
    blocks = [*(text(comparison) for comparison in comparisons), *(aggregate_text(total) for total in aggregates)]
    print("\n\n".join(blocks))
    print(
        "\nFrames are env steps, repeats of an action included. A score here is the mean of the training episodes\n"
        f"that ended in the last {window} of these frames, and of at least the last {curves.LEAST} episodes."
    )
    if args.out:
        print(f"Picture: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
