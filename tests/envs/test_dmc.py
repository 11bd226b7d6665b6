"""DeepMind Control against the library itself: every field of every step, pixels, seeds, and what cannot render."""

import ctypes.util
import os
import subprocess
import sys
from typing import Any

import dm_env
import numpy as np
import pytest
from dm_env import specs

from dreamer.config import DMCConfig, EnvConfig
from dreamer.envs import Adapter, EnvError, make
from dreamer.envs.suites.dmc import DMEnv, choose_renderer, tasks
from dreamer.types import Space

choose_renderer()
from dm_control import mujoco, suite  # noqa: E402 (reads the choice)
from dm_control.suite import lqr_solver  # noqa: E402


class Play:
    """The library's own environment, stepped by hand."""

    def __init__(self, domain, task, seed):
        self.env = suite.load(domain, task, task_kwargs={"random": seed})
        spec = self.env.action_spec()
        limited = spec.maximum < 1e10
        self.low, self.high = np.where(limited, spec.minimum, -1), np.where(limited, spec.maximum, 1)

    def step(self, action, repeat):
        """Observation, sum of rewards, terminated, truncated and the number of times the action was applied."""
        scaled = self.low + (np.clip(action, -1, 1).astype(np.float64) + 1) / 2 * (self.high - self.low)
        rewards = []
        while True:
            step = self.env.step(scaled)
            rewards.append(step.reward)
            if step.last() or len(rewards) == repeat:
                break
        over = step.step_type == dm_env.StepType.LAST
        return step.observation, sum(rewards), over and step.discount == 0, over and step.discount != 0, len(rewards)


