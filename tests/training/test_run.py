"""What every run needs: rules that end it, signals and what they mean, and a config on disk."""

import os
import pathlib
import signal
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import yaml

from dreamer import checkpoints
from dreamer import config as configs
from dreamer import train as training
from dreamer.config import ConfigError, RunConfig
from dreamer.envs import EnvError
from dreamer.training import host
from dreamer.training.directory import write_config
from dreamer.training.stopping import SIGNALS, StopRequest, budget_spent, early_end
from tests.small import OVERRIDES, run_config, small_config

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("run", "counts", "rule"),
    [
        (RunConfig(env_steps=100), (99, 10**6), ""),
        (RunConfig(env_steps=100), (100, 0), "env_steps"),
        (RunConfig(env_steps=100, episodes=7), (99, 6), ""),
        (RunConfig(env_steps=100, episodes=7), (99, 8), "episodes"),
    ],
)
def test_budgets(run, counts, rule):
    assert budget_spent(run, *counts) == rule


@pytest.mark.parametrize(
    ("run", "seconds", "recent", "rule"),
    [
        (RunConfig(), 1e9, [1.0] * 10, ""),
        (RunConfig(hours=0.5), 1799.0, [], ""),
        (RunConfig(hours=0.5), 1800.0, [], "hours"),
        (RunConfig(score=2.0), 0.0, [2.0] * 9, ""),
        (RunConfig(score=2.0), 0.0, [1.0] * 5 + [3.0] * 5, "score"),
        (RunConfig(score=2.0), 0.0, [1.0] * 5 + [2.9] * 5, ""),
    ],
)
def test_early_ends(run, seconds, recent, rule):
    assert early_end(run, seconds, recent) == rule


@pytest.mark.slow
def test_each_rule_ends_a_run_and_is_named(tmp_path, capsys):
    def train(rule, *overrides):
        result = training.train(None, run_config(tmp_path / rule, "run.eval_episodes=0", *overrides))
        assert result.ended == rule and not result.interrupted
        assert f"run.{rule} ended it" in capsys.readouterr().err
        return checkpoints.load(result.logdir).meta if checkpoints.exists(result.logdir) else None

    assert train("env_steps", "run.env_steps=20")["env_steps"] == 20
    assert train("episodes", "run.episodes=11")["episodes"] == 12  # Two environments end them together.
    assert train("score", "run.score=-1")["episodes"] == 10
    assert train("hours", "run.hours=1e-9") is None  # Before the first step, there is nothing to save.
    # Time counts over all resumes: what was spent before is spent.
    spent = checkpoints.load(tmp_path / "env_steps").meta["seconds"] / 3600
    resumed = run_config(tmp_path / "env_steps", "run.env_steps=40", "run.eval_episodes=0", f"run.hours={spent}")
    assert training.train(None, resumed, quiet=True).ended == "hours"
    assert checkpoints.load(tmp_path / "env_steps").meta["env_steps"] == 20


def test_the_old_name_of_the_score_is_unknown_but_read():
    with pytest.raises(ConfigError, match=r"stop_score"):
        small_config("run.stop_score=3")
    saved = configs.to_dict(small_config())
    del saved["run"]["score"]
    saved["run"]["stop_score"] = 3.0
    assert configs.from_dict(saved).run.score == 3.0


# -------------------------------------------------------------------------------------------------------------- signals


def test_the_first_signal_counts_the_second_is_ignored_and_the_third_interrupts(capfd):
    stop = StopRequest()
    before = signal.getsignal(signal.SIGTERM)
    with stop.listening():
        assert not stop and stop.code == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop and str(stop) == "SIGTERM"
        assert capfd.readouterr().err == ""
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == "SIGTERM" and "A third signal ends it at once" in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_lost_terminal_and_a_schedulers_warning_count_too(number):
    stop = StopRequest()
    before = signal.signal(number, signal.SIG_DFL)  # These tests may run under nohup.
    try:
        with stop.listening():
            os.kill(os.getpid(), number)
            assert str(stop) == signal.Signals(number).name and SIGNALS[str(stop)] == 75
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = StopRequest()
        with stop.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            stop.keep_listening()
            os.kill(os.getpid(), signal.SIGHUP)
        assert not stop
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_that_were_taken_are_taken_back(number):
    before = signal.getsignal(number)
    stop = StopRequest()
    taken = []
    with stop.listening():
        signal.signal(number, lambda *_: taken.append(1))
        stop.keep_listening()
        os.kill(os.getpid(), number)
        assert stop and not taken
    assert signal.getsignal(number) is before
    stop.keep_listening()
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("name", "received"), [("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM"), ("a lost disk", "a failure")]
)
def test_hosts_receive_which_signal_it_was(name, received):
    one, other = StopRequest(), StopRequest()
    one.signal = name
    other.receive(one.code)
    assert str(other) == f"{received} on another host"
    other.receive(1)
    assert other.signal == received
    one.receive(other.code)
    assert str(one) == name


