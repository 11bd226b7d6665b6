"""Many environments in one object answer as as many single ones would, whenever the object resets its rows."""

import itertools
import sys
import types

import cloudpickle  # type: ignore[import-untyped]
import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from dreamer import envs
from dreamer.config import EnvConfig
from dreamer.envs import Batched, EnvError, NotRestorable
from dreamer.envs.info import COST, SUCCESS, SUCCESS_ANY
from dreamer.envs.rollouts import random_action
from dreamer.envs.vector.batched import is_batched

# Processes get what is defined here by value: they cannot import this file.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

ROWS = 3
FIELDS = ("reward", "is_first", "is_last", "is_terminal", "env_steps")
NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED


def config(**options):
    return EnvConfig(**{"count": ROWS, "rehearse": False, **options})


def roll(make, turns=60, **options):
    """Steps of a vector under random actions, which a seed decides."""
    rng = np.random.default_rng(0)
    with envs.VectorEnv(make, config(**options), 7) as vector:
        steps = [vector.reset()]
        for _ in range(turns):
            action = random_action(rng, vector.action_spaces, {}, steps[-1].obs, (ROWS,))
            steps.append(vector.step(action))
    return steps


def assert_equal(got, expected):
    for time, (one, two) in enumerate(zip(got, expected, strict=True)):
        assert one.obs.keys() == two.obs.keys()
        for key in two.obs:
            np.testing.assert_array_equal(one.obs[key], two.obs[key], strict=True, err_msg=f"{key} at {time}")
        for field in FIELDS:
            got_field, field_expected = getattr(one, field), getattr(two, field)
            np.testing.assert_array_equal(got_field, field_expected, strict=True, err_msg=f"{field} at {time}")
        assert one.log == two.log


# -------------------------------------------------------------------------------------- the same as single environments


class Walk(gymnasium.Env):
    """Draws its start, its end and its reward from its generator, and has a space of every kind."""

    observation_space = gymnasium.spaces.Dict(
        {
            "place": gymnasium.spaces.Box(-2, 2, (2, 2), np.float64),
            "picture": gymnasium.spaces.Box(0, 200, (4, 5), np.uint8),
            "room": gymnasium.spaces.Tuple([gymnasium.spaces.Discrete(5, start=2), gymnasium.spaces.MultiBinary(3)]),
            "tiles": gymnasium.spaces.MultiDiscrete([2, 7]),
        }
    )
    action_space = gymnasium.spaces.Dict(
        {
            "push": gymnasium.spaces.Box(np.array([-1, 2], np.float32), np.array([1, 6], np.float32)),
            "turn": gymnasium.spaces.Discrete(3, start=-1),
            "press": gymnasium.spaces.MultiDiscrete([2, 4]),
            "doors": gymnasium.spaces.MultiBinary(2),
        }
    )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.done = 0, None
        self.length = int(self.np_random.integers(1, 8))
        return self.look(0.0), {"success": False}

    def step(self, action):
        assert not self.done, "stepped past the end"
        assert self.action_space.contains(action), action
        self.time += 1
        heard = sum(float(np.sum(value)) for value in action.values())
        self.done = self.time == self.length
        terminated = self.done and self.length % 2 == 0
        info = {"cost": heard, "success": heard > 6, "log": {"length": self.length}}
        return self.look(heard), heard, terminated, self.done and not terminated, info

    def look(self, heard):
        draw = self.np_random
        return {
            "place": draw.normal(size=(2, 2)) + heard,  # outside its bounds, now and then
            "picture": np.full((4, 5), self.time + 195, np.uint8),
            "room": (int(draw.integers(2, 7)), draw.integers(0, 2, 3).astype(np.int8)),
            "tiles": draw.integers([2, 7]),
        }


