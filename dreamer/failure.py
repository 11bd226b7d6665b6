"""What is left of a run whose updates fail, and the failed update once more: ``python -m dreamer.failure LOGDIR``.

``LOGDIR/failure-UPDATE`` holds all that the update was a function of: ``state.npz``, the arrays of the training state
by their path; ``batch-HOST.npz``, the share of the batch that each host sampled; and ``failure.json``, with the config,
the spaces, and the name of the tensor.
"""

import argparse
import json
import pathlib
import shlex
import shutil
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer import agent as agents
from dreamer import checkpoint as checkpoints
from dreamer import guard
from dreamer.agent import Agent
from dreamer.checkpoint import Checkpoint, CheckpointError, Snapshot
from dreamer.config import ConfigError
from dreamer.hosts import HostError, Hosts
from dreamer.replay.layout import portable
from dreamer.runs import resume_command
from dreamer.types import Batch, StoredLatent


class TrainingFailed(RuntimeError):
    """Too many updates in a row were skipped; the message says what is left of the run."""


class Skip(NamedTuple):
    """An update that was skipped."""

    update: int
    """Its number, which is that of the updates before it."""
    in_row: int
    """How many were skipped in a row, this one included."""
    bad: int
    """The tensor, as a number in `dreamer.agent.checked_names`."""
    batch: Batch
    """What it was given."""


def report(logdir: pathlib.Path, agent: Agent | Snapshot, skip: Skip, hosts: Hosts | None = None) -> TrainingFailed:
    """Write down a failed update. All hosts call it together; a full disk loses the files, but not the message.

    Args:
        logdir: directory of the run.
        agent: as it was when the update began, up to counters.
        skip: the update.
        hosts: who else trains; None: nobody.

    Returns:
        The error to raise.
    """
    tensor = agents.checked_names(agent.config, tuple(agent.obs_spaces), agent.state)[skip.bad]
    path = logdir / f"failure-{skip.update}"
    try:
        _write(path, agent, skip, tensor, hosts or Hosts())
        left = (
            f"Update and batch are in {path}; compute it again with: python -m dreamer.failure {shlex.quote(str(path))}"
        )
    except (OSError, HostError) as error:
        left = f"Update and batch could not be written to {path}: {error}."
    if checkpoints.exists(logdir):
        saved = f"The last checkpoint is older than the trouble and stays; go on from it with: {resume_command(logdir)}"
    else:
        saved = "There was no checkpoint yet."
    return TrainingFailed(
        f"{skip.in_row} updates in a row were skipped, and run.max_skipped={agent.config.run.max_skipped}: {tensor} is "
        f"not finite in update {skip.update}. Nothing was learned from any of them.\n  {left}\n  {saved}\n  A lower "
        "optimizer.lr, or env.check=true if it was switched off, are the first things to try."
    )


def _write(path: pathlib.Path, agent: Agent | Snapshot, skip: Skip, tensor: str, hosts: Hosts) -> None:
    # Updates that were skipped since have changed nothing but these.
    state = agent.state._replace(step=jnp.int32(skip.update), skipped_in_row=jnp.int32(skip.in_row - 1))
    names = checkpoints.state_arrays(
        Snapshot(agent.config, agent.obs_spaces, agent.action_spaces, agent.policy_steps, state, agent.acting_nets)
    )
    leaves = agent.placement.fetch_state(list(names.values()))
    with hosts.together("write down the failed update"):
        if hosts.first:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
    with hosts.together("write down the batch of the failed update"):
        batch = jax.device_get(_batch_arrays(skip.batch))
        arrays: dict[str, Any] = {name: value.view(portable(value.dtype)) for name, value in batch.items()}
        np.savez(path / f"batch-{hosts.index}.npz", **arrays)
        if hosts.first:
            arrays = dict(zip(names, leaves, strict=True))
            np.savez(path / "state.npz", **arrays)
            about = {"update": skip.update, "in_row": skip.in_row, "tensor": tensor}
            (path / "failure.json").write_text(json.dumps({**about, **checkpoints.describe(agent)}, indent=1))


def again(path: pathlib.Path) -> tuple[Batch, str, dict[str, float]]:
    """Compute a failed update once more, on one device.

    Args:
        path: a directory that `report` has written.

    Returns:
        The batch of all hosts, the name of the first tensor that is not finite (empty if all are), and the metrics.

    Raises:
        CheckpointError: the files are not there or damaged.
    """
    try:
        meta = json.loads((path / "failure.json").read_text())
        parts = [_load(file) for file in sorted(path.glob("batch-*.npz"), key=lambda file: int(file.stem[6:]))]
        arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        saved = Checkpoint(_load(path / "state.npz"), None, meta, path)
        agent = Agent(saved.config, *saved.spaces)
        batch = _batch_of(arrays, agent.latent_dtype)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path} holds no failed update that can be read: {error}.") from error
    checkpoints.restore_agent(agent, saved)
    names = agents.checked_names(agent.config, tuple(agent.obs_spaces), agent.state)
    metrics = jax.device_get(agent.update(batch)[1])
    bad = int(metrics[guard.BAD])
    return batch, names[bad] if bad >= 0 else "", {name: float(value) for name, value in metrics.items()}


def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _batch_arrays(batch: Batch) -> dict[str, Any]:
    flat = {"latent/deter": batch.latent.deter, "latent/stoch": batch.latent.stoch}
    flat |= {name: getattr(batch, name) for name in ("reward", "is_first", "is_last", "is_terminal")}
    flat |= {f"obs/{key}": value for key, value in batch.obs.items()}
    return flat | {f"prev_action/{key}": value for key, value in batch.prev_action.items()}


def _batch_of(arrays: dict[str, np.ndarray], latent_dtype: np.dtype) -> Batch:
    def group(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

    latent = StoredLatent(arrays["latent/deter"].view(latent_dtype), arrays["latent/stoch"])
    flags = {name: arrays[name] for name in ("reward", "is_first", "is_last", "is_terminal")}
    return Batch(obs=group("obs/"), prev_action=group("prev_action/"), latent=latent, **flags)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 the update fails again, 1 it does not, 2 there is none."""
    parser = argparse.ArgumentParser(prog="python -m dreamer.failure", description="Compute a failed update again.")
    parser.add_argument("logdir", type=pathlib.Path, help="directory of a run, or a directory failure-UPDATE in it")
    logdir = parser.parse_args(argv).logdir
    found = sorted(logdir.glob("failure-*"), key=lambda path: path.stat().st_mtime)
    path = logdir if (logdir / "failure.json").exists() or not found else found[-1]
    try:
        batch, tensor, metrics = again(path)
    except (CheckpointError, ConfigError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    for name, value in _batch_arrays(batch).items():
        numbers = np.asarray(value).astype(np.float32)
        bad = "" if np.isfinite(numbers).all() else f"  {(~np.isfinite(numbers)).sum()} NOT FINITE"
        print(f"batch {name:<24} {numbers.shape!s:<20} {np.nanmin(numbers):12.5g} to {np.nanmax(numbers):12.5g}{bad}")
    for name in sorted(name for name in metrics if name.startswith(("loss/", "optimizer/"))):
        print(f"{name:<30} {metrics[name]:12.5g}")
    print(f"The first tensor that is not finite is {tensor}." if tensor else "This time, everything is finite.")
    return 0 if tensor else 1


if __name__ == "__main__":
    sys.exit(main())
