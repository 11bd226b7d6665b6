"""Evaluation: statistics, a fair choice of episodes, the command line, and trained agents for other programs."""

import dataclasses
import itertools
import json
import pathlib
import re
from typing import Any

import gymnasium
import imageio_ffmpeg
import jax.numpy as jnp
import numpy as np
import pytest

import dreamer
from dreamer import checkpoints, envs
from dreamer import config as configs
from dreamer.agent import Agent
from dreamer.checkpoints import CheckpointError
from dreamer.evaluate import Evaluation
from dreamer.evaluate import __main__ as command
from dreamer.evaluate import scores as evaluation
from dreamer.evaluate.episodes import Moment
from dreamer.evaluate.scores import RunEvaluation
from dreamer.types import Space
from tests.small import run_config


class Puppet(Agent):
    """An agent without networks that always takes action 1."""

    def __init__(self):
        self.config = run_config("unused")
        self.obs_spaces = {"vector": Space("vector", (1,))}
        self.action_spaces = {"action": Space("discrete", (), 2)}
        self.modes = set()
        self.calls = []

    def initial(self, batch):
        return jnp.zeros((batch, 2))

    def act_in_episodes(self, obs, memory, seed, episode, time, mode):
        self.modes.add(mode)
        self.calls += [(seed, int(e), int(t)) for e, t in zip(episode, time, strict=True)]
        return {"action": np.ones(len(episode), np.int32)}, memory


