"""Memory Maze against the library itself: images, rewards, flags and seeds."""

import importlib
import logging
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("dreamer.envs.suites.memory_maze", reason="needs the extra memory")
from dreamer.config import EnvConfig
from dreamer.envs import Adapter, EnvError, make
from dreamer.envs.suites import memory_maze
from dreamer.envs.suites.dmc import DMEnv
from dreamer.envs.suites.memory_maze import tasks
from dreamer.types import Space

FORWARD, LEFT = 1, 2


@pytest.mark.slow
@pytest.mark.usefixtures("renderer")
def test_same_as_the_raw_environment_up_to_the_time_limit():
    """Golden: scripted actions, every field of every step, in a maze of two seconds; the real limits are long."""
    sys.modules.setdefault("memory_maze", memory_maze._PACKAGE)
    build = importlib.import_module("memory_maze.tasks")._memory_maze

    def load(seed):
        return build(9, 3, 2, seed=seed, image_only_obs=True)

    raw, env = load(3), Adapter(DMEnv(load, repeat=3), EnvConfig(repeat=3))
    assert env.obs_spaces == {"image": Space("image", (64, 64, 3))}
    assert env.action_spaces == {"action": Space("discrete", (), 6)}
    obs, _ = env.reset(seed=3)
    images = [obs["image"]]
    np.testing.assert_array_equal(obs["image"], raw.reset().observation)
    for action, repeat in ((FORWARD, 3), (LEFT, 3), (FORWARD, 2)):
        steps = [raw.step(action) for _ in range(repeat)]
        obs, reward, terminated, truncated, info = env.step({"action": action})
        np.testing.assert_array_equal(obs["image"], steps[-1].observation)
        assert (reward, info["env_steps"]) == (sum(step.reward for step in steps), repeat)
        assert (terminated, truncated) == (False, steps[-1].last())
        images.append(obs["image"])
    assert truncated and len(np.unique(images, axis=0)) == 4
    raw.close()
    env.close()
    env.close()


@pytest.mark.slow
@pytest.mark.usefixtures("renderer")
def test_seeds_decide_the_maze():
    env = make("memory_maze_9x9", EnvConfig(), render=True)
    one, other, again = (env.reset(seed=seed)[0]["image"] for seed in (1, 2, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert env.render().shape == (240, 320, 3)
    env.close()


@pytest.mark.slow
@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize(
    ("task", "steps"), [("maze_9x9", 1000), ("maze_11x11", 2000), ("maze_13x13", 3000), ("maze_15x15", 4000)]
)
def test_larger_mazes_last_longer(task, steps):
    env = make(f"memory_{task}", EnvConfig())
    assert env.obs_spaces == {"image": Space("image", (64, 64, 3))}
    inner: Any = env.unwrapped
    assert round((inner._env._time_limit + 1e-3) * 4) == steps
    env.close()


def test_the_warning_at_every_reset_is_dropped():
    def record(message):
        return logging.LogRecord("absl", logging.WARNING, "", 0, message, None, None)

    assert not memory_maze._is_relevant(record("Cannot set velocity on Entity with no free joint."))
    assert memory_maze._is_relevant(record("Something else"))


def test_names():
    assert tasks() == ["maze_11x11", "maze_13x13", "maze_15x15", "maze_9x9"]
    with pytest.raises(EnvError, match=r"no task 'memory_maze_10x10'.*Did you mean 'memory_maze_1"):
        make("memory_maze_10x10", EnvConfig())


def test_without_a_renderer_the_error_names_the_package(monkeypatch):
    def render(self, *args, **kwargs):
        raise RuntimeError("no display")

    from dm_control import mujoco

    monkeypatch.setattr(mujoco.Physics, "render", render)
    with pytest.raises(EnvError, match=r"cannot render here \(RuntimeError: no display\)\..*libegl1"):
        make("memory_maze_9x9", EnvConfig())
