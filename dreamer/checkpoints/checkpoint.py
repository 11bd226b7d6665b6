"""Checkpoints: one directory that holds everything a run needs to continue, written atomically and verified when read.

``LOGDIR/checkpoints/STEP`` with ``state`` (every array of the `TrainState` by its path) and ``replay`` (ring contents
and latents), both written by orbax, ``meta.json`` (config, spaces, counters, generators), and ``manifest.json`` with
the checksum of every file. A checkpoint gets its final name only when all of it is on the disk, and older ones are
deleted only then. Reading one unpickles nothing and runs nothing that a file names.

With several hosts, host 0 writes these, and every other host its own replay and cursor into ``STEP/hosts/INDEX``.
State arrays are written unsharded, so that any number of devices can read what any other number has written.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np

from dreamer import config as configs
from dreamer.agent import Agent
from dreamer.checkpoints import arrays as array_files
from dreamer.checkpoints import files, former, manifest
from dreamer.checkpoints.files import (
    CheckpointError,
    best,
    directory,
    discard,
    exists,
    keep,
    mark_best,
    remove_drafts,
    set_aside,
    steps,
)
from dreamer.checkpoints.manifest import DamageError
from dreamer.config import Config, ConfigError, paths
from dreamer.devices.hosts import HostError, Hosts
from dreamer.devices.placement import Placement
from dreamer.types import Parts, Space, Spaces, TrainState, named_leaves

VERSION = 4

Found = TypeVar("Found")

Which = int | Literal["newest", "best"]
"""Names a checkpoint of a run: by its step, or as the newest that is whole, or as the best by evaluation."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: arrays of the training state by path, replay contents, and everything else."""

    state: dict[str, np.ndarray]
    replay: dict[str, Any] | None
    """``Replay.state`` of this host, with its arrays under ``fields``; None if it was not read."""
    meta: dict[str, Any]
    path: pathlib.Path
    damaged: tuple["Damaged", ...] = ()
    """Newer checkpoints that could not be used, the newest first."""

    @property
    def config(self) -> Config:
        """The config of the run that wrote it; raises `CheckpointError` if it is none that can be used."""
        try:
            with explain_content(self.path):
                return configs.from_dict(self.meta["config"])
        except ConfigError as error:
            raise CheckpointError(f"The checkpoint {self.path} holds a config that cannot be used. {error}") from error

    @property
    def spaces(self) -> tuple[Spaces, Spaces]:
        """Observation and action spaces of the run that wrote it; raises `CheckpointError` if they are none."""
        with explain_content(self.path):
            return _spaces_from(self.meta["obs_spaces"]), _spaces_from(self.meta["action_spaces"])


class Snapshot(NamedTuple):
    """What `save` reads from an agent, for loops that train without an `Agent`."""

    config: Config
    obs_spaces: Spaces
    action_spaces: Spaces
    policy_steps: int
    """How often the policy has acted."""
    state: TrainState
    """Of one member, without an axis of members."""
    acting_nets: Parts
    """The networks that act, like ``state.nets``."""
    placement: Placement = Placement()


class Damaged(NamedTuple):
    """A checkpoint whose files are not what was written."""

    path: pathlib.Path
    reason: str
    """What is wrong with which file."""

    def __str__(self) -> str:
        return f"The checkpoint {self.path} is damaged and cannot be read: {self.reason}."


class DamagedError(CheckpointError):
    """All checkpoints in question are damaged."""

    def __init__(self, damaged: Sequence[Damaged]):
        super().__init__("\n  ".join(map(str, damaged)))
        self.damaged = tuple(damaged)


class Prepared(NamedTuple):
    """What a checkpoint will hold, on the host."""

    state: dict[str, np.ndarray]
    """Arrays of the training state by path, each of its own shape."""
    replay: dict[str, np.ndarray]
    """Arrays of replay by name, each of its own shape."""
    meta: str
    """The text of ``meta.json``."""


class Written(NamedTuple):
    """A checkpoint that was written completely."""

    path: pathlib.Path
    bytes: int
    """Size of all its files."""


