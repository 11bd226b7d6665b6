"""Any nested space: names, shapes, dtypes and ranges of flat keys, and the way back."""

import math
from typing import Any

import gymnasium
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from gymnasium import spaces

from dreamer.config import EnvConfig
from dreamer.envs import Adapter, EnvError, make
from dreamer.types import Space, mask_keys


class Spaced(gymnasium.Env):
    """Random observations of a space; refuses actions that are not in the other; ends after five steps."""

    def __init__(self, observation_space, action_space):
        self.observation_space = observation_space
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.taken = []
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), (self.action_space, action)
        self.taken.append(action)
        return self.observation_space.sample(), 0.0, False, len(self.taken) == 5, {}


SHAPES = st.lists(st.integers(1, 3), max_size=2).map(tuple)
FLOATS = st.sampled_from([np.float16, np.float32, np.float64])
CLASSES = st.integers(1, 5)


def arrays(elements, shape):
    size = math.prod(shape)
    return st.lists(elements, min_size=size, max_size=size).map(lambda values: np.array(values).reshape(shape))


@st.composite
def multi_discrete(draw):
    shape = draw(SHAPES) or (2,)
    equal = draw(st.booleans())
    nvec = np.full(shape, draw(CLASSES)) if equal else draw(arrays(CLASSES, shape))
    start = draw(arrays(st.integers(-3, 3), shape))
    return spaces.MultiDiscrete(nvec, start=start, dtype=draw(st.sampled_from([np.int32, np.int64])))


@st.composite
def bounded_boxes(draw):
    shape, dtype = draw(SHAPES), draw(FLOATS)
    low = draw(arrays(st.floats(-9, 5), shape))
    width = draw(arrays(st.floats(0, 4), shape))
    return spaces.Box(low.astype(dtype), (low + width).astype(dtype), dtype=dtype)


ACTION_LEAVES: st.SearchStrategy = st.one_of(
    st.builds(lambda n, start: spaces.Discrete(n, start=start), CLASSES, st.integers(-5, 5)),
    SHAPES.map(lambda shape: spaces.MultiBinary(shape or 2)),
    multi_discrete(),
    bounded_boxes(),
)
OBSERVATION_LEAVES = st.one_of(
    ACTION_LEAVES,
    st.builds(lambda shape, dtype: spaces.Box(-np.inf, np.inf, shape, dtype), SHAPES, FLOATS),
    st.builds(lambda size, rest: spaces.Box(0, 255, (size, size + 1, *rest), np.uint8), st.integers(5, 8), SHAPES),
    SHAPES.map(lambda shape: spaces.Box(-100, 1000, shape, np.int64)),
)


def nested(leaves):
    """Any space of these leaves, alone or in up to three levels of Dict and Tuple."""

    def containers(inner):
        names = st.dictionaries(st.sampled_from("cab"), inner, min_size=1)
        return st.one_of(names.map(spaces.Dict), st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple))

    return st.recursive(leaves, containers, max_leaves=6)


def assert_described(obs, described: dict[str, Space]) -> None:
    assert list(described) == sorted(described)
    assert obs.keys() == described.keys()
    for key, space in described.items():
        assert isinstance(obs[key], np.ndarray)
        assert (obs[key].shape, obs[key].dtype) == (space.shape, space.dtype), key
        if space.kind == "discrete":
            assert obs[key].min() >= 0 and obs[key].max() < space.classes
        assert len(space.shape) == {"image": 3, "vector": 1}.get(space.kind, len(space.shape))


PROPERTY = hypothesis.settings(max_examples=60, derandomize=True, deadline=None, database=None)


@PROPERTY
@hypothesis.given(space=nested(OBSERVATION_LEAVES), seed=st.integers(0, 2**31 - 1))
def test_any_observation_fits_its_flat_space(space, seed):
    env = Adapter(Spaced(space, spaces.Discrete(2)), EnvConfig())
    obs, _ = env.reset(seed=seed)
    assert_described(obs, env.obs_spaces)
    assert list(env.observation_space) == list(env.obs_spaces)
    assert env.observation_space.contains({key: value if value.shape else int(value) for key, value in obs.items()})


@PROPERTY
@hypothesis.given(space=nested(ACTION_LEAVES), seed=st.integers(0, 2**31 - 1))
def test_any_flat_action_is_one_of_the_environment(space, seed):
    env = Adapter(Spaced(spaces.Discrete(2), space), EnvConfig())
    assert list(env.action_spaces) == list(env.action_space) == sorted(env.action_spaces)
    env.reset(seed=seed)
    env.action_space.seed(seed)
    env.step(env.action_space.sample())  # refused by Spaced if it is not in the space


