"""How much of an environment runs have seen, next to random actions: ``python scripts/visited.py RUN ...``.

Counts the distinct observations in the replay of each run, and in walks of as many steps with random actions. That
means something where observations are few and exact, as in ``probe_maze``. Then plays episodes with the policy's mode,
whose scores are zero-shot where training explored without the reward of the task.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamer import checkpoints
from dreamer.config import Config
from dreamer.evaluate import evaluate_logdir, make_env
from dreamer.replay import read_contents

WALKS = 10
"""Random walks for each run, each with another seed."""


def distinct(obs: Mapping[str, Any]) -> int:
    """How many different observations there are in ``[N, ...]`` by key."""
    flat = [np.asarray(value, np.float64).reshape(len(value), -1) for _, value in sorted(obs.items())]
    return len(np.unique(np.concatenate(flat, -1), axis=0))


def replayed(logdir: pathlib.Path, saved: checkpoints.Checkpoint) -> int:
    """How many were observed in the steps that a run's replay holds."""
    assert saved.replay is not None
    fields = dict(saved.replay["fields"])
    files = logdir / "replay" / "0"
    if files.is_dir():  # The device loop keeps replay in its checkpoints.
        fields |= read_contents(files, saved.replay)
    obs = {name: np.asarray(value) for name, value in fields.items() if name.startswith("obs/")}
    return distinct({name: value.reshape(-1, *value.shape[2:]) for name, value in obs.items()})


def walked(config: Config, steps: int, seed: int) -> int:
    """How many are observed in so many steps with random actions."""
    env: Any = make_env(config)()
    env.action_space.seed(seed)
    seen: list[dict[str, np.ndarray]] = []
    over = True
    for _ in range(steps):
        if over:
            seen.append(env.reset(seed=None if seen else seed)[0])
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        seen.append(obs)
        over = terminated or truncated
    env.close()
    return distinct({key: np.stack([obs[key] for obs in seen]) for key in seen[0]})


def measure(logdir: pathlib.Path, episodes: int) -> dict[str, Any]:
    """Coverage and scores of one run."""
    saved = checkpoints.load(logdir, with_replay=True)
    config, steps = saved.config, saved.meta["agent_steps"]
    seen = replayed(logdir, saved)
    random = float(np.mean([walked(config, steps, seed) for seed in range(WALKS)]))
    scores = evaluate_logdir(logdir, episodes).summary()
    return {
        "run": str(logdir),
        "task": config.task,
        "seed": config.seed,
        "agent_steps": steps,
        "seen": seen,
        "random": random,
        "ratio": seen / random,
        "mean": scores["mean"],
        "success": scores.get("success"),
        "minutes": saved.meta["seconds"] / 60,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Distinct observations in runs, and with random actions.")
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="log directory of a run")
    parser.add_argument("--episodes", type=int, default=20, help="episodes to play (default 20)")
    args = parser.parse_args()
    for run in args.runs:
        print(json.dumps(measure(run, args.episodes)), flush=True)


if __name__ == "__main__":
    main()