def prepare(
    agent: Agent | Snapshot,
    replay: dict[str, Any],
    meta: dict[str, Any],
    hosts: Hosts | None = None,
    *,
    copy: bool = True,
    copy_replay: bool = True,
) -> Prepared:
    """Fetch everything that a checkpoint will hold. All hosts call it together.

    Args:
        agent: the one to save.
        replay: arrays under ``fields``, and JSON-able values, see `Replay.state`.
        meta: JSON-able counters and generator states.
        hosts: all hosts of the run; None: one host.
        copy: make the result independent of the agent, which may then continue before it is written. False saves
            memory: then no update may start until `write` returns.
        copy_replay: the same for the arrays of replay; False also for arrays that nothing else changes.
    """
    own = {key: value for key, value in replay.items() if key != "fields"}
    whole = {**describe(agent), "hosts": (hosts or Hosts()).count, "replay": own, **meta}
    state = state_arrays(agent)
    leaves = agent.placement.fetch_state(list(state.values()))
    # Fetching from a CPU device copies nothing, and updates reuse the memory.
    fetched = [np.array(x) if copy and not x.flags.owndata else x for x in leaves]
    fields = {name: np.array(x) if copy_replay else np.asarray(x) for name, x in replay["fields"].items()}
    return Prepared(dict(zip(state, fetched, strict=True)), fields, json.dumps(whole))


def write(
    logdir: str | os.PathLike[str],
    step: int,
    prepared: Prepared,
    hosts: Hosts | None = None,
    *,
    keep_last: int | None = 2,
    before_commit: Callable[[], None] | None = None,
) -> Written:
    """Write a checkpoint, then delete older ones. All hosts call it together, and it fails on all or on none.

    When it returns, the checkpoint survives a loss of power; at every instant until then, the previous one does.

    Args:
        logdir: directory of the run.
        step: number in the name; must not decrease within a run. An existing checkpoint of this step is replaced.
        prepared: its contents.
        hosts: all hosts of the run; None: one host.
        keep_last: how many of the last checkpoints stay, see `keep`. None: all, for populations, which call `keep`
            when the checkpoints of all members are complete.
        before_commit: called on every host before the checkpoint gets its final name, so that whatever it puts on the
            disk is there if the checkpoint is. If it raises `OSError` or `CheckpointError`, there is no new one.

    Raises:
        CheckpointError: the file system refused, for example because it is full. Older checkpoints are untouched.
    """
    root = directory(logdir)
    hosts = hosts or Hosts()
    name = files.name_of(step)
    # A second save at the same step (after evaluation, say) is first written next to the old one.
    target = root / name
    fresh = root / f"{name}-new"
    part = root / f"{name}-host{hosts.index}-new"
    size = 0
    try:
        with hosts.together("write its part of the checkpoint"):
            # Without parents: a log directory that was removed is not made again with a part of what it had.
            root.mkdir(exist_ok=True)
            shutil.rmtree(fresh if hosts.first else part, ignore_errors=True)
            if hosts.first:
                array_files.write(fresh, {"state": prepared.state, "replay": prepared.replay}, hosts)
                (fresh / "meta.json").write_text(prepared.meta, encoding="utf-8")
            else:
                _write_part(part, prepared)
            if before_commit is not None:
                before_commit()
        with hosts.together("complete the checkpoint"):
            if hosts.first:
                for other in range(1, hosts.count):
                    (fresh / "hosts").mkdir(exist_ok=True)
                    (root / f"{name}-host{other}-new").rename(fresh / "hosts" / str(other))
                size = manifest.write(fresh)
                old = root / f"{name}-old"
                if target.exists():
                    shutil.rmtree(old, ignore_errors=True)
                    target.rename(old)
                fresh.rename(target)
                for parent in (root, root.parent):  # The first checkpoint created `root`.
                    manifest.sync_names(parent)
                if keep_last is not None:
                    keep(logdir, step, keep_last)
    except (OSError, ValueError, HostError, CheckpointError) as error:
        # On a full disk, what is left of this save would be in the way of the next one.
        draft = fresh if hosts.first else part
        for leftover in root.glob(f"{draft.name}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {root}: {_reason(error)}. The previous checkpoint "
            "is untouched. Free disk space or choose another logdir, then resume."
        ) from error
    return Written(target, size)


