"""Evaluation: statistics, a fair choice of episodes, the command line, and trained agents for other programs."""

import itertools
import json
from typing import Any

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest

import dreamer
from dreamer import checkpoint as checkpoints
from dreamer import envs
from dreamer import evaluate as evaluation
from dreamer.agent import Agent
from dreamer.checkpoint import CheckpointError
from dreamer.evaluate import Evaluation
from dreamer.types import Space, StoredLatent
from tests.small import run_config


class Puppet(Agent):
    """An agent without networks that always takes action 1."""

    def __init__(self):
        self.config = run_config("unused")
        self.obs_spaces = {"vector": Space("vector", (1,))}
        self.action_spaces = {"action": Space("discrete", (), 2)}
        self.modes = set()
        self.policy_steps = 0

    def initial(self, batch):
        return batch

    def policy(self, state, obs, is_first, mode="sample"):
        self.modes.add(mode)
        n = len(is_first)
        return {"action": np.ones(n, np.int32)}, state, StoredLatent(np.zeros((n, 1)), np.zeros((n, 1)))


class Fixed(gymnasium.Env):
    """Episodes of a length of its own; every step earns the action, the last one also the number of the episode."""

    def __init__(self, length, width=1):
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (width,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.length, self.width, self.episode, self.render_mode = length, width, 0, "rgb_array"

    def reset(self, *, seed=None, options=None):
        self.time = 0
        self.episode += 1
        return np.zeros(self.width, np.float32), {}

    def step(self, action):
        self.time += 1
        over = self.time == self.length
        return np.zeros(self.width, np.float32), float(action) + over * 100 * self.episode, over, False, {}

    def render(self):
        return np.full((3, 5, 3), self.time, np.uint8)


def maker(**kwargs):
    """Environments whose episodes take 1, 2, 3, ... steps."""
    lengths = itertools.count(1)
    return lambda: Fixed(next(lengths), **kwargs)


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


@pytest.mark.parametrize(("episodes", "members"), [(1, 1), (6, 6), (21, 7), (23, 1), (40, 20)])
def test_every_environment_plays_its_first_episodes_and_as_many_as_any_other(episodes, members):
    result = evaluation.evaluate(Puppet(), maker(), episodes, checkpoint_env_steps=5)
    each = episodes // members
    expected = [(length, number) for length in range(1, members + 1) for number in range(1, each + 1)]
    assert result.lengths == tuple(length for length, _ in expected)
    assert result.scores == tuple(float(length + 100 * number) for length, number in expected)
    assert result.checkpoint_env_steps == 5 and len(result.scores) == episodes


def test_the_mode_is_taken_unless_asked_otherwise():
    puppet = Puppet()
    evaluation.evaluate(puppet, maker(), 1)
    assert puppet.modes == {"mode"}
    evaluation.evaluate(puppet, maker(), 1, mode="sample")
    assert puppet.modes == {"mode", "sample"}


def test_frames_come_from_one_environment():
    frames: list[np.ndarray] = []
    result = evaluation.evaluate(Puppet(), lambda: Fixed(2), 2, on_frame=frames.append)
    assert result.lengths == (2, 2)
    # The last frame of an episode is shown while the environment waits for its reset.
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 1, 2, 0, 1]


def test_other_environments_are_refused():
    with pytest.raises(ValueError, match=r"The environment has observations .*\(2,\).* trained on .*\(1,\)"):
        evaluation.evaluate(Puppet(), maker(width=2), 1)
    with pytest.raises(ValueError, match="episodes=0, expected at least 1"):
        evaluation.evaluate(Puppet(), maker(), 0)


@pytest.mark.parametrize(
    ("shape", "expected"), [((64, 64), (128, 128)), ((201, 130), (202, 130)), ((3, 5), (130, 216))]
)
def test_frames_are_enlarged_to_even_sides(shape, expected):
    frame = np.arange(shape[0] * shape[1] * 3, dtype=np.uint8).reshape(*shape, 3)
    shown = evaluation.even(frame)
    assert shown.shape == (*expected, 3)
    np.testing.assert_array_equal(shown[0, 0], frame[0, 0])
    np.testing.assert_array_equal(shown[-1, -1], frame[-1, -1])


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["/nowhere/at/all"], "There is no checkpoint in /nowhere/at/all/checkpoints. Give the directory of a run")],
)
def test_a_missing_logdir(argv, message, capsys):
    assert evaluation.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"Error: {message}") and err.count("\n") == 1
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        dreamer.load(argv[0])


def test_a_wrong_number_of_episodes(capsys):
    with pytest.raises(SystemExit) as caught:
        evaluation.main(["anywhere", "--episodes", "0"])
    assert caught.value.code == 2 and "--episodes is 0, expected at least 1" in capsys.readouterr().err


@pytest.fixture(scope="module")
def logdir(tmp_path_factory):
    """A run that was trained for a few steps."""
    path = tmp_path_factory.mktemp("runs") / "one"
    dreamer.train(config=run_config(path, "run={env_steps: 6, eval_episodes: 0}"), quiet=True)
    return path


@pytest.mark.slow
def test_json(logdir, capsys):
    assert evaluation.main([str(logdir), "--episodes", "4", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"task", "episodes", "mean", "std", "min", "max", "lengths_mean", "checkpoint_env_steps"}
    assert (printed["task"], printed["episodes"], printed["checkpoint_env_steps"]) == ("probe_action", 4, 6)
    assert printed["lengths_mean"] == 1 and -1 <= printed["min"] <= printed["mean"] <= printed["max"] <= 1
    assert evaluation.main([str(logdir), "--episodes", "4"]) == 0
    assert capsys.readouterr().out.startswith("probe_action: mean return ")
    # The task has no pictures.
    assert evaluation.main([str(logdir), "--episodes", "1", "--video", str(logdir / "out.mp4")]) == 2
    assert "Task 'probe_action' cannot render images" in capsys.readouterr().err


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
    assert evaluate(dreamer.load(logdir), make, 4, seed=1) == evaluate(dreamer.load(logdir), make, 4, seed=1)


@pytest.mark.slow
def test_a_video_shows_the_episodes(tmp_path, capsys):
    run = "run={env_steps: 4, eval_episodes: 0}"
    dreamer.train(config=run_config(tmp_path / "run", "task=probe_catch", run), quiet=True)
    path = tmp_path / "out.mp4"
    assert evaluation.main([str(tmp_path / "run"), "--episodes", "1", "--video", str(path)]) == 0
    assert f"Video: {path}" in capsys.readouterr().out
    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert frames == 28
