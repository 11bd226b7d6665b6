"""How much of an environment runs have seen, next to random actions: ``python scripts/coverage.py RUN ...``.

Counts the distinct observations in the replay of each run, and those of walks with random actions that take as many
steps in as many environments. That means something where observations are few and exact, as in ``probe_maze``. Then
plays episodes with the policy's mode, whose scores are zero-shot where training explored without the task's reward.
"""

import argparse
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from dreamer import checkpoints
from dreamer.config import Config
from dreamer.evaluate import evaluate_logdir, make_env
from dreamer.replay import read_contents

WALKS = 10
"""Random walks for each run, with seeds of their own."""


def distinct(obs: Mapping[str, Any]) -> set[bytes]:
    """Observations ``[N, ...]`` by key, each once."""
    flat = [np.asarray(value).reshape(len(value), -1).astype(np.float64) for _, value in sorted(obs.items())]
    return {row.tobytes() for row in np.concatenate(flat, -1)}


def replayed(logdir: pathlib.Path, saved: checkpoints.Checkpoint) -> set[bytes]:
    """What was observed in the steps that a run's replay holds."""
    assert saved.replay is not None
    fields = saved.replay["fields"] | read_contents(logdir / "replay" / "0", saved.replay)
    obs = {name: value for name, value in fields.items() if name.startswith("obs/")}
    return distinct({name: value.reshape(-1, *value.shape[2:]) for name, value in obs.items()})


def walk(config: Config, steps: int, seed: int) -> set[bytes]:
    """What random actions observe in so many steps of each environment."""
    seen: set[bytes] = set()
    for index in range(config.env.count):
        env: Any = make_env(config)()
        env.action_space.seed(seed * config.env.count + index)
        obs, over = {}, True
        for step in range(steps):
            if over:
                obs, _ = env.reset(seed=seed if step == 0 else None)
                seen |= distinct({key: np.asarray(value)[None] for key, value in obs.items()})
            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
            seen |= distinct({key: np.asarray(value)[None] for key, value in obs.items()})
            over = terminated or truncated
        env.close()
    return seen


def measure(logdir: pathlib.Path, episodes: int) -> dict[str, Any]:
    """Coverage and scores of one run."""
    saved = checkpoints.load(logdir, with_replay=True)
    config, steps = saved.config, saved.meta["agent_steps"]
    walks = [len(walk(config, math.ceil(steps / config.env.count), seed)) for seed in range(WALKS)]
    scores = evaluate_logdir(logdir, episodes).summary()
    return {
        "run": str(logdir),
        "task": config.task,
        "seed": config.seed,
        "agent_steps": steps,
        "seen": len(seen := replayed(logdir, saved)),
        "random": float(np.mean(walks)),
        "ratio": len(seen) / float(np.mean(walks)),
        "mean": scores["mean"],
        "success": scores.get("success"),
        "minutes": saved.meta["seconds"] / 60,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Distinct observations of runs and of random actions.")
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN", help="log directory of a run")
    parser.add_argument("--episodes", type=int, default=20, help="episodes to play (default 20)")
    args = parser.parse_args()
    for run in args.runs:
        print(json.dumps(measure(run, args.episodes)), flush=True)


if __name__ == "__main__":
    main()