def save(
    logdir: str | os.PathLike[str],
    step: int,
    agent: Agent | Snapshot,
    replay: dict[str, Any],
    meta: dict[str, Any],
    hosts: Hosts | None = None,
    *,
    keep_last: int | None = 2,
) -> pathlib.Path:
    """`prepare` and `write` in one, for callers that can wait."""
    prepared = prepare(agent, replay, meta, hosts, copy=False, copy_replay=False)
    return write(logdir, step, prepared, hosts, keep_last=keep_last).path


def describe(agent: Agent | Snapshot) -> dict[str, Any]:
    """What ``meta`` of a checkpoint says about its agent, ready for JSON."""
    return {
        "version": VERSION,
        "config": configs.to_dict(agent.config),
        "obs_spaces": _spaces_to(agent.obs_spaces),
        "action_spaces": _spaces_to(agent.action_spaces),
        "policy_steps": agent.policy_steps,
    }


def load(
    logdir: str | os.PathLike[str],
    *,
    with_replay: bool = False,
    which: Which = "newest",
    hosts: Hosts | None = None,
) -> Checkpoint:
    """Read a checkpoint of a run; changes nothing on the disk.

    Args:
        logdir: directory of the run.
        with_replay: also read the contents of this host's replay.
        which: the newest one that is not damaged, the best one, or that of a step.
        hosts: all hosts of the run; None: one host. Reading replay takes as many as have written it.

    Raises:
        DamagedError: all in question are damaged; the message says for each what is wrong.
        CheckpointError: there is none, or it is of another version.
    """
    found, damaged = _first_intact(
        lambda: _candidates(logdir, which), lambda path: _load_one(path, hosts or Hosts(), with_replay=with_replay)
    )
    return dataclasses.replace(found, damaged=damaged)


_LOOKS = 100
"""How often a reader looks for checkpoints again; a run must have deleted one each time."""


def _first_intact(
    candidates: Callable[[], list[pathlib.Path]], read: Callable[[pathlib.Path], Found]
) -> tuple[Found, tuple[Damaged, ...]]:
    """Read the first candidate that is intact; also returns those before it, which are not.

    A run that trains meanwhile deletes checkpoints, or replaces one: what cannot be read because of that is no damage,
    and the reader looks again.
    """
    for look in range(_LOOKS):
        damaged: list[Damaged] = []
        for path in candidates():
            before = files.identity(path)
            error: CheckpointError | DamageError | None = None
            try:
                found = read(path)
            except (CheckpointError, DamageError) as caught:
                error = caught
            if files.identity(path) != before and look + 1 < _LOOKS:
                break
            if error is None:
                return found, tuple(damaged)
            if isinstance(error, CheckpointError):
                raise error
            damaged.append(Damaged(path, str(error)))
        else:
            raise DamagedError(damaged)
    raise AssertionError("unreachable: the last look does not look again")


class Part(NamedTuple):
    """Some arrays of the state in a checkpoint, and the shapes of all."""

    path: pathlib.Path
    config: Config
    """Of the run that wrote it."""
    arrays: dict[str, np.ndarray]
    """By path, each of its own shape."""
    shapes: dict[str, jax.ShapeDtypeStruct]
    """Those of all arrays there, by path."""
    damaged: tuple[Damaged, ...]
    """Newer checkpoints that could not be used, the newest first."""


def load_part(
    path: str | os.PathLike[str], wanted: Mapping[str, jax.ShapeDtypeStruct], hosts: Hosts | None = None
) -> Part:
    """Read the arrays of a state whose names, shapes and dtypes are those of the wanted ones.

    Nothing else of the state is read, so that no file can ask for more memory than the wanted arrays take.

    Args:
        path: directory of a run, whose newest checkpoint is read that is not damaged; or of one checkpoint.
        wanted: names, shapes and dtypes.
        hosts: all hosts of the run; None: one host.

    Raises:
        CheckpointError: there is no checkpoint that can be used.
    """
    named = paths.expand(path).resolve()

    def candidates() -> list[pathlib.Path]:
        return [named] if (named / manifest.NAME).exists() else _candidates(named, "newest")

    def read(one: pathlib.Path) -> Part:
        meta = _check(one)
        with _explain_errors(one):
            there = array_files.shapes(one / "state")
            # Arrays are compared by their current names, and read by the names in the file.
            rename = former.state_name if meta["version"] == former.VERSION else str
            shapes = {rename(name): shape for name, shape in there.items()}
            same = {name: shape for name, shape in there.items() if wanted.get(rename(name)) == shape}
            found = array_files.read(one / "state", same, hosts)
            arrays = {rename(name): array for name, array in found.items()}
            return Part(one, Checkpoint(arrays, None, meta, one).config, arrays, shapes, ())

    part, damaged = _first_intact(candidates, read)
    return part._replace(damaged=damaged)


