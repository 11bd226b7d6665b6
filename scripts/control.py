"""Compares runs on DeepMind Control with the released curves: ``python scripts/control.py LOGDIR [LOGDIR ...]``.

The figures of every run go to ``docs/results/control/TASK-SEED.json``; the page ``docs/results/control.md`` and one
picture per task are made from all of these files. Scores are compared as in ``python -m dreamer.compare``.
"""

import argparse
import json
import pathlib
import subprocess

import numpy as np

from dreamer import config as configs
from dreamer.compare import comparison, curves, released
from dreamer.compare import plot as comparison_plot
from dreamer.logs.logger import read_metrics

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "docs" / "results"


def collect(logdir: pathlib.Path) -> dict:
    """Figures of one run."""
    (run,) = curves.read(logdir)
    lines = read_metrics(logdir / "metrics.jsonl")
    final: dict = next((line for line in reversed(lines) if "eval/mean" in line), {})
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=logdir, text=True).strip()
    task = run.config.task
    seed = run.config.seed
    return {
        "task": task,
        "seed": seed,
        "command": f"python -m dreamer.train --config dmc_small task={task} seed={seed}",
        "commit": commit,
        "minutes": round(lines[-1]["seconds"] / 60, 1),
        "updates": lines[-1]["updates"],
        "env_steps": lines[-1]["env_steps"],
        "eval_mean": final.get("eval/mean"),
        "eval_std": final.get("eval/std"),
        "curve": list(zip(run.frames.tolist(), run.scores.tolist(), strict=True)),
    }


def run_of(figures: dict) -> curves.RunCurve:
    """The run with these figures."""
    config = configs.load(["dmc_small"], [f"task={figures['task']}", f"seed={figures['seed']}"])
    frames, scores = np.array(figures["curve"], float).T
    return curves.RunCurve(pathlib.Path(), config, frames.astype(np.int64), scores, end=figures["env_steps"])


def write_page() -> None:
    """Write the table and the pictures from the stored figures."""
    stored = [json.loads(path.read_text()) for path in sorted((RESULTS / "control").glob("*.json"))]
    lines = [
        "# Real control on one CPU core\n",
        "DeepMind Control from proprioception with the preset `dmc_small` of its commit (a recurrent state of 128,",
        "train ratio 256, action repeat 2), on one core of an AMD EPYC per run, shared with other work, next to the",
        "released scores of",
        "DreamerV3 at size 12m and train ratio 512. Scores during training are those of sampled actions; the closing",
        "evaluation plays 20 episodes with the policy's mode. Made by the commands below, then",
        "`python scripts/control.py LOGDIR ...`. The runs were interrupted, and resumed with `run.env_steps=50000`.\n",
    ]
    for task in sorted({run["task"] for run in stored}):
        runs = [run for run in stored if run["task"] == task]
        (group,) = curves.group([run_of(run) for run in runs])
        with_released = comparison.compare(group, released.get("dmc_proprio", task))
        comparison_plot.draw([with_released], [], RESULTS / "control" / f"{task}.png")
        reference = {row.frames: row.released for row in with_released.rows if row.released}
        lines.append(f"## {task}\n\n![curves](control/{task}.png)\n")
        heads = ["", *(f"{frames:,} frames" for frames in reference), "closing evaluation (std)", "minutes", "updates"]
        lines.append("| " + " | ".join([*heads, "commit"]) + " |\n" + "|---" * (len(heads) + 1) + "|")
        cells = [f"{score.mean:.0f} ({score.std:.0f})" for score in reference.values()]
        lines.append("| " + " | ".join(["released, mean (std)", *cells, "", "", "", ""]) + " |")
        for run in runs:
            points = [run_of(run).at(frames) for frames in reference]
            at = [f"{point.score:.0f}" if point else "-" for point in points]
            ended = "not run" if run["eval_mean"] is None else f"{run['eval_mean']:.0f} ({run['eval_std']:.0f})"
            rest = [ended, f"{run['minutes']:.0f}", f"{run['updates']:,}", run["commit"]]
            lines.append("| " + " | ".join([f"seed {run['seed']}", *at, *rest]) + " |")
        lines.append("\n```\n" + "\n".join(run["command"] for run in runs) + "\n```\n")
    (RESULTS / "control.md").write_text("\n".join(lines).rstrip() + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logdirs", nargs="*", type=pathlib.Path)
    for logdir in parser.parse_args().logdirs:
        figures = collect(logdir)
        path = RESULTS / "control" / f"{figures['task']}-{figures['seed']}.json"
        path.write_text(json.dumps(figures) + "\n")
    write_page()


if __name__ == "__main__":
    main()