@pytest.mark.parametrize(
    "options",
    [{}, {"clip_reward": 5.0}, {"check": False}, {"check": False, "ignore": ("room.*",), "size": (3, 2)}],
    ids=str,
)
@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_vector_answers_as_single_environments_do(mode, options):
    expected = roll(Walk, **options)
    assert sum(step.is_terminal.sum() for step in expected) > 9
    assert sum((step.is_last & ~step.is_terminal).sum() for step in expected) > 9
    assert any("outside/place" in log for step in expected for log in step.log.values()) == (options.get("check", True))
    assert all({SUCCESS, SUCCESS_ANY, COST, "length"} <= log.keys() for step in expected for log in step.log.values())
    assert_equal(roll(lambda: SyncVectorEnv([Walk] * ROWS, autoreset_mode=mode), **options), expected)


def test_a_vector_in_processes_answers_as_single_environments_do():
    make = lambda num_envs: AsyncVectorEnv([Walk] * num_envs, context="forkserver")  # noqa: E731
    assert_equal(roll(make, turns=20), roll(Walk, turns=20))


class Clock(gymnasium.Env):
    """Counts: its answers follow from the time alone, so that it does not matter how often it was reset before."""

    observation_space = gymnasium.spaces.Box(-1, 99, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self, length):
        self.length = length

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.array([self.length, 0], np.float32), {}

    def step(self, action):
        assert self.time < self.length, "stepped past the end"
        self.time += 1
        obs = np.array([self.length, self.time], np.float32)
        over = self.time == self.length
        return obs, 10.0 + self.time, over and self.length % 2 == 0, over and self.length % 2 == 1, {"success": over}


LENGTHS = (3, 4, 6)


def clocks():
    """A maker of single environments, of a different length each."""
    left = list(LENGTHS)
    return lambda: Clock(left.pop(0))


def clock_vector(kind=SyncVectorEnv, **options):
    return kind([lambda length=length: Clock(length) for length in LENGTHS], **options)


@pytest.mark.parametrize("limit", [0, 2, 4])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_rows_that_can_be_reset_lose_nothing(mode, limit):
    expected = roll(clocks(), time_limit=limit)
    # A wrapper hides what it wraps, so its rows are reset one by one in modes DISABLED and SAME_STEP.
    wrapped = lambda: gymnasium.vector.VectorWrapper(clock_vector(autoreset_mode=mode))  # noqa: E731
    assert_equal(roll(wrapped, time_limit=limit), expected)


@pytest.mark.parametrize("mode", [SAME_STEP, DISABLED])
def test_rows_in_processes_lose_nothing(mode):
    make = lambda: clock_vector(AsyncVectorEnv, autoreset_mode=mode, context="forkserver")  # noqa: E731
    assert_equal(roll(make, turns=20, time_limit=5), roll(clocks(), turns=20, time_limit=5))


# ------------------------------------------------------------------------------------------------- simulators on a GPU


class Tensor:
    """What matters of torch's tensors: values on a device, which NumPy cannot read."""

    def __init__(self, values, device="cuda:0"):
        self.values, self.device = values, device

    def detach(self):
        return self

    def cpu(self):
        return Tensor(self.values, "cpu")

    def numpy(self):
        assert self.device == "cpu"
        return self.values


Tensor.__module__ = "torch"


class Simulator:
    """Overwrites its buffers, takes and returns tensors, and resets rows in the step in which their episode ends."""

    metadata = {"autoreset_mode": "SameStep"}  # noqa: RUF012
    single_observation_space = gymnasium.spaces.Dict({"policy": gymnasium.spaces.Box(-1, 99, (1,), np.float32)})
    single_action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def __init__(self, num_envs, lengths=(2, 3), final=True):
        self.num_envs, self.lengths, self.final = num_envs, np.array(lengths), final
        self.time = np.zeros((num_envs, 1), np.float32)
        self.actions = []

    def reset(self, *, seed=None, options=None):
        self.time[:] = 0
        return {"policy": Tensor(self.time)}, {}

    def step(self, action):
        assert (type(action), action.device) == (Tensor, "cuda:0")
        self.actions.append(action.values[:, 0].tolist())
        self.time += 1
        over = self.time[:, 0] == self.lengths
        info = {"success": Tensor(np.zeros(self.num_envs, bool)), "log": {"mean": Tensor(np.float32(0.5))}}
        if self.final:
            info |= {"final_obs": {"policy": Tensor(self.time.copy())}, "_final_obs": Tensor(over)}
            info["final_info"] = {"success": Tensor(over), "_success": Tensor(over), "log": info["log"]}
        reward = self.time[:, 0] * 10
        self.time[over] = 0
        return {"policy": Tensor(self.time)}, Tensor(reward), Tensor(over), Tensor(over & False), info

    def close(self):
        self.time[:] = 1 / 0 if self.num_envs < 0 else np.nan