class Seeded(gymnasium.Env):
    """Episodes of 1 to 6 steps, decided by the seed; every step earns the action, the last one the length squared."""

    def __init__(self, width=1):
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (width,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.width, self.render_mode = width, "rgb_array"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        assert seed is not None
        self.time, self.length = 0, int(self.np_random.integers(1, 7))
        return np.zeros(self.width, np.float32), {}

    def step(self, action):
        self.time += 1
        over = self.time == self.length
        return np.zeros(self.width, np.float32), float(action) + over * self.length**2, over, False, {}

    def render(self):
        return np.full((3, 5, 3), self.time, np.uint8)


def test_summary_against_numpy():
    scores, lengths = (3.0, -1.0, 10.5, 0.25), (4, 8, 15, 16)
    assert Evaluation("task", scores, lengths, 123).summary() == {
        "task": "task",
        "episodes": 4,
        "mean": pytest.approx(np.mean(scores)),
        "std": pytest.approx(np.std(scores, ddof=1)),
        "min": -1.0,
        "max": 10.5,
        "lengths_mean": pytest.approx(np.mean(lengths)),
        "checkpoint_env_steps": 123,
    }
    assert Evaluation("task", (2.0,), (4,), 0).summary()["std"] == 0.0
    assert str(Evaluation("task", (1.0, 2.0), (4, 5), 1234)) == (
        "task: mean return 1.5 (std 0.7, min 1.0, max 2.0) over 2 episodes of 4 steps on average, after 1,234 env "
        "steps of training"
    )


def test_an_episode_is_the_same_however_many_are_played_beside_it():
    puppets = {count: Puppet() for count in (1, 2, 5, 7, 20)}
    results = {
        count: evaluation.evaluate(puppet, Seeded, 7, seed=3, parallel=count, checkpoint_env_steps=5)
        for count, puppet in puppets.items()
    }
    first = results[1]
    assert all(result == first for result in results.values())
    assert len(set(first.lengths)) > 2 and first.checkpoint_env_steps == 5
    assert first.scores == tuple(float(length + length**2) for length in first.lengths)
    # The policy draws for the same episodes and times, the last observation of each included.
    times = {(3, episode, time) for episode, length in enumerate(first.lengths) for time in range(length + 1)}
    assert all(set(puppet.calls) == times for puppet in puppets.values())
    assert len(puppets[1].calls) == len(times)
    # Fewer episodes are the first ones, and another seed gives others.
    assert evaluation.evaluate(Puppet(), Seeded, 4, seed=3).lengths == first.lengths[:4]
    assert evaluation.evaluate(Puppet(), Seeded, 7, seed=4).lengths != first.lengths


class Endless(Seeded):
    """Ends no episode but those whose seed makes them short."""

    def step(self, action):
        obs, reward, over, truncated, info = super().step(action)
        return obs, reward, over and self.length < 4, truncated, info


def test_an_episode_without_an_end_is_cut_off_and_counted():
    puppet = Puppet()
    puppet.config = run_config("unused", "run.eval_steps=5")
    found = evaluation.evaluate(puppet, Endless, 7, seed=3)
    whole = evaluation.evaluate(Puppet(), Seeded, 7, seed=3)
    long = [length >= 4 for length in whole.lengths]
    assert whole.cut == 0
    assert found.cut == sum(long) > 0
    assert [length == 5 for length in found.lengths] == long
    assert f"{sum(long)} did not end and were cut off (run.eval_steps)" in str(found)
    assert found.summary()["cut"] == sum(long)


@pytest.mark.parametrize("rows", [1, 3, 7, 9])
def test_episodes_in_rows_of_one_object_are_those_of_single_environments(rows):
    class Ongoing(Endless):
        def reset(self, *, seed=None, options=None):  # A row goes on after its episode: nothing looks at it.
            return super().reset(seed=seed or 0)

    made = []

    def make_rows(num_envs):
        made.append(num_envs)
        return gymnasium.vector.SyncVectorEnv([Ongoing] * num_envs)

    cut = run_config("unused", "run.eval_steps=5")
    puppets = Puppet(), Puppet()
    for puppet in puppets:
        puppet.config = cut
    single = evaluation.evaluate(puppets[0], Endless, 7, seed=3)
    assert evaluation.evaluate(puppets[1], make_rows, 7, seed=3, parallel=rows) == single
    assert made == [min(rows, 7)]
    # An object with any number of rows will do.
    assert evaluation.evaluate(puppets[1], lambda: make_rows(rows), 7, seed=3) == single


def test_keyword_arguments_of_the_config_reach_an_id_once():
    puppet = Puppet()
    puppet.config = run_config("unused", "task=gym_CartPole-v1", "env.kwargs.sutton_barto_reward=true")
    puppet.obs_spaces = {"vector": Space("vector", (4,))}
    made = evaluation.make_env(puppet.config)
    assert evaluation.evaluate(puppet, made, 1).scores == (-1.0,)
    assert evaluation.evaluate(puppet, "gym_CartPole-v1", 1).scores == (-1.0,)


def test_an_evaluation_has_no_more_environments_than_training():
    alive: list[int] = []
    most = 0

    class Counted(Seeded):
        def __init__(self):
            nonlocal most
            super().__init__()
            alive.append(id(self))
            most = max(most, len(alive))

        def close(self):
            alive.remove(id(self))

    workers = ("env.count=4", "env.workers=async", "env.per_worker=3")
    for overrides, expected in ((("env.count=2",), 2), (("env.count=2", "run.eval_envs=5"), 5), (workers, 3)):
        puppet, most = Puppet(), 0
        puppet.config = run_config("unused", *overrides)
        evaluation.evaluate(puppet, Counted, 7)
        assert most == expected
        assert not alive


def test_what_an_environment_raises_is_told_in_a_sentence():
    class Broken(Seeded):
        def step(self, action):
            if self.time == 2:
                raise RuntimeError("the arm came off")
            return super().step(action)

    with pytest.raises(envs.EnvError, match=r"Broken, step 3 of episode .*: the arm came off .*fix the"):
        evaluation.evaluate(Puppet(), Broken, 7, seed=3)


def test_the_mode_is_taken_unless_asked_otherwise():
    puppet = Puppet()
    evaluation.evaluate(puppet, Seeded, 1)
    assert puppet.modes == {"mode"}
    evaluation.evaluate(puppet, Seeded, 1, mode="sample")
    assert puppet.modes == {"mode", "sample"}


def test_moments_are_those_of_one_episode_after_another():
    moments: list[Moment] = []
    result = evaluation.evaluate(Puppet(), Seeded, 3, seed=3, watch=moments.append)
    assert result == evaluation.evaluate(Puppet(), Seeded, 3, seed=3)
    expected = [(episode, time) for episode, length in enumerate(result.lengths) for time in range(length + 1)]
    assert [(moment.episode, moment.time) for moment in moments] == expected
    assert [int(moment.frame[0, 0, 0]) for moment in moments] == [time for _, time in expected]
    last = [moment for moment in moments if moment.time == result.lengths[moment.episode]]
    assert tuple(moment.score for moment in last) == result.scores
    assert [moment.reward for moment in last] == [length**2 + 1 for length in result.lengths]
    assert {moment.reward for moment in moments if moment.time == 0} == {0.0}


@pytest.mark.parametrize(
    ("frame", "said"),
    [(None, "None"), ("a map in text", "'a map in text'"), (np.zeros((4, 4), np.uint8), r"\[4, 4\] uint8")],
)
def test_what_is_no_frame_is_named(monkeypatch, frame, said):
    monkeypatch.setattr(Seeded, "render", lambda self: frame)
    with pytest.raises(envs.EnvError, match=rf"render\(\) returned {said}, expected uint8 \[height, width, 3\]"):
        evaluation.evaluate(Puppet(), Seeded, 1, watch=lambda moment: None)


def test_other_environments_are_refused():
    with pytest.raises(
        ValueError, match=r"observation 'vector' is vector \[2\], and was vector \[1\] when the agent was"
    ):
        evaluation.evaluate(Puppet(), lambda: Seeded(width=2), 1)
    with pytest.raises(ValueError, match="episodes=0, expected at least 1"):
        evaluation.evaluate(Puppet(), Seeded, 0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["/nowhere/at/all"], "There is no checkpoint in /nowhere/at/all/checkpoints. Give the directory of a run")],
)
def test_a_missing_logdir(argv, message, capsys):
    assert command.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"Error: {message}")
    assert err.count("\n") == 1
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        dreamer.load(argv[0])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--episodes", "0"], "--episodes is 0, expected 1 to 100000"),
        (["--episodes", "1000000000"], "--episodes is 1000000000, expected 1 to 100000"),
        (["--seed", "-1"], "--seed is -1, expected 0 to 4294967295"),
        (["--checkpoint", "last"], "'last' is not newest, best, all, or the number of a step"),
        (["--sample", "--mode", "mode"], "not allowed with argument"),
    ],
)
def test_wrong_arguments(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["anywhere", *argv])
    assert caught.value.code == 2 and message in capsys.readouterr().err


