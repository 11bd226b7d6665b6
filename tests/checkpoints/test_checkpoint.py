"""Checkpoints: exact continuation, atomic replacement, and sentences that help when one cannot be used."""

import dataclasses
import errno
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dreamer import checkpoints
from dreamer.checkpoints import CheckpointError, DamagedError, Prepared, checkpoint, manifest
from dreamer.checkpoints import arrays as array_files
from dreamer.devices.hosts import Hosts
from dreamer.replay import Layout, Replay, TrainRatio
from dreamer.training.learner import Learner
from dreamer.types import Step
from dreamer.world_models.rssm import StoredLatent
from tests.small import ACTION_SPACES, OBS_SPACES, same_tree, small_agent

META = {"env_steps": 7, "resumes": 0, "note": [1, None, "two"]}


def make_learner(agent, directory):
    layout = Layout.of(OBS_SPACES, ACTION_SPACES, agent.algorithm.stored)
    # Another generator than that of the run which is restored, so that nothing matches by accident.
    rng = np.random.default_rng(99)
    replay = Replay(agent.config.replay, 2, layout, rng, directory=directory)
    return Learner(agent, replay, TrainRatio(8.0, 8))


def add_rows(learner, start, stop):
    """Rows that depend on their number alone."""
    dtype = learner.agent.algorithm.stored.deter.dtype
    for number in range(start, stop):
        rng = np.random.default_rng(number)
        step = Step(
            obs={"label": rng.integers(0, 3, 2, dtype=np.int32), "vector": rng.normal(size=(2, 4)).astype(np.float32)},
            reward=rng.normal(size=2).astype(np.float32),
            is_first=rng.random(2) < 0.2,
            is_last=rng.random(2) < 0.2,
            is_terminal=rng.random(2) < 0.1,
            env_steps=np.ones(2, np.int32),
        )
        action = {
            "move": rng.integers(0, 3, 2, dtype=np.int32),
            "push": rng.uniform(-1, 1, (2, 2)).astype(np.float32),
        }
        latent = StoredLatent(rng.normal(size=(2, 16)).astype(dtype), rng.integers(0, 4, (2, 3)).astype(np.uint8))
        learner.replay.add(step, action, latent)


def contents(learner):
    pending = learner.pending()
    return learner.agent.state, learner.agent.acting_nets, learner.replay.contents(), pending


def save(logdir, learner, step=7):
    prepared = checkpoints.prepare(learner.agent, learner.replay_state(), META | {"learner": learner.state()})
    path = checkpoints.write(logdir, step, prepared, before_commit=learner.replay.flush).path
    learner.replay.confirm()
    return path


def restore(logdir, learner):
    saved = checkpoints.load(logdir, with_replay=True)
    checkpoints.restore_agent(learner.agent, saved)
    learner.restore(saved.meta["learner"], saved.replay)
    return saved


def names(logdir):
    return sorted(path.name for path in checkpoints.directory(logdir).iterdir())


@pytest.fixture(scope="module")
def agent():
    """An agent that is saved, but never trained."""
    return small_agent()


@pytest.fixture
def learner(agent, tmp_path):
    learner = make_learner(agent, tmp_path / "replay")
    add_rows(learner, 0, 12)
    return learner


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_train_two_save_restore_train_two_is_train_four(tmp_path, dtype):
    def first_half(learner):
        add_rows(learner, 0, 12)
        assert list(learner.learn(0)) == []
        return list(learner.learn(2))

    def second_half(learner):
        add_rows(learner, 12, 14)
        metrics = list(learner.learn(4))
        assert len(metrics) == 2
        return metrics

    straight = make_learner(small_agent(f"nets.dtype={dtype}"), tmp_path / "straight")
    straight.replay._rng = np.random.default_rng(5)
    assert len(first_half(straight)) == 2
    save(tmp_path, straight)
    # The latents of the second update are on their way; they must not be lost.
    assert straight._pending is not None
    shutil.copytree(tmp_path / "straight", tmp_path / "resumed")
    resumed = make_learner(small_agent(f"nets.dtype={dtype}"), tmp_path / "resumed")
    resumed.agent.policy_steps = 1000
    saved = restore(tmp_path, resumed)
    assert same_tree(contents(straight), contents(resumed))
    assert resumed.pending()["pending/deter"].dtype == {"float32": np.float32}.get(dtype, np.uint16)
    assert resumed._pending[1].deter.dtype == straight.agent.algorithm.stored.deter.dtype
    assert resumed.state() == straight.state() and resumed.agent.policy_steps == straight.agent.policy_steps == 0
    assert {key: saved.meta[key] for key in META} == META and saved.config == straight.agent.config
    assert saved.spaces == (OBS_SPACES, ACTION_SPACES)

    before = jax.tree.map(np.array, contents(straight))
    assert same_tree(second_half(straight), second_half(resumed))
    assert same_tree(contents(straight), contents(resumed))
    assert not same_tree(before[0], straight.agent.state)
    assert resumed.state() == straight.state() and straight.updates == 4
    assert resumed.replay.commit()["rng"] == straight.replay.commit()["rng"]