@pytest.fixture
def torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(as_tensor=Tensor))


def table(simulator, turns):
    """Answers of the rows of a simulator, a line for each turn: of every row time, reward, env steps and flags."""
    names = ("is_first", "is_last", "is_terminal")
    with envs.VectorEnv(lambda: simulator, EnvConfig(count=2), 0) as vector:
        action = {"action": np.full((2, 1), 0.5, np.float32)}
        steps = [vector.reset(), *(vector.step(action) for _ in range(turns))]
    return [
        [
            (
                int(step.obs["policy"][row, 0]),
                int(step.reward[row]),
                int(step.env_steps[row]),
                "".join(name[3].upper() for name in names if getattr(step, name)[row]),
            )
            for row in range(2)
        ]
        for step in steps
    ], steps


@pytest.mark.usefixtures("torch")
def test_a_simulator_that_resets_in_the_same_step_loses_no_reward_and_no_observation_but_the_second():
    simulator = Simulator(2)
    rows, steps = table(simulator, 7)
    assert rows == [
        [(0, 0, 0, "F"), (0, 0, 0, "F")],
        [(1, 10, 1, ""), (1, 10, 1, "")],
        [(2, 20, 1, "LT"), (2, 20, 1, "")],
        # Row 0 waits with its first observation, while the simulator takes it to time 1 with an action of 0.
        [(0, 0, 0, "F"), (3, 30, 1, "LT")],
        [(2, 10 + 20, 2, "LT"), (0, 0, 0, "F")],
        [(0, 0, 0, "F"), (2, 10 + 20, 2, "")],
        [(2, 10 + 20, 2, "LT"), (3, 30, 1, "LT")],
        # Both wait: nothing has to be sat through.
        [(0, 0, 0, "F"), (0, 0, 0, "F")],
    ]
    assert simulator.actions == [[1, 1], [1, 1], [0, 1], [1, 0], [0, 1], [1, 1]]
    assert steps[2].log == {0: {SUCCESS: 1.0, SUCCESS_ANY: 1.0, "mean": 0.5}}


@pytest.mark.usefixtures("torch")
def test_an_episode_that_ends_before_it_can_be_seen_is_left_out():
    rows, _ = table(Simulator(2, lengths=(1, 3)), 4)
    assert [row[0] for row in rows] == [
        (0, 0, 0, "F"),
        (1, 10, 1, "LT"),
        (0, 0, 0, "F"),
        (1, 10, 1, "LT"),
        (0, 0, 0, "F"),
    ]


@pytest.mark.usefixtures("torch")
def test_where_last_observations_are_missing_those_before_stand_for_them():
    simulator = Simulator(2, final=False)
    said: list[str] = []
    with envs.VectorEnv(lambda: simulator, EnvConfig(count=2), 0, said.append) as vector:
        vector.reset()
        for _ in range(2):
            step = vector.step({"action": np.zeros((2, 1), np.float32)})
    assert step.obs["policy"].tolist() == [[1], [2]]
    assert step.is_terminal.tolist() == [True, False]
    assert len(said) == 1 and "info['final_obs']" in said[0]


# ------------------------------------------------------------------------------------------------------ what is refused


