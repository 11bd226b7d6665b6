"""Runs from start to end: their files, resuming, interruption, failures, and the command line."""

import contextlib
import errno
import gc
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import yaml

import dreamer
from dreamer import checkpoints
from dreamer import config as configs
from dreamer import train as training
from dreamer.checkpoints.saver import Saver
from dreamer.config import ConfigError
from dreamer.envs import EnvError, VectorEnv
from dreamer.envs.suites.probes import Action
from dreamer.evaluate import __main__ as command
from dreamer.evaluate import evaluate_logdir
from dreamer.logs import logger
from dreamer.logs.logger import read_metrics
from dreamer.training import directory as runs
from dreamer.training import run as run_module
from dreamer.training.directory import resume_command
from tests.small import OVERRIDES, run_config, same_tree

pytestmark = pytest.mark.slow


def train(logdir, *overrides, env=None):
    return training.train(env, run_config(logdir, *overrides), quiet=True)


def metrics(logdir):
    return read_metrics(logdir / "metrics.jsonl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run; copy its directory before changing it."""
    return train(tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished.logdir, tmp_path / "copy")


class Faulty(Action):
    """The probe, which calls ``fault`` with its answer at its step number ``at``."""

    needs_rehearsal = False  # The fault belongs to the run.

    def __init__(self, at, fault):
        super().__init__()
        self.at, self.fault, self.steps = at, fault, 0

    def step(self, action):
        self.steps += 1
        answer = super().step(action)
        return self.fault(answer) if self.steps == self.at else answer


def faulty(at, fault):
    def probe():
        return Faulty(at, fault)

    return probe


# ----------------------------------------------------------------------------------------------- files and counters


def test_a_run_leaves_its_files(finished):
    logdir = finished.logdir
    assert not finished.interrupted
    assert configs.load_yaml(logdir / "config.yaml") == finished.agent.config
    assert (logdir / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    saved = checkpoints.load(logdir, with_replay=True)
    assert saved.config == finished.agent.config
    assert same_tree(saved.state, {k: np.asarray(v) for k, v in checkpoints.state_arrays(finished.agent).items()})
    # The task's episodes are one step long, so every second turn of the two environments is a reset.
    assert (saved.meta["env_steps"], saved.meta["agent_steps"], saved.meta["episodes"]) == (60, 60, 60)
    assert saved.meta["replay"]["rows_total"] == 59
    assert finished.evaluation.checkpoint_env_steps == 60 and len(finished.evaluation.scores) == 2


def test_metrics_tell_the_run(finished):
    lines = metrics(finished.logdir)
    episodes = [line for line in lines if "episode/score" in line]
    ticks = [line for line in lines if "rate/env_steps" in line]
    assert len(episodes) == 60 and {line["episode/length"] for line in episodes} == {1}
    assert {line["episode/score"] for line in episodes} <= {-1.0, 1.0}
    assert len(ticks) == 59 and [line["env_steps"] for line in ticks] == sorted(line["env_steps"] for line in ticks)
    last = ticks[-1]
    # Replay is ready after five rows, in which 4 steps were taken; each later step replays 4 of the 8 of an update.
    assert last["updates"] == finished.agent.state.step == (58 - 4) * 4 // 8
    assert last["train_ratio"] == 4.0
    for name in ("loss/total", "optimizer/gradient_norm"):
        values = [line[name] for line in ticks if name in line]
        assert len(values) == last["updates"] / 1 and np.isfinite(values).all()
    assert lines[-1]["eval/episodes"] == 2 and lines[-1]["env_steps"] == 60


# ---------------------------------------------------------------------------------------------------------- resuming


def test_a_resumed_run_continues(copy):
    updates = metrics(copy)[-1]["updates"]
    before = len(metrics(copy))
    result = train(copy, "run.env_steps=90", "run.eval_episodes=0")
    assert result.evaluation is None
    added = metrics(copy)[before:]
    # The reset comes first that would have come next.
    assert [line["env_steps"] for line in added if "rate/env_steps" in line][:2] == [60, 62]
    saved = checkpoints.load(copy, with_replay=True)
    assert (saved.meta["env_steps"], saved.meta["episodes"], saved.meta["resumes"]) == (90, 90, 1)
    # The run paid for 27 updates in 58 steps before; two steps were taken after its last update.
    assert result.agent.state.step == saved.meta["learner"]["updates"] == (88 - 4) * 4 // 8 > updates
    assert saved.meta["replay"]["rows_total"] == 59 + 30
    assert min(line["seconds"] for line in added) > 0
    assert configs.load_yaml(copy / "config.yaml").run.env_steps == 90


class Reporting(VectorEnv):
    """Reports the number 2 about every episode."""

    def step(self, action):
        step = super().step(action)
        return step._replace(log={int(i): {"two": 2.0} for i in np.flatnonzero(step.is_last)})


def test_a_resumed_run_summarizes_the_episodes_before_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamer.envs.VectorEnv", Reporting)
    monkeypatch.setattr("dreamer.envs.summarizer", lambda task: lambda logs: {"sum": sum(log["two"] for log in logs)})
    for steps in (20, 30):
        train(tmp_path, f"run.env_steps={steps}", "run.eval_episodes=0")
    episodes = [line for line in metrics(tmp_path) if "episode/score" in line]
    assert [line["episode/log/two"] for line in episodes] == [2.0] * 30
    assert [line["episode/log/sum"] for line in episodes] == [2.0 * (i + 1) for i in range(30)]


def test_a_run_that_is_over_is_only_evaluated(copy):
    before = checkpoints.load(copy)
    result = train(copy)
    assert len(result.evaluation.scores) == 2
    assert same_tree(before.state, checkpoints.load(copy).state)
    assert checkpoints.load(copy).meta["env_steps"] == 60


def test_another_architecture_is_refused(copy):
    before = (copy / "config.yaml").read_text()
    with pytest.raises(ConfigError) as caught:
        train(copy, "rssm.deter=32", "seed=4", "run.env_steps=90")
    message = str(caught.value)
    for part in ("2 key(s) differ", "rssm.deter: 16 in the checkpoint, 32 now", "seed: 0 in the checkpoint, 4 now"):
        assert part in message
    assert "run.env_steps" not in message and f"--resume {copy}" in message
    assert (copy / "config.yaml").read_text() == before


def test_the_same_seed_gives_the_same_metrics_and_another_does_not(finished, tmp_path):
    def comparable(logdir):
        vary = ["seconds", "rate/env_steps", "rate/updates", "eta_seconds", "memory_bytes", "bottleneck"]
        vary += ["save/seconds", "save/held_seconds", "save/bytes"]
        return [{k: v for k, v in line.items() if k not in vary} for line in metrics(logdir)]

    train(tmp_path / "same")
    assert comparable(tmp_path / "same") == comparable(finished.logdir)
    train(tmp_path / "other", "seed=1", "run.env_steps=20", "run.eval_episodes=0")
    other = comparable(tmp_path / "other")
    assert other != comparable(finished.logdir)[: len(other)]


# -------------------------------------------------------------------------------------------------- trouble on the way


def test_a_logdir_in_use(tmp_path):
    with (
        runs.exclusive(tmp_path),
        pytest.raises(runs.LogdirInUse, match=rf"in use by another run \(process {os.getpid()}\)\. Wait for it"),
    ):
        train(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock"]


def test_a_logdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"logdir=.*file/run cannot be used: Not a directory\. Choose another logdir"):
        train(tmp_path / "file" / "run")


def _with(position, value):
    def fault(answer):
        return (*answer[:position], value, *answer[position + 1 :])

    return fault


def _raise(answer):
    raise LookupError("no such level")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (_with(0, np.full(1, np.nan, np.float32)), "nan"),
        (_with(1, float("inf")), "the reward is inf"),
        (_with(0, np.zeros(1, np.complex64)), "complex64"),
        (_with(0, np.zeros(2, np.float32)), "shape"),
        (_raise, "LookupError: no such level"),
    ],
)
def test_a_failing_environment_saves_the_run(tmp_path, fault, message):
    with pytest.raises(EnvError) as caught:
        train(tmp_path, env=faulty(3, fault))
    text = str(caught.value)
    assert message.lower() in text.lower() and "step 1 of episode 3" in text
    assert "The run was saved after 4 env steps" in text
    assert resume_command(tmp_path, "custom_probe") in text
    saved = checkpoints.load(tmp_path, with_replay=True)
    assert (saved.meta["env_steps"], saved.meta["replay"]["rows_total"]) == (4, 5)


