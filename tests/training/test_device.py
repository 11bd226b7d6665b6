"""Runs with the device loop from start to end: files of every member, resuming, interruption, and refusals."""

import json
import os
import shutil
import signal
import threading

import jax
import numpy as np
import pytest

from dreamer import checkpoints
from dreamer import config as configs
from dreamer import train as training
from dreamer.config import ConfigError
from dreamer.config.population import members
from dreamer.envs import EnvError
from dreamer.evaluate import Evaluation, evaluate_logdir
from dreamer.logs.logger import read_metrics
from dreamer.replay import ReplayMemoryError, device
from dreamer.training import device as device_run
from dreamer.training import device_program as device_loop
from dreamer.training import device_saves
from dreamer.training.device_program import DeviceLoop
from dreamer.training.device_window import WINDOW, Pace, summarize
from tests.small import run_config, same_tree

POPULATION = ("task=jax_action", "run.loop=device", "population=2", "seed=3")


def train(logdir, *overrides):
    return training.train(None, run_config(logdir, *POPULATION, *overrides), quiet=True)


def everything(logdir):
    """All that a checkpoint holds, as one tree of arrays."""
    saved = checkpoints.load(logdir, with_replay=True)
    assert saved.replay is not None
    fields = {name: np.asarray(value) for name, value in saved.replay["fields"].items()}
    return {**saved.state, **fields}, {k: v for k, v in saved.replay.items() if k != "fields"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; copy its directory before changing it."""
    return train(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished.logdir, tmp_path / "copy")


@pytest.mark.slow
def test_every_member_leaves_its_files(finished):
    assert len(finished.members) == 2
    assert finished.logdir.name == "one"
    assert not finished.interrupted
    assert configs.load_yaml(finished.logdir / "config.yaml").population.seeds == 2
    for member, seed in zip(finished.members, (3, 4), strict=True):
        logdir = finished.logdir / f"seed_{seed}"
        assert member.logdir == logdir and member.agent.config.seed == seed
        config = configs.load_yaml(logdir / "config.yaml")
        assert config == member.agent.config == checkpoints.load(logdir).config
        assert (config.population.seeds, config.logdir, config.seed) == (1, str(logdir), seed)
        assert (logdir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
        lines = read_metrics(logdir / "metrics.jsonl")
        episodes = [line for line in lines if "episode/score" in line]
        # Sixty rows of two environments, every second one a reset.
        assert len(episodes) == 30 == checkpoints.load(logdir).meta["episodes"]
        assert [line["env_steps"] for line in episodes] == [2 * (i // 2 + 1) for i in range(30)]
        ticks = [line for line in lines if "rate/env_steps" in line]
        assert ticks[-1]["updates"] == (29 - 4) * 2 * 4 // 8 == int(member.agent.state.step)
        assert any(np.isfinite(line.get("loss/total", np.nan)) for line in ticks)
        assert lines[-1]["eval/episodes"] == 2
    assert (finished.logdir / "learning_curve.png").exists()
    together = read_metrics(finished.logdir / "metrics.jsonl")
    assert {line["member"] for line in together if "member" in line} == {"seed_3", "seed_4"}
    assert together[-1]["env_steps"] == 60


@pytest.mark.slow
def test_members_can_be_evaluated_and_loaded_alone(finished):
    for member in finished.members:
        again = evaluate_logdir(member.logdir, 2, seed=member.agent.config.seed)
        assert again.scores == member.evaluation.scores and again.checkpoint_env_steps == 30


@pytest.mark.slow
def test_a_resumed_population_is_bit_for_bit_what_it_would_have_been(finished, tmp_path):
    half = train(tmp_path / "half", "run.env_steps=34", "run.eval_episodes=0")
    assert half.evaluation is None
    before = len(read_metrics(half.logdir / "seed_4" / "metrics.jsonl"))
    whole = train(half.logdir)
    for one, two in zip(whole.members, finished.members, strict=True):
        arrays, counters = everything(one.logdir)
        expected, expected_counters = everything(two.logdir)
        assert arrays.keys() == expected.keys() and counters == expected_counters
        assert same_tree(arrays, {name: expected[name] for name in arrays})
        assert one.evaluation == two.evaluation
    assert checkpoints.load(half.logdir / "seed_4").meta["resumes"] == 1
    episodes = [line for line in read_metrics(half.logdir / "seed_4/metrics.jsonl")[before:] if "episode/score" in line]
    assert episodes[0]["env_steps"] == 20


@pytest.mark.slow
def test_three_members_on_two_devices_go_on_as_on_three(tmp_path, monkeypatch):
    """Two devices run the last member twice, and neither logs nor checkpoints tell of it."""
    whole = train(tmp_path / "whole", "population=3")
    monkeypatch.setattr(device_loop, "member_devices", lambda config, members: jax.devices()[:2])
    half = train(tmp_path / "half", "population=3", "run={env_steps: 34, eval_episodes: 0}")
    rest = train(half.logdir, "population=3")
    seeds = {"seed_3", "seed_4", "seed_5"}
    assert len(rest.members) == 3 and {path.name for path in half.logdir.glob("seed_*")} == seeds
    for one, two in zip(rest.members, whole.members, strict=True):
        arrays, counters = everything(one.logdir)
        expected, expected_counters = everything(two.logdir)
        assert counters == expected_counters
        for name, value in arrays.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
        assert one.evaluation == two.evaluation
    losses = [
        [line["loss/total"] for line in read_metrics(path / "metrics.jsonl") if "loss/total" in line]
        for path in (whole.logdir, *(member.logdir for member in whole.members))
    ]
    np.testing.assert_allclose(losses[0], np.mean(losses[1:], 0), rtol=1e-5)


@pytest.mark.slow
def test_a_member_can_be_trained_again_alone(finished, tmp_path):
    member = finished.members[1]
    result = training.train(None, configs.override(member.agent.config, [f"logdir={tmp_path}"]), quiet=True)
    assert result.members == () and result.logdir == tmp_path
    one, two = (checkpoints.load(path).state for path in (tmp_path, member.logdir))
    for name, value in one.items():
        np.testing.assert_allclose(value, two[name], rtol=1e-4, atol=1e-5, err_msg=name)
    assert result.evaluation is not None and result.evaluation.lengths == member.evaluation.lengths


@pytest.mark.slow
def test_a_signal_saves_at_the_end_of_a_window(tmp_path, monkeypatch, capsys):
    real = DeviceLoop.run

    def run(self, state, due, turns):
        if state.cursor.total >= 5:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, state, due, turns)

    monkeypatch.setattr(DeviceLoop, "run", run)
    result = training.train(None, run_config(tmp_path, *POPULATION))
    assert result.interrupted and all(member.interrupted for member in result.members)
    said = capsys.readouterr().err
    assert "Stopped by SIGINT after" in said and f"Resume with: python -m dreamer.train --resume {tmp_path}" in said
    done = checkpoints.load(tmp_path / "seed_3").meta["turns"]
    assert 5 < done < 30
    monkeypatch.undo()
    assert training.main(["--resume", str(tmp_path), "run.eval_episodes=2"]) == 0
    assert "means" in capsys.readouterr().err


@pytest.mark.slow
def test_a_save_that_fails_between_members_leaves_the_older_one(copy, monkeypatch):
    found = members(configs.override(configs.load_yaml(copy / "config.yaml"), [f"logdir={copy}"]))
    assert {tuple(checkpoints.steps(member.config.logdir)) for member in found} == {(60,)}
    first = copy / "seed_3" / "checkpoints"
    shutil.copytree(first / "000000000060", first / "000000000090")
    saved = device_saves.load(found)
    assert saved is not None and [s.meta["turns"] for s in saved] == [30, 30]
    shutil.rmtree(first / "000000000060")
    with pytest.raises(checkpoints.CheckpointError, match="no checkpoint of one and the same step"):
        device_saves.load(found)


@pytest.mark.slow
def test_all_members_go_on_from_the_step_before_one_that_is_damaged(copy, capsys):
    for seed in (3, 4):
        root = copy / f"seed_{seed}" / "checkpoints"
        shutil.copytree(root / "000000000060", root / "000000000090")
    (copy / "seed_4/checkpoints/000000000090/meta.json").unlink()
    training.train(None, run_config(copy, *POPULATION, "run={env_steps: 64, eval_episodes: 0}"))
    said = capsys.readouterr().err
    assert "seed_4/checkpoints/000000000090 is damaged and cannot be read: 'meta.json' is missing" in said
    assert "it is intact, but that of another member is not" in said and "resumed at 60 env steps" in said
    for seed in (3, 4):
        names = {path.name for path in (copy / f"seed_{seed}" / "checkpoints").iterdir()}
        assert names == {"000000000060", "000000000064", "000000000090-damaged", "best.json"}
    lines = read_metrics(copy / "metrics.jsonl")
    assert [line["resume/damaged_checkpoints"] for line in lines if "resume/damaged_checkpoints" in line] == [2]
    assert lines[-1]["save/seconds"] > 0 and lines[-1]["env_steps"] == 64
    for seed in (3, 4):
        for path in (copy / f"seed_{seed}" / "checkpoints").glob("0000000000??"):
            (path / "meta.json").write_text("")
    with pytest.raises(checkpoints.DamagedError, match=r"(?s)seed_3/.*064 is damaged.*seed_4/.*064.*060 is damaged"):
        train(copy, "run.env_steps=70")


@pytest.mark.slow
def test_a_population_is_saved_on_the_way(tmp_path, monkeypatch):
    real, threads = device_saves.write, []

    def write(*args, **options):
        threads.append(threading.current_thread())
        return real(*args, **options)

    monkeypatch.setattr(device_saves, "write", write)
    train(tmp_path, "run={env_steps: 60, save_every: 0, eval_episodes: 0}")
    assert len(threads) > 1 and threading.main_thread() not in threads
    assert all({60} < checkpoints.steps(tmp_path / f"seed_{seed}") for seed in (3, 4))


def test_a_step_that_not_all_members_could_save_is_taken_back(tmp_path, monkeypatch):
    def write(logdir, step, contents, keep_last):
        if contents.meta == "too large":
            raise checkpoints.CheckpointError("No space left on device")
        path = checkpoints.directory(logdir) / f"{step:012d}"
        path.mkdir(parents=True)
        return checkpoints.Written(path, 1)

    def member(name, meta):
        return device_saves.PreparedMember(str(tmp_path / name), checkpoints.Prepared({}, {}, meta))

    monkeypatch.setattr(checkpoints, "write", write)
    device_saves.write([member("one", ""), member("two", "")], 5, 2)
    for step in (7, 8, 9):
        with pytest.raises(checkpoints.CheckpointError, match="No space left"):
            device_saves.write([member("one", ""), member("two", "too large")], step, 2)
        assert checkpoints.steps(tmp_path / "one") == checkpoints.steps(tmp_path / "two") == {5}


@pytest.mark.slow
def test_all_members_can_start_from_another_run(finished, tmp_path):
    source = finished.logdir / "seed_3"
    train(tmp_path, f"load.from={source}", "load.only=behavior", "run={env_steps: 4, eval_episodes: 0}")
    saved = checkpoints.load(source).state
    for seed in (3, 4):
        state = checkpoints.load(tmp_path / f"seed_{seed}").state
        same = {name for name in state if same_tree(state[name], saved[name])}
        taken = {name for name in state if name.startswith("nets.behavior.")}
        assert len(taken) > 5
        assert taken <= same
        assert all(same_tree(state[f"acting.{n[5:]}"], state[n]) for n in state if n.startswith("nets."))
        assert "nets.world_model.rssm.mix.kernel" not in same and state["step"] == 0
        critic = {name.removeprefix("nets.behavior.critic.") for name in taken if ".critic." in name}
        assert critic
        for name in critic:
            slow = state[f"memory.behavior.slow_critic.{name}"]
            assert same_tree(slow, state[f"nets.behavior.critic.{name}"]), name
    assert (tmp_path / "load.txt").read_text().count("taken") > 5


@pytest.mark.slow
def test_what_a_resumed_run_must_not_change(copy):
    for override in ("population=3", "seed=7", "env.count=4", "population.lr=[1e-3]"):
        config = configs.override(configs.load_yaml(copy / "config.yaml"), [f"logdir={copy}", override])
        with pytest.raises(ConfigError, match=r"holds a checkpoint of another config; 1 key\(s\) differ"):
            training.train(None, config, quiet=True)
    alone = configs.override(configs.load_yaml(copy / "seed_3/config.yaml"), [f"logdir={copy / 'seed_3'}"])
    with pytest.raises(ConfigError, match=r"run\.loop: device in the checkpoint, host now"):
        training.train(None, configs.override(alone, ["run.loop=host"]), quiet=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=gym_CartPole-v1"], r"written in JAX \(task=jax_NAME, .*\), but task is 'gym_CartPole-v1'"),
        (["env.repeat=2"], "env.repeat=2 cannot be used with run.loop=device"),
        (["env.time_limit=9"], "env.time_limit=9 cannot be used with run.loop=device"),
        (["run.loop=host"], "A population needs run.loop=device"),
        (["population.deter=[16,32]"], "rssm.deter shapes the program"),
        (["replay.capacity=8"], "replay.capacity=8"),
    ],
)
def test_what_cannot_be_run_is_refused(overrides, message, tmp_path):
    with pytest.raises(ConfigError, match="(?s).*".join(map(str, [message.replace("'", ".")]))):
        train(tmp_path, *overrides)


def test_an_unknown_task_is_refused(tmp_path):
    with pytest.raises(EnvError, match=r"Did you mean 'jax_catch'"):
        train(tmp_path, "task=jax_catsh")


def test_too_little_memory_is_refused_before_anything_is_allocated(tmp_path, monkeypatch):
    monkeypatch.setattr(device_run, "available_bytes", lambda: 2_000_000)
    with pytest.raises(ReplayMemoryError, match=r"for 2 member\(s\) needs 16\.40 GB .* GB are missing\. The largest"):
        train(tmp_path, "replay.capacity=100_000_000")
    with pytest.raises(ReplayMemoryError, match=r"fits is replay.capacity=50\.$"):
        device.check_memory(replay=1000, other=500, members=2, capacity=100, available=1000)
    with pytest.raises(ReplayMemoryError, match="Train fewer members"):
        device.check_memory(replay=1000, other=500, members=2, capacity=100, available=100)
    device.check_memory(replay=1000, other=500, members=2, capacity=100, available=1500)


def test_windows_take_about_a_second():
    pace = Pace()
    assert pace.turns(learning=False) == 64
    assert pace.turns(learning=True) == 1
    lengths = []
    for _ in range(12):
        lengths.append(pace.turns(learning=True))
        pace.measure(lengths[-1], lengths[-1] / 100, learning=True)
    assert lengths == [1, 2, 4, 8, 16, 32, 64, 100, 100, 100, 100, 100]
    pace.measure(100, 1000.0, learning=True)
    assert pace.turns(learning=True) == 1
    assert pace.turns(learning=False) == 64
    pace.measure(512, 0.0, learning=False)
    assert pace.turns(learning=False) == WINDOW


def test_the_table_of_evaluations():
    scores = [("seed_0", (1.0, 3.0)), ("seed_11", (5.0, 5.0))]
    lines = summarize([(name, Evaluation("t", found, (1, 1), 0)) for name, found in scores])
    assert [line.split() for line in lines] == [
        ["member", "mean", "std", "min", "max"],
        ["seed_0", "2.0", "1.4", "1.0", "3.0"],
        ["seed_11", "5.0", "0.0", "5.0", "5.0"],
        ["means", "3.5", "2.1", "2.0", "5.0"],
    ]
    assert len({len(line) for line in lines}) == 1
    assert json.loads(json.dumps(summarize([("", Evaluation("t", (1.0,), (1,), 0))])))[0].startswith("t: mean return")
