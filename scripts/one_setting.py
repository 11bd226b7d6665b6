"""Results of the setting for small tasks, from runs: ``python scripts/one_setting.py LOGDIR ... --commit COMMIT``.

``python -m dreamer.sweep one_setting`` makes the runs. Their figures go to ``docs/results/one_setting/runs.json``, from
which the table in ``docs/results/one_setting.md`` and the two pictures are made. Without LOGDIR, only that.
"""

import argparse
import json
import math
import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dreamer import config as configs
from dreamer.logs.logger import read_metrics, without_repeats

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "results" / "one_setting.md"
FOLDER = PAGE.with_suffix("")
MARKS = ("<!-- The table: python scripts/one_setting.py -->", "<!-- The end of the table -->")

EPISODES_AT_BAR = 10
"""The bar is reached in training once this many episodes in a row have it as their mean."""

CUES_AT_BAR = 20
"""The same on cue tasks, where a policy that guesses wins ten times in a row sooner or later."""

FIFTH = 0.2
CURVE_POINTS = 60

CUE = "probe_cue"
TASKS = {
    # task: (name, words after `python -m dreamer.train`, bar)
    "gym_CartPole-v1": ("CartPole-v1", "", 475),
    "probe_cartpole_hidden": ("CartPole without velocities", "--config cartpole_hidden", 450),
    "gym_Pendulum-v1": ("Pendulum-v1", "--config pendulum", -200),
    "gym_Acrobot-v1": ("Acrobot-v1", "--config acrobot", -100),
    "gym_LunarLander-v3": ("LunarLander-v3", "--config lunar_lander", 200),
    "probe_catch": ("Catch, 16 x 16 images", "--config catch", 3.6),
    "minigrid_MiniGrid-Empty-5x5-v0": ("MiniGrid-Empty-5x5", "--config minigrid_small", 0.9),
    "dmc_cartpole_balance": ("DMC cartpole_balance", "--config dmc_small run.env_steps=50000", 900),
    "dmc_ball_in_cup_catch": (
        "DMC ball_in_cup_catch",
        "--config dmc_small task=dmc_ball_in_cup_catch run.env_steps=50000",
        900,
    ),
    **{f"{CUE}{d}": (f"cue, delay {d}", f"--config memory/cue{d}", 0.9) for d in (1, 2, 4, 8, 16, 32)},
    "probe_bandit": ("bandit, 26.8 at best", "--config memory/bandit", 26),
    "probe_repeat": ("repeat the symbol of four steps ago", "--config memory/repeat", 0.9),
}


def collect(logdir: pathlib.Path, commit: str) -> dict[str, Any]:
    """Figures of one run that has ended."""
    config = configs.load_yaml(logdir / "config.yaml")
    if config.task not in TASKS:
        raise SystemExit(f"{logdir}: the task is {config.task}, expected one of {', '.join(TASKS)}.")
    lines = without_repeats(read_metrics(logdir / "metrics.jsonl"))
    final = next((line for line in reversed(lines) if "eval/mean" in line), None)
    if final is None:
        raise SystemExit(f"{logdir}: there is no closing evaluation, the run has not ended. Finish it first.")
    episodes = [line for line in lines if "episode/score" in line]
    steps = np.array([line["env_steps"] for line in episodes])
    scores = np.array([line["episode/score"] for line in episodes], float)
    first = reached(scores, TASKS[config.task][2], CUES_AT_BAR if config.task.startswith(CUE) else EPISODES_AT_BAR)
    fifth = scores[steps > (1 - FIFTH) * final["env_steps"]]
    return {
        "task": config.task,
        "seed": config.seed,
        "commit": commit,
        "env_steps": final["env_steps"],
        "updates": final["updates"],
        "minutes": round(final["seconds"] / 60, 1),
        "eval_mean": round(final["eval/mean"], 4),
        "last": round(float(fifth.mean()), 4) if len(fifth) else None,
        "best": round(best_window(steps, scores, FIFTH * final["env_steps"], final["env_steps"]), 4),
        "bar_env_steps": None if first is None else int(steps[first]),
        "curve": curve(steps, scores, final["env_steps"]),
    }


def reached(scores: np.ndarray, bar: float, count: int) -> int | None:
    """Index of the first episode with which the mean of the last ``count`` is at the bar."""
    if len(scores) < count:
        return None
    means = np.convolve(scores, np.ones(count) / count, "valid")
    found = np.flatnonzero(means >= bar - 1e-9)
    return int(found[0]) + count - 1 if len(found) else None


def best_window(steps: np.ndarray, scores: np.ndarray, width: float, last: int) -> float:
    """The best mean over the episodes that end within ``width`` env steps, of all places for that window.

    Windows end with an episode or with the run, whose last steps may belong to an episode that did not end.
    """
    windows = [scores[(steps > end - width) & (steps <= end)] for end in (*steps, last) if end >= width]
    means = [window.mean() for window in windows if len(window)]
    return float(max(means)) if means else float(scores.mean())


