"""Environments in processes of another Python; here, it is the same one behind scripts that pretend to be others."""

import ast
import contextlib
import dataclasses
import gc
import pathlib
import re
import stat
import subprocess
import sys

import gymnasium
import numpy as np
import pytest

import dreamer
from dreamer import config as configs
from dreamer import envs
from dreamer.config import ConfigError, EnvConfig
from dreamer.envs import Adapter, EnvError, VectorEnv
from dreamer.envs.interpreter import ForeignEnv, messages
from dreamer.train import train

START = pathlib.Path(messages.__file__).with_name("start.py")

TASKS = """
import os, sys, time
import gymnasium, numpy as np
from gymnasium import spaces


class Count(gymnasium.Env):
    observation_space = spaces.Dict(
        place=spaces.Box(-np.inf, np.inf, (2,), np.float64), view=spaces.Box(0, 255, (8, 8, 3), np.uint8),
        hands=spaces.Tuple([spaces.Discrete(3, start=1), spaces.MultiBinary(2)]), kind=spaces.MultiDiscrete([2, 3]),
    )
    action_space = spaces.Dict(go=spaces.Box(-2, 2, (1,), np.float32), way=spaces.Discrete(4))

    def __init__(self, length=5, fails="", render_mode=None):
        self.length, self.fails, self.render_mode = length, fails, render_mode
        self.metadata = {"render_modes": ["rgb_array"]}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.place = 0, self.np_random.normal(size=2)
        return self.look(), {}

    def step(self, action):
        self.time += 1
        self.place = self.place + action["go"] * action["way"]
        if self.time == 3 and self.fails == "raises":
            raise KeyError("no such joint")
        if self.time == 3 and self.fails == "dies":
            os._exit(7)
        info = {"is_success": self.time > 2, "log": {"time": self.time}, "anything": object(), "cost": object()}
        return self.look(), self.place.sum(), False, self.time == self.length, info

    def look(self):
        if self.fails == "returns an object":
            return object()
        hands = (np.int64(1 + self.time % 3), np.array([0, 1], np.int8))
        view = np.full((8, 8, 3), self.time, np.uint8)
        return {"place": self.place, "view": view, "hands": hands, "kind": np.array([1, 2])}

    def render(self):
        return np.full((4, 6, 3), self.time, np.uint8)


def without_jax():
    for name in LIBRARIES:
        try:
            __import__(name)
        except ImportError as error:
            assert "refused" in str(error), error
        else:
            raise RuntimeError(name + " was imported")
    return Count()


class Masked(gymnasium.Env):
    observation_space = spaces.Dict(view=spaces.Box(0, 255, (8, 8, 3), np.uint8), words=spaces.Text(5))
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"view": np.full((8, 8, 3), 9, np.uint8), "words": "left"}, {"action_mask": np.array([1, 0, 1], np.int8)}


LIBRARIES = ["jax", "flax", "optax", "orbax", "chex", "distrax", "omegaconf", "yaml", "rich", "PIL"]


def incomplete():
    import a_package_that_is_only_elsewhere
"""

REFUSE = """
import sys
import gymnasium.vector
if hasattr(gymnasium.vector, "AutoresetMode"):
    del gymnasium.vector.AutoresetMode  # Gymnasium 0.29 has none.
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ImportError("refused " + name, name=name)
sys.meta_path.insert(0, Refuse())
"""