def assert_same_obs(obs, native):
    keys = {key for key, value in native.items() if np.size(value)}
    assert obs.keys() - {"image"} == keys
    for key in keys:
        assert obs[key].dtype == np.float32 and obs[key].ndim == 1
        # Scaling rounds differently in the two, in the last bits of float64.
        np.testing.assert_allclose(obs[key], np.ravel(native[key]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("domain", "task", "repeat", "steps"),
    [
        ("cartpole", "swingup", 3, 340),  # 1000 is no multiple of 3
        ("cartpole", "swingup", 1, 30),
        ("quadruped", "walk", 2, 20),  # bounds other than [-1, 1]
        ("reacher", "easy", 2, 502),
        ("walker", "walk", 1, 30),  # a scalar observation
    ],
)
def test_same_as_the_raw_environment(domain, task, repeat, steps):
    """Golden: scripted actions, over the end of the episode where it is reached."""
    raw, env = Play(domain, task, 3), make(f"dmc_{domain}_{task}", EnvConfig(repeat=repeat))
    rng = np.random.default_rng(0)
    obs, info = env.reset(seed=3)
    assert_same_obs(obs, raw.env.reset().observation)
    assert info == {"env_steps": 0}
    total, ends = 0, 0
    for _ in range(steps):
        action = rng.uniform(-1.2, 1.2, raw.low.shape).astype(np.float32)
        native, *expected = raw.step(action, repeat)
        obs, reward, terminated, truncated, info = env.step({"action": action})
        assert_same_obs(obs, native)
        assert reward == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
        assert [terminated, truncated, info["env_steps"]] == expected[1:]
        total += info["env_steps"]
        if truncated:
            ends += 1
            assert total == 1000
            assert_same_obs(env.reset()[0], raw.env.reset().observation)
    assert ends == (steps * repeat >= 1000)
    env.close()


def test_a_discount_of_zero_is_terminal():
    """The only tasks of the suite that end on their own are those of lqr, once the optimal policy has solved them."""
    raw, env = Play("lqr", "lqr_2_1", 1), make("dmc_lqr_lqr_2_1", EnvConfig(repeat=10))
    _, gain, _ = lqr_solver.solve(raw.env)
    raw.env.reset()
    env.reset(seed=1)
    terminated = False
    while not terminated:
        action = (gain @ raw.env.physics.state()).astype(np.float32)
        native, *expected = raw.step(action, 10)
        obs, reward, terminated, truncated, info = env.step({"action": action})
        assert_same_obs(obs, native)
        assert [reward, terminated, truncated, info["env_steps"]] == [pytest.approx(expected[0]), *expected[1:]]
    assert not truncated and info["env_steps"] < 10


def test_seeds_decide_all_episodes():
    def episodes(seed):
        env = make("dmc_reacher_easy", EnvConfig())
        return np.stack([env.reset(seed=s)[0]["position"] for s in (seed, None, None)])

    np.testing.assert_array_equal(episodes(1), episodes(1))
    first, other, fresh, again = episodes(1), episodes(2), episodes(None), episodes(None)
    assert len(np.unique(np.concatenate([first, other, fresh, again]), axis=0)) == 12


def test_spaces_are_those_of_the_task():
    env = make("dmc_quadruped_walk", EnvConfig())
    assert list(env.obs_spaces) == ["egocentric_state", "force_torque", "imu", "torso_upright", "torso_velocity"]
    assert env.obs_spaces["torso_upright"] == Space("vector", (1,))
    assert env.action_spaces == {"action": Space("continuous", (12,))}
    native: Any = env.unwrapped.action_space
    assert native.low.min() == -1 and native.high.max() == 1.1
    with pytest.raises(EnvError, match=r"no task 'dmc_walker_wlak'.*Did you mean 'dmc_walker_walk'"):
        make("dmc_walker_wlak", EnvConfig())
    assert {"cartpole_swingup", "humanoid_CMU_run", "quadruped_walk"} <= set(tasks())


@pytest.mark.slow
@pytest.mark.parametrize("task", tasks())
def test_every_task_fits_the_adapter(task):
    env = make(f"dmc_{task}", EnvConfig())
    assert env.observation_space.contains(env.reset(seed=0)[0])
    env.action_space.seed(0)
    for _ in range(3):
        obs, *_ = env.step(env.action_space.sample())
        assert env.observation_space.contains(obs)
    assert env.unwrapped.observation_space.contains(env.unwrapped.reset(seed=1)[0])
    env.close()


# --------------------------------------------------------------------------------------------------------------------
# Pixels


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize(("domain", "task", "camera"), [("cartpole", "balance", 0), ("quadruped", "walk", 2)])
def test_pixels_are_the_view_of_the_same_state(domain, task, camera):
    config = EnvConfig(repeat=2, dmc=DMCConfig("pixels", (48, 64)))
    raw, env = Play(domain, task, 5), make(f"dmc_{domain}_{task}", config, render=True)
    assert env.obs_spaces == {"image": Space("image", (48, 64, 3))}
    raw.env.reset()
    obs, _ = env.reset(seed=5)
    action = np.full(raw.low.shape, 0.7, np.float32)
    for _ in range(2):
        assert obs["image"].dtype == np.uint8 and obs["image"].std() > 5
        np.testing.assert_array_equal(obs["image"], raw.env.physics.render(48, 64, camera_id=camera))
        np.testing.assert_array_equal(env.render(), raw.env.physics.render(240, 320, camera_id=camera))
        raw.step(action, 2)
        obs, *_ = env.step({"action": action})
    env.close()
    env.close()


@pytest.mark.usefixtures("renderer")
def test_both_kinds_are_observed_with_the_chosen_camera():
    raw, env = Play("cartpole", "balance", 5), make("dmc_cartpole_balance", EnvConfig(dmc=DMCConfig("both", camera=1)))
    assert list(env.obs_spaces) == ["image", "position", "velocity"]
    native = raw.env.reset().observation
    obs, _ = env.reset(seed=5)
    assert_same_obs(obs, native)
    np.testing.assert_array_equal(obs["image"], raw.env.physics.render(64, 64, camera_id=1))


@pytest.mark.parametrize(("obs", "renders"), [("proprio", 0), ("pixels", 4), ("both", 4)])
def test_only_pixels_are_rendered_and_only_once_a_step(monkeypatch, obs, renders):
    sizes = []

    def render(self, height, width, camera_id):
        sizes.append((height, width))
        return np.zeros((height, width, 3), np.uint8)

    monkeypatch.setattr(mujoco.Physics, "render", render)
    env = make("dmc_cartpole_balance", EnvConfig(repeat=5, dmc=DMCConfig(obs, (8, 9))))
    env.reset(seed=0)
    for _ in range(3):
        env.step({"action": np.zeros(1, np.float32)})
    assert sizes == [(8, 9)] * renders


def test_without_a_renderer_the_error_names_the_package(monkeypatch):
    def render(self, *args, **kwargs):
        raise RuntimeError("no display")

    monkeypatch.setattr(mujoco.Physics, "render", render)
    env = make("dmc_cartpole_balance", EnvConfig(dmc=DMCConfig("pixels")), render=True)
    message = r"cannot render here \(RuntimeError: no display\)\. .*libegl1 .*MUJOCO_GL=egl.*libosmesa6.*obs=proprio\.$"
    for call in (env.reset, env.render):
        with pytest.raises(EnvError, match=message):
            call()


@pytest.mark.usefixtures("renderer")
@pytest.mark.parametrize(
    ("dmc", "message"),
    [
        (DMCConfig("pixels", camera=7), r"camera 7 at 64 x 64 pixels: model has 2 fixed cameras.*Set env\.dmc\.camera"),
        (DMCConfig("pixels", (64, 9000)), r"camera 0 at 64 x 9000 pixels: Image width 9000 > framebuffer width 640\."),
    ],
)
def test_views_that_no_camera_can_render_are_refused(dmc, message):
    with pytest.raises(EnvError, match=message):
        make("dmc_cartpole_balance", EnvConfig(dmc=dmc)).reset()


def test_a_renderer_that_does_not_work_leaves_the_rest_usable():
    """A library without a driver, as in many containers, must not break tasks without images."""
    code = """if True:
        import os
        from dreamer.config import DMCConfig, EnvConfig
        from dreamer.envs import EnvError, make
        print(len(make("dmc_cartpole_balance", EnvConfig()).reset(seed=0)[0]), os.environ["MUJOCO_GL"])
        try:
            make("dmc_cartpole_balance", EnvConfig(dmc=DMCConfig("pixels"))).reset()
        except EnvError as error:
            print("libegl1" in str(error))
    """
    env = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "DISPLAY", "PYOPENGL_PLATFORM")}
    env |= {"MUJOCO_EGL_DEVICE_ID": "99", "PYTHONPATH": os.pathsep.join(["", *sys.path])}
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], env=env, capture_output=True, text=True)
    assert (result.stdout, result.returncode) == ("2 disable\nTrue\n", 0), result.stderr