def curve(steps: np.ndarray, scores: np.ndarray, end: int) -> list[list[float]]:
    """Env steps and mean returns of episodes in equal parts of the run, without the parts in which none ended."""
    part = np.minimum(steps * CURVE_POINTS // (end + 1), CURVE_POINTS - 1)
    return [
        [round((i + 0.5) * end / CURVE_POINTS), round(float(scores[part == i].mean()), 3)]
        for i in range(CURVE_POINTS)
        if (part == i).any()
    ]


def table(runs: list[dict[str, Any]]) -> str:
    """One line for each task, its seeds side by side."""
    heads = ["task", "`python -m dreamer.train ...`", "seeds", "bar", "closing evaluation, by seed"]
    heads += [
        "last fifth of training (best fifth)",
        "bar reached in training, env steps",
        "env steps",
        "minutes",
        "commit",
    ]
    lines = ["| " + " | ".join(heads) + " |", "| --- | --- | --- | ---: |" + " --- |" * 6]
    for task, (name, words, bar) in TASKS.items():
        of_task = sorted((run for run in runs if run["task"] == task), key=lambda run: run["seed"])
        if not of_task:
            continue
        places = 0 if abs(bar) >= 100 else 1 if abs(bar) >= 10 else 2
        number = f".{places}f"
        passed = sum(run["eval_mean"] >= bar for run in of_task)
        cells = [
            name,
            f"`{words}`" if words else "(default preset)",
            seeds([run["seed"] for run in of_task]),
            f"{bar:g}: {passed} of {len(of_task)}",
            ", ".join(format(run["eval_mean"], number) for run in of_task),
            ", ".join(f"{run['last']:{number}} ({run['best']:{number}})" for run in of_task),
            ", ".join(f"{run['bar_env_steps']:,}" if run["bar_env_steps"] else "not" for run in of_task),
            span([run["env_steps"] for run in of_task], ","),
            span([run["minutes"] for run in of_task], ".1f"),
            ", ".join(dict.fromkeys(run["commit"] for run in of_task)),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seeds(numbers: list[int]) -> str:
    """``0 to 9`` if there is no gap, else all of them."""
    whole = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1))
    return f"{numbers[0]} to {numbers[-1]}" if whole else ", ".join(map(str, numbers))


def span(values: list[float], number: str) -> str:
    """Least and greatest value, or the only one."""
    low, high = format(min(values), number), format(max(values), number)
    return low if low == high else f"{low} to {high}"


def draw_memory(runs: list[dict[str, Any]]) -> None:
    """Env steps to 0.9 against the delay of the cue; a hollow mark at the budget where it was not reached."""
    figure = Figure(figsize=(6.4, 3.8), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    medians: dict[int, float] = {}
    for task in TASKS:
        of_task = [run for run in runs if run["task"] == task]
        if not task.startswith(CUE) or not of_task:
            continue
        delay = int(task.removeprefix(CUE))
        for run in of_task:
            found = run["bar_env_steps"] is not None
            at = run["bar_env_steps"] if found else run["env_steps"]
            axes.plot(delay, at, "o", color="tab:blue", fillstyle="full" if found else "none")
        medians[delay] = float(np.median([run["bar_env_steps"] or math.inf for run in of_task]))
    axes.plot(list(medians), list(medians.values()), color="tab:blue", linewidth=1, label="median over seeds")
    axes.plot([], "o", color="tab:blue", fillstyle="none", label="not reached within the run")
    axes.set(xscale="log", yscale="log", xlabel="delay of the choice after the cue, steps")
    axes.set(ylabel=f"env steps to a mean return of 0.9\nover {CUES_AT_BAR} training episodes", title="Memory")
    axes.set_xticks(list(medians), [str(delay) for delay in medians])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(FOLDER / "memory.png")


def draw_curves(runs: list[dict[str, Any]]) -> None:
    """Learning curves of every task, one line for each seed."""
    tasks = [task for task in TASKS if any(run["task"] == task for run in runs)]
    columns = 3
    rows = math.ceil(len(tasks) / columns)
    figure = Figure(figsize=(3.2 * columns, 2.2 * rows), dpi=110, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, task in zip(panels, tasks, strict=False):
        name, _, bar = TASKS[task]
        for run in runs:
            if run["task"] == task:
                axes.plot(*np.array(run["curve"], float).T, linewidth=1)
        axes.axhline(bar, color="grey", linestyle=":", linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    figure.supxlabel("env steps", fontsize=9)
    figure.supylabel("return of training episodes", fontsize=9)
    figure.savefig(FOLDER / "curves.png")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logdirs", nargs="*", type=pathlib.Path, metavar="LOGDIR", help="runs that have ended")
    parser.add_argument("--commit", help="the commit of the code that made them")
    args = parser.parse_args()
    if args.logdirs and not args.commit:
        parser.error("--commit is missing: which code made these runs?")
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / "runs.json"
    stored = {(run["task"], run["seed"]): run for run in json.loads(path.read_text())} if path.exists() else {}
    for logdir in args.logdirs:
        run = collect(logdir, args.commit)
        stored[run["task"], run["seed"]] = run
    runs = [stored[key] for key in sorted(stored)]
    path.write_text("[\n" + ",\n".join(json.dumps(run) for run in runs) + "\n]\n")
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    if not rest or not after:
        raise SystemExit(f"{PAGE}: the table has lost its marks, {MARKS[0]!r} and {MARKS[1]!r}. Put them back.")
    PAGE.write_text(f"{before}{MARKS[0]}\n\n{table(runs)}\n\n{MARKS[1]}{after}")
    draw_memory(runs)
    draw_curves(runs)


if __name__ == "__main__":
    main()