def _candidates(logdir: str | os.PathLike[str], which: Which) -> list[pathlib.Path]:
    """Checkpoints to try, in order."""
    found = files.complete(logdir)
    if not found:
        raise CheckpointError(
            f"There is no checkpoint in {directory(logdir)}. Give the directory of a run that was trained with "
            "python -m dreamer.train, for example runs/NAME."
        )
    if which == "newest":
        return found
    there = f"has those of steps {', '.join(str(step) for step in sorted(steps(logdir)))}"
    marked = best(logdir)
    if which == "best" and marked is None:
        raise CheckpointError(
            f"No checkpoint in {directory(logdir)} is known as the best; it {there}. Take one of them."
        )
    step = marked.step if which == "best" and marked is not None else which
    if step not in steps(logdir):
        raise CheckpointError(f"There is no checkpoint '{which}' in {directory(logdir)}, which {there}.")
    return [path for path in found if files.step_of(path) == step]


def _load_one(path: pathlib.Path, hosts: Hosts, *, with_replay: bool) -> Checkpoint:
    """Read one checkpoint; raises `DamageError` if another may be tried, and `CheckpointError` if not."""
    meta = _check(path)
    replay = None
    if with_replay and meta["hosts"] != hosts.count:
        raise CheckpointError(
            f"The checkpoint {path} holds the replay of {meta['hosts']} host(s), and this run has {hosts.count}. "
            f"Resume it on {meta['hosts']} host(s); the agent alone can be loaded anywhere."
        )
    with _explain_errors(path):
        state = array_files.read(path / "state", hosts=hosts)
        if with_replay:
            own = path if hosts.first else path / "hosts" / str(hosts.index)
            fields = _read_fields(path, hosts) if hosts.first else _read_part(own)
            replay = {**_read_meta(own)["replay"], "fields": fields}
    if meta["version"] == former.VERSION:
        state = former.state_arrays(state)
    return Checkpoint(state, replay, meta, path)


def _check(path: pathlib.Path) -> dict[str, Any]:
    """Compare all files of a checkpoint with its manifest; returns its ``meta`` if its version can be read."""
    old = path / "meta" / "metadata"
    with _explain_errors(path):
        if old.exists() and not (path / manifest.NAME).exists():
            version = json.loads(paths.read_text(old))["version"]
        else:
            manifest.verify(path)
            meta = _read_meta(path)
            version = meta["version"]
            _ = meta["hosts"]  # A missing key is an error in this file, like a missing version.
    if version not in (VERSION, former.VERSION):
        raise CheckpointError(
            f"The checkpoint {path} has format version {version}, expected {VERSION} or {former.VERSION}."
        )
    _require_types(meta, path)
    return meta


@contextlib.contextmanager
def _explain_errors(path: pathlib.Path) -> Iterator[None]:
    """Turn all errors except `DamageError` into `CheckpointError`: an older checkpoint would not help against them."""
    try:
        yield
    except DamageError:
        raise
    except files.UNREADABLE as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read: {_reason(error)}. No file is known to be damaged, so no older "
            "checkpoint is used. Check its permissions, and use the versions of the libraries that wrote it."
        ) from error