class Plain(VectorEnv):
    """Answers with whatever it is given."""

    metadata = {"autoreset_mode": NEXT_STEP}  # noqa: RUF012
    single_observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    single_action_space = gymnasium.spaces.Discrete(2)
    num_envs = ROWS

    def __init__(self, **answer):
        self.answer = {"obs": np.zeros((ROWS, 2), np.float32), "reward": np.zeros(ROWS), "info": {}, **answer}

    def reset(self, *, seed=None, options=None):
        return np.zeros((ROWS, 2), np.float32), {}

    def step(self, action):
        if "raises" in self.answer:
            raise self.answer["raises"]
        over = self.answer.get("over", np.zeros(ROWS, bool))
        return self.answer["obs"], self.answer["reward"], over, np.zeros(ROWS, bool), self.answer["info"]


def bad(row, value):
    obs = np.zeros((ROWS, 2), np.float32)
    obs[row, 1] = value
    return obs


@pytest.mark.parametrize(
    ("answer", "turns", "sentence"),
    [
        ({"obs": bad(2, np.nan)}, 1, r"Plain, step 1 with 3 rows: .*'vector' holds nan at index \[2, 1\].* row\."),
        ({"obs": np.zeros((2, 2), np.float32)}, 1, r"shape \[2, 2\], expected \[3, 2\]"),
        ({"reward": np.array([0, np.inf, 0])}, 1, "the reward of row 1 is inf"),
        ({"reward": np.zeros((ROWS, 2))}, 1, r"rewards of shape \[3, 2\].*expected one number for each of 3 rows"),
        ({"info": None}, 1, "the infos None, expected a dict"),
        ({"raises": ValueError("no such joint")}, 1, r"ValueError: no such joint \(.*\); fix the environment"),
        ({"over": np.array([False, True, False])}, 2, "a row ended in the step that should have reset it"),
    ],
    ids=str,
)
def test_what_a_row_must_not_answer_is_one_sentence(answer, turns, sentence):
    vector = envs.VectorEnv(lambda: Plain(**answer), config(), 0)
    vector.reset()
    action = {"action": np.zeros(ROWS, np.int32)}
    for _ in range(turns - 1):
        vector.step(action)
    with pytest.raises(EnvError, match=sentence):
        vector.step(action)


def test_what_is_outside_its_bounds_is_counted_by_row_and_said_once():
    said: list[str] = []
    vector = envs.VectorEnv(lambda: Plain(obs=bad(1, 3.0), over=np.ones(ROWS, bool)), config(), 0, said.append)
    vector.reset()
    step = vector.step({"action": np.zeros(ROWS, np.int32)})
    assert dict(step.log) == {1: {"outside/vector": 1.0}}
    assert len(said) == 1 and "in row 1, observation key 'vector' holds 3.0 at index [1], outside" in said[0]


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (Plain, {"count": 4}, "num_envs=3, expected env.count=4: set one to match the other"),
        (Plain, {"repeat": 2}, r"action_repeat=1 .*expected env\.repeat=2"),
        (Plain, {"time_limit": 9}, r"env\.time_limit=9 cannot be used with Plain"),
        (lambda: gymnasium.vector.VectorWrapper(Undeclared()), {}, r"\['autoreset_mode'\] is None, expected one of"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, options, sentence):
    with pytest.raises(EnvError, match=sentence):
        envs.VectorEnv(make, config(**options), 0)


class Undeclared(Plain):
    metadata = {}  # noqa: RUF012


def test_its_state_is_not_saved_and_workers_mean_nothing_to_it():
    said: list[str] = []
    with envs.VectorEnv(Plain, config(workers="async"), 0, said.append) as vector:
        vector.reset()
        with pytest.raises(NotRestorable, match="3 rows in one object"):
            vector.state()
    assert said == ["env.workers=async means nothing to Plain, which steps all its rows itself."]


# -------------------------------------------------------------------------------------------------------------- by name


def make_clocks(num_envs):
    assert num_envs == len(LENGTHS)
    return clock_vector()


def test_functions_and_ids_make_as_many_as_are_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "clocks", types.SimpleNamespace(make=make_clocks))
    for task, options in (
        ("clocks:make", {}),
        ("vec_CartPole-v1", {}),
        ("vec_CartPole-v1", {"kwargs": {"vectorization_mode": "async"}}),
    ):
        made = envs.make_any(task, config(count=8, **options), num_envs=ROWS)
        assert isinstance(made, Batched)
        assert (made.num_envs, made.name) == (ROWS, task)
        made.close()
        with pytest.raises(EnvError, match=f"'{task}' is 3 environments in one object, expected one"):
            envs.make(task, config(**options))
        with pytest.raises(EnvError, match="cannot render images: it is many environments"):
            envs.make_any(task, config(**options), render=True)


