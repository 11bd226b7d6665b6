"""Videos of Gymnasium's MuJoCo environments without a screen; those of DeepMind Control are in `test_dmc`."""

import ctypes.util
import os
import sys

import gymnasium
import numpy as np
import pytest

from dreamer.config import EnvConfig
from dreamer.envs import EnvError, make


class Simulated(gymnasium.Env):
    """Looks like one of MuJoCo, and says at the first frame which renderer was chosen."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    mujoco_renderer = None
    works = True

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def render(self):
        if not self.works:
            raise RuntimeError("no display")
        return os.environ["MUJOCO_GL"]


@pytest.fixture
def simulated(monkeypatch):
    monkeypatch.setitem(
        gymnasium.registry,
        "Simulated-v0",
        gymnasium.envs.registration.EnvSpec("Simulated-v0", lambda **kwargs: Simulated(**kwargs)),
    )
    for name in ("DISPLAY", "MUJOCO_GL"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "platform", "linux")
    return "gym_Simulated-v0"


@pytest.mark.parametrize(
    ("libraries", "expected"), [({"EGL", "OSMesa"}, "egl"), ({"OSMesa"}, "osmesa"), (set(), "disable")]
)
def test_the_renderer_is_chosen_where_frames_are_asked_for(monkeypatch, simulated, libraries, expected):
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: name if name in libraries else None)
    make(simulated, EnvConfig())
    assert os.environ["MUJOCO_GL"] == ""
    env = make(simulated, EnvConfig(), render=True)
    env.reset()
    assert env.render() == expected


def test_a_renderer_that_does_not_work_is_said_before_episodes_begin(monkeypatch, simulated):
    monkeypatch.setattr(Simulated, "works", False)
    with pytest.raises(EnvError, match=r"cannot render here \(RuntimeError: no display\)\. .*libegl1 .*libosmesa6"):
        make(simulated, EnvConfig(), render=True)


@pytest.mark.usefixtures("renderer")
def test_a_task_of_mujoco_is_seen():
    env = make("gym_HalfCheetah-v5", EnvConfig(), render=True)
    env.reset(seed=0)
    frame = env.render()
    assert frame.dtype == np.uint8 and frame.shape == (480, 480, 3)
    assert frame.std() > 5
    env.close()