class Reaching(Seeded):
    """Short episodes fail, without saying so; every step costs 2."""

    def step(self, action):
        *answer, _ = super().step(action)
        over = answer[2]
        success = {"success": not over or self.time > 4} if self.length > 3 else {}
        return *answer, {"cost": 2, **success}


def test_success_and_cost_are_part_of_an_evaluation():
    result = evaluation.evaluate(Puppet(), Reaching, 12, seed=3)
    assert len(set(result.lengths)) > 3
    assert result.successes == tuple(float(length > 4) for length in result.lengths)
    assert result.successes_any == tuple(float(length > 3) for length in result.lengths)
    assert result.costs == tuple(2.0 * length for length in result.lengths)
    summary = result.summary()
    assert summary["success"] == np.mean(result.successes) and summary["cost"] == np.mean(result.costs)
    rates = f"success rate {summary['success']:.1%} (at any step {summary['success_any']:.1%})"
    assert f"{rates}, mean cost {summary['cost']:.4g} over 12 episodes" in str(result)
    assert result.table().columns == ("episode", "score", "length", "success", "success_any", "cost")
    figures = RunEvaluation("a", "newest", result).figures()
    assert figures["successes"] == list(result.successes)


def test_success_is_pooled_and_printed_whatever_environments_do_to_the_directory(tmp_path, monkeypatch, capsys):
    def score(logdir, *_, **__):
        assert pathlib.Path(logdir).parent == tmp_path
        monkeypatch.chdir("/")
        successes = (1.0, 0.0, 1.0, 1.0) if pathlib.Path(logdir).name == "a" else (0.0,) * 4
        return Evaluation("task", (1.0, 2.0, 3.0, 4.0), (1,) * 4, 7, successes, successes)

    monkeypatch.setattr(command, "_chosen", lambda *_: [("a", "newest"), ("b", "newest")])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "evaluate_logdir", score)
    assert command.main(["a", "b"]) == 0
    out = capsys.readouterr().out
    assert "success rate 75.0% (at any step 75.0%)" in out
    assert re.search(r"interquartile mean \[95 %\] +success\n", out)
    assert re.search(r"\na .* 75\.0%\nb .* 0\.0%\n2 runs of task .* 37\.5%\n", out)


