"""Checkpoints of populations: one for each member, in the format of a single run, from which all continue exactly.

Everything in the loop is an array, environments included, so nothing has to restart: a resumed population is bit for
bit what it would have been. The replay part of a member's checkpoint holds its whole state except the training state.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamer import checkpoints
from dreamer.checkpoints import Checkpoint, CheckpointError, Damaged, DamagedError, Prepared, Snapshot, Written, former
from dreamer.config.population import Member
from dreamer.devices.member_axis import member_of
from dreamer.envs.native import NativeEnv
from dreamer.replay.device import Cursor
from dreamer.spaces import portable
from dreamer.training.device_program import LoopState, MemberState

_RING = "fields."
"""Prefix of the names of arrays that hold rows of replay."""

_TRAIN = "train."
"""Prefix of arrays of the training state, which has its own part of a checkpoint."""

_ACTING = "acting."
"""Prefix of arrays of the networks that act, which belong to the same part."""


class PreparedMember(NamedTuple):
    """What a member's checkpoint will hold, and where it goes."""

    logdir: str
    """Its log directory."""
    contents: Prepared
    """Its arrays on the host, without an axis of members."""


def prepare(
    state: LoopState, members: Sequence[Member], env: NativeEnv, metas: Sequence[dict], *, copy: bool = True
) -> Iterator[PreparedMember]:
    """Fetch everything that the checkpoints will hold, one member after another.

    Args:
        state: the population.
        members: its members.
        env: the environment.
        metas: what else each member saves, ready for JSON.
        copy: see `dreamer.checkpoints.prepare`.
    """
    cursor = {name: int(value) for name, value in state.cursor._asdict().items()}
    for index, (member, meta) in enumerate(zip(members, metas, strict=True)):
        own: MemberState = member_of(state.members, index)
        rows = own.fields["reward"].shape[1]
        arrays = {}
        for name, value in checkpoints.named_arrays(own).items():
            # An empty array, such as the contacts of a simulation that has none, cannot be written and need not be.
            if name.startswith((_TRAIN, _ACTING)) or value.size == 0:
                continue
            used = value[:, : min(cursor["total"], rows)] if name.startswith(_RING) else value
            array = np.asarray(jax.device_get(used))
            array = array.copy() if copy and not array.flags.owndata else array
            arrays[name] = array.view(portable(array.dtype))
        config = member.config
        agent = Snapshot(
            config,
            obs_spaces=dict(env.obs_spaces),
            action_spaces=dict(env.action_spaces),
            policy_steps=cursor["total"],
            state=own.train,
            acting_nets=own.acting,
        )
        contents = checkpoints.prepare(agent, {**cursor, "fields": arrays}, meta, copy=copy, copy_replay=False)
        yield PreparedMember(config.logdir, contents)


def write(prepared: Iterable[PreparedMember], step: int, keep_last: int) -> Written:
    """Write a checkpoint of every member, and delete older ones when all are written.

    Args:
        prepared: the members' contents, which may be fetched one at a time.
        step: number in the names.
        keep_last: how many checkpoints of each member stay.

    Returns:
        The checkpoint of the first member, and the bytes of all.

    Raises:
        CheckpointError: the file system refused; there is still an older checkpoint of all members.
    """
    written = {}
    try:
        for member in prepared:
            written[member.logdir] = checkpoints.write(member.logdir, step, member.contents, keep_last=None)
    except CheckpointError:
        # A step that not all members have is of no use, and takes space that the next save needs.
        for logdir in written:
            checkpoints.discard(logdir, step)
        raise
    for logdir in written:
        checkpoints.keep(logdir, step, keep_last)
    first, *_ = written.values()
    return Written(first.path, sum(one.bytes for one in written.values()))


def load(members: Sequence[Member]) -> list[Checkpoint] | None:
    """The newest step of which all members have a checkpoint, with replay; None if no member has any.

    Where one member's is damaged, all fall back to an earlier step; the first checkpoint lists what was refused.

    Raises:
        CheckpointError: some members have checkpoints, but none in common; or all are damaged.
    """
    steps = [checkpoints.steps(member.config.logdir) for member in members]
    if not any(steps):
        return None
    common = set.intersection(*steps)
    if not common:
        lacking = next(m.config.logdir for m, own in zip(members, steps, strict=True) if own != max(steps, key=len))
        raise CheckpointError(
            f"The members have no checkpoint of one and the same step, see {lacking}. Start a new run."
        )
    damaged: list[Damaged] = []
    for step in sorted(common, reverse=True):
        found = [_try_load(member, step) for member in members]
        errors = [one for one in found if isinstance(one, DamagedError)]
        intact = [one for one in found if isinstance(one, Checkpoint)]
        if not errors:
            first, *others = intact
            return [dataclasses.replace(first, damaged=tuple(damaged)), *others]
        damaged += [one for error in errors for one in error.damaged]
        # They would be newer than the next save, and so in its way.
        why = "it is intact, but that of another member is not"
        damaged += [Damaged(one.path, why) for one in intact]
    raise DamagedError(damaged)


def _try_load(member: Member, step: int) -> Checkpoint | DamagedError:
    try:
        return checkpoints.load(member.config.logdir, with_replay=True, which=step)
    except DamagedError as error:
        return error


def restore(shapes: LoopState, saved: Sequence[Checkpoint]) -> LoopState:
    """The saved population, in NumPy arrays.

    Args:
        shapes: shapes and dtypes of its state; places beyond the members repeat the last one.
        saved: checkpoints of all members, of one step.

    Raises:
        CheckpointError: an array is missing or of another shape or dtype.
    """
    first, *_ = saved
    parts = [_arrays(checkpoint) for checkpoint in saved]
    places, _, rows = shapes.members.fields["reward"].shape[:3]
    parts += parts[-1:] * (places - len(parts))
    leaves = []
    for name, shape in checkpoints.named_arrays(shapes.members).items():
        stacked = np.zeros(shape.shape, shape.dtype)
        used = min(first.replay["total"], rows) if first.replay else 0
        for index, part in enumerate(parts):
            target = stacked[index, :, :used] if name.startswith(_RING) else stacked[index, ...]
            if target.size == 0:
                continue
            if name not in part or math.prod(part[name].shape) != target.size:
                got = f"of shape {list(part[name].shape)}" if name in part else "absent"
                raise CheckpointError(
                    f"'{name}' is {got} in the checkpoint, expected {list(target.shape)}: it belongs to another config "
                    "or to a run with run.loop=host. Use the config saved next to it."
                )
            target[...] = part[name].reshape(target.shape).view(shape.dtype)
        leaves.append(stacked)
    members = jax.tree.unflatten(jax.tree.structure(shapes.members), leaves)
    cursor: Any = first.replay or {}
    values: list[Any] = [np.array(cursor[name], np.int32) for name in Cursor._fields]
    return LoopState(members, Cursor(*values))


def _arrays(saved: Checkpoint) -> dict[str, np.ndarray]:
    """All arrays of a member by their path in `MemberState`."""
    fields: dict[str, Any] = saved.replay["fields"] if saved.replay else {}
    if saved.meta["version"] == former.VERSION:
        _, action_spaces = saved.spaces
        fields = former.member_arrays({name: np.asarray(value) for name, value in fields.items()}, action_spaces)
    return {name: np.asarray(value) for name, value in fields.items()} | {
        name if name.startswith(_ACTING) else f"{_TRAIN}{name}": value for name, value in saved.state.items()
    }


__all__ = ["PreparedMember", "load", "prepare", "restore", "write"]
