"""What logging costs: ``python scripts/logging_cost.py [--rounds 3] [key=value ...]``.

Trains the same short run with everything that is written by default (metrics, TensorBoard, pictures), and with nothing
at all, in turns. There are two answers. How much longer training took: on a shared machine, this is accurate to a few
percent. And a count, which is far more accurate: the time that the loop spent in the log, without waiting for the
device, which computes meanwhile, and the time of the threads that draw and that write for TensorBoard. A short run
draws its first pictures after one minute instead of five, so its share is an upper bound for longer runs.
"""

import argparse
import collections
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax

from dreamer import checkpoints, train
from dreamer.logs.logger import Logger
from dreamer.logs.tensorboard_log import TensorBoardClient
from dreamer.logs.watcher import Watcher

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTHING = ("logger={tensorboard: false, pictures_every: 0}", "run.log_every=1000000")
COUNT = "--count"


def count(cls: type, method: str, clock: Callable[[], float], spent: dict[str, float], name: str) -> None:
    """Make a method add its time to ``spent[name]``, without the time until the metrics that it fetches are ready."""
    original = getattr(cls, method)

    @functools.wraps(original)
    def timed_method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if method == "tick":
            jax.block_until_ready(self._updates)
        begin = clock()
        try:
            return original(self, *args, **kwargs)
        finally:
            spent[name] += clock() - begin

    setattr(cls, method, timed_method)


def train_and_count(words: list[str], path: str) -> int:
    """`dreamer.train` from the command line; writes the seconds of each activity to a file."""
    spent: dict[str, float] = collections.defaultdict(float)
    for cls, method in ((Logger, "tick"), (Logger, "add_update"), (Logger, "add_episode"), (Watcher, "turn")):
        count(cls, method, time.perf_counter, spent, f"loop: {method}")
    count(Watcher, "_draw", time.perf_counter, spent, "drawing")
    count(TensorBoardClient, "log", time.thread_time, spent, "tensorboard")
    # The last pictures come after training, and do not count.
    finish = Watcher.finish

    def write_and_finish(self: Watcher, *args: Any) -> None:
        pathlib.Path(path).write_text(json.dumps(spent))
        finish(self, *args)

    setattr(Watcher, "finish", write_and_finish)  # noqa: B010
    # Not as arguments: without them it restarts for huge pages, as users' runs do.
    sys.argv[1:] = words
    return train.main()


def run(logdir: pathlib.Path, overrides: list[str]) -> tuple[float, int, dict[str, float]]:
    """Seconds of training, updates done, and the seconds of each activity."""
    words = ["--config", "cartpole", "run.env_steps=5000", "run.eval_episodes=0", *overrides, f"logdir={logdir}"]
    with tempfile.NamedTemporaryFile() as file:
        subprocess.run(
            [sys.executable, __file__, COUNT, file.name, *words],
            cwd=ROOT,
            check=True,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        spent = json.loads(pathlib.Path(file.name).read_text())
    meta = checkpoints.load(logdir).meta
    return meta["seconds"], meta["learner"]["updates"], spent


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", metavar="FILE", help="write the result to this JSON file")
    args = parser.parse_args()
    times: dict[str, list[float]] = {"everything": [], "nothing": []}
    counted: dict[str, list[float]] = collections.defaultdict(list)
    with tempfile.TemporaryDirectory() as directory:
        for number in range(args.rounds):
            for name, more in (("nothing", NOTHING), ("everything", ())):
                logdir = pathlib.Path(directory) / f"{name}_{number}"
                seconds, updates, spent = run(logdir, [*more, *args.overrides])
                times[name].append(seconds)
                print(f"{name}: {seconds:.1f} s for {updates} updates, of which {spent}", flush=True)
                if name == "everything":
                    for activity, spent_seconds in spent.items():
                        counted[activity].append(spent_seconds / seconds)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    result = {
        "command": "python scripts/logging_cost.py " + " ".join(sys.argv[1:]),
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip(),
        "jax": jax.__version__,
        "seconds": {name: [round(x, 2) for x in seconds] for name, seconds in times.items()},
        "longer_by": round(medians["everything"] / medians["nothing"] - 1, 4),
        "counted_share": {name: [round(x, 5) for x in shares] for name, shares in counted.items()},
    }
    print(json.dumps(result, indent=1))
    if args.write:
        pathlib.Path(args.write).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(train_and_count(sys.argv[3:], sys.argv[2]) if sys.argv[1:2] == [COUNT] else main())