@pytest.mark.parametrize(
    ("environ", "libraries", "expected"),
    [
        ({}, {"EGL", "OSMesa"}, "egl"),
        ({}, {"OSMesa"}, "osmesa"),
        ({}, set(), "disable"),
        ({"DISPLAY": ":0"}, {"EGL"}, ""),
        ({"MUJOCO_GL": "osmesa"}, {"EGL"}, "osmesa"),
    ],
)
def test_the_renderer_is_chosen_only_without_a_screen(monkeypatch, environ, libraries, expected):
    for name in ("DISPLAY", "MUJOCO_GL"):
        monkeypatch.setenv(name, environ.get(name, ""))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: name if name in libraries else None)
    choose_renderer()
    assert os.environ["MUJOCO_GL"] == expected


# --------------------------------------------------------------------------------------------------------------------
# Any other dm_env.Environment


class Scripted(dm_env.Environment):
    """Episodes of three steps with the given specs, last discount and observation."""

    def __init__(self, observation_spec, observation, action_spec=None, discount=1.0):
        self._observation_spec, self._observation = observation_spec, observation
        self._action_spec = action_spec or specs.DiscreteArray(3)
        self._discount = discount
        self.actions: list = []
        self.closed = 0

    def reset(self):
        self._time = 0
        return dm_env.restart(self._observation)

    def step(self, action):
        self.actions.append(action)
        self._time += 1
        if self._time < 3:
            return dm_env.transition(0.5, self._observation)
        return dm_env.TimeStep(dm_env.StepType.LAST, 2.0, self._discount, self._observation)

    def observation_spec(self):
        return self._observation_spec

    def action_spec(self):
        return self._action_spec

    def close(self):
        self.closed += 1


FLOAT = specs.Array((2,), np.float64)


@pytest.mark.parametrize(("discount", "terminated"), [(0.0, True), (1.0, False), (0.5, False)])
def test_the_last_discount_says_why_an_episode_ended(discount, terminated):
    inner = Scripted({"x": FLOAT}, {"x": np.ones(2)}, discount=discount)
    env = Adapter(DMEnv(lambda seed: inner, repeat=2), EnvConfig(repeat=2))
    env.reset()
    assert env.step({"action": 1})[1:] == (1.0, False, False, {"env_steps": 2})
    assert env.step({"action": 2})[1:] == (2.0, terminated, not terminated, {"env_steps": 1})
    assert inner.actions == [1, 1, 2]


