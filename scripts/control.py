"""Put runs on DeepMind Control beside the released curves: ``python scripts/control.py LOGDIR [LOGDIR ...]``.

For every run, the figures go to ``docs/results/control/TASK-SEED.json``; the page ``docs/results/control.md`` and one
picture per task are made from all that are there. A released figure is the mean of the episodes in a window that ends
at a number of frames; here, the window is a tenth of that number, and holds at least the last eight episodes.
"""

import argparse
import csv
import json
import pathlib
import subprocess

import numpy as np

from dreamer import config as configs

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "docs" / "results"
RELEASED = RESULTS / "control" / "released.csv"


def collect(logdir: pathlib.Path) -> dict:
    """Figures of one run."""
    config = configs.load_yaml(logdir / "config.yaml")
    lines = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    episodes = [[line["env_steps"], line["episode/score"]] for line in lines if "episode/score" in line]
    final: dict = next((line for line in reversed(lines) if "eval/mean" in line), {})
    commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=logdir, text=True).strip()
    return {
        "task": config.task,
        "seed": config.seed,
        "command": f"python -m dreamer.train --config dmc_small task={config.task} seed={config.seed}",
        "commit": commit,
        "minutes": round(lines[-1]["seconds"] / 60, 1),
        "updates": lines[-1]["updates"],
        "env_steps": lines[-1]["env_steps"],
        "eval_mean": final.get("eval/mean"),
        "eval_std": final.get("eval/std"),
        "curve": episodes,
    }


def released(task: str) -> np.ndarray:
    """Rows of (frames, mean, standard deviation) of DreamerV3's released runs."""
    with RELEASED.open() as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == task]
    return np.array([[float(row[key]) for key in ("env_steps", "mean_score", "std")] for row in rows])


def score_at(curve: np.ndarray, frames: float) -> float:
    """Mean score of the episodes in the window that ends at a number of frames; NaN before eight have ended."""
    steps, scores = curve.T
    past = steps <= frames
    if past.sum() < 8:
        return float("nan")
    inside = past & (steps > 0.9 * frames)
    return float(scores[inside].mean() if inside.sum() >= 8 else scores[past][-8:].mean())


def plot(task: str, runs: list[dict]) -> None:
    """Draw the runs of a task over the released band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    longest = max(run["env_steps"] for run in runs)
    frames, mean, std = released(task).T
    near = frames <= 1.3 * longest
    axes.plot(
        frames[near], mean[near], "o-", color="grey", markersize=3, label="released, size 12m, mean and std of 5 seeds"
    )
    axes.fill_between(frames[near], (mean - std)[near], (mean + std)[near], color="grey", alpha=0.25, linewidth=0)
    for run in runs:
        curve = np.array(run["curve"], float)
        axes.plot(curve[:, 0], [score_at(curve, at) for at in curve[:, 0]], label=f"here, tiny, seed {run['seed']}")
    axes.set(xlabel="frames", ylabel="return", title=task, ylim=(0, 1000))
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "control" / f"{task}.png")


def write_page() -> None:
    """Write the table and the pictures from the stored figures."""
    stored = [json.loads(path.read_text()) for path in sorted((RESULTS / "control").glob("*.json"))]
    lines = [
        "# Real control on one CPU core\n",
        "DeepMind Control from proprioception with the preset `dmc_small` (a recurrent state of 128, train ratio 256,",
        "action repeat 2), one core of an AMD EPYC per run, shared with other work, beside the released scores of",
        "DreamerV3 at size 12m and train ratio 512. Scores during training are those of sampled actions; the closing",
        "evaluation plays 20 episodes with the policy's mode. Made by the commands below, then",
        "`python scripts/control.py LOGDIR ...`. The runs were interrupted, and resumed with `run.env_steps=50000`.\n",
    ]
    for task in sorted({run["task"] for run in stored}):
        runs = [run for run in stored if run["task"] == task]
        plot(task, runs)
        reference = [row for row in released(task) if row[0] <= max(run["env_steps"] for run in runs)]
        lines.append(f"## {task}\n\n![curves](control/{task}.png)\n")
        heads = ["", *(f"{row[0]:,.0f} frames" for row in reference), "closing evaluation (std)", "minutes", "updates"]
        lines.append("| " + " | ".join([*heads, "commit"]) + " |\n" + "|---" * (len(heads) + 1) + "|")
        cells = ["released, mean (std)", *(f"{row[1]:.0f} ({row[2]:.0f})" for row in reference), "", "", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
        for run in runs:
            curve = np.array(run["curve"], float)
            at = [f"{score_at(curve, row[0]):.0f}" for row in reference]
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
