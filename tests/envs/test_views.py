"""What the agent sees of an environment: chosen keys."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dreamer import config as configs
from dreamer.config import Config, ConfigError, EnvConfig
from dreamer.envs import Adapter, EnvError, make
from dreamer.envs.check.examination import check
from dreamer.envs.native import native_env


class Shows(gymnasium.Env):
    """Gives the same observation forever."""

    action_space = spaces.Discrete(2)

    def __init__(self, space, obs=None, info=None):
        self.observation_space = space
        self.obs = space.sample() if obs is None else obs
        self.info = info or {}

    def reset(self, *, seed=None, options=None):
        return self.obs, self.info

    def step(self, action):
        return self.obs, 0.0, False, False, self.info


ROBOT = spaces.Dict(
    action_mask=spaces.MultiBinary(2),
    robot=spaces.Dict(arm=spaces.Box(-1, 1, (2,)), camera=spaces.Box(0, 255, (16, 16, 3), np.uint8)),
    dice=spaces.MultiDiscrete([2, 6]),
    pair=spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (1,)))),
    text=spaces.Text(5),
)


def see(space, obs=None, **options):
    return Adapter(Shows(space, obs), EnvConfig(**options), name="mine")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ignore": ("text", "robot.camera")}, "action_mask dice.0 dice.1 pair.0 pair.1 robot.arm"),
        ({"keys": ("robot.*",)}, "action_mask robot.arm robot.camera"),
        ({"keys": ("*.?",), "ignore": ("dice.0",)}, "action_mask dice.1 pair.0 pair.1"),
        ({"keys": ("robot.arm",), "ignore": ("action_mask",)}, "robot.arm"),
    ],
)
def test_patterns_choose_what_the_agent_sees(options, expected):
    obs = {**ROBOT.sample(), "action_mask": np.ones(2, np.int8)}
    env = see(ROBOT, obs, **options)
    found, _ = env.reset()
    assert list(env.obs_spaces) == list(env.observation_space) == sorted(found) == expected.split()
    for key in found.keys() & {"robot.arm", "robot.camera"}:
        np.testing.assert_array_equal(found[key], obs["robot"][key.removeprefix("robot.")])
    if "dice.1" in found:
        assert found["dice.1"] == obs["dice"][1]
    if "pair.1" in found:
        assert (found["pair.0"], found["pair.1"][0]) == (obs["pair"][0], obs["pair"][1][0])


def test_what_is_not_seen_is_not_checked_and_need_not_be_there():
    space = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Box(-1, 1, (2,)), c=spaces.Dict(d=spaces.Discrete(2)))
    good = {"a": np.zeros(2, np.float32)}
    for obs in (good, {**good, "b": "nothing", "c": None}):
        found, _ = see(space, obs, keys=("a",)).reset()
        assert list(found) == ["a"]
    with pytest.raises(EnvError, match=r"has the key \['e'\] that the space lacks"):
        see(space, {**good, "e": 0}, keys=("a",)).reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keys": ("robot",)}, r"'robot' in env\.keys fits no observation key, expected one of \['action_mask', 'dice"),
        ({"ignore": ("text", "sound")}, r"Environment mine: 'sound' in env\.ignore fits no observation key"),
        (
            {"keys": ("text",), "ignore": ("t*",)},
            r"env\.keys=\['text'\] and env\.ignore=\['t\*'\] leave nothing to see",
        ),
    ],
)
def test_patterns_that_leave_nothing_or_fit_nothing_are_refused(options, message):
    with pytest.raises(EnvError, match=message):
        see(ROBOT, **options)


def test_the_only_key_has_the_name_of_its_kind():
    assert list(make("gym_CartPole-v1", EnvConfig(keys=("vector",))).obs_spaces) == ["vector"]
    with pytest.raises(EnvError, match=r"'image' in env\.keys fits no observation key, expected one of \['vector'\]"):
        make("gym_CartPole-v1", EnvConfig(keys=("image",)))


def test_a_mask_that_is_ignored_is_named():
    ((key, sentence),) = see(ROBOT, ignore=("text", "action_mask")).take_notes()
    assert key == "action_mask" and "forbidden classes may be chosen" in sentence


def test_check_says_what_is_not_seen():
    config = configs.override(Config(), ["env.ignore=[robot.*, text]"])
    obs = {**ROBOT.sample(), "action_mask": np.ones(2, np.int8)}
    texts = [finding.text for finding in check(lambda: Shows(ROBOT, obs), config, steps=20)]
    assert "The agent does not see 'robot.arm', 'robot.camera', 'text', as env.keys and env.ignore say." in texts


@pytest.mark.parametrize(
    ("override", "patterns"),
    [("env.keys=*.pos", ("*.pos",)), ("env.keys=[image, robot.*]", ("image", "robot.*")), ("env.keys=[]", ())],
)
def test_patterns_are_a_list_or_one_text(override, patterns):
    assert configs.load([], [override]).env.keys == patterns


@pytest.mark.parametrize("override", ["env.keys=image", "env.ignore=image", "env.wrappers=module:function"])
def test_the_device_loop_has_no_views(override):
    with pytest.raises(ConfigError, match=r"env\.[a-z_]+=.* cannot be used with run\.loop=device: leave it out"):
        native_env(configs.load(["jax/catch"], [override]))