def test_a_mended_environment_goes_on(tmp_path):
    with pytest.raises(EnvError):
        train(tmp_path, env=faulty(3, _raise))
    # The directory belongs to the run again, and open episodes count as truncated.
    result = train(tmp_path, "run.env_steps=8", "run.eval_episodes=0", env=faulty(0, None))
    assert not result.interrupted and checkpoints.load(tmp_path).meta["env_steps"] == 8


def test_a_worker_that_dies_is_told_and_counted(tmp_path, capsys):
    marker = tmp_path / "died"

    def probe():
        class Mortal(Action):  # Workers cannot import this module, but are sent what functions define.
            needs_rehearsal = False
            steps = 0

            def step(self, action):
                self.steps += 1
                if self.steps == 5:
                    with contextlib.suppress(FileExistsError):  # One of the two workers, as both get here at once.
                        marker.touch(exist_ok=False)
                        os._exit(7)
                return Action.step(self, action)

        return Mortal()

    config = run_config(tmp_path / "run", "env.workers=async", "run.log_every=0", "run.eval_episodes=0")
    result = training.train(probe, config)
    assert "worker process ended without a word (exit code 7)" in capsys.readouterr().err
    failures = [line["env/failures"] for line in metrics(result.logdir) if "env/failures" in line]
    assert failures[0] == 0
    assert failures[-1] == 1
    assert metrics(result.logdir)[-1]["env_steps"] >= 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(tmp_path, number, capsys):
    def interrupt(answer):
        # Two environments, one signal.
        if not sent:
            sent.append(True)
            os.kill(os.getpid(), number)
        return answer

    sent = []
    handler = signal.getsignal(number)
    result = training.train(faulty(2, interrupt), run_config(tmp_path))
    assert result.interrupted
    assert result.evaluation is None
    assert result.ended == number.name
    assert signal.getsignal(number) is handler
    saved = checkpoints.load(tmp_path, with_replay=True)
    assert (saved.meta["env_steps"], saved.meta["replay"]["rows_total"]) == (4, 3)
    said = capsys.readouterr().err
    assert f"Stopped by {number.name} after 4 env steps" in said
    assert f"Resume with: {resume_command(tmp_path, 'custom_probe')}" in said
    with runs.exclusive(tmp_path):
        pass  # The lock was given back.


