"""Checkpoints: one directory that holds everything a run needs to go on, written atomically by orbax.

``LOGDIR/checkpoints/STEP`` with three items: ``state`` (every array of the `TrainState` by its path), ``replay`` (ring
contents and latents), ``meta`` (JSON: config, spaces, counters, generators). A checkpoint appears under its final name
only when it is complete, and the one before is deleted only then.

With several hosts, host 0 writes these, and every other one its own replay and cursor into ``STEP/hosts/INDEX``.
State arrays are written whole, so that any number of devices can read what any other has written.
"""

import dataclasses
import json
import logging
import os
import pathlib
import shutil
import zipfile
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from dreamer import config as configs
from dreamer.agent import Agent, Networks, TrainState
from dreamer.config import Config
from dreamer.devices import Placement
from dreamer.hosts import HostError, Hosts
from dreamer.types import Space, Spaces, named_leaves

VERSION = 3
_READABLE = (2, 3)
"""Version 2 knew no updates that are skipped, see `dreamer.guard`."""

for _noisy in ("absl", "orbax"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, found or used; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: arrays of the training state by path, replay contents, and everything else."""

    state: dict[str, np.ndarray]
    replay: dict[str, Any] | None
    meta: dict[str, Any]

    @property
    def config(self) -> Config:
        """The config of the run that wrote it."""
        return configs.from_dict(self.meta["config"])

    @property
    def spaces(self) -> tuple[Spaces, Spaces]:
        """Observation and action spaces of the run that wrote it."""
        return _spaces_from(self.meta["obs_spaces"]), _spaces_from(self.meta["action_spaces"])


class Snapshot(NamedTuple):
    """What `save` takes of an agent, for those who train without an `Agent`."""

    config: Config
    obs_spaces: Spaces
    action_spaces: Spaces
    policy_steps: int
    state: TrainState
    acting_nets: Networks
    placement: Placement = Placement()


def directory(logdir: str | os.PathLike[str]) -> pathlib.Path:
    """Where the checkpoints of a run are."""
    return pathlib.Path(logdir).resolve() / "checkpoints"


def exists(logdir: str | os.PathLike[str]) -> bool:
    """Whether a complete checkpoint is in ``logdir``."""
    return bool(_steps(logdir))


def steps(logdir: str | os.PathLike[str]) -> set[int]:
    """Numbers of the complete checkpoints in ``logdir``."""
    return {int(name[:12]) for name in _steps(logdir)}


def save(
    logdir: str | os.PathLike[str],
    step: int,
    agent: Agent | Snapshot,
    replay: dict[str, Any],
    meta: dict[str, Any],
    hosts: Hosts | None = None,
    keep_others: bool = False,
) -> pathlib.Path:
    """Write a checkpoint, then delete older ones. All hosts call it together, and it fails on all or on none.

    Args:
        logdir: directory of the run.
        step: number in the name; must not decrease within a run. An existing checkpoint of this step is replaced.
        agent: whose state is saved.
        replay: arrays and JSON-able values, see `Replay.state`.
        meta: JSON-able counters and generator states.
        hosts: who else writes to it; None: nobody.
        keep_others: leave older ones to `keep_only`, for runs whose checkpoint is complete when several are.

    Raises:
        CheckpointError: the file system refused, for example because it is full. Older checkpoints are untouched.
    """
    root, hosts = directory(logdir), hosts or Hosts()
    own = {key: value for key, value in replay.items() if key != "fields"}
    meta = {**describe(agent), "hosts": hosts.count, "replay": own, **meta}
    state = state_arrays(agent)
    leaves = agent.placement.fetch_state(list(state.values()))
    arrays = {"state": dict(zip(state, leaves, strict=True)), "replay": dict(replay["fields"])}
    # Orbax never overwrites; a save at the same step (after evaluation, say) goes beside the old one first.
    target, fresh = root / f"{step:012d}", root / f"{step:012d}-new"
    part = root / f"{step:012d}-host{hosts.index}-new"
    try:
        with hosts.together("write its part of the checkpoint"):
            root.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(fresh if hosts.first else part, ignore_errors=True)
            if hosts.first:
                with _checkpointer(hosts) as writer:
                    args = {name: ocp.args.StandardSave(value) for name, value in arrays.items()}
                    writer.save(fresh, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta)))
            else:
                _write_part(part, arrays["replay"], meta)
        with hosts.together("complete the checkpoint"):
            if hosts.first:
                for other in range(1, hosts.count):
                    (fresh / "hosts").mkdir(exist_ok=True)
                    (root / f"{step:012d}-host{other}-new").rename(fresh / "hosts" / str(other))
                if target.exists():
                    target.rename(root / f"{step:012d}-old")
                fresh.rename(target)
                if not keep_others:
                    keep_only(logdir, step)
    except (OSError, ValueError, HostError) as error:
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {root}: {_reason(error)}. The previous checkpoint "
            "is untouched. Free disk space or choose another logdir, then resume."
        ) from error
    return target


def describe(agent: Agent | Snapshot) -> dict[str, Any]:
    """What ``meta`` of a checkpoint says of its agent, ready for JSON."""
    return {
        "version": VERSION,
        "config": configs.to_dict(agent.config),
        "obs_spaces": _spaces_to(agent.obs_spaces),
        "action_spaces": _spaces_to(agent.action_spaces),
        "policy_steps": agent.policy_steps,
    }


def keep_only(logdir: str | os.PathLike[str], step: int) -> None:
    """Delete all checkpoints of a run but one."""
    for other in directory(logdir).iterdir():
        if other.name != f"{step:012d}":
            shutil.rmtree(other, ignore_errors=True)


def load(
    logdir: str | os.PathLike[str],
    *,
    with_replay: bool = False,
    step: int | None = None,
    hosts: Hosts | None = None,
) -> Checkpoint:
    """Read the newest complete checkpoint of a run, or that of a step.

    Args:
        logdir: directory of the run.
        with_replay: read the contents of replay as well, those of this host.
        step: number of the checkpoint; None: the newest.
        hosts: who reads the replay; None: one host. It takes as many as have written it.

    Raises:
        CheckpointError: there is none, or it is damaged or of another version.
    """
    names = [name for name in _steps(logdir) if step in (None, int(name[:12]))]
    if not names:
        raise CheckpointError(
            f"There is no checkpoint in {directory(logdir)}. Give the directory of a run that was trained with "
            "python -m dreamer.train, for example runs/NAME."
        )
    path, hosts = directory(logdir) / names[-1], hosts or Hosts()
    replay = None
    try:
        state, meta = _read(path, hosts, "state")
        version, writers = meta["version"], meta.get("hosts", 1)
        if with_replay and version in _READABLE and writers == hosts.count:
            part = path / "hosts" / str(hosts.index)
            fields, own = _read(path, hosts, "replay") if hosts.first else _read_part(part)
            replay = {**own["replay"], "fields": fields}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"The checkpoint {path} is damaged and cannot be read: {_reason(error)}.") from error
    if version == 2:
        state.setdefault("skipped_in_row", np.zeros((), np.int32))
    if version not in _READABLE:
        raise CheckpointError(f"The checkpoint {path} has format version {version}, expected {VERSION}.")
    if with_replay and writers != hosts.count:
        raise CheckpointError(
            f"The checkpoint {path} holds the replay of {writers} host(s), and this run has {hosts.count}. Resume it "
            f"on {writers} host(s); the agent alone can be loaded anywhere."
        )
    return Checkpoint({key: np.asarray(value) for key, value in state.items()}, replay, meta)


def state_arrays(agent: Agent | Snapshot) -> dict[str, jax.Array]:
    """Every array of the training state by its path, for example ``nets.world_model.rssm.mix.kernel``.

    The networks that act are one update older; they are ``acting.world_model.rssm.mix.kernel`` and so on.
    """
    acting = named_arrays(agent.acting_nets)
    return named_arrays(agent.state) | {f"acting.{name}": leaf for name, leaf in acting.items()}


def named_arrays(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by their path."""
    return named_leaves(tree)


def restore_agent(agent: Agent, checkpoint: Checkpoint) -> None:
    """Put the saved training state into an agent of the same architecture.

    Raises:
        CheckpointError: names, shapes or dtypes differ; names the first difference.
    """
    expected = state_arrays(agent)
    saved = checkpoint.state
    for name in sorted(expected.keys() | saved.keys()):
        if name not in saved or name not in expected:
            where = "this agent" if name in expected else "the checkpoint"
            raise CheckpointError(f"Only {where} has '{name}': the checkpoint belongs to another architecture.")
        got, want = saved[name], expected[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            raise CheckpointError(
                f"'{name}' is {got.dtype} {list(got.shape)} in the checkpoint, expected {want.dtype} "
                f"{list(want.shape)}: the checkpoint belongs to another config. Use the config saved beside it."
            )
    leaves = [saved[name] for name in expected]
    count = len(jax.tree.leaves(agent.state))
    agent.state = jax.tree.unflatten(jax.tree.structure(agent.state), leaves[:count])
    agent.acting_nets = jax.tree.unflatten(jax.tree.structure(agent.acting_nets), leaves[count:])
    agent.policy_steps = checkpoint.meta["policy_steps"]


def _checkpointer(hosts: Hosts) -> ocp.Checkpointer:
    """Orbax for host 0 alone, or for one that reads: by itself it would wait for the others, who do something else."""
    if hosts.count == 1:
        return ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    alone = ocp.options.MultiprocessingOptions(
        primary_host=hosts.index, active_processes={hosts.index}, barrier_sync_key_prefix=f"host{hosts.index}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        # Handlers that are made on demand do not hear of these options.
        state=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        replay=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        meta=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _read(path: pathlib.Path, hosts: Hosts, item: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays of one item of a checkpoint, and ``meta``."""
    wanted = {item: ocp.args.StandardRestore(), "meta": ocp.args.JsonRestore()}
    with _checkpointer(hosts) as reader:
        found = reader.restore(path, args=ocp.args.Composite(**wanted))
    return dict(found[item]), found["meta"]


def _write_part(path: pathlib.Path, fields: dict[str, Any], meta: dict[str, Any]) -> None:
    """What a host other than 0 has to keep. Orbax leaves the writing of NumPy arrays to host 0."""
    path.mkdir()
    np.savez(path / "replay.npz", **fields)
    (path / "meta.json").write_text(json.dumps(meta))


def _read_part(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with np.load(path / "replay.npz") as file:
        return {name: file[name] for name in file.files}, json.loads((path / "meta.json").read_text())


def _steps(logdir: str | os.PathLike[str]) -> list[str]:
    root = directory(logdir)
    if not root.is_dir():
        return []
    # "-old" is what a crash between two renames leaves: still complete, and used if nothing newer is.
    complete = [path.name for path in root.iterdir() if (path / "_CHECKPOINT_METADATA").exists()]
    return sorted((n for n in complete if not n.endswith("-new")), key=lambda n: (n[:12], not n.endswith("-old")))


def _spaces_to(spaces: Spaces) -> dict[str, Any]:
    return {key: [space.kind, list(space.shape), space.classes] for key, space in spaces.items()}


def _spaces_from(saved: dict[str, Any]) -> Spaces:
    return {key: Space(kind, tuple(shape), classes) for key, (kind, shape, classes) in saved.items()}


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