@contextlib.contextmanager
def explain_content(path: pathlib.Path) -> Iterator[None]:
    """Turn the errors of a block that uses what a checkpoint says, but no run would write, into `CheckpointError`."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, ZeroDivisionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise CheckpointError(
            f"The checkpoint {path} holds what no run writes: {_reason(error)}. Its files are as they were written, so "
            "they come from elsewhere; use a checkpoint of a run of python -m dreamer.train."
        ) from error


_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("config", "obs_spaces", "action_spaces", "replay", "learner"), dict),
    **dict.fromkeys(("env_steps", "agent_steps", "updates", "episodes", "turns", "resumes", "metrics_bytes"), int),
    **dict.fromkeys(("policy_steps", "hosts"), int),
    **dict.fromkeys(("recent", "episode_logs"), list),
    "seconds": (int, float),
}
"""Types of what `save` and runs put into ``meta.json``."""


def _require_types(meta: dict[str, Any], path: pathlib.Path) -> None:
    """Raise `CheckpointError` if ``meta.json`` has values of wrong types, or counters that nothing counts to."""
    wrong = [
        name
        for name, kind in _TYPES.items()
        if name in meta and (not isinstance(meta[name], kind) or _is_no_counter(meta[name]))
    ]
    if wrong:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read: its meta.json has values that no run writes as {', '.join(wrong)}. "
            "It comes from elsewhere; use a checkpoint of a run of python -m dreamer.train."
        )


def _is_no_counter(value: Any) -> bool:
    """Whether a number is negative, not finite, or larger than any counter; no text or list is."""
    return isinstance(value, int | float) and (isinstance(value, bool) or not 0 <= value < 2**53)


def state_arrays(agent: Agent | Snapshot) -> dict[str, jax.Array]:
    """Every array of the training state by its path, for example ``nets.world_model.rssm.mix.kernel``.

    The networks that act are one update older; their names are ``acting.world_model.rssm.mix.kernel`` and so on.
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
        got = saved[name]
        want = expected[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            raise CheckpointError(
                f"'{name}' is {got.dtype} {list(got.shape)} in the checkpoint, expected {want.dtype} "
                f"{list(want.shape)}: the checkpoint belongs to another config. Use the config saved next to it."
            )
    leaves = [saved[name] for name in expected]
    count = len(jax.tree.leaves(agent.state))
    # `state_arrays` has the training state first, then the networks that act.
    agent.state = jax.tree.unflatten(jax.tree.structure(agent.state), leaves[:count])
    agent.acting_nets = jax.tree.unflatten(jax.tree.structure(agent.acting_nets), leaves[count:])
    with explain_content(checkpoint.path):
        agent.policy_steps = checkpoint.meta["policy_steps"]


def _write_part(path: pathlib.Path, prepared: Prepared) -> None:
    """Write the share of a host other than host 0, on which alone orbax writes NumPy arrays."""
    path.mkdir()
    fields: dict[str, Any] = dict(prepared.replay)
    np.savez(path / "replay.npz", **fields)
    (path / "meta.json").write_text(prepared.meta, encoding="utf-8")
    # Host 0 syncs its own files only, not what another machine has yet to send.
    manifest.sync(path)


def _read_fields(path: pathlib.Path, hosts: Hosts) -> dict[str, np.ndarray]:
    return array_files.read(path / "replay", hosts=hosts) if (path / "replay").is_dir() else {}


def _read_part(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path / "replay.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _read_meta(path: pathlib.Path) -> dict[str, Any]:
    return json.loads((path / "meta.json").read_text(encoding="utf-8"))


def _spaces_to(spaces: Spaces) -> dict[str, Any]:
    return {key: [space.kind, list(space.shape), space.classes] for key, space in spaces.items()}


def _spaces_from(saved: dict[str, Any]) -> Spaces:
    return {key: Space(kind, tuple(shape), classes) for key, (kind, shape, classes) in saved.items()}


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


__all__ = [
    "VERSION",
    "Checkpoint",
    "CheckpointError",
    "Damaged",
    "DamagedError",
    "Part",
    "Prepared",
    "Snapshot",
    "Which",
    "Written",
    "best",
    "directory",
    "discard",
    "exists",
    "explain_content",
    "keep",
    "load",
    "load_part",
    "mark_best",
    "named_arrays",
    "prepare",
    "remove_drafts",
    "restore_agent",
    "save",
    "set_aside",
    "state_arrays",
    "steps",
    "write",
]
