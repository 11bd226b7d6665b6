"""Score trained agents: ``python -m dreamer.evaluate RUN... [--episodes 20] [--planner cem] [--json] [--video F]``."""

import os
import sys

if not __package__:  # Started as a file: Python would look for its own types.py and others beside this file.
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

from dreamer import checkpoints, envs
from dreamer.config import ConfigError, population
from dreamer.devices.compile_cache import keep_compiled_programs
from dreamer.evaluate.scores import RunEvaluation, evaluate_logdir, pool, which_checkpoint
from dreamer.evaluate.video import VideoError
from dreamer.logs import tables
from dreamer.logs.terminal import exit_status

MOST_EPISODES = 100_000
"""Episodes of each run, whose seeds and scores are in memory together."""


def _table(figures: Sequence[dict[str, Any]], pooled: Sequence[dict[str, Any]]) -> str:
    """Statistics of every evaluation, and of several together."""
    rows = []
    for one in [*figures, *pooled]:
        name = one["run"] if "run" in one else f"{len(one['runs'])} runs of {one['task']}"
        steps = f"{one['checkpoint_env_steps']:,}" if "checkpoint_env_steps" in one else ""
        values = [(one[key], one[f"{key}_interval"]) for key in ("mean", "median", "iqm")]
        cells = [f"{tables.number(value)} {tables.span(interval)}".rstrip() for value, interval in values]
        success = f"{one['success']:.1%}" if "success" in one else ""
        cost = tables.number(one["action_ms"]) if "action_ms" in one else ""
        rows.append([name, one.get("acting", ""), steps, str(one["episodes"]), *cells, success, cost])
    means = (f"{name} [95 %]" for name in ("mean", "median", "interquartile mean"))
    head = ["run", "acting", "env steps", "episodes", *means, "success", "ms per action"]
    return tables.render(head, rows, left=(0, 1))


def _ways(overrides: Sequence[str], *, alone: bool) -> dict[str, list[str]]:
    """Overrides of each way to act that is scored, by its name: as it is asked to plan, and as the run acts itself.

    What is asked for comes first: it may be refused.
    """
    asked = [override for override in overrides if override.startswith("planner.")]
    if alone or not asked:
        return {"": [*overrides]}
    name = ", ".join(override.removeprefix("planner.").removeprefix("kind=") for override in asked)
    return {name: [*overrides], "as trained": [override for override in overrides if override not in asked]}


def _which_or_all(text: str) -> checkpoints.Which | Literal["all"]:
    """As `which_checkpoint`, or ``all``."""
    try:
        return "all" if text == "all" else which_checkpoint(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(str(error).replace("best,", "best, all,")) from error


def _chosen(logdirs: Sequence[str], which: checkpoints.Which | Literal["all"]) -> list[tuple[str, checkpoints.Which]]:
    """Directories of runs, members of populations among them, with a checkpoint to score; raises `CheckpointError`."""
    found: list[tuple[str, checkpoints.Which]] = []
    for logdir in dict.fromkeys(str(path) for given in logdirs for path in population.directories(given)):
        if not (steps := sorted(checkpoints.steps(logdir))):
            checkpoints.load(logdir)  # Says that there is none, before others are played.
        found += [(logdir, step) for step in steps] if which == "all" else [(logdir, which)]
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dreamer.evaluate", description="Score trained agents.")
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN",
        help="directory of a run, or of a population for its members; also planner.KEY=value, as planner.horizon=12, "
        "and env.python=PATH",
    )
    parser.add_argument("--episodes", type=int, default=20, help="complete episodes of each to play (default 20)")
    parser.add_argument(
        "--checkpoint",
        metavar="WHICH",
        type=_which_or_all,
        default="newest",
        help="newest (default), best by the evaluations of the run, the number of a step, or all",
    )
    parser.add_argument("--seed", type=int, default=1_000_000, help="seed of the environments, the same for each")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--mode", choices=("mode", "sample"), help="take the policy's mode (default) or")
    mode.add_argument("--sample", dest="mode", action="store_const", const="sample", help="draw actions from it")
    parser.add_argument(
        "--planner",
        metavar="KIND",
        help="act by planning in the world model (random, cem, icem, mppi, ilqr, muzero, gumbel_muzero), or not "
        "(none); scored beside the run as it was trained",
    )
    parser.add_argument(
        "--task", "--env", dest="env", metavar="TASK", default="", help="another task, or package.module:function"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--video", metavar="FILE", help="write the episodes of a run as a video, for example out.mp4")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)  # Runs and keys may stand before and after options.
    runs = [word for word in args.words if "=" not in word]
    overrides = [word for word in args.words if "=" in word]
    if args.planner is not None:
        overrides.insert(0, f"planner.kind={args.planner}")
    if not runs:
        parser.error("there is no directory of a run among the arguments")
    if not 1 <= args.episodes <= MOST_EPISODES:
        parser.error(f"--episodes is {args.episodes}, expected 1 to {MOST_EPISODES}")
    if not 0 <= args.seed < 2**32:
        parser.error(f"--seed is {args.seed}, expected 0 to {2**32 - 1}")
    if argv is None:
        keep_compiled_programs()
    try:
        chosen = _chosen(runs, args.checkpoint)
        if args.video and len(chosen) > 1:
            parser.error(f"--video shows one checkpoint of one run, and {len(chosen)} are given: choose one")
        options: dict[str, Any] = {
            "seed": args.seed,
            "mode": args.mode or "mode",
            "video": args.video,
            "task": args.env,
        }
        # An environment may change the working directory before the next run is read.
        paths = [str(pathlib.Path(logdir).absolute()) for logdir, _ in chosen]
        scored = [
            RunEvaluation(
                logdir, which, evaluate_logdir(path, args.episodes, checkpoint=which, overrides=own, **options), acting
            )
            for path, (logdir, which) in zip(paths, chosen, strict=True)
            for acting, own in _ways(overrides, alone=bool(args.video)).items()
        ]
    except (checkpoints.CheckpointError, ConfigError, envs.EnvError, VideoError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    figures, pooled = [one.figures() for one in scored], pool(scored)
    if args.json:
        print(json.dumps(figures[0] if len(figures) == 1 else {"runs": figures, "pooled": pooled}))
        return 0
    for one in scored:
        print(f"{one.acting}: {one.evaluation}" if one.acting else one.evaluation)
    print(f"\n{_table(figures, pooled)}")
    if args.video:
        print(f"Video: {args.video}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
