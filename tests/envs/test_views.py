"""What the agent sees of an environment: chosen keys, and images of any layout and size."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dreamer import config as configs
from dreamer.config import AtariConfig, Config, ConfigError, DMCConfig, EnvConfig, MiniGridConfig
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


@pytest.mark.parametrize(
    "override",
    [
        "env.keys=image",
        "env.wrappers=module:function",
        "env.size=[8,8]",
        "env.gray=true",
        "env.layout=hwc",
        "env.classes=vector",
    ],
)
def test_the_device_loop_has_no_views(override):
    with pytest.raises(ConfigError, match=r"env\.[a-z_]+=.* cannot be used with run\.loop=device: leave it out"):
        native_env(configs.load(["jax/catch"], [override]))


def image(*shape, dtype=np.uint8, high=255):
    return spaces.Box(0, high, shape, dtype)


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("hwc", (12, 16, 3)),
        ("hw", (12, 16)),
        ("chw", (3, 64, 48)),
        ("chw", (4, 64, 48)),
        ("chw", (12, 64, 64)),
        ("nhwc", (4, 64, 48, 3)),
        ("nchw", (4, 3, 64, 48)),
    ],
)
def test_layouts_are_recognised_and_every_pixel_is_in_its_place(axes, shape):
    env = see(image(*shape))
    found, _ = env.reset()
    source = env.env.obs
    sizes = {"n": 1, "c": 1, **dict(zip(axes, shape, strict=True))}
    assert env.obs_spaces["image"].shape == (sizes["h"], sizes["w"], sizes["n"] * sizes["c"])
    for frame, colour in np.ndindex(sizes["n"], sizes["c"]):
        place = {"n": frame, "c": colour, "h": 5, "w": 7}
        expected = source[tuple(place[axis] for axis in axes)]
        assert found["image"][5, 7, frame * sizes["c"] + colour] == expected


@pytest.mark.parametrize(
    ("layout", "declared", "expected"),
    [("auto", (10, 40, 40), (40, 40, 10)), ("hwc", (10, 40, 40), (10, 40, 40)), ("chw", (64, 8, 16), (8, 16, 64))],
)
def test_a_layout_that_is_named_is_obeyed(layout, declared, expected):
    env = see(image(*declared), layout=layout)
    assert env.obs_spaces["image"].shape == expected
    assert bool(env.take_notes()) == (layout == "auto")


def test_a_layout_that_was_guessed_is_said():
    ((_, sentence),) = see(image(4, 64, 48, 3)).take_notes()
    assert "mine: observation key 'image', uint8 [4, 64, 48, 3], is taken for an image with a stack of" in sentence
    assert "set env.layout to hwc or chw" in sentence and "the agent remembers" in sentence


@pytest.mark.parametrize(
    ("space", "layout", "values", "pixels"),
    [
        (image(16, 16, 3, dtype=np.float32, high=1), "hwc", [0, 0.5, 1, 1.5], [0, 128, 255, 255]),
        (image(3, 16, 16, dtype=np.float64, high=255), "chw", [0, 0.4, 254.6, -1], [0, 0, 255, 0]),
        (spaces.Box(-1, 1, (16, 16, 1), np.float32), "hwc", [-1, 0, 1, -2], [0, 128, 255, 0]),
        (image(16, 16, 4, dtype=np.int32, high=5), "hwc", [0, 1, 5, 7], [0, 51, 255, 255]),
    ],
)
def test_images_of_other_numbers_are_scaled_once_their_layout_is_named(space, layout, values, pixels):
    for value, pixel in zip(values, pixels, strict=True):
        env = see(space, np.full(space.shape, value, space.dtype), layout=layout)
        found, _ = env.reset()
        assert found["image"].dtype == np.uint8
        assert (found["image"] == pixel).all()
        assert env.outside == ({"image": 1} if value < space.low.min() or value > space.high.max() else {})
    assert see(space).obs_spaces["vector"].kind == "vector"


def test_floats_that_are_not_finite_are_refused_in_images_too():
    space = image(16, 16, 3, dtype=np.float32, high=1)
    with pytest.raises(EnvError, match="holds nan at index"):
        see(space, np.full(space.shape, np.nan, np.float32), layout="hwc").reset()


@pytest.mark.parametrize("shape", [(7, 7, 32), (16, 16), (20,)])
def test_other_arrays_of_floats_stay_vectors(shape):
    assert "vector" in see(spaces.Box(0, 1, shape), layout="hwc").obs_spaces


def test_images_are_resized_by_area():
    halves = np.zeros((8, 8, 3), np.uint8)
    halves[:, 1::2] = (100, 200, 40)
    found, _ = see(image(8, 8, 3), halves, size=(4, 4)).reset()
    assert found["image"].shape == (4, 4, 3)
    assert (found["image"] == (50, 100, 20)).all()


def test_gray_is_luma():
    colours = np.zeros((1, 3, 3), np.uint8)
    colours[0] = np.diag([255, 255, 255])
    found, _ = see(image(1, 3, 3), colours, gray=True, layout="hwc").reset()
    assert found["image"][0, :, 0].tolist() == [76, 150, 29]  # 0.299, 0.587 and 0.114 of 255


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_any_number_of_channels_can_be_resized(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 6, channels), np.uint8)
    found, _ = see(image(9, 6, channels), pixels, size=(3, 2)).reset()
    means = pixels.reshape(3, 3, 2, 3, channels).mean((1, 3))
    np.testing.assert_allclose(found["image"], means, atol=1)


def test_several_images_and_frames_are_all_redrawn():
    space = spaces.Dict(
        depth=image(20, 30, 1), front=image(20, 30, 3), lidar=spaces.Box(-1, 1, (2,)), stack=image(4, 3, 20, 30)
    )
    obs = space.sample()
    env = see(space, obs, size=(16, 16), gray=True)
    assert {key: space.shape for key, space in env.obs_spaces.items()} == {
        "depth": (16, 16, 1),
        "front": (16, 16, 1),
        "lidar": (2,),
        "stack": (16, 16, 4),
    }
    found, _ = env.reset()
    alone, _ = see(image(20, 30, 3), np.moveaxis(obs["stack"][2], 0, -1), size=(16, 16), gray=True).reset()
    np.testing.assert_array_equal(found["stack"][..., 2], alone["image"][..., 0])


def test_images_that_are_as_asked_for_are_left_alone():
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    env = see(image(8, 8, 3), pixels, size=(8, 8))
    np.testing.assert_array_equal(env.reset()[0]["image"], pixels)
    assert env.view.sources == {}


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (
            spaces.Box(-1, 1, (3,)),
            {"size": (64, 64)},
            r"env\.size=\[64, 64\] cannot be used, because none of .*\['vector'",
        ),
        (spaces.Box(-1, 1, (3,)), {"gray": True}, r"env\.gray=true cannot be used"),
        (image(8, 8, 2), {"gray": True}, r"none of the observation keys \['image'\] is an image of three colours"),
        (
            spaces.Dict(a=image(8, 8, 3), b=spaces.Discrete(2)),
            {"size": (64, 64), "ignore": ("a",)},
            r"none of the observation keys \['b'\] is an image",
        ),
    ],
)
def test_sizes_and_colours_need_an_image(space, options, message):
    with pytest.raises(EnvError, match=message):
        see(space, **options)


@pytest.mark.parametrize("size", ["[64]", "[0, 64]", "[64, 64, 3]", "large"])
def test_sizes_are_height_and_width(size):
    with pytest.raises(ConfigError, match=r"env\.size"):
        configs.load([], [f"env.size={size}"])


@pytest.mark.parametrize(
    ("task", "view", "own"),
    [
        (
            "atari_breakout",
            EnvConfig(size=(48, 80), gray=True),
            EnvConfig(atari=AtariConfig(size=(48, 80), gray=True)),
        ),
        (
            "minigrid_MiniGrid-Empty-5x5-v0",
            EnvConfig(minigrid=MiniGridConfig("image"), size=(48, 80)),
            EnvConfig(minigrid=MiniGridConfig("image", (48, 80))),
        ),
        (
            "dmc_cartpole_balance",
            EnvConfig(dmc=DMCConfig("pixels"), size=(48, 80)),
            EnvConfig(dmc=DMCConfig("pixels", (48, 80))),
        ),
    ],
)
@pytest.mark.usefixtures("renderer")
def test_suites_that_render_at_a_size_do_so(task, view, own):
    env = make(task, view)
    np.testing.assert_array_equal(env.reset(seed=0)[0]["image"], make(task, own).reset(seed=0)[0]["image"])
    assert env.view.sources == {}


def test_other_suites_are_resized():
    env = make("crafter_reward", EnvConfig(size=(32, 32), gray=True))
    full = make("crafter_reward", EnvConfig()).reset(seed=0)[0]["image"]
    luma = full.reshape(32, 2, 32, 2, 3).mean((1, 3)) @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(env.reset(seed=0)[0]["image"][..., 0], luma, atol=1.5)


def test_check_says_what_images_were_made_from():
    config = configs.override(Config(), ["env.size=[64,64]"])
    texts = [finding.text for finding in check(lambda: Shows(image(3, 84, 84)), config, steps=20)]
    assert texts[0] == (
        "Observation 'image': uint8 [64, 64, 3] (from uint8 [3, 84, 84], channels or frames first): convolutions, "
        "64x64 -> 4x4."
    )


GLYPHS = spaces.Dict(
    glyphs=spaces.Box(0, 5976, (21, 79), np.int16),
    chars=spaces.Box(0, 255, (21, 79), np.uint8),
    stats=spaces.Box(-(2**31), 2**31 - 2, (5,), np.int32),
    board=spaces.Box(-1, 1, (3, 3), np.int8),
    speed=spaces.Box(-1, 1, (3,), np.float32),
)


def test_whole_numbers_can_be_classes():
    obs = GLYPHS.sample()
    env = see(GLYPHS, obs, classes=("glyphs", "chars", "board"))
    assert {key: (space.kind, space.shape, space.classes) for key, space in env.obs_spaces.items()} == {
        "board": ("discrete", (3, 3), 3),
        "chars": ("discrete", (21, 79), 256),
        "glyphs": ("discrete", (21, 79), 5977),
        "speed": ("vector", (3,), 0),
        "stats": ("vector", (5,), 0),
    }
    found, _ = env.reset()
    np.testing.assert_array_equal(found["glyphs"], obs["glyphs"])
    np.testing.assert_array_equal(found["board"], obs["board"].astype(np.int32) + 1)
    assert env.take_notes() == []


def test_tables_of_whole_numbers_are_named():
    (_, board), (_, glyphs) = sorted(see(GLYPHS, ignore=("chars",)).take_notes())
    assert "'board', int8 [3, 3], is taken for quantities from -1 to 1: if these are classes, set env.classes=" in board
    assert "'glyphs', int16 [21, 79]" in glyphs


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "sp*",
            r"'sp\*' in env\.classes fits no observation key of whole numbers, expected one of \['board', '",
        ),
        ("stats", r"'stats' has the bounds -2147483648 and 2147483646, expected at most 65,536 classes"),
    ],
)
def test_classes_are_few_whole_numbers(pattern, message):
    with pytest.raises(EnvError, match=message):
        see(GLYPHS, classes=(pattern,))


def test_check_says_that_tables_are_embedded():
    config = configs.override(Config(), ["env.classes=glyphs", "env.keys=glyphs"])
    texts = [finding.text for finding in check(lambda: Shows(GLYPHS), config, steps=20)]
    assert texts[0] == ("Observation 'glyphs': int32 [21, 79], 5977 classes: embedded cell by cell, then convolutions.")
