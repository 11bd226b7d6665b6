"""Trains for hours and watches the process: ``python scripts/soak.py --hours 1 --write docs/results/soak``.

Samples memory, open files and threads of a run from outside, and its speed from ``metrics.jsonl``. All should be
constant once replay is full. Writes a CSV, a plot, and a JSON file with the growth over the second half of the time.
"""

import argparse
import csv
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import psutil

from dreamer.logs.logger import read_metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Sample(NamedTuple):
    """What a process holds at one time."""

    seconds: float
    own_mb: float
    """Private memory: what the system cannot drop and read again from a file."""
    mapped_mb: float
    """Pages of files, such as those of replay, that are in memory at this time."""
    files: int
    threads: int


def sample(process: psutil.Process, begin: float) -> Sample:
    """Measure a process now."""
    with process.oneshot():
        memory = process.memory_info()
        return Sample(
            seconds=time.perf_counter() - begin,
            own_mb=(memory.rss - memory.shared) / 1e6,
            mapped_mb=memory.shared / 1e6,
            files=process.num_fds(),
            threads=process.num_threads(),
        )


def growth(times: np.ndarray, values: np.ndarray) -> float:
    """Slope of a straight line through the points, per hour."""
    return float(np.polyfit(times / 3600, values, 1)[0])


def summarize(samples: list[Sample], ticks: list[dict[str, Any]], saves: list[dict[str, Any]]) -> dict[str, float]:
    """The second half of the time compared with the first, and the cost of saving."""
    times, own, _, files, threads = np.array(samples).T
    half = times > times[-1] / 2
    seconds = np.array([tick["seconds"] for tick in ticks])
    rates = np.array([tick["rate/updates"] for tick in ticks])
    # The first minute compiles and fills replay.
    first = (seconds > 60) & (seconds <= seconds[-1] / 2)
    second = seconds > seconds[-1] / 2
    held = sum(line["save/held_seconds"] for line in saves)
    return {
        "minutes": round(times[-1] / 60, 1),
        "env_steps": ticks[-1]["env_steps"],
        "updates": ticks[-1]["updates"],
        "own_mb_at_half": round(float(np.interp(times[-1] / 2, times, own)), 1),
        "own_mb_at_end": round(float(own[-1]), 1),
        "own_mb_growth_per_hour_second_half": round(growth(times[half], own[half]), 2),
        "files_most_first_half": int(files[~half].max()),
        "files_most_second_half": int(files[half].max()),
        "threads_most_first_half": int(threads[~half].max()),
        "threads_most_second_half": int(threads[half].max()),
        "updates_per_second_first_half": round(float(np.median(rates[first])), 2),
        "updates_per_second_second_half": round(float(np.median(rates[second])), 2),
        "saves": len(saves),
        "save_seconds_median": round(float(np.median([line["save/seconds"] for line in saves])), 3),
        "save_bytes_median": int(np.median([line["save/bytes"] for line in saves])),
        "share_of_time_held_by_saves": round(held / seconds[-1], 5),
    }


def plot(path: pathlib.Path, samples: list[Sample], ticks: list[dict[str, Any]]) -> None:
    """Plot memory, handles and speed over time."""
    minutes = np.array([s.seconds for s in samples]) / 60
    figure, (memory, handles, speed) = plt.subplots(3, sharex=True, figsize=(7, 6), layout="constrained")
    memory.plot(minutes, [s.own_mb for s in samples], label="own")
    memory.plot(minutes, [s.mapped_mb for s in samples], label="mapped files")
    memory.set(ylabel="memory, MB", ylim=(0, None))
    memory.legend()
    handles.plot(minutes, [s.files for s in samples], label="open files")
    handles.plot(minutes, [s.threads for s in samples], label="threads")
    handles.set(ylim=(0, None))
    handles.legend()
    speed.plot([t["seconds"] / 60 for t in ticks], [t["rate/updates"] for t in ticks])
    speed.set(ylabel="updates per second", xlabel="minutes", ylim=(0, None))
    figure.savefig(path, dpi=90)


def main() -> int:
    """Command line; unknown arguments are passed on to the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="time between two samples")
    parser.add_argument("--write", metavar="PREFIX", help="write PREFIX.csv, PREFIX.png and PREFIX.json")
    args, words = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as directory:
        logdir = pathlib.Path(directory) / "run"
        run = [f"logdir={logdir}", "run.env_steps=1000000000", f"run.hours={args.hours}", "run.eval_episodes=0"]
        command = [sys.executable, "-m", "dreamer.train", *words, *run]
        begin = time.perf_counter()
        samples = []
        with psutil.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                try:
                    samples.append(sample(process, begin))
                except psutil.Error:
                    break
                time.sleep(args.every)
        if process.returncode:
            print(f"Error: {' '.join(command)} ended with status {process.returncode}.", file=sys.stderr)
            return 1
        lines = read_metrics(logdir / "metrics.jsonl")
    ticks = [line for line in lines if line.get("rate/updates", 0) > 0]
    result = {
        "command": "python scripts/soak.py " + " ".join(sys.argv[1:]),
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip(),
        "jax": jax.__version__,
        "cores": len(psutil.Process().cpu_affinity() or []),
        **summarize(samples, ticks, [line for line in lines if "save/seconds" in line]),
    }
    print(json.dumps(result, indent=1))
    if args.write:
        prefix = pathlib.Path(args.write)
        prefix.parent.mkdir(parents=True, exist_ok=True)
        prefix.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        plot(prefix.with_suffix(".png"), samples, ticks)
        with open(prefix.with_suffix(".csv"), "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Sample._fields)
            # One line a minute is enough, and takes a tenth of the size.
            writer.writerows([round(value, 1) for value in s] for s in samples[:: max(1, round(60 / args.every))])
    return 0


if __name__ == "__main__":
    sys.exit(main())