def test_every_kind_has_the_documented_name_and_space():
    env = make("probe_dummy", EnvConfig())
    assert env.obs_spaces == {
        "body.joints": Space("vector", (6,)),
        "body.pair.0": Space("discrete", (), 3),
        "body.pair.1": Space("vector", (1,)),
        "body.touch": Space("discrete", (4,), 2),
        "camera": Space("image", (16, 16, 3)),
        "cards": Space("discrete", (2,), 5),
        "dice.0": Space("discrete", (), 2),
        "dice.1": Space("discrete", (), 6),
        "gray": Space("image", (16, 16, 1)),
    }
    assert env.action_spaces == {
        "arm.0": Space("continuous", (3,)),
        "arm.1": Space("discrete", (), 4),
        "dials": Space("discrete", (2,), 4),
        "keys": Space("discrete", (2,), 2),
        "menu.0": Space("discrete", (), 3),
        "menu.1": Space("discrete", (), 2),
    }


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Box(-1, 1, (2, 2)), {"vector": Space("vector", (4,))}),
        (spaces.Box(0, 1, (8, 8, 3), np.float32), {"vector": Space("vector", (192,))}),
        (spaces.Box(0, 255, (8, 6), np.uint8), {"image": Space("image", (8, 6, 1))}),
        (spaces.Box(0, 255, (2, 8, 6, 3), np.uint8), {"vector": Space("vector", (288,))}),
        (spaces.Discrete(4), {"discrete": Space("discrete", (), 4)}),
        (spaces.MultiDiscrete(np.array([[2, 2], [2, 3]])), {f"discrete.{k}": Space("discrete", (), 2 + (k == "1.1"))
                                                   for k in ("0.0", "0.1", "1.0", "1.1")}),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]), {"0": Space("discrete", (), 2),
                                                                   "1": Space("discrete", (), 3)}),
    ],
)  # fmt: skip
def test_names_of_bare_observations(space, expected):
    assert Adapter(Spaced(space, spaces.Discrete(2)), EnvConfig()).obs_spaces == expected


def test_bare_actions_are_called_action():
    def names(space):
        return list(Adapter(Spaced(spaces.Discrete(2), space), EnvConfig()).action_spaces)

    assert names(spaces.Discrete(2)) == names(spaces.Box(-1, 1, (2,))) == names(spaces.MultiBinary(2)) == ["action"]
    assert names(spaces.MultiDiscrete([2, 3])) == ["action.0", "action.1"]


def test_nested_action_is_rebuilt_exactly():
    space = spaces.Dict(
        arm=spaces.Tuple([spaces.Box(-2.0, 6.0, (3,), np.float64), spaces.Discrete(4, start=1)]),
        keys=spaces.MultiBinary(2),
        menu=spaces.MultiDiscrete([3, 2], start=[5, 7]),
    )
    inner = Spaced(spaces.Discrete(2), space)
    env = Adapter(inner, EnvConfig())
    env.reset(seed=0)
    arm = np.array([-1.0, 0.0, 0.5], np.float32)
    env.step({"arm.0": arm, "arm.1": np.int32(3), "keys": np.array([1, 0], np.int32), "menu.0": 2, "menu.1": 0})
    (action,) = inner.taken
    np.testing.assert_array_equal(action["arm"][0], [-2.0, 2.0, 4.0])
    assert action["arm"][1] == 4
    np.testing.assert_array_equal(action["keys"], [1, 0])
    np.testing.assert_array_equal(action["menu"], [7, 7])


def test_continuous_actions_are_clipped_and_scaled_once():
    inner = Spaced(
        spaces.Discrete(2), spaces.Box(np.array([-3, 0, -0.1], np.float32), np.array([1, 10, 0.7], np.float32))
    )
    env = Adapter(inner, EnvConfig())
    env.reset(seed=0)
    for action in ([-1, -1, -1], [1, 1, 1], [-7, 2, 0], [0, 0.5, 3]):
        env.step({"action": np.array(action, np.float32)})
    expected = np.array([[-3, 0, -0.1], [1, 10, 0.7], [-3, 10, 0.3], [-1, 7.5, 0.7]], np.float32)
    np.testing.assert_allclose(inner.taken, expected, rtol=1e-6)
    # The ends are hit exactly, whatever rounding does in between.
    np.testing.assert_array_equal(inner.taken[:2], expected[:2])
    assert inner.taken[0].dtype == np.float32


BITS: list[Any] = [np.int8, np.uint8, np.int64, np.bool_]
MASKS = [
    spaces.MultiBinary(3),
    spaces.MultiDiscrete([2, 2, 2]),
    *(spaces.Box(np.zeros(3, dtype), np.ones(3, dtype), dtype=dtype) for dtype in BITS),
]


class Masking(Spaced):
    """Always the same mask, in the dtype of its space."""

    def reset(self, *, seed=None, options=None):
        space: Any = self.observation_space
        return {"action_mask": np.array([0, 1, 1], space["action_mask"].dtype), "other": [0, 1, 0]}, {}


@pytest.mark.parametrize("space", MASKS, ids=str)
def test_an_action_mask_is_discrete_however_it_is_declared(space):
    other = spaces.Box(np.zeros(3, np.int8), np.ones(3, np.int8), dtype=np.int8)
    env = Adapter(Masking(spaces.Dict(action_mask=space, other=other), spaces.Discrete(3)), EnvConfig())
    assert env.obs_spaces == {"action_mask": Space("discrete", (3,), 2), "other": Space("vector", (3,))}
    mask = env.reset()[0]["action_mask"]
    assert mask.dtype == np.int32 and mask.tolist() == [0, 1, 1]


