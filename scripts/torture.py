"""Kills runs at random instants, damages their files, and checks that nothing is lost: ``python scripts/torture.py``.

A run without interruption is the oracle. The same run is then started again and again, and killed (SIGKILL, also to its
workers) after a random time, until it is done; parameters, moments, replay, counters and scores must then equal those
of the oracle bit for bit. After that, files of a finished run are damaged one at a time, in the checkpoint and in
replay, and the run is extended: it must continue, and report the damage.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from dreamer import checkpoints
from dreamer.replay import read_contents

ROOT = pathlib.Path(__file__).resolve().parent.parent

SMALL = (
    "rssm={deter: 16, hidden: 8, stoch: 3, classes: 4, blocks: 2, prior_layers: 1}",
    "nets={units: 8, depth: 2, encoder_layers: 1, decoder_layers: 1, actor_layers: 1, critic_layers: 1, bins: 41}",
    "nets.dtype=float32",
    "behavior.horizon=3",
    "optimizer.warmup=0",
    # Fewer steps than the run has, so that rows are overwritten.
    "replay={batch_size: 2, batch_length: 4, capacity: 1000}",
    "logger.pictures_every=0",
)


def command(logdir: pathlib.Path, task: str, seed: int, env_steps: int, *more: str) -> list[str]:
    """The command line that trains a small agent and saves very often."""
    run = f"run={{env_steps: {env_steps}, train_ratio: 4, eval_episodes: 0, log_every: 0.2, save_every: 0.2}}"
    words = ["--config", "gym", f"task={task}", f"seed={seed}", "env.count=2", run, *SMALL, f"logdir={logdir}", *more]
    return [sys.executable, "-m", "dreamer.train", *words]


def contents(logdir: pathlib.Path) -> dict[str, Any]:
    """The complete state of a run, except for times."""
    saved = checkpoints.load(logdir, with_replay=True)
    replay = saved.replay
    assert replay is not None
    arrays = {f"state/{name}": value for name, value in saved.state.items()}
    arrays |= {f"replay/{name}": value for name, value in read_contents(logdir / "replay" / "0", replay).items()}
    arrays |= {f"more/{name}": value for name, value in replay["fields"].items() if not name.startswith("hashes/")}
    counters = {key: saved.meta[key] for key in ("env_steps", "agent_steps", "episodes", "learner", "recent")}
    counters |= {key: replay[key] for key in ("rows_total", "rows_lost", "fresh_row", "fresh_env", "rng", "driver")}
    return {**{name: np.asarray(value).tobytes() for name, value in arrays.items()}, **counters}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of the parts that differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def finish(words: list[str]) -> str:
    """Run to the end; returns the standard error."""
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed with status {done.returncode}:\n{done.stderr}")
    return done.stderr


def kill_until_done(
    words: list[str], logdir: pathlib.Path, rng: random.Random, most: float, most_kills: float = math.inf
) -> tuple[int, int]:
    """Start a run until it is done, killing it after a random time of training, ``most_kills`` times at most.

    Returns:
        Kills, and resumes that reported that they are exact.
    """
    kills = exact = 0
    while True:
        output = logdir.parent / "said.txt"
        with open(output, "w") as file:
            process = subprocess.Popen(words, cwd=ROOT, stderr=file, start_new_session=True)
        # Imports and compilation take seconds in which no file can be torn: the time before a kill starts after them.
        begin = None
        wait = rng.uniform(0, most)
        spared = kills >= most_kills
        while process.poll() is None and (spared or begin is None or time.perf_counter() < begin + wait):
            if begin is None and "was compiled" in output.read_text():
                begin = time.perf_counter()
            time.sleep(0.005)
        status = process.poll()
        if status is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        text = output.read_text()
        exact += "Resumed exactly" in text
        if status == 0:
            return kills, exact
        if status is not None:
            raise SystemExit(f"The run ended on its own with status {status}:\n{text}")


def damage(path: pathlib.Path, rng: random.Random) -> str:
    """Truncate a file, flip one of its bits, or delete it; returns ``cut``, ``flip`` or ``delete``."""
    kind = rng.choice(["cut", "flip", "delete"])
    size = path.stat().st_size
    if kind == "delete" or not size:
        path.unlink()
        return "delete"
    if kind == "cut":
        os.truncate(path, rng.randrange(size))
        return kind
    with open(path, "r+b") as file:
        place = rng.randrange(size)
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ (1 << rng.randrange(8))]))
    return kind


def damage_each(logdir: pathlib.Path, words: list[str], rng: random.Random, most: int) -> list[dict[str, Any]]:
    """Damage one file at a time of a copy of a finished run, and extend it."""
    newest = checkpoints.load(logdir).path
    files = [path for where in (newest, logdir / "replay") for path in sorted(where.rglob("*")) if path.is_file()]
    results = []
    for file in rng.sample(files, min(most, len(files))):
        copy = logdir.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(logdir, copy)
        kind = damage(copy / file.relative_to(logdir), rng)
        done = subprocess.run([*words, f"logdir={copy}"], cwd=ROOT, capture_output=True, text=True)
        name = str(file.relative_to(logdir))
        said = " ".join(line.strip() for line in done.stderr.splitlines() if "damaged" in line)
        results.append({"file": name, "damage": kind, "status": done.returncode, "said": said})
        print(f"  {kind:6} {name}: status {done.returncode}; {said[:160]}", flush=True)
    return results


def main() -> int:
    """Command line; the exit status is 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="gym_CartPole-v1", help="a task whose environments can be saved")
    parser.add_argument("--kills", type=int, default=50, help="number of kills, at least")
    parser.add_argument("--env-steps", type=int, default=6000, help="length of each run")
    parser.add_argument("--longest", type=float, default=4.0, help="seconds of training before a kill, at most")
    parser.add_argument("--damages", type=int, default=40, help="files to damage, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the kills, and of the first run")
    parser.add_argument("--write", metavar="FILE", help="write the result to this JSON file")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    kills = exact = runs = lost = 0
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        while kills < args.kills:
            root = pathlib.Path(directory) / str(runs)
            seed = args.seed + runs
            finish(command(root / "straight", args.task, seed, args.env_steps))
            killed = root / "killed"
            words = command(killed, args.task, seed, args.env_steps)
            run_kills, run_exact = kill_until_done(words, killed, rng, args.longest)
            different = differences(contents(root / "straight"), contents(killed))
            kills += run_kills
            exact += run_exact
            runs += 1
            lost += bool(different)
            print(
                f"seed {seed}: {run_kills} kills, {run_exact} exact resumes, "
                f"{'the same bits' if not different else 'DIFFERENT: ' + ', '.join(different[:8])}",
                flush=True,
            )
        extended = command(killed, args.task, seed, args.env_steps + 200)
        damages = damage_each(killed, extended, rng, args.damages)
    stopped = [result for result in damages if result["status"]]
    result = {
        "command": "python scripts/torture.py " + " ".join(sys.argv[1:]),
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip(),
        "jax": jax.__version__,
        "processor": platform.processor() or platform.machine(),
        "minutes": round((time.perf_counter() - begin) / 60, 1),
        "runs": runs,
        "kills": kills,
        "exact_resumes": exact,
        "runs_that_differ": lost,
        "damages": damages,
        "damaged_runs_that_could_not_go_on": len(stopped),
    }
    if args.write:
        pathlib.Path(args.write).write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"{kills} kills in {runs} runs: {lost} runs lost anything. {len(damages)} damaged files: "
        f"{len(stopped)} runs could not continue."
    )
    return int(bool(lost or stopped))


if __name__ == "__main__":
    sys.exit(main())