def test_the_last_two_checkpoints_are_kept(tmp_path, learner):
    for step in (3, 20, 100):
        path = save(tmp_path, learner, step)
    assert names(tmp_path) == ["000000000020", path.name] == ["000000000020", "000000000100"]
    # Saving again at the same step replaces it.
    add_rows(learner, 12, 13)
    save(tmp_path, learner, 100)
    assert names(tmp_path) == ["000000000020", path.name]
    assert checkpoints.load(tmp_path, with_replay=True).meta["replay"]["rows_total"] == 13


def test_what_a_crash_leaves_behind_is_understood(tmp_path, learner):
    path = save(tmp_path, learner, 5)
    root = path.parent
    # Between the two renames of a save at the same step: the old one is still complete.
    path.rename(root / f"{path.name}-old")
    (root / "000000000009-new").mkdir()
    assert checkpoints.exists(tmp_path)
    assert checkpoints.load(tmp_path).meta["note"] == META["note"]
    save(tmp_path, learner, 5)
    assert names(tmp_path) == ["000000000005"]


@pytest.mark.parametrize("step", [7, 8])
def test_a_failed_save_leaves_the_previous_checkpoint(tmp_path, learner, monkeypatch, step):
    save(tmp_path, learner, 7)

    def full(self, directory, *args, **kwargs):
        directory.mkdir()
        (directory / "half").write_text("a")
        raise OSError(errno.ENOSPC, "No space left on device")

    add_rows(learner, 12, 13)
    with monkeypatch.context() as patch:
        patch.setattr(array_files.ocp.Checkpointer, "save", full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*untouched.*Free disk space"):
            save(tmp_path, learner, step)
    assert checkpoints.load(tmp_path, with_replay=True).meta["replay"]["rows_total"] == 12
    save(tmp_path, learner, step)
    assert checkpoints.load(tmp_path, with_replay=True).meta["replay"]["rows_total"] == 13
    assert names(tmp_path) == sorted({"000000000007", f"{step:012d}"})


def test_failed_saves_leave_nothing_on_a_full_disk(tmp_path, learner, monkeypatch):
    save(tmp_path, learner, 7)

    def full(self, directory, *args, **kwargs):
        for place in (directory, directory.with_name(f"{directory.name}.orbax-checkpoint-tmp-{time.time_ns()}")):
            place.mkdir()
            (place / "half").write_text("a")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(array_files.ocp.Checkpointer, "save", full)
    for step in (8, 8, 9):
        with pytest.raises(CheckpointError, match="No space left"):
            save(tmp_path, learner, step)
        assert names(tmp_path) == ["000000000007"]


def test_drafts_are_removed_and_nothing_else(tmp_path, learner):
    checkpoints.remove_drafts(tmp_path)
    save(tmp_path, learner, 7)
    root = checkpoints.directory(tmp_path)
    stay = ["000000000007", "000000000005-old", "000000000003-damaged", "notes", "best.json"]
    for name in (*stay[1:], "000000000008-new", "000000000008-new.orbax-checkpoint-tmp-1", "000000000006-gone"):
        (root / name).mkdir()
    checkpoints.remove_drafts(tmp_path)
    assert names(tmp_path) == sorted(stay)


@pytest.mark.parametrize("which", ["newest", "best"])
@pytest.mark.parametrize("vanishes", ["before it is verified", "after it was verified", "and is replaced"])
def test_a_reader_beside_a_run_takes_the_next_whole_checkpoint(tmp_path, learner, monkeypatch, which, vanishes):
    save(tmp_path, learner, 7)
    checkpoints.mark_best(tmp_path, 7, 1.0)
    verify = manifest.verify
    seen = []

    def meanwhile(path):
        """The run saves the next checkpoint, finds it better, and forgets the one that is being read."""
        seen.append(path.name)
        if len(seen) > 3:
            return verify(path)
        if vanishes == "after it was verified":
            verify(path)
        step = 7 if vanishes == "and is replaced" else 7 + len(seen)
        save(tmp_path, learner, step)
        checkpoints.mark_best(tmp_path, step, float(step))
        checkpoints.keep(tmp_path, step, 1)
        if vanishes != "after it was verified":
            verify(path)

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "verify", meanwhile)
        found = checkpoints.load(tmp_path, which=which)
    assert found.path.name == ("000000000007" if vanishes == "and is replaced" else "000000000010")
    assert found.damaged == ()
    assert len(seen) == 4


