"""Checkpoints: exact continuation, atomic replacement, and sentences that help when one cannot be used."""

import dataclasses
import errno
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest

from dreamer import checkpoint as checkpoints
from dreamer import config as configs
from dreamer.checkpoint import CheckpointError
from dreamer.replay import LatentSpec, Replay, TrainRatio
from dreamer.train import Learner
from dreamer.types import Step, StoredLatent
from tests.small import ACTION_SPACES, OBS_SPACES, same_tree, small_agent

META = {"env_steps": 7, "resumes": 0, "note": [1, None, "two"]}


def make_learner(agent):
    rssm = agent.config.rssm
    spec = LatentSpec.of(rssm.deter, rssm.stoch, rssm.classes, agent.latent_dtype)
    # Another generator than that of the run which is restored, so that nothing matches by accident.
    rng = np.random.default_rng(99)
    replay = Replay(agent.config.replay, 2, OBS_SPACES, ACTION_SPACES, spec, rng)
    return Learner(agent, replay, TrainRatio(8.0, 8))


def add_rows(learner, start, stop):
    """Rows that depend on their number alone."""
    dtype = learner.agent.latent_dtype
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
    return learner.agent.state, learner.agent.acting_nets, learner.replay_state()["fields"]


def save(logdir, learner, step=7):
    return checkpoints.save(logdir, step, learner.agent, learner.replay_state(), META | {"learner": learner.state()})


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
def learner(agent):
    learner = make_learner(agent)
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

    straight = make_learner(small_agent(f"nets.dtype={dtype}"))
    straight.replay._rng = np.random.default_rng(5)
    assert len(first_half(straight)) == 2
    save(tmp_path, straight)
    # The latents of the second update are on their way; they must not be lost.
    assert straight._pending is not None
    resumed = make_learner(small_agent(f"nets.dtype={dtype}"))
    resumed.agent.policy_steps = 1000
    saved = restore(tmp_path, resumed)
    assert same_tree(contents(straight), contents(resumed))
    assert resumed.replay_state()["fields"]["latent/deter"].dtype == {"float32": np.float32}.get(dtype, np.uint16)
    assert resumed._pending[1].deter.dtype == straight.agent.latent_dtype
    assert resumed.state() == straight.state() and resumed.agent.policy_steps == straight.agent.policy_steps == 0
    assert {key: saved.meta[key] for key in META} == META and saved.config == straight.agent.config
    assert saved.spaces == (OBS_SPACES, ACTION_SPACES)

    before = jax.tree.map(np.array, contents(straight))
    assert same_tree(second_half(straight), second_half(resumed))
    assert same_tree(contents(straight), contents(resumed))
    assert not same_tree(before[0], straight.agent.state)
    assert resumed.state() == straight.state() and straight.updates == 4
    assert resumed.replay.state()["rng"] == straight.replay.state()["rng"]


def test_bfloat16_latents_survive_bit_for_bit(tmp_path, agent):
    learner = make_learner(agent)
    learner.replay = Replay(
        agent.config.replay,
        2,
        OBS_SPACES,
        ACTION_SPACES,
        LatentSpec.of(16, 3, 4, ml_dtypes.bfloat16),
        np.random.default_rng(0),
    )
    add_rows_in = learner.replay.add
    for number in range(8):
        rng = np.random.default_rng(number)
        deter = rng.integers(0, 2**16, (2, 16), dtype=np.uint16).view(ml_dtypes.bfloat16)
        step = Step(
            obs={"label": np.zeros(2, np.int32), "vector": np.zeros((2, 4), np.float32)},
            reward=np.zeros(2, np.float32),
            is_first=np.zeros(2, bool),
            is_last=np.zeros(2, bool),
            is_terminal=np.zeros(2, bool),
            env_steps=np.ones(2, np.int32),
        )
        action = {"move": np.zeros(2, np.int32), "push": np.zeros((2, 2), np.float32)}
        add_rows_in(step, action, StoredLatent(deter, np.zeros((2, 3), np.uint8)))
    expected = learner.replay_state()["fields"]["latent/deter"]
    save(tmp_path, learner)
    replay = checkpoints.load(tmp_path, with_replay=True).replay
    assert replay is not None
    found = replay["fields"]["latent/deter"]
    assert np.asarray(found).tobytes() == expected.tobytes() and expected.any()


def test_only_the_newest_checkpoint_is_kept(tmp_path, learner):
    for step in (3, 20, 100):
        path = save(tmp_path, learner, step)
    assert names(tmp_path) == [path.name] == ["000000000100"]
    # Saving again at the same step replaces it.
    add_rows(learner, 12, 13)
    save(tmp_path, learner, 100)
    assert names(tmp_path) == [path.name]
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
        patch.setattr(checkpoints.ocp.Checkpointer, "save", full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*untouched.*Free disk space"):
            save(tmp_path, learner, step)
    assert checkpoints.load(tmp_path, with_replay=True).meta["replay"]["rows_total"] == 12
    save(tmp_path, learner, step)
    assert checkpoints.load(tmp_path, with_replay=True).meta["replay"]["rows_total"] == 13
    assert names(tmp_path) == [f"{step:012d}"]


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


def _truncate(path):
    for file in path.rglob("*"):
        if file.is_file() and file.name != "_CHECKPOINT_METADATA":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _lose_meta(path):
    shutil.rmtree(path / "meta")


def _lose_state(path):
    shutil.rmtree(path / "state")


def _overwrite_arrays(path):
    for file in (path / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"\x00" * 100)


@pytest.mark.parametrize("damage", [_truncate, _lose_meta, _lose_state, _overwrite_arrays])
def test_a_damaged_checkpoint(tmp_path, learner, damage):
    damage(save(tmp_path, learner))
    with pytest.raises(CheckpointError, match=r"000000000007 is damaged and cannot be read"):
        checkpoints.load(tmp_path, with_replay=True)


def test_another_format_version(tmp_path, learner, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(checkpoints, "VERSION", 9)
        save(tmp_path, learner)
    with pytest.raises(CheckpointError, match=r"format version 9, expected 3"):
        checkpoints.load(tmp_path)


def test_a_checkpoint_from_before_updates_were_skipped(tmp_path, learner, monkeypatch):
    real = checkpoints.state_arrays
    with monkeypatch.context() as earlier:
        earlier.setattr(checkpoints, "VERSION", 2)
        earlier.setattr(
            checkpoints, "state_arrays", lambda agent: {k: v for k, v in real(agent).items() if k != "skipped_in_row"}
        )
        config = {**configs.to_dict(learner.agent.config), "run": {"stop_score": 7.5}}
        earlier.setattr(checkpoints.configs, "to_dict", lambda _: config)
        save(tmp_path, learner)
    saved = restore(tmp_path, learner)
    assert saved.state["skipped_in_row"] == 0 and saved.config.run.score == 7.5


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