def test_a_full_disk_does_not_stop_training(tmp_path, monkeypatch, capsys):
    def full(path, mode):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(logger, "open", full, raising=False)
        # The disk has space again by the time that the environment takes its third step.
        config = run_config(tmp_path, "run.env_steps=8", "run.eval_episodes=0")
        result = training.train(faulty(3, lambda answer: (patch.undo(), answer)[1]), config)
    assert not result.interrupted
    assert capsys.readouterr().err.count("No space left on device. Training continues") == 1
    assert len([line for line in metrics(tmp_path) if "episode/score" in line]) == 8


def test_a_failing_save_on_the_way_does_not_stop_training(tmp_path, monkeypatch, capsys):
    real, threads = checkpoints.write, []

    def write(*args, **options):
        threads.append(threading.current_thread())
        if len(threads) == 2:
            raise checkpoints.CheckpointError("The checkpoint could not be written.")
        return real(*args, **options)

    monkeypatch.setattr(checkpoints, "write", write)
    # Waiting for each save, so that there is one in every turn, however slow the disk is.
    monkeypatch.setattr(run_module, "Saver", lambda background: Saver(background=False))
    training.train(None, run_config(tmp_path, "run={env_steps: 24, save_every: 0, eval_episodes: 0, keep: 3}"))
    assert len(threads) > 3 and threading.main_thread() not in threads
    said = capsys.readouterr().err
    assert said.count("The checkpoint could not be written. Training continues") == 1
    assert checkpoints.load(tmp_path).meta["env_steps"] == 24
    saves = [line for line in metrics(tmp_path) if "save/seconds" in line]
    assert len(saves) == len(threads) - 1 and len(checkpoints.steps(tmp_path)) == 3
    assert all(line["save/held_seconds"] > 0 and line["save/seconds"] > 0 for line in saves)
    path = checkpoints.load(tmp_path).path
    assert saves[-1]["save/bytes"] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_a_last_save_that_fails_is_an_error(tmp_path, monkeypatch):
    def write(*args, **options):
        raise checkpoints.CheckpointError("The checkpoint could not be written.")

    monkeypatch.setattr(checkpoints, "write", write)
    with pytest.raises(checkpoints.CheckpointError, match="could not be written"):
        train(tmp_path, "run={env_steps: 6, eval_episodes: 0}")
    with runs.exclusive(tmp_path):
        pass  # The lock was given back.