FORGED = {
    "no mapping": lambda meta: [meta],
    "no config": lambda meta: {key: value for key, value in meta.items() if key != "config"},
    "a config that is none": lambda meta: {**meta, "config": {**meta["config"], "seed": "one"}},
    "a config of another kind": lambda meta: {**meta, "config": 3},
    "no hosts": lambda meta: {key: value for key, value in meta.items() if key != "hosts"},
    "a counter below 0": lambda meta: {**meta, "env_steps": -1},
    "a counter of text": lambda meta: {**meta, "policy_steps": "1"},
    "a counter beyond counting": lambda meta: {**meta, "env_steps": 10**40},
    "spaces of another kind": lambda meta: {**meta, "obs_spaces": {"a": 3}},
    "spaces that are too short": lambda meta: {**meta, "obs_spaces": {"a": ["vector"]}},
    "a version of text": lambda meta: {**meta, "version": "four"},
    "thousands of brackets": lambda meta: "[" * 100_000,
    "thousands of digits": lambda meta: '{"version": ' + "9" * 5000 + "}",
    "not JSON": lambda meta: "{",
    "not text": lambda meta: "\udcff",
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_forged_description_is_an_error_in_one_sentence(tmp_path, learner, forgery):
    path = save(tmp_path, learner)
    meta = path / "meta.json"
    forged = FORGED[forgery](json.loads(meta.read_text()))
    text = forged if isinstance(forged, str) else json.dumps(forged)
    meta.write_bytes(text.encode("utf-8", "surrogateescape"))
    (path / manifest.NAME).unlink()
    manifest.write(path)

    def use() -> None:
        saved = checkpoints.load(tmp_path)
        _ = saved.config, saved.spaces

    with pytest.raises(CheckpointError, match=str(path)) as error:
        use()
    assert "\n" not in str(error.value) and len(str(error.value)) < 600 + len(str(path))


@pytest.mark.parametrize("impatient", [2, 3])
def test_a_clock_that_is_set_forward_during_a_save(tmp_path, learner, monkeypatch, impatient):
    # Orbax measures its patience by the clock of the wall, and gives up with what it has begun left behind.
    write, tried = array_files.ocp.Checkpointer.save, []

    def impatiently(self, directory, *args, **kwargs):
        tried.append(directory)
        if len(tried) <= impatient:
            directory.mkdir()
            (directory.parent / f"{directory.name}.orbax-checkpoint-tmp").mkdir()
            raise TimeoutError("Timeout waiting for key 'item_directory_creation'")
        write(self, directory, *args, **kwargs)

    monkeypatch.setattr(array_files.ocp.Checkpointer, "save", impatiently)
    if impatient == 2:
        save(tmp_path, learner)
        assert checkpoints.load(tmp_path).meta["note"] == META["note"]
        assert names(tmp_path) == ["000000000007"]
    else:
        with pytest.raises(CheckpointError, match="Timeout waiting for key"):
            save(tmp_path, learner)
    assert len(tried) == 3


def test_a_logdir_that_cannot_be_written(tmp_path, learner):
    (tmp_path / "checkpoints").write_text("a file is in the way")
    with pytest.raises(CheckpointError, match=r"checkpoint of step 7 could not be written"):
        save(tmp_path, learner)


@pytest.mark.parametrize("made", [True, False])
def test_no_checkpoint(tmp_path, made):
    logdir = tmp_path / "run"
    if made:
        checkpoints.directory(logdir).mkdir(parents=True)
    assert not checkpoints.exists(logdir)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*run.*Give the directory of a run"):
        checkpoints.load(logdir)


def tiny(number=0):
    """What a checkpoint holds if the agent is one array."""
    rng = np.random.default_rng(number)
    meta = {"version": checkpoints.VERSION, "hosts": 1, "replay": {"rows_total": number}, "policy_steps": 0}
    arrays = {"nets.kernel": rng.normal(size=(40, 30)).astype(np.float32)}
    return Prepared(arrays, {"reward": rng.normal(size=(2, 50)).astype(np.float32)}, json.dumps(meta))


def number_in(saved):
    """Which `tiny` it was, after a look at all of it."""
    assert saved.replay is not None
    number = saved.replay["rows_total"]
    state, replay, _ = tiny(number)
    assert same_tree(saved.state, state) and same_tree(saved.replay["fields"], replay)
    return number


def damages(path):
    """Everything that can happen to a file, as pairs of a name and its new contents; None: it is gone."""
    whole = path.read_bytes()
    yield "gone", None
    for size in {0, len(whole) // 2, len(whole) - 1}:
        yield f"cut to {size}", whole[:size]
    for place in {0, len(whole) // 4, len(whole) // 2, 3 * len(whole) // 4, len(whole) - 1}:
        yield f"changed at {place}", whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :]
    yield "longer", whole + b"\x00"


def test_damage_of_any_file_is_found_and_named(tmp_path, learner):
    path = save(tmp_path, learner)
    whole = sorted(file for file in path.rglob("*") if file.is_file())
    assert len(whole) > 15 and {"meta.json", "manifest.json"} <= {file.name for file in whole}
    for file in whole:
        contents, name = file.read_bytes(), file.relative_to(path).as_posix()
        for what, damaged in damages(file):
            file.unlink(missing_ok=True)
            if damaged is not None:
                file.write_bytes(damaged)
            with pytest.raises(DamagedError, match=f"000000000007 is damaged and cannot be read: '{name}' "):
                checkpoints.load(tmp_path)
            assert damaged is None or file.read_bytes() == damaged, (name, what)  # Reading changes nothing.
        file.write_bytes(contents)
    (path / "state" / "more").touch()
    with pytest.raises(DamagedError, match="'state/more' is not in its manifest"):
        checkpoints.load(tmp_path)
    (path / "state" / "more").unlink()
    assert checkpoints.load(tmp_path, with_replay=True).damaged == ()


def test_the_one_before_a_damaged_one_is_used(tmp_path):
    for number in (1, 2, 3):
        checkpoints.write(tmp_path, number, tiny(number), keep_last=3)
    paths = {number: checkpoints.directory(tmp_path) / f"{number:012d}" for number in (1, 2, 3)}
    (paths[3] / "meta.json").unlink()
    shutil.rmtree(paths[2] / "state")
    saved = checkpoints.load(tmp_path, with_replay=True)
    assert number_in(saved) == 1 and saved.path == paths[1]
    assert [damaged.path for damaged in saved.damaged] == [paths[3], paths[2]]
    assert str(saved.damaged[0]) == f"The checkpoint {paths[3]} is damaged and cannot be read: 'meta.json' is missing."
    # One that is asked for by its step, or as the best, is not replaced by another.
    with pytest.raises(DamagedError, match=r"000000000002 is damaged and cannot be read: 'state/.*' is missing"):
        checkpoints.load(tmp_path, which=2)
    (paths[1] / "meta.json").write_text("{}")
    with pytest.raises(DamagedError) as caught:
        checkpoints.load(tmp_path)
    for number, reason in ((3, "'meta.json' is missing"), (2, "'state/"), (1, "'meta.json' has 2 bytes")):
        assert f"{paths[number]} is damaged and cannot be read: {reason}" in str(caught.value)
    assert names(tmp_path) == [path.name for path in paths.values()]


def test_a_checkpoint_by_its_step_or_as_the_best(tmp_path):
    for number in (1, 2, 3):
        checkpoints.write(tmp_path, number, tiny(number), keep_last=3)
    with pytest.raises(
        CheckpointError, match=r"No checkpoint in .* is known as the best; it has those of steps 1, 2, 3"
    ):
        checkpoints.load(tmp_path, which="best")
    checkpoints.mark_best(tmp_path, 1, 5.0)
    checkpoints.mark_best(tmp_path, 2, 4.0)
    checkpoints.write(tmp_path, 4, tiny(4), keep_last=1)
    assert checkpoints.steps(tmp_path) == {1, 4}
    found = [number_in(checkpoints.load(tmp_path, with_replay=True, which=which)) for which in ("best", 4, 1, "newest")]
    assert found == [1, 4, 1, 4]
    with pytest.raises(CheckpointError, match=r"There is no checkpoint '3' in .*, which has those of steps 1, 4"):
        checkpoints.load(tmp_path, which=3)


class Crash(BaseException):
    """The process is killed."""


@pytest.mark.parametrize("step", [7, 8])
def test_a_crash_at_any_instant_leaves_a_complete_checkpoint(tmp_path, monkeypatch, step):
    """Whatever touches the disk may be the last thing that does; a save at the same step is the hardest case."""
    places = [(os, "fsync"), (pathlib.Path, "rename"), (pathlib.Path, "replace"), (shutil, "rmtree")]
    real = {place: getattr(*place) for place in places}
    calls, last = 0, 10**9

    def counted(place):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls > last:
                raise Crash
            return real[place](*args, **kwargs)

        return call

    def write(number):
        with monkeypatch.context() as patch:
            for place in places:
                patch.setattr(*place, counted(place))
            checkpoints.write(tmp_path, step if number else 7, tiny(number), keep_last=1)

    write(0)
    calls = 0
    write(1)
    total, found = calls, []
    assert total > 20
    for last in {*range(0, total, 15), *range(total - 6, total)}:
        shutil.rmtree(checkpoints.directory(tmp_path))
        calls, limit, last = 0, last, 10**9
        write(0)
        calls, last = 0, limit
        with pytest.raises(Crash):
            write(1)
        found.append((last, number_in(checkpoints.load(tmp_path, with_replay=True))))
        assert checkpoints.load(tmp_path).damaged == ()
        last = 10**9
        write(2)  # And the next run is not disturbed by what is left.
        assert names(tmp_path) == [f"{step:012d}"] and number_in(checkpoints.load(tmp_path, with_replay=True)) == 2
    # Up to some instant it is the old one, and then the new one.
    numbers = [number for _, number in sorted(found)]
    assert numbers == sorted(numbers) and set(numbers) == {0, 1}


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced: set[str] = set()
    renamed: list[str] = []
    fsync, rename = os.fsync, pathlib.Path.rename

    def watched_fsync(descriptor):
        synced.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        return fsync(descriptor)

    def watched_rename(path, target):
        if target.name == "000000000009":
            renamed.extend(str(file) for file in [path, *path.rglob("*")])
            # The manifest is put on the disk under another name.
            known = {name.replace(".new-manifest.json", "manifest.json") for name in synced}
            assert renamed and set(renamed) <= known
            synced.clear()
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(pathlib.Path, "rename", watched_rename)
    checkpoints.write(tmp_path, 9, tiny())
    assert len(renamed) > 15 and str(checkpoints.directory(tmp_path)) in synced


def test_what_comes_before_the_name_has_been_done_if_the_checkpoint_exists(tmp_path):
    seen = []

    def flush():
        seen.append(names(tmp_path))

    checkpoints.write(tmp_path, 1, tiny(1), before_commit=flush)
    assert seen == [["000000000001-new"]]

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match="No space left"):
        checkpoints.write(tmp_path, 2, tiny(2), before_commit=full)
    assert number_in(checkpoints.load(tmp_path, with_replay=True)) == 1


def test_what_is_prepared_does_not_change_with_the_agent(learner):
    agent, fields = learner.agent, learner.replay_state()["fields"]
    replay = {"fields": {**fields, "small": np.zeros(3)}}
    prepared = checkpoints.prepare(agent, replay, META)
    shared = [
        name
        for name, leaf in checkpoints.state_arrays(agent).items()
        if np.shares_memory(np.asarray(leaf), prepared.state[name])
    ]
    assert shared == []
    assert not any(np.shares_memory(array, prepared.replay[name]) for name, array in replay["fields"].items())
    views = checkpoints.prepare(agent, replay, META, copy_replay=False)
    assert all(views.replay[name] is array for name, array in replay["fields"].items())


def test_no_replay_is_fine(tmp_path):
    checkpoints.write(tmp_path, 1, tiny(1)._replace(replay={}))
    saved = checkpoints.load(tmp_path, with_replay=True)
    assert saved.replay == {"rows_total": 1, "fields": {}}


class Opened:
    """Says so if it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    contents = tiny(5)
    path = checkpoints.write(tmp_path, 1, contents).path
    assert number_in(checkpoints.load(tmp_path, with_replay=True)) == 5
    monkeypatch.undo()
    # What another host has kept is an archive of NumPy, which could hold pickles.
    part, mark = path / "hosts" / "1", tmp_path / "mark"
    part.mkdir(parents=True)
    np.savez(part / "replay.npz", reward=np.array([Opened(mark)], object))
    for place in (path, part):
        (place / "meta.json").write_text(contents.meta.replace('"hosts": 1', '"hosts": 2'))
    (path / "manifest.json").unlink()
    manifest.write(path)
    hosts = Hosts()
    hosts.index, hosts.count = 1, 2
    with pytest.raises(CheckpointError, match=r"Object arrays cannot be loaded when allow_pickle=False"):
        checkpoints.load(tmp_path, with_replay=True, hosts=hosts)
    assert not mark.exists()


KILLED = """
import json, sys
import numpy as np
from dreamer import checkpoints


for step in range(1, 10**6):
    meta = {"version": checkpoints.VERSION, "hosts": 1, "replay": {"rows_total": step}, "policy_steps": 0}
    state = {"nets.kernel": np.full((200, 300), step, np.float32)}
    checkpoints.write(sys.argv[1], step, checkpoints.Prepared(state, {}, json.dumps(meta)), keep_last=1)
    print(step, flush=True)
"""


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_its_last_checkpoint(tmp_path):
    reached = 0
    for number in range(6):
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for _ in range(3):
                said = int(child.stdout.readline())
            time.sleep(0.013 * number)
            child.kill()
            said = max([said, *map(int, child.stdout.read().split())])
        saved = checkpoints.load(tmp_path, with_replay=True)
        assert saved.replay is not None
        # Killed between the rename and the word, it is one further.
        assert saved.replay["rows_total"] - said in (0, 1) and saved.damaged == ()
        assert (saved.state["nets.kernel"] == saved.replay["rows_total"]).all()
        reached = max(reached, said)
    assert reached >= 3


def test_another_format_version(tmp_path, learner, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(checkpoint, "VERSION", checkpoints.VERSION + 1)
        save(tmp_path, learner)
    with pytest.raises(CheckpointError, match=r"format version 5, expected 4 or 3"):
        checkpoints.load(tmp_path)


def test_what_cannot_be_read_for_other_reasons_is_not_damaged(tmp_path, monkeypatch):
    """An older one must not be taken, and this one must not be set aside."""
    for number in (1, 2):
        checkpoints.write(tmp_path, number, tiny(number))

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    for place in ((manifest, "_describe"), (array_files, "read")):
        with monkeypatch.context() as patch:
            patch.setattr(*place, refuse)
            with pytest.raises(
                CheckpointError, match=r"000000000002 cannot be read: Perm.*Permission denied"
            ) as caught:
                checkpoints.load(tmp_path)
            assert not isinstance(caught.value, DamagedError)


def test_a_checkpoint_from_before_there_were_manifests(tmp_path):
    path = checkpoints.write(tmp_path, 1, tiny()).path
    (path / "manifest.json").unlink()
    (path / "meta").mkdir()
    (path / "meta" / "metadata").write_text('{"version": 2}')
    # It is not damaged: an older one must not be taken in its place without a word.
    with pytest.raises(CheckpointError, match=r"format version 2, expected 4 or 3") as caught:
        checkpoints.load(tmp_path)
    assert not isinstance(caught.value, DamagedError)


def test_another_architecture_names_the_first_difference(tmp_path, learner, agent):
    save(tmp_path, learner)
    saved = checkpoints.load(tmp_path)
    name = "nets.world_model.rssm.mix.kernel"
    kernel = saved.state[name]
    wider, half = np.concatenate([kernel, kernel], -1), kernel.astype(np.float16)
    before = jax.tree.map(np.array, agent.state)
    for state, message in (
        (
            saved.state | {name: wider},
            rf"'{name}' is float32 \[.*\] in the checkpoint, expected float32 .*other config",
        ),
        (saved.state | {name: half}, rf"'{name}' is float16 \[.*\] in the checkpoint, expected float32"),
        (saved.state | {"nets.extra": kernel}, r"Only the checkpoint has 'nets\.extra'.*another architecture"),
        ({k: v for k, v in saved.state.items() if k != name}, rf"Only this agent has '{name}'.*another architecture"),
    ):
        with pytest.raises(CheckpointError, match=message):
            checkpoints.restore_agent(agent, dataclasses.replace(saved, state=state))
        assert same_tree(before, agent.state)
