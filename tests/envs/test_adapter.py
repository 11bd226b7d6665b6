"""The adapter against the environment it wraps: values, flags, repeats, and the refusal of wrong values."""

import itertools
import re
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dreamer.config import EnvConfig
from dreamer.envs import Adapter, EnvError, adapt, make, tasks


class Answers(gymnasium.Env):
    """Gives prepared answers: dictionaries with any of obs, reward, terminated, truncated; the first one to reset."""

    def __init__(self, answers, observation_space=None):
        self.observation_space = observation_space or spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._answers = iter(answers)

    def _next(self):
        default = {"obs": np.zeros(self.observation_space.shape or (), self.observation_space.dtype)}
        return {**default, "reward": 0.0, "terminated": False, "truncated": False, **next(self._answers)}

    def reset(self, *, seed=None, options=None):
        return self._next()["obs"], {}

    def step(self, action):
        return (*self._next().values(), {})


def play(answers, space=None, **config):
    """Reset, then step through all answers."""
    env = Adapter(Answers(answers, space), EnvConfig(**config), name="mine")
    results: list = [env.reset()]
    results += [env.step({"action": np.int32(0)}) for _ in answers[1:]]
    return results


@pytest.mark.parametrize("repeat", [1, 2, 3])
@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_same_as_the_raw_environment(task, repeat):
    """Golden: several episodes with scripted actions, every field of every step."""
    raw = gymnasium.make(task)
    env = make(f"gym_{task}", EnvConfig(repeat=repeat))
    rng = np.random.default_rng(0)
    ends = 0
    raw_obs, _ = raw.reset(seed=7)
    obs, info = env.reset(seed=7)
    np.testing.assert_array_equal(obs["vector"], raw_obs)
    assert info == {"env_steps": 0}
    for _ in range(450 // repeat):
        if task == "CartPole-v1":
            raw_action = action = np.asarray(rng.integers(2))
        else:
            action = rng.uniform(-1.3, 1.3, 1).astype(np.float32)
            raw_action = 2 * np.clip(action, -1, 1)
        rewards = []
        for _ in range(repeat):
            raw_obs, raw_reward, raw_terminated, raw_truncated, _ = raw.step(raw_action)
            rewards.append(float(raw_reward))
            if raw_terminated or raw_truncated:
                break
        obs, reward, terminated, truncated, info = env.step({"action": action})
        np.testing.assert_array_equal(obs["vector"], raw_obs)
        assert reward == pytest.approx(sum(rewards), rel=1e-12)
        assert (terminated, truncated, info["env_steps"]) == (raw_terminated, raw_truncated, len(rewards))
        if terminated or truncated:
            ends += 1
            raw_obs, _ = raw.reset()
            obs, _ = env.reset()
            np.testing.assert_array_equal(obs["vector"], raw_obs)
    assert ends >= 2


def test_repeat_stops_at_the_end_and_counts():
    rewards = [{}, {"reward": 1.0}, {"reward": 2.0}, {"reward": 4.0, "terminated": True}]
    env = Adapter(Answers(rewards), EnvConfig(repeat=2))
    env.reset()
    assert env.step({"action": 0})[1:] == (3.0, False, False, {"env_steps": 2})
    assert env.step({"action": 0})[1:] == (4.0, True, False, {"env_steps": 1})


def test_a_time_limit_counts_env_steps_and_leaves_ends_alone():
    env = Adapter(Answers([{}] * 4 + [{}] * 3 + [{"terminated": True}]), EnvConfig(repeat=2, time_limit=3))
    env.reset()
    assert env.step({"action": 0})[2:] == (False, False, {"env_steps": 2})
    assert env.step({"action": 0})[2:] == (False, True, {"env_steps": 1})
    with pytest.raises(EnvError, match="after the end of an episode"):
        env.step({"action": 0})
    env.reset()  # The count begins again, and an episode that ends at the limit has ended.
    env.step({"action": 0})
    assert env.step({"action": 0})[2:] == (True, False, {"env_steps": 1})


def test_a_time_limit_is_kept_over_a_state():
    one, two = (make("gym_Pendulum-v1", EnvConfig(time_limit=3)) for _ in range(2))
    one.reset(seed=0)
    push = {"action": np.zeros(1, np.float32)}
    one.step(push)
    two.set_state(one.get_state())
    assert [two.step(push)[3] for _ in range(2)] == [False, True]


def test_rewards_are_clipped_after_the_repeats_are_summed():
    rewards = [{}, *({"reward": reward} for reward in (3.0, -2.5, 3.0, -7.0))]
    assert [answer[1] for answer in play(rewards, clip_reward=2.75)[1:]] == [2.75, -2.5, 2.75, -2.75]
    env = Adapter(Answers(rewards), EnvConfig(repeat=2, clip_reward=1.0))
    env.reset()
    assert [env.step({"action": 0})[1] for _ in range(2)] == [0.5, -1.0]


def test_rewards_are_not_clipped_unless_asked():
    assert [answer[1] for answer in play([{}, {"reward": 1e6}, {"reward": -1e6}], clip_reward=0.0)[1:]] == [1e6, -1e6]


class Repeats(Answers):
    """Applies every action four times itself, three times at its end."""

    action_repeat = 4

    def step(self, action):
        answer = super().step(action)
        return (*answer[:4], {"env_steps": 3 if answer[2] else 4})


def test_an_environment_that_repeats_is_left_to_it():
    wrapped: gymnasium.Wrapper = gymnasium.Wrapper(Repeats([{}, {"reward": 1.0}, {"reward": 2.0, "terminated": True}]))
    env = Adapter(wrapped, EnvConfig(repeat=4))
    assert env.reset()[1] == {"env_steps": 0}
    assert env.step({"action": 0})[1:] == (1.0, False, False, {"env_steps": 4})
    assert env.step({"action": 0})[1:] == (2.0, True, False, {"env_steps": 3})


@pytest.mark.parametrize("repeat", [1, 2])
def test_another_number_of_repeats_is_refused(repeat):
    with pytest.raises(EnvError, match=f"action_repeat=4, expected env.repeat={repeat}: set one to match the other"):
        Adapter(Repeats([]), EnvConfig(repeat=repeat))


@pytest.mark.parametrize("attribute", [None, True, lambda self: 2, "twice"])
def test_env_steps_of_an_environment_that_does_not_repeat_actions_mean_something_else(monkeypatch, attribute):
    monkeypatch.setattr(Repeats, "action_repeat", attribute)
    env = Adapter(Repeats([{}, {}, {"terminated": True}]), EnvConfig(repeat=2))
    env.reset()
    assert env.step({"action": 0})[4] == {"env_steps": 2}


@pytest.mark.parametrize("reported", [None, 0, 5, 3000, "three", 2.5])
def test_env_steps_that_no_repeat_can_be_count_as_all_repeats(reported):
    class Lifetime(Repeats):
        def step(self, action):
            return (*super().step(action)[:4], {} if reported is None else {"env_steps": reported})

    env = Adapter(Lifetime([{}, {}, {}]), EnvConfig(repeat=4))
    env.reset()
    assert [env.step({"action": 0})[4]["env_steps"] for _ in range(2)] == [4, 4]
    notes = [] if reported is None else ["info['env_steps']"]
    assert [key for key, _ in env.take_notes()] == notes


class Writes(gymnasium.Env):
    """Scales every action where it lies, in whatever containers."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space
        self.seen = []

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        parts = action.values() if isinstance(action, dict) else action if isinstance(action, tuple) else [action]
        self.seen.append([np.array(part).tolist() for part in parts])
        for part in parts:
            if isinstance(part, np.ndarray):
                part *= 0
        if isinstance(action, dict):
            action.clear()
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-2, 2, (2,), np.float32),
        spaces.MultiDiscrete([3, 3]),
        spaces.MultiDiscrete([3, 4]),
        spaces.Dict(a=spaces.Box(-1, 1, (2,), np.float32), b=spaces.Discrete(3)),
        spaces.Tuple((spaces.MultiBinary(2), spaces.Box(-1, 1, (1,), np.float32))),
    ],
    ids=["Box", "equal classes", "unequal classes", "Dict", "Tuple"],
)
def test_an_environment_that_writes_into_its_action_changes_no_other(space, repeat):
    inner = Writes(space)
    env = Adapter(inner, EnvConfig(repeat=repeat))
    env.reset()
    action = {
        key: np.full(part.shape, 0.5 if part.kind == "continuous" else 1, part.dtype)
        for key, part in env.action_spaces.items()
    }
    before = {key: value.copy() for key, value in action.items()}
    env.step(action)
    assert inner.seen == [inner.seen[0]] * repeat
    assert np.any(np.concatenate([np.ravel(part) for part in inner.seen[0]]))
    for key, value in action.items():
        np.testing.assert_array_equal(value, before[key])


@pytest.mark.parametrize(("info", "shown"), [(None, "None"), ([], "[]"), ("left", "'left'"), (3, "3")])
def test_an_info_that_is_no_dict_is_refused(info, shown):
    class Tells(Answers):
        at_reset = False

        def reset(self, *, seed=None, options=None):
            return super().reset()[0], info if self.at_reset else {}

        def step(self, action):
            return (*super().step(action)[:4], info)

    inner = Tells([{}, {}, {}])
    env = Adapter(inner, EnvConfig())
    env.reset()
    with pytest.raises(
        EnvError, match=re.escape(f"step returned the info {shown}") + r".*expected a dict: return \{\}"
    ):
        env.step({"action": 0})
    inner.at_reset = True
    with pytest.raises(EnvError, match=re.escape(f"reset returned the info {shown}") + ".*expected a dict"):
        env.reset()


@pytest.mark.parametrize(
    "answer", [{"reward": np.array(1.5)}, {"reward": np.array([1.5])}, {"reward": np.float64(1.5)}]
)
def test_rewards_and_flags_may_be_numbers_of_other_kinds(answer):
    flags = {"terminated": np.array(1), "truncated": 0}
    _, (_, reward, terminated, truncated, _) = play([{}, {**answer, **flags}])
    assert (reward, terminated, truncated) == (1.5, True, False)


def test_observations_are_copied_from_an_array_that_is_used_again():
    shared = np.zeros(3, np.float32)

    class Rewrites(Answers):
        def step(self, action):
            shared[:] += 0.25
            return shared, 0.0, False, False, {}

        def reset(self, *, seed=None, options=None):
            return shared, {}

    env = Adapter(Rewrites([]), EnvConfig())
    first, _ = env.reset()
    later = [env.step({"action": 0})[0] for _ in range(2)]
    assert [obs["vector"][0] for obs in (first, *later)] == [0.0, 0.25, 0.5]


@pytest.mark.parametrize("failure", [OSError("busy"), SystemExit(3), AttributeError("window")])
def test_a_close_that_fails_is_said_once_and_ends_nothing(failure, capsys):
    class Sticks(Answers):
        closed = 0

        def close(self):
            self.closed += 1
            raise failure

    inner = Sticks([{}])
    env = Adapter(inner, EnvConfig(), name=f"sticky {type(failure).__name__}")
    env.reset()
    env.close()
    env.close()
    Adapter(Sticks([]), EnvConfig(), name=env.name).close()
    said = capsys.readouterr().err
    assert said.count("close failed with") == 1 and f"{type(failure).__name__}: {failure}" in said
    assert inner.closed == 1
    with pytest.raises(EnvError, match="call reset first"):
        env.step({"action": 0})


def test_settings_of_the_process_that_an_environment_changes_while_it_is_made_are_restored():
    def make_env():
        np.seterr(all="raise")
        warnings.filterwarnings("ignore")
        return Answers([{}])

    errors, filters = np.geterr(), list(warnings.filters)
    env = adapt(make_env, EnvConfig())
    assert np.geterr() == errors and warnings.filters == filters
    with np.errstate(all="raise"):
        tiny = Adapter(Answers([{"obs": np.array([1e-300])}], spaces.Box(-1, 1, (1,), np.float64)), EnvConfig())
        assert tiny.reset()[0]["vector"][0] == 0.0
    env.close()


@pytest.mark.parametrize("wrapper", [gymnasium.wrappers.NormalizeObservation, gymnasium.wrappers.NormalizeReward])
def test_wrappers_with_running_statistics_are_named(wrapper):
    env = Adapter(gymnasium.wrappers.ClipReward(wrapper(Answers([{}])), -1, 1), EnvConfig())
    ((_, sentence),) = env.take_notes()
    assert f"the wrapper {wrapper.__name__}" in sentence
    assert "not saved with the agent" in sentence and "symlog" in sentence


def test_other_wrappers_are_not_named():
    env = Adapter(
        gymnasium.wrappers.FrameStackObservation(gymnasium.wrappers.TimeLimit(Answers([]), 9), 2), EnvConfig()
    )
    assert env.take_notes() == []


@pytest.mark.parametrize("shape", [(64, 64, 3), (3, 64, 64), (32, 48, 1)])
def test_images_of_floats_are_named(shape):
    env = Adapter(Answers([], spaces.Box(0, 1, shape, np.float32)), EnvConfig())
    ((_, sentence),) = env.take_notes()
    assert "shape of an image" in sentence and "uint8" in sentence


@pytest.mark.parametrize("shape", [(7,), (8, 8, 3), (20, 20, 20), (16, 16)])
def test_other_arrays_of_floats_are_not_named(shape):
    assert Adapter(Answers([], spaces.Box(0, 1, shape, np.float32)), EnvConfig()).take_notes() == []


@pytest.mark.parametrize(("terminated", "truncated"), list(itertools.product([False, True], repeat=2)))
def test_termination_and_truncation_are_never_mixed(terminated, truncated):
    _, last = play([{}, {"terminated": np.bool_(terminated), "truncated": np.bool_(truncated)}])
    assert last[2] is terminated and last[3] is truncated


@pytest.mark.parametrize(
    "space",
    [spaces.Box(-1, 1, (3,), np.float32), spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.MultiDiscrete([2, 2])],
)
def test_observations_are_new_arrays(space):
    buffer = np.zeros(space.shape, space.dtype)
    ((obs, _),) = play([{"obs": buffer}], space)
    buffer[:] = 1
    (value,) = obs.values()
    np.testing.assert_array_equal(value, 0)


@pytest.mark.parametrize("value", [[1, 0, 0], [0.5, 0.0, 0.0], np.ones(3), np.ones(3, np.float16), np.ones(3, bool)])
def test_harmless_dtypes_are_cast(value):
    ((obs, _),) = play([{"obs": value}])
    assert obs["vector"].dtype == np.float32
    np.testing.assert_array_equal(obs["vector"], np.asarray(value, np.float32))


def test_large_finite_values_pass():
    ((obs, _),) = play([{"obs": [1e30, -1e30, 3.0]}], spaces.Box(-np.inf, np.inf, (3,), np.float64))
    np.testing.assert_array_equal(obs["vector"], np.array([1e30, -1e30, 3], np.float32))


def test_rounding_at_the_bounds_passes():
    play([{"obs": np.array([1 + 3e-7, -1 - 3e-7, 0], np.float32)}])


IMAGE = spaces.Box(0, 255, (8, 8, 3), np.uint8)
BAD_OBS: list[tuple] = [
    (None, [0, np.nan, 0], r"'vector' holds nan at index \[1\], expected finite numbers: fix the environment"),
    (None, [0, 0, -np.inf], r"'vector' holds -inf at index \[2\], expected finite"),
    (spaces.Box(-np.inf, np.inf, (2, 2)), [[0, 0], [np.inf, 0]], r"holds inf at index \[1, 0\]"),
    (spaces.Box(-np.inf, np.inf, (), np.float64), 1e300, r"holds 1e\+300, expected a number that float32 can hold"),
    (None, np.zeros(4, np.float32), r"'vector' has shape \[4\], expected \[3\]"),
    (None, [0, "x", 0], r"'vector' has dtype <U\d+, expected float32"),
    (None, [0, [1, 2], 0], r"'vector' is not an array"),
    (IMAGE, np.zeros((8, 8, 3)), r"'image' has dtype float64, expected uint8"),
    (IMAGE, np.zeros((3, 8, 8), np.uint8), r"'image' has shape \[3, 8, 8\], expected \[8, 8, 3\]"),
    (spaces.Discrete(3, start=5), 4, r"'discrete' holds class 4, expected 5 to 7"),
    (spaces.MultiDiscrete([3, 3]), [0, 3], r"'discrete' holds class 3 at index \[1\], expected 0 to 2"),
    (spaces.MultiDiscrete([2, 3], start=[1, 4]), [1, 7], r"'discrete.1' holds class 7, expected 4 to 6"),
    (
        spaces.Dict(a=spaces.Discrete(2)),
        {"b": 0},
        r"lacks the key \['a'\] and has the key \['b'\] that the space lacks",
    ),
    (spaces.Dict(a=spaces.Dict(c=spaces.Discrete(2))), {"a": 0}, r"under 'a' is a int, expected a dict"),
    (spaces.Tuple([spaces.Discrete(2)]), (0, 1), r"the observation is 2 entries, expected a tuple of 1"),
]
BEYOND_BOUNDS = [
    (None, [0, 1.1, 0], r"'vector' holds 1\.1 at index \[1\], outside \[-1\.0, 1\.0\] as its space declares"),
    (spaces.Box(0, np.inf, (2, 1), np.float64), [[1e20], [-0.5]], r"holds -0\.5 at index \[1, 0\].* \[0\.0, inf\]"),
    (spaces.Box(0, 9, (2, 2, 1), np.uint8), np.full((2, 2, 1), 10, np.uint8), r"'image' holds 10 at.* \[0, 9\]"),
]


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(("space", "obs", "message"), BAD_OBS)
def test_bad_observations_are_refused_always(space, obs, message, check):
    with pytest.raises(EnvError, match=r"Environment mine, step 0 of episode 1: .*" + message):
        play([{"obs": obs}], space, check=check)


@pytest.mark.parametrize(("space", "obs", "message"), BEYOND_BOUNDS)
def test_what_is_outside_its_bounds_is_used_counted_and_noted_once(space, obs, message):
    inside = {"obs": np.zeros_like(obs)}
    answers = [inside, {"obs": obs}, inside, {"obs": obs, "truncated": True}, {"obs": obs}]
    env = Adapter(Answers(answers, space), EnvConfig(), name="mine")
    key = "vector" if "image" not in message else "image"
    env.reset()
    assert (env.outside, env.take_notes()) == ({}, [])
    for _ in range(3):
        seen, *_ = env.step({"action": np.int32(0)})
    np.testing.assert_array_equal(seen[key].reshape(-1), np.asarray(obs, seen[key].dtype).reshape(-1))
    assert env.outside == {key: 2}
    ((noted, sentence),) = env.take_notes()
    assert noted == key
    assert re.match(r"Environment mine, step 1 of episode 1: observation key .*" + message, sentence), sentence
    env.reset()
    assert (env.outside, env.take_notes()) == ({key: 1}, [])


def test_only_observations_that_the_agent_sees_are_counted():
    """Between two repeats, an observation is encoded for its mask alone."""
    space = spaces.Dict(action_mask=spaces.MultiBinary(2), place=spaces.Box(-1, 1, (1,), np.float32))
    answers = [
        {"obs": {"action_mask": np.array([1, 1 - forbidden], np.int8), "place": np.full(1, 3, np.float32)}}
        for forbidden in (0, 0, 0, 1)
    ]
    env = Adapter(Answers(answers, space), EnvConfig(repeat=2), name="mine")
    env.reset()
    env.step({"action": np.int32(1)})  # Two repeats, of which the second is seen.
    env.step({"action": np.int32(1)})  # One repeat, after which the mask forbids another.
    assert env.outside == {"place": 3}


@pytest.mark.parametrize(("space", "obs", "message"), BEYOND_BOUNDS)
def test_bounds_are_not_looked_at_unless_checked(space, obs, message):
    env = Adapter(Answers([{"obs": obs}], space), EnvConfig(check=False), name="mine")
    env.reset()
    assert (env.outside, env.take_notes()) == ({}, [])


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (np.nan, r"reward is nan, expected a finite number"),
        (-np.inf, r"reward is -inf"),
        (None, r"reward is None \(NoneType\), expected one number"),
        (np.zeros(2), r"reward is an array of shape \[2\], expected one number"),
        (1e300, r"rewards of 1 repeats sum to 1e\+300, expected a number that float32 can hold"),
    ],
)
def test_bad_rewards_say_when(reward, message):
    with pytest.raises(EnvError, match=r"Environment mine, step 2 of episode 1: .*" + message):
        play([{}, {}, {"reward": reward}], check=False)


def test_one_number_in_an_array_is_a_reward():
    assert play([{}, {"reward": np.array([1.5])}])[1][1] == 1.5


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"action": 2}, r"action key 'action' is 2 .*expected whole numbers from 0 to 1: fix the policy"),
        ({"action": 0.0}, r"is 0\.0 \(float64\), expected whole numbers"),
        ({"action": np.zeros(1, np.int32)}, r"has shape \[1\], expected \[\]"),
        ({"other": 0}, r"lacks the key 'action' and has \['other'\]"),
    ],
)
def test_bad_actions_are_refused(action, message):
    env = Adapter(Answers([{}, {}]), EnvConfig())
    env.reset()
    with pytest.raises(EnvError, match=message):
        env.step(action)


def test_nan_actions_are_refused():
    env = make("gym_Pendulum-v1", EnvConfig())
    env.reset(seed=0)
    with pytest.raises(EnvError, match=r"gym_Pendulum-v1, step 0 of episode 1: action key 'action' is \[nan\].*policy"):
        env.step({"action": np.array([np.nan], np.float32)})


def test_order_of_calls_is_enforced():
    env = Adapter(Answers([{}, {"terminated": True}]), EnvConfig())
    with pytest.raises(EnvError, match="call reset first"):
        env.step({"action": 0})
    env.reset()
    env.step({"action": 0})
    with pytest.raises(EnvError, match="after the end of an episode"):
        env.step({"action": 0})


def test_the_old_gym_interface_is_recognised():
    class Old(Answers):
        def reset(self, *, seed=None, options=None):
            return super().reset()[0] if old_reset else super().reset()

        def step(self, action):
            return super().step(action)[:4]

    env = Old([{}] * 3)
    old_reset = True
    with pytest.raises(
        EnvError, match=r"reset returned an array of shape \[3\], expected Gymnasium's tuple \(observation, info"
    ):
        Adapter(env, EnvConfig()).reset()
    old_reset = False
    adapter = Adapter(env, EnvConfig())
    adapter.reset()
    with pytest.raises(
        EnvError, match=r"step returned a tuple of 4 values, expected Gymnasium's tuple \(observation, reward"
    ):
        adapter.step({"action": 0})


def test_objects_that_are_not_environments_are_refused():
    with pytest.raises(EnvError, match=r"Got a builtins\.str as environment, expected a gymnasium\.Env"):
        Adapter("CartPole-v1", EnvConfig())


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "probe_cacth",
            r"no task 'probe_cacth': There is no probe 'cacth'\. Did you mean 'probe_catch'.*A task is gym_ID",
        ),
        ("gym_CartPol-v1", r"Did you mean: `CartPole`"),
        ("gym_CartPole-v9", r"'gym_CartPole-v9'.*`v1`"),
        ("gym_ALE/Nothing-v5", r"There is no task 'gym_ALE/Nothing-v5'.*pip install \"gymnasium\[atari\]\""),
        ("gym_no_such_module:Thing-v0", r"nor a module no_such_module that registers the id Thing-v0"),
        ("gym_a b", r"Malformed environment ID"),
    ],
)
def test_unknown_tasks_name_the_nearest(task, message):
    with pytest.raises(EnvError, match=message):
        make(task, EnvConfig())


def test_a_missing_package_names_the_command(monkeypatch):
    def needs(**kwargs):
        raise ModuleNotFoundError("No module named 'simulator'", name="simulator")

    gymnasium.register("NeedsPackage-v0", entry_point=needs)
    try:
        with pytest.raises(EnvError, match=r"'gym_NeedsPackage-v0' needs a package.*pip install simulator\."):
            make("gym_NeedsPackage-v0", EnvConfig())
    finally:
        del gymnasium.registry["NeedsPackage-v0"]


def test_tasks_lists_what_make_accepts():
    assert {"probe_catch", "probe_dummy", "gym_CartPole-v1", "gym_Pendulum-v1"} <= set(tasks())
    assert tasks() == sorted(tasks())


MASKED = spaces.Dict(action_mask=spaces.MultiBinary(2))


def masks(*rows, **last):
    """Answers whose masks are the rows; ``last`` are further values of the last one."""
    answers = [{"obs": {"action_mask": np.array(row, np.int8)}} for row in rows]
    return [*answers[:-1], {**answers[-1], **last}]


@pytest.mark.parametrize("when", [0, 1])
def test_a_mask_that_forbids_everything_is_refused(when):
    rows = [[1, 0]] * when + [[0, 0]]
    with pytest.raises(
        EnvError, match=f"mine, step {when} of episode 1: .*'action_mask' forbids every class of .*'action'"
    ):
        play(masks(*rows), MASKED)


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_nothing_need_be_allowed_after_the_end(flag):
    _, last = play(masks([1, 0], [0, 0], **{flag: True}), MASKED)
    assert last[0]["action_mask"].tolist() == [0, 0]


def test_an_action_is_not_repeated_once_it_is_forbidden():
    env = Adapter(Answers(masks([1, 1], [1, 0], [0, 1], [1, 1]), MASKED), EnvConfig(repeat=3))
    env.reset()
    obs, _, _, _, info = env.step({"action": 0})
    assert info == {"env_steps": 2} and obs["action_mask"].tolist() == [0, 1]