@pytest.mark.parametrize(
    ("spec", "value", "name", "space"),
    [
        (specs.BoundedArray((8, 8, 3), np.uint8, 0, 255), np.full((8, 8, 3), 7, np.uint8), "image", (8, 8, 3)),
        (specs.Array((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8), "image", (8, 8, 3)),
        (FLOAT, np.array([1e9, -2.0]), "vector", (2,)),
        (specs.BoundedArray((2,), np.float64, -0.1, [0.1, 1e300]), np.array([0.1, 9.0]), "vector", (2,)),
        (specs.Array((2,), np.int64), np.array([-5, 7]), "vector", (2,)),
        (specs.Array((), np.float32), np.float32(3), "vector", (1,)),
        (specs.BoundedArray((8, 8), np.uint8, 0, 255), np.zeros((8, 8), np.uint8), "vector", (8, 8, 1)),
    ],
)
@pytest.mark.parametrize("bare", [True, False])
def test_every_kind_of_observation(spec, value, name, space, bare):
    key = name if bare else "seen"
    inner = Scripted(*((spec, value) if bare else ({key: spec}, {key: value})))
    env = Adapter(DMEnv(lambda seed: inner), EnvConfig())
    assert {key: got.shape for key, got in env.obs_spaces.items()} == {key: space}
    for obs in (env.reset()[0], env.step({"action": 0})[0]):
        np.testing.assert_array_equal(obs[key], np.asarray(value, env.obs_spaces[key].dtype).reshape(space))
    assert env.unwrapped.observation_space.contains(env.unwrapped.reset()[0])


def test_booleans_and_classes_are_discrete():
    spec = {"touch": specs.Array((3,), bool), "mode": specs.DiscreteArray(4)}
    env = Adapter(DMEnv(lambda seed: Scripted(spec, {"touch": np.array([1, 0, 1], bool), "mode": 3})), EnvConfig())
    assert env.obs_spaces == {"mode": Space("discrete", (), 4), "touch": Space("discrete", (3,), 2)}
    assert {key: value.tolist() for key, value in env.reset()[0].items()} == {"mode": 3, "touch": [1, 0, 1]}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (specs.BoundedArray((2,), np.float32, [-0.1, 0.0], [0.3, 8.0]), [[-0.1, 0.0], [0.3, 8.0]]),
        (specs.BoundedArray((2,), np.float64, -1e10, [2.0, 1e10]), [[-1, -1], [1, 1]]),
        (specs.Array((1,), np.float64), [[-1], [1]]),
    ],
)
def test_actions_reach_the_bounds(spec, expected):
    inner = Scripted({"x": FLOAT}, {"x": np.ones(2)}, spec)
    env = Adapter(DMEnv(lambda seed: inner), EnvConfig())
    env.reset()
    for action in (-1.0, 1.0):
        env.step({"action": np.full(spec.shape, action, np.float32)})
    np.testing.assert_array_equal(inner.actions, np.array(expected, spec.dtype))
    assert inner.actions[0].dtype == spec.dtype


@pytest.mark.parametrize(
    ("observation", "action", "obs", "message"),
    [
        ({"name": specs.StringArray(())}, None, "proprio", r"'name' has the dtype object, expected numbers"),
        ({"x": FLOAT}, [FLOAT, FLOAT], "proprio", r"action spec .*expected a single array"),
        ({"image": FLOAT}, None, "both", r"has its own observation 'image', expected none"),
    ],
)
def test_specs_without_a_matching_space_are_refused(observation, action, obs, message):
    with pytest.raises(EnvError, match=message):
        DMEnv(lambda seed: Scripted(observation, {}, action), obs=obs)


def test_a_new_seed_makes_a_new_environment_and_closes_the_old():
    made: list = []

    def load(seed):
        made.append((seed, Scripted({"x": FLOAT}, {"x": np.ones(2)})))
        return made[-1][1]

    env = DMEnv(load)
    for seed in (None, 4, None, 5):
        env.reset(seed=seed)
    assert [seed for seed, _ in made] == [None, 4, 5]
    assert [inner.closed for _, inner in made] == [1, 1, 0]
    env.close()
    env.close()
    assert made[-1][1].closed == 1