def test_a_save_in_the_background_holds_what_was_at_its_start(tmp_path, monkeypatch):
    """The loop continues at once, and what it changes does not reach the checkpoint."""
    real, go = checkpoints.write, threading.Event()
    steps: list[int] = []

    def write(logdir, step, *args, **options):
        if not steps:
            assert go.wait(60)
        steps.append(step)
        return real(logdir, step, *args, **options)

    def proceed(answer):
        go.set()
        return answer

    monkeypatch.setattr(checkpoints, "write", write)
    # The environment is at its 15th step before the first checkpoint, that of 2 env steps, may be written.
    overrides = "run={env_steps: 40, save_every: 0, eval_episodes: 0, keep: 1000}"
    result = train(tmp_path / "one", overrides, env=faulty(15, proceed))
    assert steps[0] == 2
    assert steps[1] > 20
    assert result.agent.state.step > 0
    first = checkpoints.load(tmp_path / "one", with_replay=True, which=2)
    assert first.replay is not None and first.replay["rows_total"] == 1
    assert first.meta["env_steps"] == 2 and first.state["step"] == 0
    monkeypatch.undo()
    again = train(tmp_path / "two", "run={env_steps: 2, eval_episodes: 0}", env=faulty(0, proceed))
    saved = checkpoints.load(again.logdir, with_replay=True)
    assert same_tree(first.state, saved.state) and saved.replay is not None
    assert first.replay["fields"].keys() == saved.replay["fields"].keys()
    assert np.array_equal(first.replay["fields"]["hashes/rows"], saved.replay["fields"]["hashes/rows"])


