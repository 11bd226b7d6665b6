"""What a run leaves whose updates fail; ``python -m dreamer.failure LOGDIR`` computes the failed one again.

``LOGDIR/failure-UPDATE`` holds all that the update was a function of: ``state.npz``, the arrays of the training state
by their path; ``batch-HOST.npz``, the share of the batch that each host sampled; and ``failure.json``, with the config,
the spaces, and the name of the tensor.
"""

import errno
import json
import pathlib
import shlex
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer import checkpoints
from dreamer.agent import Agent
from dreamer.checkpoints import Snapshot
from dreamer.config import paths
from dreamer.devices.hosts import HostError, Hosts
from dreamer.replay.layout import STORED
from dreamer.spaces import portable
from dreamer.training.directory import resume_command
from dreamer.types import Batch, named_leaves


class TrainingFailed(RuntimeError):
    """Too many updates in a row were skipped; the message says what the run left."""


class Skip(NamedTuple):
    """An update that was skipped."""

    update: int
    """Its number, counted from 0."""
    in_row: int
    """How many were skipped in a row, including this one."""
    tensor: str
    """Name of the first tensor that was not finite."""
    batch: Batch
    """Its batch, ``[B, T, ...]``."""


def report(logdir: pathlib.Path, agent: Agent | Snapshot, skip: Skip, hosts: Hosts | None = None) -> TrainingFailed:
    """Write a failed update to disk. All hosts call it together; a full disk loses the files, but not the message.

    Args:
        logdir: directory of the run.
        agent: as it was when the update began, except for counters.
        skip: the update.
        hosts: all hosts of the run; None: one host.

    Returns:
        The error to raise.
    """
    path = logdir / f"failure-{skip.update}"
    try:
        _write(path, agent, skip, hosts or Hosts())
        left = (
            f"Update and batch are in {path}; compute it again with: python -m dreamer.failure {shlex.quote(str(path))}"
        )
    except (OSError, HostError) as error:
        left = f"Update and batch could not be written to {path}: {error}."
    if checkpoints.exists(logdir):
        again = resume_command(logdir, agent.config.task)
        saved = f"The last checkpoint is from before the failure and stays; continue from it with: {again}"
    else:
        saved = "There was no checkpoint yet."
    return TrainingFailed(
        f"{skip.in_row} updates in a row were skipped, and run.max_skipped={agent.config.run.max_skipped}: "
        f"{skip.tensor} is not finite in update {skip.update}. Nothing was learned from any of them.\n  {left}\n"
        f"  {saved}\n  A lower optimizer.lr, or env.check=true if it was switched off, are the first things to try."
    )


def _write(path: pathlib.Path, agent: Agent | Snapshot, skip: Skip, hosts: Hosts) -> None:
    # Updates that were skipped since have changed only these two counters.
    state = agent.state._replace(step=jnp.int32(skip.update), skipped_in_row=jnp.int32(skip.in_row - 1))
    snapshot = Snapshot(
        agent.config,
        obs_spaces=agent.obs_spaces,
        action_spaces=agent.action_spaces,
        policy_steps=agent.policy_steps,
        state=state,
        acting_nets=agent.acting_nets,
    )
    on_device = checkpoints.state_arrays(snapshot)
    leaves = agent.placement.fetch_state(list(on_device.values()))
    with hosts.together("write the failed update"):
        if hosts.first:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
    with hosts.together("write the batch of the failed update"):
        batch = jax.device_get(batch_arrays(skip.batch))
        arrays: dict[str, Any] = {name: value.view(portable(value.dtype)) for name, value in batch.items()}
        np.savez(path / f"batch-{hosts.index}.npz", **arrays)
        if hosts.first:
            arrays = dict(zip(on_device, leaves, strict=True))
            np.savez(path / "state.npz", **arrays)
            about = {"update": skip.update, "in_row": skip.in_row, "tensor": skip.tensor}
            (path / "failure.json").write_text(json.dumps({**about, **checkpoints.describe(agent)}, indent=1))


def load_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file; unpickles nothing, and raises `OSError` if it is none of our files."""
    if found := paths.obstacle(path):
        raise OSError(errno.EINVAL, f"it is {found}, expected a file", str(path))
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def batch_arrays(batch: Batch) -> dict[str, Any]:
    """Arrays of a batch by name."""
    flat = {f"{STORED}{name}": value for name, value in named_leaves(batch.stored).items()}
    flat |= {name: getattr(batch, name) for name in ("reward", "is_first", "is_last", "is_terminal")}
    flat |= {f"obs/{key}": value for key, value in batch.obs.items()}
    return flat | {f"prev_action/{key}": value for key, value in batch.prev_action.items()}


def batch_of(arrays: dict[str, np.ndarray], stored: Any) -> Batch:
    """Inverse of `batch_arrays`, for an algorithm that stores arrays of these shapes and dtypes."""

    def group(prefix: str) -> dict[str, Any]:
        return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}

    leaves = [arrays[f"{STORED}{name}"].view(spec.dtype) for name, spec in named_leaves(stored).items()]
    latents = jax.tree.unflatten(jax.tree.structure(stored), leaves)
    flags = {name: arrays[name] for name in ("reward", "is_first", "is_last", "is_terminal")}
    return Batch(obs=group("obs/"), prev_action=group("prev_action/"), stored=latents, **flags)