@pytest.fixture(autouse=True)
def _in_a_directory_with_tasks(tmp_path, monkeypatch):
    (tmp_path / "counting.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    sys.modules.pop("counting", None)


def script(tmp_path, text: str) -> str:
    path = tmp_path / "python"
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def pretender(tmp_path, lines: str) -> str:
    """A Python that runs some lines before what it is asked to run."""
    (tmp_path / "pretend.py").write_text(f"{lines}\nimport runpy, sys\nsys.argv[:] = sys.argv[1:]\n")
    with (tmp_path / "pretend.py").open("a") as file:
        file.write("runpy.run_path(sys.argv[0], run_name='__main__')\n")
    return script(tmp_path, f'#!/bin/sh\nexec {sys.executable} {tmp_path}/pretend.py "$@"\n')


def process_of(env: Adapter) -> subprocess.Popen:
    assert isinstance(env.env, ForeignEnv)
    return env.env._process


def play(config: EnvConfig, steps: int = 12):
    """What environments answer to fixed actions, and what they are in the middle."""
    answers = []
    with VectorEnv(lambda: envs.make("counting:Count", config), config, 3) as vector:
        answers.append(vector.reset())
        for time in range(steps):
            go = np.full((config.count, 1), time / steps, np.float32)
            answers.append(vector.step({"go": go, "way": np.full(config.count, time % 4, np.int32)}))
        return answers, vector.obs_spaces, vector.action_spaces, vector.state()


@pytest.mark.parametrize("workers", ["sync", "async"])
def test_what_another_python_plays_is_the_same_to_the_bit(workers):
    here = EnvConfig(count=2, repeat=2, time_limit=9, kwargs={"length": 7})
    there = dataclasses.replace(here, python=sys.executable, workers=workers)
    answers, *rest = play(here)
    others, *rest_there = play(there)
    assert rest[:2] == rest_there[:2]
    for one, other in zip(answers, others, strict=True):
        np.testing.assert_equal(other._asdict(), one._asdict())
    assert any(answer.log for answer in answers)
    assert rest_there[2]["members"][0]["new"] == rest[2]["members"][0]["new"]


def test_a_state_continues_in_another_process():
    config = EnvConfig(count=1, python=sys.executable)
    action = {"go": np.ones((1, 1), np.float32), "way": np.ones(1, np.int32)}
    with VectorEnv(lambda: envs.make("counting:Count", config), config, 0) as vector:
        vector.reset()
        vector.step(action)
        state = vector.state()
        expected = vector.step(action)
    with VectorEnv(lambda: envs.make("counting:Count", config), config, 1) as vector:
        vector.reset()
        vector.restore(state)
        np.testing.assert_equal(vector.step(action)._asdict(), expected._asdict())


def test_the_process_needs_no_library_of_the_trainer(tmp_path):
    names = {
        "jax",
        "flax",
        "optax",
        "orbax",
        "chex",
        "distrax",
        "omegaconf",
        "yaml",
        "rich",
        "packaging",
        "psutil",
        "PIL",
    }
    python = pretender(tmp_path, REFUSE.replace("{names}", repr(names)))
    env = envs.make("counting:without_jax", EnvConfig(python=python))
    env.reset(seed=0)
    env.close()


def test_an_agent_sees_of_another_python_what_it_would_see_of_this_one():
    config = EnvConfig(python=sys.executable, ignore=("words",), size=(4, 2), mask_from_info=True)
    with contextlib.closing(envs.make("counting:Masked", config)) as env:
        obs, _ = env.reset(seed=0)
    np.testing.assert_equal(obs, {"action_mask": np.array([1, 0, 1]), "view": np.full((4, 2, 3), 9, np.uint8)})


def test_an_unsupported_space_of_another_python_is_called_by_its_name():
    with pytest.raises(EnvError, match=r"Text.*env\.ignore=words"):
        envs.make("counting:Masked", EnvConfig(python=sys.executable))


def test_the_process_ends_with_its_environment():
    env = envs.make("counting:Count", EnvConfig(python=sys.executable))
    process = process_of(env)
    assert process.poll() is None
    env.close()
    assert process.returncode == 0
    forgotten = envs.make("counting:Count", EnvConfig(python=sys.executable))
    process = process_of(forgotten)
    del forgotten
    gc.collect()
    assert process.wait(20) == 0


def test_frames_come_from_the_other_python():
    env = envs.make("counting:Count", EnvConfig(python=sys.executable), render=True)
    env.reset(seed=0)
    env.step({"go": np.ones(1), "way": np.int32(1)})
    assert (env.render() == np.ones((4, 6, 3), np.uint8)).all()
    env.close()


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("raises", r"step 3 of episode 1: KeyError: 'no such joint' \(counting.py:\d+\) \(environment number 0\)"),
        ("dies", r"step 3 of episode 1: ProcessEnded: its process \(.*\) ended without a word \(exit code 7\)"),
    ],
)
def test_failures_are_said_as_in_this_python_and_workers_replace_the_environment(fails, said):
    config = EnvConfig(count=1, python=sys.executable, kwargs={"length": 4, "fails": fails})
    action = {"go": np.zeros((1, 1), np.float32), "way": np.zeros(1, np.int32)}

    def steps(vector, number):
        vector.reset()
        return [vector.step(action) for _ in range(number)]

    with (
        VectorEnv(lambda: envs.make("counting:Count", config), config, 0) as vector,
        pytest.raises(EnvError, match=said),
    ):
        steps(vector, 3)
    heard: list[str] = []
    config = dataclasses.replace(config, workers="async")
    with VectorEnv(lambda: envs.make("counting:Count", config), config, 0, heard.append) as vector:
        answers = steps(vector, 4)
        assert vector.failures == 1
    assert answers[2].is_first[0]
    assert not answers[3].is_first[0]
    assert any(re.search(said, line) for line in heard), heard