# Orbax, whose attempt ends when the clock is set forward, leaves what it did not begin.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_slow_disk_and_a_clock_that_jumps_change_nothing(finished, tmp_path, monkeypatch):
    fsync, slow, asked = os.fsync, [], iter(range(10**6))

    def crawling(descriptor):
        slow.append(threading.current_thread())
        time.sleep(0.05)
        return fsync(descriptor)

    monkeypatch.setattr(os, "fsync", crawling)
    # A day forward, two days back, and so on, with every thirtieth look.
    monkeypatch.setattr(time, "time", lambda: 1.8e9 + 86400 * (-1) ** (day := next(asked) // 30) * day)
    result = train(tmp_path, "run={save_every: 0}")
    assert slow
    states = [checkpoints.load(run.logdir).state for run in (result, finished)]
    assert same_tree(*states) and result.evaluation.scores == finished.evaluation.scores
    seconds = [line["seconds"] for line in metrics(tmp_path)]
    assert seconds == sorted(seconds) and 0 < seconds[-1] < 1000
    gc.collect()


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(copy, capsys):
    train(copy, "run={env_steps: 80, eval_episodes: 0}")
    newest = checkpoints.load(copy).path
    (newest / "meta.json").write_text("{}")
    load_with_warning(copy)
    training.train(None, run_config(copy, "run={env_steps: 70, eval_episodes: 0}"))
    said = capsys.readouterr().err
    assert "resumed at 60 env steps" in said
    assert f"The checkpoint {newest} is damaged and cannot be read: 'meta.json' has 2 bytes" in said
    names = {path.name for path in checkpoints.directory(copy).iterdir()}
    assert names == {"000000000060", "000000000070", "000000000080-damaged", "best.json"}
    assert checkpoints.load(copy).meta["env_steps"] == 70
    assert [line["resume/damaged_checkpoints"] for line in metrics(copy) if "resume/damaged_checkpoints" in line] == [1]
    for step in (60, 70):
        (checkpoints.load(copy, which=step).path / "manifest.json").unlink()
    with pytest.raises(checkpoints.CheckpointError, match=r"(?s)070 is damaged.*060 is damaged.*json' is missing"):
        train(copy, "run.env_steps=90")


def load_with_warning(logdir):
    """Load the agent of a run whose newest checkpoint is damaged, which changes nothing on the disk."""
    before = sorted(path for path in logdir.rglob("*"))
    with pytest.warns(UserWarning, match=r"is damaged and cannot be read: .* The one before is used: 000000000060"):
        dreamer.load(logdir)
    assert sorted(path for path in logdir.rglob("*")) == before


def test_the_best_checkpoint_stays_and_can_be_scored(copy, capsys):
    best = checkpoints.best(copy)
    assert best is not None and best.step == 60
    mean = metrics(copy)[-1]["eval/mean"]
    assert best.score == mean
    # As if it had been as good as can be: longer runs are not better.
    checkpoints.mark_best(copy, 60, 2.0)
    for steps in (70, 80, 90):
        training.train(None, run_config(copy, f"run={{env_steps: {steps}, eval_episodes: 2}}"))
    assert "The checkpoint of step 60 stays the best one, with a mean return of 2.0" in capsys.readouterr().err
    assert checkpoints.steps(copy) == {60, 80, 90} and checkpoints.best(copy) == (60, 2.0)
    for which, steps in (("best", 60), ("80", 80), ("newest", 90)):
        assert command.main([str(copy), "--episodes", "1", "--json", "--checkpoint", which]) == 0
        assert json.loads(capsys.readouterr().out)["checkpoint_env_steps"] == steps
    assert command.main([str(copy), "--checkpoint", "70"]) == 2
    assert "There is no checkpoint '70'" in capsys.readouterr().err
    assert same_tree(dreamer.load(copy, checkpoint="best").state, dreamer.load(copy, checkpoint=60).state)


def test_a_run_can_start_from_another(finished, tmp_path, capsys):
    source = checkpoints.load(finished.logdir)
    start = [f"load.from={finished.logdir}", "load.only=world_model", "seed=3", "run.eval_episodes=0"]
    # No update is due before replay is ready, so these are the parameters of the start.
    training.train(None, run_config(tmp_path, *start, "run.env_steps=4"))
    said = capsys.readouterr().err
    assert f"Starts from {source.path}: " in said and "tensors are taken from there." in said
    listed = (tmp_path / "load.txt").read_text().splitlines()
    saved = checkpoints.load(tmp_path)
    taken = [name for name in saved.state if name.startswith("nets.world_model.")]
    assert len(listed) == len(taken) + 1 and all(same_tree(saved.state[name], source.state[name]) for name in taken)
    assert not same_tree(saved.state["nets.behavior.actor.mlp.layers.0.linear.kernel"], source.state[taken[0]])
    assert saved.state["step"] == 0 and saved.meta["env_steps"] == 4
    # The run is its own from then on.
    result = training.train(None, run_config(tmp_path, *start, "run.env_steps=30"))
    assert "Starts from" not in capsys.readouterr().err and result.agent.state.step > 0
    with pytest.raises(ConfigError, match=r"load\.only: world_model in the checkpoint, actor now"):
        train(tmp_path, *start, "load.only=actor")


HOLDER = """
import pathlib, sys, time
from dreamer.training.directory import exclusive

with exclusive(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_lock_goes_with_a_process_that_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        with pytest.raises(runs.LogdirInUse, match=rf"process {child.pid}\)"), runs.exclusive(tmp_path):
            pass
        child.kill()
    with runs.exclusive(tmp_path):
        pass


# --------------------------------------------------------------------------------------------------------- interfaces


def test_a_custom_environment(tmp_path, capsys, monkeypatch):
    class Count(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.left = 3
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.left -= 1
            return np.ones(1, np.float32), 1.0, False, self.left == 0, {}

    def make_count():
        return Count()

    overrides = [*OVERRIDES, "behavior.starts=0", f"logdir={tmp_path}", "run={env_steps: 6, eval_episodes: 2}"]
    run: Any = dreamer.train
    result = run(env=make_count, presets=["cartpole"], overrides=overrides)
    assert result.evaluation.task == "custom_make_count"
    assert result.evaluation.scores == (3.0, 3.0) and result.evaluation.lengths == (3, 3)

    # No command could import the function, so what is printed is Python, and can be run as it is.
    names = {"dreamer": dreamer, "make_count": make_count}
    again = capsys.readouterr().err.strip().splitlines()[-1].partition(": ")[2]
    assert again == f'dreamer.evaluate(dreamer.load("{tmp_path}"), make_count, 20)'
    assert set(eval(again, names).scores) == {3.0}
    resumed = eval(resume_command(tmp_path, "custom_make_count"), names)
    assert resumed.logdir == tmp_path and "resumed at 6 env steps" in capsys.readouterr().err

    # A command says what it needs, and takes the name of a function that it can import.
    assert command.main([str(tmp_path), "--episodes", "1"]) == 2
    assert "Name it with --env package.module:function" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "count_shop", types.SimpleNamespace(make=make_count))
    assert command.main([str(tmp_path), "--episodes", "1", "--env", "count_shop:make", "--json"]) == 0
    capsys.readouterr()
    argv = ["--resume", str(tmp_path), "run.env_steps=8", "run.eval_episodes=0"]
    assert training.main(argv) == 2
    assert training.main([*argv, "--env", "count_shop:make"]) == 0
    assert "python -m dreamer.evaluate" in capsys.readouterr().err
    assert training.main([*argv, "run.env_steps=9"]) == 0  # The run knows the name now.


def test_another_environment_cannot_go_on_with_a_run(copy, capsys, monkeypatch):
    saved = checkpoints.load(copy).config
    other = gymnasium.make("Pendulum-v1")
    monkeypatch.setitem(sys.modules, "other_shop", types.SimpleNamespace(make=lambda: other))
    assert command.main([str(copy), "--episodes", "1", "--env", "other_shop:make"]) == 2
    assert "The environment has changed: observation" in capsys.readouterr().err
    monkeypatch.setattr(
        "dreamer.envs.make", lambda task, config, render=False: dreamer.envs.adapt(lambda: other, config)
    )
    assert training.main(["--resume", str(copy), "env.count=1"]) == 2
    assert saved == checkpoints.load(copy).config


def test_the_name_of_a_task_in_place_of_a_function(tmp_path):
    run: Any = dreamer.train
    with pytest.raises(EnvError, match=r"There is no task 'CartPole-v1'\. Did you mean 'gym_CartPole-v1'"):
        run(env="CartPole-v1", overrides=[*OVERRIDES, "behavior.starts=0", f"logdir={tmp_path}"], quiet=True)
    assert not (tmp_path / "config.yaml").exists()
    with pytest.raises(EnvError, match="expected a function without arguments"):
        run(
            env=gymnasium.make("CartPole-v1"),
            overrides=[*OVERRIDES, "behavior.starts=0", f"logdir={tmp_path}"],
            quiet=True,
        )


class Polite(gymnasium.Env):
    """Random numbers between -1 and 1; the fourth step of an episode ends it."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.np_random.uniform(-1, 1, 2), {}

    def step(self, action):
        self.time += 1
        return self.np_random.uniform(-1, 1, 2), float(action), False, self.time == 4, {"is_success": self.time == 4}


def rude(elsewhere):
    """A kind of the same environment that treats the process as its own."""

    class Rude(Polite):
        def __init__(self):
            self.observation_space = gymnasium.spaces.Box(5.0, 6.0, (2,), np.float64)  # Broken at the first reset.
            os.chdir(elsewhere)
            np.seterr(all="raise")
            warnings.filterwarnings("error")

        def reset(self, *, seed=None, options=None):
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            os.chdir(elsewhere)
            return super().reset(seed=seed)

        def close(self):
            raise OSError("busy")

    return Rude


def test_an_environment_that_changes_the_process_changes_nothing_of_a_run(tmp_path, monkeypatch, capsys):
    results = {}
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    # Everything but bounds, notes and closing is alike, and so are the numbers.
    for name, kind in (("polite", Polite), ("rude", rude(tmp_path / "elsewhere"))):
        config = run_config(name, "run={env_steps: 24, eval_episodes: 2}")
        results[name] = training.train(kind, config)
    said = capsys.readouterr().err
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert "in rude\n" in said and "metrics         rude/metrics.jsonl" in said
    assert 'dreamer.evaluate(dreamer.load("rude"), Rude, 20)' in said
    assert "step 0 of episode 1: observation key 'vector' holds" in said
    assert said.count("close failed with OSError: busy") == 1
    evaluation = results["rude"].evaluation
    assert evaluation is not None and evaluation.successes == (1.0, 1.0)
    assert same_tree(results["polite"].agent.state, results["rude"].agent.state)
    episodes = [line for line in metrics(tmp_path / "rude") if "episode/score" in line]
    assert {line["episode/success"] for line in episodes} == {1.0}
    assert metrics(tmp_path / "rude")[-1]["eval/success"] == 1.0
    dreamer.load(tmp_path / "rude")


@pytest.mark.slow
def test_something_is_said_before_imports_take_seconds():
    command = [sys.executable, "-X", "importtime", "-m", "dreamer.train", "no_preset"]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    first_words = said.index("Dreamer starts: ")
    jax_imported = re.search(r"\| +jax\n", said)
    assert jax_imported is not None
    assert first_words < jax_imported.start()


def test_help(capsys):
    assert training.main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in [*configs.presets(), *(key for key, _ in configs.flatten(configs.Config()))]:
        assert f"  {name} " in said, name
    assert "recurrent state" in said and "[env steps]" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "cartpol"], "There is no preset 'cartpol'. Did you mean 'cartpole'?"),
        (["rssm.detre=3"], "detre"),
        (["rssm.deter=many"], "rssm.deter is 'many', expected an integer"),
        (["--fast"], "There is no option '--fast'. The options are --config, --resume, --profile and --help."),
        (["--configs", "cartpole"], "There is no option '--configs'. Did you mean '--config'?"),
        (["--seed", "3"], "There is no option '--seed'. Write seed=3: config keys are given as key=value."),
        (["--learning-rate=1e-4"], "Write optimizer.lr=1e-4:"),
        (["--total-timesteps", "100"], "Write run.env_steps=100:"),
        (["--num-envs"], "Write env.count=VALUE:"),
        (["--env", "CartPole-v1", "--seed", "3"], "Write task=gym_CartPole-v1:"),
        (["--env_id=my.module:make"], "Write task=my.module:make:"),
        (["cartpole"], "'cartpole' is not of the form key=value. Name presets after --config."),
        (["--config", "cartpole", "--resume", "runs/x"], "leave out --config"),
        (["--resume", "/nowhere/at/all"], "/nowhere/at/all/config.yaml is not a readable config"),
        (["task=probe_acton"], "There is no probe 'acton'. Did you mean 'probe_action'?"),
    ],
)
def test_wrong_command_lines(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert training.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert message in err
    assert "Traceback" not in err and err.count("\n") == 1


def test_the_command_line_builds_the_config(tmp_path):
    config = training.parse(["--config", "cartpole", "size/12m", "seed=3", "task=probe_action"])
    assert config == configs.load(["cartpole", "size/12m"], ["seed=3", "task=probe_action"])
    assert training.parse([]) == configs.load([training.DEFAULT_PRESET])
    (tmp_path / "config.yaml").write_text(configs.to_yaml(config))
    resumed = training.parse(["--resume", str(tmp_path), "run.env_steps=5"])
    assert config is not None and resumed is not None
    expected = {"logdir": ("", str(tmp_path)), "run.env_steps": (config.run.env_steps, 5)}
    assert configs.differences(config, resumed) == expected


def test_main_resumes_and_tells_by_its_status(copy, capsys):
    assert training.main(["--resume", str(copy), "run.env_steps=62"]) == 0
    said = capsys.readouterr().err
    assert "resumed at 60 env steps" in said and "Trained for 62 env steps" in said
    assert f"python -m dreamer.evaluate {copy}" in said
    assert yaml.safe_load((copy / "config.yaml").read_text())["logdir"] == str(copy)


def test_only_the_directory_that_is_named_is_touched(finished, copy):
    """A checkpoint holds a config, and that a log directory: where somebody else's run was, on his machine."""
    assert checkpoints.load(copy).config.logdir == str(finished.logdir) != str(copy)

    def contents():
        return {path: path.read_bytes() for path in finished.logdir.rglob("*") if path.is_file()}

    before, beside = contents(), set(finished.logdir.parent.iterdir())
    dreamer.load(copy)
    evaluate_logdir(copy, 1)
    assert training.main(["--resume", str(copy), "run.env_steps=62", "run.eval_episodes=0"]) == 0
    assert checkpoints.load(copy).meta["env_steps"] == 62
    assert contents() == before and set(finished.logdir.parent.iterdir()) == beside


def test_the_default_logdir_is_new(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs.time, "strftime", lambda _: "NOW")
    config = configs.load([], ["task=gym_ALE/Pong-v5", "seed=7"])
    assert runs.default_logdir(config) == "runs/NOW-gym_ALE_Pong-v5-7"
    os.makedirs("runs/NOW-gym_ALE_Pong-v5-7")
    assert runs.default_logdir(config) == "runs/NOW-gym_ALE_Pong-v5-7-1"