def test_masks_of_several_actions_are_found_by_name():
    actions = spaces.Dict(
        board=spaces.MultiDiscrete([3, 3]), menu=spaces.MultiDiscrete([3, 2]), push=spaces.Box(-1, 1, (2,))
    )
    masks = spaces.Dict(
        board=spaces.Box(0, 1, (2, 3), np.uint8), menu=spaces.Tuple([spaces.MultiBinary(3), spaces.MultiBinary(2)])
    )
    env = Adapter(Spaced(spaces.Dict(action_mask=masks), actions), EnvConfig())
    assert env.obs_spaces["action_mask.board"] == Space("discrete", (2, 3), 2)
    assert mask_keys(env.obs_spaces, env.action_spaces) == {
        "board": "action_mask.board",
        "menu.0": "action_mask.menu.0",
        "menu.1": "action_mask.menu.1",
    }


@pytest.mark.parametrize("key", ["action_mask", "action_mask.turn"])
def test_the_mask_of_the_only_discrete_action_needs_no_name(key):
    actions = spaces.Dict(push=spaces.Box(-1, 1, (2,)), turn=spaces.Discrete(4))
    env = Adapter(Spaced(spaces.Dict({key: spaces.MultiBinary(4)}), actions), EnvConfig())
    assert mask_keys(env.obs_spaces, env.action_spaces) == {"turn": key}


@pytest.mark.parametrize(
    ("masks", "action", "message"),
    [
        ({"action_mask": spaces.MultiBinary(4)}, spaces.Discrete(3), r"discrete, shape \[4\], .* \[3\] .*'action'"),
        ({"action_mask": spaces.Box(0, 1, (3,))}, spaces.Discrete(3), r"vector, shape \[3\].*as MultiBinary"),
        ({"action_mask": spaces.Box(0, 2, (3,), np.int8)}, spaces.Discrete(3), r"vector, shape \[3\].*as MultiBinary"),
        ({"action_mask": spaces.MultiBinary(2)}, spaces.Box(-1, 1, (2,)), r"no discrete action.* among \[\],"),
        ({"action_mask.b": spaces.MultiBinary(3)}, spaces.Discrete(3), r"'action_mask\.b' is an .*rename it"),
        (
            {"action_mask": spaces.MultiBinary(3)},
            spaces.Dict(a=spaces.Discrete(3), b=spaces.Discrete(3)),
            r"expected action_mask\.KEY with KEY among \['a', 'b'\]",
        ),
        (
            {"action_mask": spaces.MultiBinary(3), "action_mask.action": spaces.MultiBinary(3)},
            spaces.Discrete(3),
            r"'action_mask\.action' is an action mask .* to one that has a mask already",
        ),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks, action, message):
    with pytest.raises(EnvError, match=r"Environment Spaced: observation key .*" + message):
        Adapter(Spaced(spaces.Dict(masks), action), EnvConfig())


@pytest.mark.parametrize(
    ("obs", "action", "message"),
    [
        (spaces.Text(5), None, r"Spaced: the observation space has the space Text; expected Box, Discrete.*convert it"),
        (spaces.Dict(a=spaces.Sequence(spaces.Discrete(2))), None, r"observation key 'a' has the space Sequence"),
        (None, spaces.Graph(spaces.Discrete(2), None), r"action space has the space Graph"),
        (None, spaces.Dict(b=spaces.Box(-np.inf, 1, (2,))), r"action key 'b' has a Box without bounds.*Box\(-1, 1"),
        (None, spaces.Box(0, 9, (2,), np.int64), r"a Box of int64; expected a Box of floats: use Discrete or Multi"),
        (spaces.Box(0, 1, (0,)), None, r"empty Box \(0,\)"),
        (spaces.Dict(), None, r"empty observation space"),
        (spaces.Dict({"a.b": spaces.Discrete(2), "a": spaces.Dict(b=spaces.Discrete(2))}), None, r"both called 'a\.b'"),
    ],
)
def test_unsupported_spaces_are_named(obs, action, message):
    env = Spaced(obs if obs is not None else spaces.Discrete(2), action if action is not None else spaces.Discrete(2))
    with pytest.raises(EnvError, match=message):
        Adapter(env, EnvConfig())


@pytest.mark.parametrize("shape", [(7, 9, 20), (16, 16, 17), (64, 64, 12), (5, 5, 3), (10, 12, 3)])
def test_images_that_are_small_or_have_many_channels_are_images(shape):
    assert (
        Adapter(Spaced(spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(2)), EnvConfig()).obs_spaces["image"].shape
        == shape
    )


@pytest.mark.parametrize("shape", [(8, 8, 8, 4), (32, 32, 32, 1), (2, 3, 4, 5)])
def test_other_arrays_of_four_axes_are_vectors(shape):
    assert (
        Adapter(Spaced(spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(2)), EnvConfig()).obs_spaces["vector"].kind
        == "vector"
    )
