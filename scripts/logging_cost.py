"""What logging costs: ``python scripts/logging_cost.py [--rounds 3] [key=value ...]``.

Trains the same short run with everything that is written by default (metrics, TensorBoard, pictures) and with nothing
at all, in turns, and compares the seconds that training took. A short run draws its first pictures after a minute and
not every five, so the share is an upper bound for longer ones.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import jax

from dreamer import checkpoint as checkpoints
from dreamer.logger import read_metrics

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTHING = ("logger={tensorboard: false, pictures_every: 0}", "run.log_every=1000000")


def train(logdir: pathlib.Path, overrides: list[str]) -> tuple[float, int]:
    """Seconds of training, and updates done."""
    words = ["--config", "cartpole", "run.env_steps=5000", "run.eval_episodes=0", *overrides, f"logdir={logdir}"]
    subprocess.run(
        [sys.executable, "-m", "dreamer.train", *words],
        cwd=ROOT,
        check=True,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    meta = checkpoints.load(logdir).meta
    return meta["seconds"], meta["learner"]["updates"]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", metavar="FILE", help="write the result to this JSON file")
    args = parser.parse_args()
    took: dict[str, list[float]] = {"everything": [], "nothing": []}
    drawing: list[float] = []
    with tempfile.TemporaryDirectory() as directory:
        for number in range(args.rounds):
            for name, more in (("nothing", NOTHING), ("everything", ())):
                logdir = pathlib.Path(directory) / f"{name}_{number}"
                seconds, updates = train(logdir, [*more, *args.overrides])
                took[name].append(seconds)
                print(f"{name}: {seconds:.1f} s for {updates} updates", flush=True)
                metrics = logdir / "metrics.jsonl"
                lines = read_metrics(metrics) if metrics.exists() else []
                drawing += [line["pictures/seconds"] for line in lines if "pictures/seconds" in line]
    medians = {name: statistics.median(seconds) for name, seconds in took.items()}
    result = {
        "command": "python scripts/logging_cost.py " + " ".join(sys.argv[1:]),
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip(),
        "jax": jax.__version__,
        "seconds": {name: [round(x, 2) for x in seconds] for name, seconds in took.items()},
        "share": round(medians["everything"] / medians["nothing"] - 1, 4),
        "seconds_of_drawing": [round(x, 2) for x in drawing],
    }
    print(json.dumps(result, indent=1))
    if args.write:
        pathlib.Path(args.write).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