@pytest.mark.slow
def test_a_signal_ends_the_closing_evaluation(tmp_path, capsys):
    class LongEpisodes(gymnasium.Env):
        """Takes the handler of SIGTERM when it is made, and sends one after more steps than training takes."""

        observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def __init__(self):
            signal.signal(signal.SIGTERM, lambda *_: None)

        def reset(self, *, seed=None, options=None):
            self.time = 0
            return np.zeros(2, np.float32), {}

        def step(self, action):
            self.time += 1
            if self.time == 1000:  # A rehearsal of saving takes fewer.
                os.kill(os.getpid(), signal.SIGTERM)
            return np.zeros(2, np.float32), 0.0, False, self.time == 10**6, {}

    before = signal.getsignal(signal.SIGTERM)
    try:
        config = run_config(tmp_path / "run", "env.count=1", "run={env_steps: 50, eval_episodes: 1}")
        result = training.train(LongEpisodes, config)
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert (result.ended, result.interrupted, result.evaluation) == ("SIGTERM", True, None)
    assert "Stopped by SIGTERM during the closing evaluation: 0 of 1 episodes were played." in said
    assert checkpoints.load(result.logdir).meta["env_steps"] == 50


class Once(gymnasium.Env):
    """Exists once at a time, and never ends an episode."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    exists = False
    made = 0
    last = 10

    def __init__(self):
        if Once.exists:
            raise RuntimeError("there is another one")
        Once.exists = True
        Once.made += 1

    def close(self):
        Once.exists = False

    def reset(self, *, seed=None, options=None):
        if Once.made > Once.last:
            raise RuntimeError("out of order")
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}


@pytest.mark.slow
def test_a_run_with_the_only_environment_there_is_ends_with_its_score(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(host, "ENDLESS", 40)
    config = run_config(tmp_path / "run", "env.count=1", "run={env_steps: 60, eval_episodes: 2, eval_steps: 7}")
    result = training.train(Once, config)
    assert result.evaluation is not None
    assert result.evaluation.scores == (7.0, 7.0)
    said = capsys.readouterr().err
    assert said.count("An episode has gone on for 41 actions.") == 1
    assert "2 did not end and were cut off (run.eval_steps)" in said


@pytest.mark.slow
def test_a_closing_evaluation_that_fails_costs_nothing_but_the_score(tmp_path, monkeypatch):
    monkeypatch.setattr(Once, "made", 0)
    monkeypatch.setattr(Once, "last", 3)  # Two for the rehearsal and one for training.
    config = run_config(tmp_path / "run", "env.count=1", "run={env_steps: 30, eval_episodes: 2, eval_steps: 7}")
    message = r"(?s)The closing evaluation failed: .*out of order.*The run is done and was saved\. Score it with"
    with pytest.raises(EnvError, match=message):
        training.train(Once, config)
    assert checkpoints.load(config.logdir).meta["env_steps"] == 30


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_update_saves_and_tells_by_the_status(tmp_path, number):
    run = "run={env_steps: 1000000, train_ratio: 4, eval_episodes: 0}"
    words = ["--config", "gym", *OVERRIDES, "task=probe_action", run, f"logdir={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dreamer.train", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    with process:  # Waits for it.
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith("Dreamer on"):
                process.send_signal(number)
    assert process.returncode == SIGNALS[number.name], said
    assert f"Stopped by {number.name}" in said and {name: SIGNALS[name] for name in ("SIGINT", "SIGTERM")} == {
        "SIGINT": 130,
        "SIGTERM": 75,
    }
    assert not checkpoints.exists(tmp_path) or checkpoints.load(tmp_path).meta["env_steps"] < 1000


# --------------------------------------------------------------------------------------------------------------- config


def test_a_config_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write_config(tmp_path, small_config())

    def full(self, text, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    write_config(tmp_path, small_config("seed=4"))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["seed"] == 0
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be written: No space left on device\. Free space"):
        write_config(tmp_path, small_config())
