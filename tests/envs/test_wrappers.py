"""Wrappers of users around environments: their order, place and mistakes; and masks from ``info``."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.toy_text.taxi import TaxiEnv

from dreamer import config as configs
from dreamer.config import ConfigError, EnvConfig
from dreamer.envs import Adapter, EnvError, VectorEnv, make
from dreamer.envs.check.examination import check
from dreamer.evaluate import make_env

HERE = __name__

CARTPOLE = "gym_CartPole-v1"


class Half(gymnasium.RewardWrapper):
    """Halves rewards, and counts its steps."""

    steps = 0

    def reward(self, reward):
        self.steps += 1
        return reward / 2


def cartpole():
    return gymnasium.make("CartPole-v1")


def minus_one(env):
    return gymnasium.wrappers.TransformReward(env, lambda reward: float(reward) - 1)


def short(env):
    return gymnasium.wrappers.TimeLimit(env, 3)


def plain(env):
    return env


def forgets(env):
    gymnasium.wrappers.TimeLimit(env, 3)


def fails(env):
    raise ValueError("no more licences")


def vector(env):
    return gymnasium.vector.SyncVectorEnv([lambda: env])


class Blind(gymnasium.Env):
    """Takes the place of an environment, and forgets how it renders."""

    def __init__(self, env):
        self.observation_space = env.observation_space
        self.action_space = env.action_space


def named(*names):
    return EnvConfig(wrappers=tuple(f"{HERE}:{name}" for name in names))


def first_reward(config, task=CARTPOLE):
    env = make(task, config)
    env.reset(seed=0)
    action = {key: np.zeros(space.shape, space.dtype) for key, space in env.action_spaces.items()}
    return env.step(action)[1]


def test_wrappers_are_called_in_their_order():
    assert first_reward(named()) == 1
    assert first_reward(named("minus_one", "Half")) == 0
    assert first_reward(named("Half", "minus_one", "plain")) == -0.5


@pytest.mark.parametrize("task", ["probe_catch", "jax_catch", f"{HERE}:cartpole", "dmc_cartpole_balance"])
def test_every_suite_has_them(task):
    assert first_reward(named("minus_one"), task) == pytest.approx(first_reward(named(), task) - 1)


@pytest.mark.parametrize("workers", ["sync", "async"])
def test_environments_of_every_kind_of_worker_have_them(workers, tmp_path, monkeypatch):
    (tmp_path / "short_episodes.py").write_text(
        "import gymnasium\n\n\ndef short(env):\n    return gymnasium.wrappers.TimeLimit(env, 3)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = EnvConfig(count=2, workers=workers, wrappers=("short_episodes:short",), rehearse=False)
    with VectorEnv(lambda: gymnasium.make("CartPole-v1"), config, 0) as vector:
        vector.reset()
        ends = [vector.step({"action": np.zeros(2, np.int32)}).is_last.tolist() for _ in range(3)]
    assert ends == [[False, False], [False, False], [True, True]]


def test_environments_that_render_have_them():
    config = configs.load([], [f"env.wrappers=[{HERE}:short, {HERE}:Half]"])
    env = make_env(config, render=True)()
    env.reset(seed=0)
    assert np.asarray(env.render()).dtype == np.uint8
    assert env.step({"action": 0})[1] == 0.5


def test_wrappers_of_gymnasium_make_pixels():
    pixels = ("gymnasium.wrappers:AddRenderObservation",)
    env = make(CARTPOLE, EnvConfig(kwargs={"render_mode": "rgb_array"}, wrappers=pixels, size=(64, 64)))
    obs, _ = env.reset(seed=0)
    assert obs["image"].shape == (64, 64, 3)
    assert obs["image"].std() > 10


def test_a_state_holds_that_of_the_wrappers():
    one, two = make(CARTPOLE, named("Half")), make(CARTPOLE, named("Half"))
    one.reset(seed=0)
    one.step({"action": 0})
    two.set_state(one.get_state())
    assert isinstance(two.env, Half) and two.env.steps == 1
    np.testing.assert_array_equal(two.step({"action": 1})[0]["vector"], one.step({"action": 1})[0]["vector"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("forgets", r"Wrapper '.*:forgets': got None as environment, expected a gymnasium\.Env: end the function with"),
        (
            "fails",
            r"Wrapper '.*:fails' around gym_CartPole-v1 cannot be made: ValueError: no more licences \(.*\.py:\d+",
        ),
        ("vector", r"Wrapper '.*:vector': got .* \(a vector of environments\).*return one environment"),
        ("Halve", r"Wrapper '.*:Halve' cannot be made: .* has no 'Halve'\. Did you mean 'Half'"),
        ("CARTPOLE", r"Wrapper '.*:CARTPOLE' names a str, expected a function that returns an environment"),
    ],
)
def test_wrappers_that_do_something_else_are_named(name, message):
    with pytest.raises(EnvError, match=message):
        make(CARTPOLE, named(name))


def test_a_wrapper_that_forgets_how_to_render_is_named():
    assert make(CARTPOLE, named("Blind")).render_mode is None
    with pytest.raises(EnvError, match=r"render_mode=None, expected 'rgb_array' as before: derive them from"):
        make(CARTPOLE, named("Blind"), render=True)


def test_a_module_that_does_not_exist_is_named():
    with pytest.raises(EnvError, match="Wrapper 'nowhere:wrap' cannot be made: importing nowhere failed with Module"):
        make(CARTPOLE, EnvConfig(wrappers=("nowhere:wrap",)))
    with pytest.raises(ConfigError, match=r"env\.wrappers=TimeLimit cannot be used: expected package\.module:function"):
        configs.load([], ["env.wrappers=TimeLimit"])


class Moves(gymnasium.Env):
    """Reports the prepared masks, one after another, and ends with the last."""

    observation_space = spaces.Box(-9, 9, (3,))

    def __init__(self, masks, action_space=None):
        self.action_space = action_space or spaces.Discrete(3)
        self.masks = masks

    def look(self):
        mask = self.masks[self.time]
        return np.full(3, self.time, np.float32), {} if mask is None else {"action_mask": np.array(mask)}

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self.look()

    def step(self, action):
        self.time += 1
        obs, info = self.look()
        return obs, 1.0, self.time == len(self.masks) - 1, False, info


def masked(masks, action_space=None, **options):
    return Adapter(Moves(masks, action_space), EnvConfig(mask_from_info=True, **options), name="moves")


@pytest.mark.parametrize("last", [[0, 0, 0], None])
def test_masks_in_info_are_observed(last):
    env = masked([[1, 0, 1], [True, True, False], last])
    assert sorted(env.obs_spaces) == ["action_mask", "vector"]
    obs, _ = env.reset()
    assert obs["action_mask"].tolist() == [1, 0, 1]
    obs, *_ = env.step({"action": 0})
    assert (obs["action_mask"].tolist(), obs["vector"].tolist()) == ([1, 1, 0], [1, 1, 1])
    obs, _, terminated, *_ = env.step({"action": 0})
    assert terminated
    assert env.take_notes() == []


def test_a_repeat_stops_where_the_mask_in_info_forbids_it():
    env = masked([[1, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]], repeat=4)
    env.reset()
    assert env.step({"action": 0})[4]["env_steps"] == 2


def test_masks_of_several_actions_of_one_key_are_observed():
    env = masked([[[1, 0], [0, 1]]] * 3, spaces.MultiDiscrete([2, 2]))
    assert env.reset()[0]["action_mask"].tolist() == [[1, 0], [0, 1]]


def test_the_masks_of_taxi():
    env, again = (Adapter(TaxiEnv(), EnvConfig(mask_from_info=True)) for _ in range(2))
    obs, info = env.reset(seed=0)
    assert obs["action_mask"].tolist() == info["action_mask"].tolist()
    assert 0 < obs["action_mask"].sum() < 6
    again.set_state(env.get_state())
    action = {"action": np.int32(obs["action_mask"].argmax())}
    assert env.step(action)[0]["discrete"] == again.step(action)[0]["discrete"]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            [[1, 1]],
            r"Environment moves, step 0 of episode 1: observation key 'action_mask' has shape \[2\], expected \[3\]",
        ),
        ([[0, 0, 0]], r"'action_mask' forbids every class of action key 'action'"),
        ([[1, 2, 0]], r"'action_mask' holds class 2 at index \[1\], expected 0 to 1"),
        ([None], r"Environment moves: info of reset has no 'action_mask', expected one after every reset and step"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, message):
    with pytest.raises(EnvError, match=message):
        masked([*masks, [1, 1, 1]]).reset()


@pytest.mark.parametrize(
    ("space", "keys"),
    [(spaces.Box(-1, 1, (2,)), r"\[\]"), (spaces.MultiDiscrete([2, 3]), r"\['action\.0', 'action\.1'\]")],
)
def test_masks_need_one_discrete_action(space, keys):
    with pytest.raises(EnvError, match=f"needs exactly one discrete action key, got {keys}"):
        masked([[1, 1, 1]], space)


def test_a_mask_in_info_that_is_not_used_is_said():
    findings = list(check(lambda: Moves([[1, 1, 1]] * 9), configs.Config(), steps=20))
    (sentence,) = [finding.text for finding in findings if "action_mask" in finding.text]
    assert "info['action_mask'] is not used: with env.mask_from_info=true, the agent chooses only what" in sentence


def test_answers_that_are_no_answers_are_refused_as_without_masks():
    env = masked([[1, 1, 1]] * 3)
    env.env.unwrapped.step = lambda action: (np.zeros(3, np.float32), 0.0)
    env.reset()
    with pytest.raises(EnvError, match="step returned a tuple of 2 values, expected Gymnasium's tuple"):
        env.step({"action": 0})