@pytest.mark.parametrize(
    ("options", "mode"), [([], "mode"), (["--sample"], "sample"), (["--mode", "mode"], "mode")], ids=str
)
def test_the_command_scores_the_mode_unless_asked_otherwise(options, mode, tmp_path, monkeypatch, capsys):
    (tmp_path / "checkpoints" / "000000000010").mkdir(parents=True)
    modes = []

    def score(logdir, episodes, *, mode, **_):
        modes.append(mode)
        return Evaluation("task", (1.0,), (1,), 10)

    monkeypatch.setattr(command, "evaluate_logdir", score)
    assert command.main([str(tmp_path), *options]) == 0
    assert modes == [mode]


def scored(run, step, *scores):
    return RunEvaluation(run, step, Evaluation("task", scores, (1,) * len(scores), 7))


def test_runs_of_a_task_are_pooled_with_an_interval_that_knows_of_runs():
    one, two = scored("a", "newest", 0.0, 1.0, 0.0, 1.0), scored("b", "newest", 100.0, 101.0, 100.0, 101.0)
    (pooled,) = evaluation.pool([one, two])
    assert (pooled["task"], pooled["runs"], pooled["episodes"], pooled["mean"]) == ("task", ["a", "b"], 8, 50.5)
    # Drawn from all episodes alike, the interval would be fifty wide.
    assert 49.9 <= pooled["mean_interval"][0] < 50.5 < pooled["mean_interval"][1] <= 51.1
    assert evaluation.pool([one]) == []
    other = dataclasses.replace(two, evaluation=dataclasses.replace(two.evaluation, task="other"))
    assert evaluation.pool([one, other]) == []


def test_checkpoints_of_a_run_are_not_pooled_and_those_of_a_step_are():
    steps = [scored("a", 10, 1.0, 2.0), scored("a", 20, 3.0, 4.0), scored("b", 20, 5.0, 6.0)]
    (pooled,) = evaluation.pool(steps)
    assert (pooled["checkpoint_env_steps"], pooled["runs"], pooled["mean"]) == (20, ["a", "b"], 4.5)


