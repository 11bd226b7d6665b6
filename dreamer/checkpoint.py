"""Checkpoints: one directory that holds everything a run needs to go on, written atomically by orbax.

``LOGDIR/checkpoints/STEP`` with three items: ``state`` (every array of the `TrainState` by its path), ``replay`` (ring
contents and latents), ``meta`` (JSON: config, spaces, counters, generators). A checkpoint appears under its final name
only when it is complete, and the one before is deleted only then.
"""

import dataclasses
import logging
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from dreamer import config as configs
from dreamer.agent import Agent, Networks, TrainState
from dreamer.config import Config
from dreamer.types import Space, Spaces

VERSION = 2

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
    keep_others: bool = False,
) -> pathlib.Path:
    """Write a checkpoint, then delete older ones.

    Args:
        logdir: directory of the run.
        step: number in the name; must not decrease within a run. An existing checkpoint of this step is replaced.
        agent: whose state is saved.
        replay: arrays and JSON-able values, see `Replay.state`.
        meta: JSON-able counters and generator states.
        keep_others: leave older ones to `keep_only`, for runs whose checkpoint is complete when several are.

    Raises:
        CheckpointError: the file system refused, for example because it is full. Older checkpoints are untouched.
    """
    root = directory(logdir)
    meta = {
        "version": VERSION,
        "config": configs.to_dict(agent.config),
        "obs_spaces": _spaces_to(agent.obs_spaces),
        "action_spaces": _spaces_to(agent.action_spaces),
        "replay": {key: value for key, value in replay.items() if key != "fields"},
        "policy_steps": agent.policy_steps,
        **meta,
    }
    arrays = {"state": state_arrays(agent), "replay": dict(replay["fields"])}
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Orbax never overwrites; a save at the same step (after evaluation, say) goes beside the old one first.
        target = root / f"{step:012d}"
        fresh = root / f"{step:012d}-new"
        shutil.rmtree(fresh, ignore_errors=True)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
            args = {name: ocp.args.StandardSave(value) for name, value in arrays.items()}
            writer.save(fresh, args=ocp.args.Composite(**args, meta=ocp.args.JsonSave(meta)))
        if target.exists():
            target.rename(root / f"{step:012d}-old")
        fresh.rename(target)
        if not keep_others:
            keep_only(logdir, step)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {root}: {_reason(error)}. The previous checkpoint "
            "is untouched. Free disk space or choose another logdir, then resume."
        ) from error
    return target


def keep_only(logdir: str | os.PathLike[str], step: int) -> None:
    """Delete all checkpoints of a run but one."""
    for other in directory(logdir).iterdir():
        if other.name != f"{step:012d}":
            shutil.rmtree(other, ignore_errors=True)


def load(logdir: str | os.PathLike[str], *, with_replay: bool = False, step: int | None = None) -> Checkpoint:
    """Read the newest complete checkpoint of a run, or that of a step.

    Raises:
        CheckpointError: there is none, or it is damaged or of another version.
    """
    names = [name for name in _steps(logdir) if step in (None, int(name[:12]))]
    if not names:
        raise CheckpointError(
            f"There is no checkpoint in {directory(logdir)}. Give the directory of a run that was trained with "
            "python -m dreamer.train, for example runs/NAME."
        )
    path = directory(logdir) / names[-1]
    items = {"state": ocp.args.StandardRestore(), "meta": ocp.args.JsonRestore()}
    if with_replay:
        items["replay"] = ocp.args.StandardRestore()
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            found = reader.restore(path, args=ocp.args.Composite(**items))
        meta = found.meta
        version = meta["version"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The checkpoint {path} is damaged and cannot be read: {_reason(error)}.") from error
    if version != VERSION:
        raise CheckpointError(f"The checkpoint {path} has format version {version}, expected {VERSION}.")
    replay = {**meta["replay"], "fields": dict(found.replay)} if with_replay else None
    return Checkpoint({key: np.asarray(value) for key, value in found.state.items()}, replay, meta)


def state_arrays(agent: Agent | Snapshot) -> dict[str, jax.Array]:
    """Every array of the training state by its path, for example ``nets.world_model.rssm.mix.kernel``.

    The networks that act are one update older; they are ``acting.world_model.rssm.mix.kernel`` and so on.
    """
    acting = named_arrays(agent.acting_nets)
    return named_arrays(agent.state) | {f"acting.{name}": leaf for name, leaf in acting.items()}


def named_arrays(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by their path."""
    return {_path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


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
    leaves = [jnp.array(saved[name]) for name in expected]
    count = len(jax.tree.leaves(agent.state))
    agent.state = jax.tree.unflatten(jax.tree.structure(agent.state), leaves[:count])
    agent.acting_nets = jax.tree.unflatten(jax.tree.structure(agent.acting_nets), leaves[count:])
    agent.policy_steps = checkpoint.meta["policy_steps"]


def _steps(logdir: str | os.PathLike[str]) -> list[str]:
    root = directory(logdir)
    if not root.is_dir():
        return []
    # "-old" is what a crash between two renames leaves: still complete, and used if nothing newer is.
    complete = [path.name for path in root.iterdir() if (path / "_CHECKPOINT_METADATA").exists()]
    return sorted((n for n in complete if not n.endswith("-new")), key=lambda n: (n[:12], not n.endswith("-old")))


def _path_name(path: tuple[Any, ...]) -> str:
    parts = [str(getattr(p, "name", getattr(p, "key", getattr(p, "idx", p)))) for p in path]
    return ".".join(part for part in parts if part != "value")


def _spaces_to(spaces: Spaces) -> dict[str, Any]:
    return {key: [space.kind, list(space.shape), space.classes] for key, space in spaces.items()}


def _spaces_from(saved: dict[str, Any]) -> Spaces:
    return {key: Space(kind, tuple(shape), classes) for key, (kind, shape, classes) in saved.items()}


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
