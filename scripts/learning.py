"""Train on the small tasks with several seeds and write the results page: ``python scripts/learning.py --help``.

Each run is the plain command that a user would type, in a separate process. Wall time counts from the start of that
process to the start of the closing evaluation, so it includes imports and compilation. The figures of a run go to
``docs/results/cpu/TASK-SEED.json``; the page and the pictures are made from all of these files.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import queue
import subprocess
import sys
import threading
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"

TASKS = {
    # preset: (name, bar of the closing evaluation, allowed minutes, if they matter)
    "cartpole": ("CartPole-v1", 475.0, 5.0),
    "cartpole_hidden": ("CartPole, velocities hidden", 450.0, 10.0),
    "pendulum": ("Pendulum-v1", -200.0, 8.0),
    "catch": ("Catch from 16x16 pixels", 3.6, math.inf),
}


def train(preset: str, seed: int, core: int | None) -> dict:
    """Run one training, optionally pinned to one core, and return its figures."""
    logdir = ROOT / "runs" / "results" / f"{preset}-{seed}"
    if logdir.exists():
        raise SystemExit(f"{logdir} exists already and would be resumed, so its time would be wrong: remove it first.")
    command = [sys.executable, "-m", "dreamer.train", "--config", preset, f"seed={seed}", f"logdir={logdir}"]
    if core is not None:
        command = ["taskset", "-c", str(core), *command]
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    seconds = float("nan")
    assert process.stderr is not None
    for line in process.stderr:
        print(f"[{preset} {seed}] {line}", end="", flush=True)
        if line.startswith("Closing evaluation"):
            seconds = time.perf_counter() - begin
    if process.wait():
        raise SystemExit(f"{' '.join(command)} failed with status {process.returncode}.")
    lines = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    episodes = [line for line in lines if "episode/score" in line]
    final = next(line for line in lines if "eval/mean" in line)
    _, bar, _ = TASKS[preset]
    reached = first_time_at_bar(episodes, bar)
    return {
        "preset": preset,
        "seed": seed,
        "command": f"python -m dreamer.train --config {preset} seed={seed}",
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip(),
        "cores": os.cpu_count() if core is None else 1,
        "processor": processor(),
        "train_seconds": round(seconds, 1),
        "env_steps": final["env_steps"],
        "updates": final["updates"],
        "eval_mean": final["eval/mean"],
        "eval_std": final["eval/std"],
        "eval_min": final["eval/min"],
        "bar_env_steps": reached and reached["env_steps"],
        "bar_seconds": reached and round(reached["seconds"], 1),
        "curve": [[line["env_steps"], round(line["episode/score"], 2)] for line in episodes],
    }


def first_time_at_bar(episodes: list[dict], bar: float, window: int = 10) -> dict | None:
    """The first training episode (sampled policy) at which the mean of the last ten reaches the bar."""
    scores = [line["episode/score"] for line in episodes]
    for end in range(window, len(scores) + 1):
        if np.mean(scores[end - window : end]) >= bar:
            return episodes[end - 1]
    return None


def processor() -> str:
    """Model name of the CPU."""
    info = pathlib.Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write_page() -> None:
    """Write the table and the pictures from the stored figures."""
    stored = [json.loads(path.read_text()) for path in sorted((RESULTS / "cpu").glob("*.json"))]
    rows = []
    for preset, (name, bar, minutes) in TASKS.items():
        runs = [run for run in stored if run["preset"] == preset]
        if not runs:
            continue
        plot(preset, name, bar, runs)
        passed = sum(run["eval_mean"] >= bar and run["train_seconds"] <= 60 * minutes for run in runs)
        within = f" within {minutes:g} minutes" if math.isfinite(minutes) else ""
        rows.append(f"\n## {name}: {passed} of {len(runs)} seeds at {bar:g}{within}\n")
        rows.append(f"![learning curves](cpu/{preset}.png)\n")
        rows.append(
            "| seed | closing evaluation, 20 episodes (std, min) | training, minutes | env steps | updates | "
            "bar first reached in training: env steps, minutes | cores | commit |\n|---|---|---|---|---|---|---|---|"
        )
        for run in sorted(runs, key=lambda run: run["seed"]):
            at = f"{run['bar_env_steps']:,}, {run['bar_seconds'] / 60:.1f}" if run["bar_env_steps"] else "not reached"
            rows.append(
                f"| {run['seed']} | {run['eval_mean']:.1f} ({run['eval_std']:.1f}, {run['eval_min']:.1f}) | "
                f"{run['train_seconds'] / 60:.1f} | {run['env_steps']:,} | {run['updates']:,} | {at} | "
                f"{run['cores']} | {run['commit']} |"
            )
    hardware = sorted({run["processor"] for run in stored})
    head = f"""# Learning on a CPU

Made by `python scripts/learning.py`, which runs `python -m dreamer.train --config PRESET seed=SEED` for every row, on
{", ".join(hardware)}. "cores" is the number of cores of the run. Training time counts from the start of the process to
the start of the closing evaluation: it includes imports and compilation, but not the installation. The closing
evaluation plays 20 fresh episodes with the policy's mode. The bar is "first reached" when the mean of the last ten
training episodes, whose actions are sampled, is at least the bar. The first three tasks share all
hyper-parameters, and in each the learning rate falls to a tenth by the end of the run (`optimizer.anneal`). Catch has a
constant rate, imagines from all replayed states, and steps eight environments in parallel.
"""
    notes = RESULTS / "cpu" / "notes.md"
    (RESULTS / "cpu.md").write_text(head + "\n".join(rows) + "\n\n" + notes.read_text())


def plot(preset: str, name: str, bar: float, runs: list[dict]) -> None:
    """Draw the running mean return of every seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for run in runs:
        steps, scores = np.array(run["curve"], float).T
        width = min(10, len(scores))
        mean = np.convolve(scores, np.ones(width) / width, "valid")
        axes.plot(steps[width - 1 :], mean, label=f"seed {run['seed']}", linewidth=1.4)
    axes.axhline(bar, color="grey", linestyle=":", linewidth=1)
    axes.set(xlabel="env steps", ylabel="return, mean of 10 episodes", title=name)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "cpu" / f"{preset}.png")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", choices=[*TASKS, []], help="presets to run; none: only write the page")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cores", type=int, nargs="+", help="pin runs to these cores, one at a time on each")
    args = parser.parse_args()
    (RESULTS / "cpu").mkdir(parents=True, exist_ok=True)
    jobs: queue.SimpleQueue = queue.SimpleQueue()
    for preset in args.presets:
        for seed in args.seeds:
            jobs.put((preset, seed))

    def work(core: int | None) -> None:
        while not jobs.empty():
            preset, seed = jobs.get()
            figures = train(preset, seed, core)
            (RESULTS / "cpu" / f"{preset}-{seed}.json").write_text(json.dumps(figures) + "\n")
            print(f"[{preset} {seed}] {figures['eval_mean']:.1f} after {figures['train_seconds']} s", flush=True)

    threads = [threading.Thread(target=work, args=(core,)) for core in (args.cores or [None])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    write_page()


if __name__ == "__main__":
    main()