def test_what_cannot_be_sent_is_named():
    env = envs.make("counting:Count", EnvConfig(python=sys.executable, kwargs={"fails": "returns an object"}))
    with pytest.raises(EnvError, match=r"gave a builtins\.object, which cannot be sent .* convert it"):
        env.reset(seed=0)
    env.close()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("import sys; sys.version_info = (3, 9, 1)", r"is Python 3\.9, expected 3\.10 or newer"),
        (
            "import numpy; numpy.__version__ = '1.19.5'",
            r"has version 1\.19\.5 of numpy, expected 1\.23 or newer: .*/python -m pip install 'numpy>=",
        ),
        (
            "import sys; sys.modules['gymnasium'] = None",
            r"has no usable gymnasium \(ModuleNotFoundError: .*\), expected .* -m pip install 'gymnasium>=",
        ),
    ],
)
def test_a_python_that_cannot_do_it_is_refused_in_one_sentence(tmp_path, lines, said):
    with pytest.raises(EnvError, match=said):
        envs.make("counting:Count", EnvConfig(python=pretender(tmp_path, lines)))


def test_what_is_no_python_is_refused_in_one_sentence(tmp_path):
    nothing = script(tmp_path, "#!/bin/sh\nexit 3\n")
    (tmp_path / "text").write_text("")
    for python, said in [
        (nothing, r"is no Python 3 \(exit code 3\), expected the path of one"),
        (str(tmp_path), r"is a directory, expected the path of a Python, such as .*/bin/python"),
        (str(tmp_path / "text"), "cannot be executed"),
        (str(tmp_path / "none"), "does not exist"),
    ]:
        with pytest.raises(EnvError, match=said):
            envs.make("counting:Count", EnvConfig(python=python))


def test_what_is_missing_is_installed_for_the_other_python(tmp_path):
    python = pretender(tmp_path, REFUSE.replace("{names}", "{'minigrid'}"))
    with pytest.raises(EnvError, match=f"Install it with: {python} -m pip install minigrid"):
        envs.make("minigrid_MiniGrid-Empty-5x5-v0", EnvConfig(python=python))
    with pytest.raises(EnvError, match="a_package_that_is_only_elsewhere"):
        envs.make("counting:incomplete", EnvConfig(python=python))
    with pytest.raises(EnvError, match="There is no task 'gym_CartPole-v7'"):
        envs.make("gym_CartPole-v7", EnvConfig(python=python))


def test_tasks_in_jax_and_functions_without_a_name_are_refused():
    with pytest.raises(EnvError, match=r"env\.python=python cannot be used with task 'jax_catch'"):
        envs.make("jax_catch", EnvConfig(python="python"))
    with pytest.raises(ConfigError, match=r"env\.python=python cannot be used with run.loop=device"):
        train(presets=["jax/catch"], overrides=["env.python=python", "logdir=none"])
    with pytest.raises(ConfigError, match=r"env\.python=python needs an environment that it can import by name"):
        train(env=lambda: None, overrides=["env.python=python", "logdir=none"])
    with pytest.raises(EnvError, match=r"env\.python=no-such-python does not exist"):
        train(env="counting:Count", overrides=["env.python=no-such-python", "logdir=none"], quiet=True)


def test_paths_are_kept_in_full_and_links_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "python").symlink_to(sys.executable)
    for given in ("~/venv/python", "venv/python", "./venv/../venv/python"):
        config = dreamer.load_config(["gym_small"], [f"env.python={given}"])
        assert config.env.python == str(tmp_path / "venv" / "python")
        assert configs.from_dict(configs.to_dict(config)) == config
    assert dreamer.load_config(["gym_small"], ["env.python=python3.10"]).env.python == "python3.10"


def test_the_files_of_the_process_can_be_read_by_older_pythons():
    ast.parse(START.read_text(), feature_version=(3, 6))
    package = START.parents[2]
    for path in [*package.glob("envs/**/*.py"), *package.glob("config/*.py"), package / "spaces.py"]:
        ast.parse(path.read_text(), feature_version=(3, 10))


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Box(np.array([0.0, -np.inf]), np.array([1.0, np.inf]), dtype=np.float64),
        gymnasium.spaces.Discrete(3, start=-1),
        gymnasium.spaces.MultiDiscrete([2, 5], dtype=np.int32, start=[1, 2]),
        gymnasium.spaces.MultiBinary((2, 3)),
        gymnasium.spaces.Dict(a=gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(2)]), b=gymnasium.spaces.Dict()),
    ],
)
def test_spaces_arrive_as_they_were(space):
    assert messages.build(messages.describe(space)) == space
