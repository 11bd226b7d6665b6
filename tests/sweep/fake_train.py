"""Stands in for ``python -m dreamer.train``: leaves the files of a run whose score is a known function of its keys.

The score is highest, 0, at ``optimizer.lr=1e-3``. The environment variable FAKE, as JSON, says how many seconds a trial
takes, and what goes wrong: statuses by name of a trial, one for each attempt; negative ones are signals.
"""

import json
import math
import os
import pathlib
import signal
import sys
import time


def score_of(lr: float, seed: int) -> float:
    """A score with a known optimum; seeds differ by a hundredth."""
    return -((math.log10(lr) + 3) ** 2) + 0.01 * seed


def leave_run(logdir: pathlib.Path, score: float) -> None:
    """``metrics.jsonl`` as a run writes it."""
    logdir.mkdir(parents=True, exist_ok=True)
    with open(logdir / "metrics.jsonl", "a") as file:
        for step in range(12):
            file.write(json.dumps({"env_steps": 10 * step, "episode/score": score - 1 + step / 12}) + "\n")
        file.write(json.dumps({"env_steps": 120, "eval/mean": score}) + "\n")


def main() -> int:
    values = dict(word.partition("=")[::2] for word in sys.argv[1:] if "=" in word)
    logdir = pathlib.Path(values["logdir"])
    fake = json.loads(os.environ.get("FAKE", "{}"))
    attempts = logdir / "attempts"
    attempts.write_text((attempts.read_text() if attempts.exists() else "") + "+")
    saved = []
    signal.signal(signal.SIGTERM, lambda *_: saved.append(1))
    start = time.monotonic()
    while time.monotonic() < start + fake.get("seconds", 0):
        if saved:
            (logdir / "saved").touch()
            return 75
        time.sleep(0.01)
    statuses = fake.get("statuses", {}).get(logdir.name, [])
    status = statuses[min(len(attempts.read_text()), len(statuses)) - 1] if statuses else 0
    if status < 0:
        os.kill(os.getpid(), -status)
    if status:
        print("Error: planted trouble.", file=sys.stderr)
        return status
    leave_run(logdir, score_of(float(values.get("optimizer.lr", 1e-3)), int(values["seed"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