def test_a_run_without_checkpoint_is_told_of_before_others_are_played(tmp_path, monkeypatch, capsys):
    (tmp_path / "a" / "checkpoints" / "000000000010").mkdir(parents=True)
    monkeypatch.setattr(command, "evaluate_logdir", lambda *_, **__: pytest.fail("was played"))
    assert command.main([str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert f"There is no checkpoint in {tmp_path}/b/checkpoints." in capsys.readouterr().err


def test_all_checkpoints_of_all_members(tmp_path, monkeypatch, capsys):
    root = tmp_path / "two"
    config = run_config(root, "population.seeds=2")
    root.mkdir()
    (root / "config.yaml").write_text(configs.to_yaml(config))
    for member, step in itertools.product(("seed_0", "seed_1"), (10, 20)):
        (root / member / "checkpoints" / f"{step:012d}").mkdir(parents=True)

    def score(logdir, episodes, *, checkpoint, seed, mode, video, overrides, task):
        assert (episodes, seed, mode, video, overrides, task) == (2, 5, "sample", None, [], "shop:make")
        return Evaluation("task", (float(checkpoint), float(logdir[-1])), (1, 1), checkpoint)

    monkeypatch.setattr(command, "evaluate_logdir", score)
    argv = [
        str(root),
        "--checkpoint",
        "all",
        "--episodes",
        "2",
        "--seed",
        "5",
        "--mode",
        "sample",
        "--env",
        "shop:make",
    ]
    assert command.main([*argv, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = [(f"{root}/seed_{member}", step) for member in (0, 1) for step in (10, 20)]
    assert [(one["run"], one["checkpoint_env_steps"]) for one in printed["runs"]] == expected
    assert [(one["checkpoint_env_steps"], one["mean"]) for one in printed["pooled"]] == [(10, 5.25), (20, 10.25)]
    assert command.main(argv) == 0
    assert re.search(r"\n2 runs of task +10 +4 +5\.25 \[0\.50, 10\.0\] ", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        command.main([*argv, "--video", "out.mp4"])
    assert "--video shows one checkpoint of one run, and 4 are given: choose one" in capsys.readouterr().err


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """A run that was trained for a few steps."""
    path = tmp_path_factory.mktemp("runs") / "one"
    dreamer.train(config=run_config(path, "run={env_steps: 6, eval_episodes: 0}"), quiet=True)
    return path


@pytest.mark.slow
def test_json(logdir, capsys):
    assert command.main([str(logdir), "--episodes", "4", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    summary = {"task", "episodes", "mean", "std", "min", "max", "lengths_mean", "checkpoint_env_steps"}
    more = {"run", "median", "iqm", "mean_interval", "median_interval", "iqm_interval", "scores", "lengths"}
    assert set(printed) == summary | more and len(printed["scores"]) == len(printed["lengths"]) == 4
    low, high = printed["mean_interval"]
    assert printed["mean"] == np.mean(printed["scores"]) and low <= printed["mean"] <= high
    assert (printed["task"], printed["episodes"], printed["checkpoint_env_steps"]) == ("probe_action", 4, 6)
    assert printed["lengths_mean"] == 1 and -1 <= printed["min"] <= printed["mean"] <= printed["max"] <= 1
    assert command.main([str(logdir), "--episodes", "4"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("probe_action: mean return ") and re.search(rf"\n{logdir} +6 +4 ", said)
    # The task has no pictures.
    assert command.main([str(logdir), "--episodes", "1", "--video", str(logdir / "out.mp4")]) == 2
    assert "Task 'probe_action' cannot render images" in capsys.readouterr().err
    assert command.main([str(logdir), "--episodes", "1", "env.python=no-such-python"]) == 2
    assert "env.python=no-such-python does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_a_loaded_agent_acts(logdir):
    agent = dreamer.load(logdir)
    saved = checkpoints.load(logdir)
    for name, value in checkpoints.state_arrays(agent).items():
        np.testing.assert_array_equal(value, saved.state[name])
    env = dreamer.make_env(agent.config)()
    assert isinstance(env, envs.Adapter) and env.obs_spaces == agent.obs_spaces
    obs, _ = env.reset(seed=0)
    batch = {key: value[None] for key, value in obs.items()}
    action, memory = agent.act(batch, agent.initial(1))
    again, _ = agent.act(batch, agent.initial(1))
    assert {key: value.shape for key, value in action.items()} == {"action": (1,)}
    assert all(np.array_equal(action[key], again[key]) for key in action)
    _, reward, terminated, _, _ = env.step({key: value[0] for key, value in action.items()})
    assert reward in (-1.0, 1.0) and terminated
    agent.act(batch, memory)
    evaluate: Any = dreamer.evaluate
    make = dreamer.make_env(agent.config)
    result = evaluate(dreamer.load(logdir), make, 12, seed=1, mode="sample")
    assert len(set(result.scores)) == 2
    # What the agent did before, and how many it plays at once, changes nothing; and it is not disturbed.
    before = agent.policy_steps
    for parallel in (1, 5):
        assert evaluate(agent, make, 12, seed=1, mode="sample", parallel=parallel) == result
    assert agent.policy_steps == before


@pytest.mark.slow
def test_a_video_shows_the_episodes(tmp_path, capsys):
    run = "run={env_steps: 4, eval_episodes: 0}"
    dreamer.train(config=run_config(tmp_path / "run", "task=probe_catch", run), quiet=True)
    path = tmp_path / "out.mp4"
    assert command.main([str(tmp_path / "run"), "--episodes", "1", "--video", str(path)]) == 0
    assert f"Video: {path}" in capsys.readouterr().out
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert frames == 29  # Of every observation, the last one included.
