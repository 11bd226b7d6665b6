"""Compute the update again at which a run failed: ``python -m dreamer.failure LOGDIR``."""

import os
import sys

if not __package__:  # Started as a file: Python would look for its own types.py and others beside this file.
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), ".."))

import argparse
import json
import pathlib

import jax
import numpy as np

from dreamer import checkpoints
from dreamer.agent import Agent, guard
from dreamer.checkpoints import Checkpoint, CheckpointError, former
from dreamer.checkpoints.files import UNREADABLE
from dreamer.config import ConfigError, paths
from dreamer.logs import averages
from dreamer.logs.terminal import exit_status
from dreamer.training.failure import batch_arrays, batch_of, load_arrays
from dreamer.types import Batch


def recompute(path: pathlib.Path) -> tuple[Batch, str, dict[str, float]]:
    """Compute a failed update again, on one device.

    Args:
        path: a directory that `dreamer.training.failure.report` has written.

    Returns:
        The batch of all hosts ``[B, T, ...]``, the name of the first tensor that is not finite (empty if all are), and
        the metrics.

    Raises:
        CheckpointError: the files are missing or damaged.
    """
    try:
        meta = json.loads(paths.read_text(path / "failure.json"))
        files = sorted(path.glob("batch-*.npz"), key=lambda file: int(file.stem.removeprefix("batch-")))
        parts = [load_arrays(file) for file in files]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        state = load_arrays(path / "state.npz")
        state = former.state_arrays(state) if meta["version"] == former.VERSION else state
        saved = Checkpoint(state, None, meta, path)
        obs_spaces, action_spaces = saved.spaces
        agent = Agent(saved.config, obs_spaces, action_spaces)
        batch = batch_of(arrays, agent.algorithm.stored)
    except UNREADABLE as error:
        raise CheckpointError(f"{path} holds no failed update that can be read: {error}.") from error
    checkpoints.restore_agent(agent, saved)
    _, updated = agent.update(batch)
    metrics = jax.device_get(updated)
    bad = int(metrics[averages.BAD])
    tensor = guard.tensor_name(bad, metrics, agent.state) if bad >= 0 else ""
    return batch, tensor, {name: float(value) for name, value in metrics.items()}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 the update fails again, 1 it does not, 2 there is none."""
    parser = argparse.ArgumentParser(prog="python -m dreamer.failure", description="Compute a failed update again.")
    parser.add_argument("logdir", type=pathlib.Path, help="directory of a run, or a directory failure-UPDATE in it")
    given = parser.parse_args(argv).logdir
    try:
        logdir = paths.expand(given)
        found = sorted(logdir.glob("failure-*"), key=lambda path: path.lstat().st_mtime)
        path = logdir if (logdir / "failure.json").exists() or not found else found[-1]
        batch, tensor, metrics = recompute(path)
    except (CheckpointError, ConfigError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    for name, value in batch_arrays(batch).items():
        numbers = np.asarray(value).astype(np.float32)
        bad = "" if np.isfinite(numbers).all() else f"  {(~np.isfinite(numbers)).sum()} NOT FINITE"
        print(f"batch {name:<24} {numbers.shape!s:<20} {np.nanmin(numbers):12.5g} to {np.nanmax(numbers):12.5g}{bad}")
    for name in sorted(name for name in metrics if name.startswith(("loss/", "optimizer/"))):
        print(f"{name:<30} {metrics[name]:12.5g}")
    print(f"The first tensor that is not finite is {tensor}." if tensor else "This time, everything is finite.")
    return 0 if tensor else 1


if __name__ == "__main__":
    sys.exit(exit_status(main))