def test_names_of_vectors_that_do_not_exist_are_answered_with_the_nearest():
    with pytest.raises(EnvError, match=r"There is no task 'vec_CartPole-v7'.*Did you mean 'vec_CartPole-v1'"):
        envs.make_any("vec_CartPole-v7", config())


@pytest.mark.parametrize("array", [jnp.asarray, lambda values: Exported(np.asarray(values))], ids=["jax", "dlpack"])
def test_arrays_of_any_library_will_do(array):
    answer = {"obs": array(bad(1, 0.5)), "reward": array(np.ones(ROWS, np.float32)), "over": array(np.ones(ROWS, bool))}
    vector = envs.VectorEnv(lambda: Plain(**answer), config(), 0)
    vector.reset()
    step = vector.step({"action": np.zeros(ROWS, np.int32)})
    assert step.obs["vector"].tolist() == bad(1, 0.5).tolist()
    assert (step.reward.tolist(), step.is_terminal.tolist()) == ([1] * ROWS, [True] * ROWS)


class Exported:
    """An array that only says where its memory is."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


def test_wrappers_with_running_statistics_are_named():
    vector = gymnasium.wrappers.vector.NormalizeObservation(clock_vector())
    assert "the wrapper NormalizeObservation" in dict(Batched(vector, config()).take_notes()).popitem()[1]
    vector.close()


def test_single_environments_and_classes_are_not_batched():
    assert is_batched(Plain())
    assert not is_batched(Plain)
    assert not is_batched(gymnasium.make("CartPole-v1"))


def test_envpool_answers_at_the_next_step_and_takes_the_seeds_of_the_run():
    pytest.importorskip("envpool", reason="needs the extra envpool, which is too large for dev")
    options = {"kwargs": {"max_episode_steps": 7}}
    make = lambda num_envs: envs.make_any("envpool_CartPole-v1", config(**options), num_envs=num_envs)  # noqa: E731
    steps = roll(make, turns=40)
    assert_equal(roll(make, turns=40), steps)
    for before, after in itertools.pairwise(steps):
        np.testing.assert_array_equal(after.is_first, before.is_last)
        np.testing.assert_array_equal(after.env_steps, ~after.is_first)
        np.testing.assert_array_equal(after.reward, ~after.is_first)
    assert len(np.unique(steps[0].obs["vector"], axis=0)) == ROWS
    assert {tuple(step.is_last) for step in steps} == {(False,) * ROWS, (True,) * ROWS}  # every 7 steps


def test_games_of_envpool_have_the_options_of_atari():
    pytest.importorskip("envpool", reason="needs the extra envpool, which is too large for dev")
    game = envs.make_any("envpool_Pong-v5", config(repeat=4))
    assert isinstance(game, Batched)
    assert game.obs_spaces["image"].shape == (64, 64, 3)
    assert game.reset([1, 2, 3]).obs["image"].dtype == np.uint8
    assert game.step({"action": np.zeros(ROWS, np.int32)}).env_steps.tolist() == [4] * ROWS
    game.close()
    small = envs.make_any("envpool_Pong-v5", config(repeat=4, size=(32, 48), gray=True))
    assert small.obs_spaces["image"].shape == (32, 48, 1)
    assert isinstance(small, Batched) and small.view.sources == {}, "EnvPool draws in this size itself"
    small.close()


@pytest.mark.parametrize("options", [{"wrappers": ("m:w",)}, {"mask_from_info": True}], ids=str)
def test_options_that_need_single_environments_are_refused(options):
    (name,) = options
    with pytest.raises(EnvError, match=f"env.{name} cannot be used with .* many environments in one object"):
        Batched(SyncVectorEnv([Walk] * 2), config(**options))
