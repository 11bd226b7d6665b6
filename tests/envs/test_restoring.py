"""An environment that continues from the state of another plays like it, or says why it cannot."""

import collections
import functools
import json
import random
from typing import Any

import gymnasium
import numpy as np
import pytest

from dreamer.config import EnvConfig
from dreamer.envs import EnvError, NotRestorable, VectorEnv, make
from dreamer.envs.restore import attributes
from dreamer.envs.restore.states import pack, unpack
from dreamer.envs.rollouts import random_action
from dreamer.spaces import mask_keys
from tests.envs.test_vector import FIELDS


def round_trip(state: Any) -> Any:
    structure, data = pack(state)
    return unpack(json.loads(json.dumps(structure)), data)


def bits(step) -> tuple[Any, ...]:
    obs = {key: (value.dtype, value.tobytes()) for key, value in step.obs.items()}
    return obs, [getattr(step, name).tobytes() for name in FIELDS], {i: dict(log) for i, log in step.log.items()}


def play(env, step, rng, turns):
    """Take random actions, starting from an answer; returns all answers."""
    masks = mask_keys(env.obs_spaces, env.action_spaces)
    steps = [step]
    for _ in range(turns):
        steps.append(env.step(random_action(rng, env.action_spaces, masks, steps[-1].obs, (env.num_envs,))))
    return steps


def assert_restores(make_env, config, before=13, after=40, other=None):
    """Save one in the middle of episodes; another continues like it, bit for bit, to the same state."""
    with VectorEnv(make_env, config, 1) as env:
        step = play(env, env.reset(), np.random.default_rng(2), before)[-1]
        state = round_trip(env.state())
        expected = play(env, step, np.random.default_rng(3), after)
        end = pack(env.state())
    with VectorEnv(make_env, other or config, 5) as again:
        again.reset()
        again.restore(state)
        found = play(again, step, np.random.default_rng(3), after)
        if other is None:
            assert pack(again.state())[0] == end[0] and pack(again.state())[1].tobytes() == end[1].tobytes()
    assert [bits(step) for step in found] == [bits(step) for step in expected]


def task(name, **config):
    return functools.partial(make, name, EnvConfig(**config))


@pytest.mark.parametrize(
    "name",
    [
        *("gym_CartPole-v1", "gym_Pendulum-v1", "gym_Acrobot-v1", "gym_MountainCarContinuous-v0"),
        *("gym_FrozenLake-v1", "gym_Blackjack-v1"),
        *("probe_catch", "probe_cartpole_hidden", "probe_masked", "probe_memory", "probe_dummy", "probe_action"),
        *("probe_cue8", "probe_bandit", "probe_repeat", "jax_catch", "jax_bandit", "jax_repeat"),
    ],
)
def test_environments_continue_from_a_state(name):
    assert_restores(task(name), EnvConfig(count=2))


@pytest.mark.parametrize("name", ["dmc_reacher_easy", "dmc_fish_swim", "dmc_cartpole_swingup", "dmc_finger_turn_hard"])
def test_the_suite_continues_from_a_state(name):
    assert_restores(task(name, repeat=2), EnvConfig(count=1, repeat=2), before=5, after=10)


@pytest.mark.slow
def test_every_task_of_the_suite_continues_from_a_state():
    dmc = pytest.importorskip("dreamer.envs.suites.dmc")
    for name in dmc.tasks():
        for before in (0, 7):
            assert_restores(task(f"dmc_{name}"), EnvConfig(count=1), before, after=25)


@pytest.mark.slow
def test_the_suite_continues_after_the_end_of_an_episode():
    for name in ("reacher_easy", "point_mass_hard", "quadruped_escape", "hopper_hop", "lqr_lqr_2_1"):
        assert_restores(task(f"dmc_{name}", repeat=100), EnvConfig(count=1, repeat=100), before=9, after=5)


def test_atari_continues_from_a_state():
    pytest.importorskip("ale_py")
    # Every frame is seen, so that the one before the first matters.
    assert_restores(task("atari_pong"), EnvConfig(count=1), before=80, after=30)


@pytest.mark.slow
def test_every_game_continues_from_a_state():
    atari = pytest.importorskip("dreamer.envs.suites.atari")
    config = EnvConfig(count=1, repeat=4)
    refused = set()
    for name in atari.tasks():
        try:
            assert_restores(task(f"atari_{name}", repeat=4), config, before=60, after=60, other=config)
        except NotRestorable:
            refused.add(name)
    # The emulator leaves something out of the state of these, which is noticed before anything relies on it.
    assert refused == {"miniature_golf", "qbert", "tetris"}


@pytest.mark.parametrize("name", ["crafter_reward", "minigrid_MiniGrid-Empty-5x5-v0"])
def test_an_environment_that_hides_its_state_says_so(name):
    pytest.importorskip(name.partition("_")[0])
    with VectorEnv(task(name), EnvConfig(count=1), 0) as env:
        env.reset()
        with pytest.raises(NotRestorable, match=r"Attribute '_\w+' of dreamer(\.\w+)+ is a .*not plain data"):
            env.state()


def test_environments_in_workers_continue_from_a_state():
    config = EnvConfig(count=3, workers="async", per_worker=2)
    assert_restores(task("gym_CartPole-v1"), config)
    assert_restores(task("gym_CartPole-v1"), config, other=EnvConfig(count=3))


class Plain(gymnasium.Env):
    """All kinds of plain data, which decide what is observed: the state of each must be restored."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (6,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self):
        self.limit, self.kind, self.function, self.type = 4.0, np.float32, np.add, dict

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.old, self.standard = np.random.RandomState(seed), random.Random(seed)
        self.time, self.queue = 0, collections.deque([0.0], maxlen=3)
        self.table: Any = {"a": np.zeros(2), 3: (1, [2.5])}
        self.alias = self.table["a"]  # Writing into one shows in the other.
        return self.look(), {}

    def step(self, action):
        self.time += 1
        self.alias[action] += 1.5
        self.queue.append(self.standard.random())
        self.table[3][1][0] += action
        return self.look(), 0.0, False, self.time == 7, {}

    def look(self):
        draws = self.np_random.normal(), self.old.normal(), sum(self.queue)
        return np.array([*draws, *self.table["a"], self.table[3][1][0]])


def test_plain_data_of_every_kind_is_restored():
    assert_restores(Plain, EnvConfig(count=2), before=12, after=20)


def closure():
    held: list[int] = []
    return lambda: held


def plain_with(**attributes):
    """A maker of `Plain` environments with further attributes."""

    class Odd(Plain):
        def __init__(self):
            super().__init__()
            for name, value in attributes.items():
                setattr(self, name, value() if callable(value) else value)

    return Odd


class Global(Plain):
    def step(self, action):
        obs, *rest = super().step(action)
        return obs + np.random.rand(), *rest  # noqa: NPY002


class Counting(Plain):
    total = 0

    def reset(self, *, seed=None, options=None):
        type(self).total += 1
        return super().reset(seed=seed)


class Slotted(Plain):
    __slots__ = ("hidden",)


BASE = np.zeros(4)


@pytest.mark.parametrize(
    ("make_env", "message"),
    [
        (plain_with(odd=object), r"Attribute 'odd' of .*Odd is a builtins\.object, which is not plain data"),
        (plain_with(odd=lambda: [1, {"x": {1}}]), r"Attribute 'odd\[1\]\['x'\]' of .*Odd is a builtins\.set"),
        (plain_with(odd=lambda: closure()), r"Attribute 'odd' of .*is a builtins\.function"),
        (plain_with(odd=lambda: [].append), r"Attribute 'odd' of .*is a builtins\.builtin_function_or_method"),
        (plain_with(one=lambda: BASE[:2], two=lambda: BASE[1:]), "Attribute 'two' of .* shares memory with 'one'"),
        (plain_with(odd=lambda: np.random.mtrand._rand), "Attribute 'odd' .*RandomState"),
        (Global, "behaved differently .*global randomness"),
        (Counting, r"changes an attribute of a class, Counting\.total"),
        (Slotted, "__slots__"),
    ],
)
def test_environments_with_hidden_state_are_refused(make_env, message):
    with VectorEnv(make_env, EnvConfig(count=1), 0) as env:
        env.reset()
        for _ in range(2):  # The second time the reason is remembered.
            with pytest.raises(NotRestorable, match=message):
                env.state()


class Opaque(gymnasium.Env):
    """Hides its state, but has the two methods."""

    observation_space = gymnasium.spaces.Box(0, 99, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    made = 0

    def __init__(self):
        Opaque.made += 1
        self.hidden = iter(range(0))
        self.time = 0

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.full(1, self.time, np.float32), 1.0, False, self.time == 9, {}

    def get_state(self):
        return {"time": self.time}

    def set_state(self, state):
        self.time = state["time"]


@pytest.mark.parametrize(("declines", "made"), [(False, 6), (True, 2)])
def test_an_environment_that_gives_its_state_is_tried_unless_it_declines(declines, made, monkeypatch):
    if declines:
        monkeypatch.setattr(Opaque, "needs_rehearsal", False, raising=False)

    def make_env():
        return gymnasium.wrappers.TimeLimit(Opaque(), 5)

    Opaque.made = 0
    assert_restores(make_env, EnvConfig(count=1))
    assert Opaque.made == made


class Hidden(gymnasium.Env):
    """Every episode has a secret, which its observations show; subclasses say what their state is."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float64)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        self.secret = self.np_random.uniform(-1, 1, 1)
        return self.secret.copy(), {}

    def step(self, action):
        self.time += 1
        return self.secret.copy(), 0.0, False, self.time == 9, {}


class OfCritics(Hidden):
    """What a central critic sees, and a setter of two arguments."""

    def get_state(self):
        return np.array([self.time])

    def set_state(self, positions, velocities):
        raise AssertionError("called by a stranger")


class OfAgents(Hidden):
    """The state that one agent sees."""

    def get_state(self, agent):
        return np.array([agent])

    def set_state(self, agent, state):
        raise AssertionError("called by a stranger")


class OfHandles(Hidden):
    """A handle, which is not plain data."""

    def get_state(self):
        return object()

    def set_state(self, state):
        self.handle = state


class OfParts(Hidden):
    """Part of what matters."""

    def get_state(self):
        return {"time": self.time}

    def set_state(self, state):
        self.time = state["time"]
        self.secret = np.zeros(1)


@pytest.mark.parametrize("kind", [OfCritics, OfAgents, OfHandles, OfParts])
def test_state_methods_of_another_meaning_are_found_out(kind):
    with VectorEnv(kind, EnvConfig(count=1), 1) as env:
        step = env.reset()
        with pytest.raises(NotRestorable, match=r"get_state and set_state|trial of saving|plain data"):
            pack(env.state())
        play(env, step, np.random.default_rng(0), 3)  # Nothing has changed for the run.


def test_an_environment_with_more_data_than_a_checkpoint_should_hold_is_not_saved():
    class Market(Hidden):
        def __init__(self, size):
            self.prices = np.zeros(size)

    small, large = attributes.MOST_BYTES // 8 - 100, attributes.MOST_BYTES // 8 + 1
    assert_restores(lambda: Market(small), EnvConfig(count=1))
    with VectorEnv(lambda: Market(large), EnvConfig(count=1), 0) as env:
        env.reset()
        with pytest.raises(NotRestorable, match=r"Attribute 'prices' of .*Market takes 17 MB.*attribute of the class"):
            env.state()


@pytest.mark.parametrize("workers", ["sync", "async"])
def test_a_state_that_does_not_fit_begins_new_episodes(workers):
    config = EnvConfig(count=2, workers=workers)
    with VectorEnv(task("gym_CartPole-v1"), config, 1) as env:
        env.reset()
        state = round_trip(env.state())
    with VectorEnv(task("gym_Acrobot-v1"), config, 5) as env:
        first = env.reset()
        with pytest.raises(NotRestorable, match=r"expected .*CartPoleEnv"):
            env.restore(state)
        # The same first episodes again, with its own seeds.
        assert bits(env.reset()) == bits(first)
    with VectorEnv(task("gym_CartPole-v1"), EnvConfig(count=1), 5) as env, pytest.raises(NotRestorable, match="2 env"):
        env.restore(state)


def test_closed_environments_have_no_state():
    env = VectorEnv(task("gym_CartPole-v1"), EnvConfig(count=1), 0)
    env.close()
    with pytest.raises(EnvError, match="closed already"):
        env.state()


def test_seeds_of_replacements_continue():
    """The replacement of a failed environment gets the seed it would have got without the interruption."""

    def failing():
        class Failing(gymnasium.Env):
            observation_space = gymnasium.spaces.Box(0, 2.0**40, (1,), np.float64)
            action_space = gymnasium.spaces.Discrete(2)
            time = seed = 0

            def reset(self, *, seed=None, options=None):
                self.seed = self.seed if seed is None else seed
                return np.full(1, self.seed, np.float64), {}

            def step(self, action):
                self.time += 1
                if self.time == 4:
                    raise RuntimeError("as planned")
                return np.full(1, self.seed, np.float64), 0.0, False, False, {}

            needs_rehearsal = False  # A trial would fail as planned.

            def get_state(self):
                return [self.time, self.seed]

            def set_state(self, state):
                self.time, self.seed = state

        return Failing()

    config = EnvConfig(count=1, workers="async")
    with VectorEnv(failing, config, 1, on_message=lambda _: None) as env:
        step = play(env, env.reset(), np.random.default_rng(2), 6)[-1]
        state = round_trip(env.state())
        expected = play(env, step, np.random.default_rng(3), 6)
        failures = env.failures
    with VectorEnv(failing, config, 8, on_message=lambda _: None) as env:
        env.restore(state)
        assert [bits(step) for step in play(env, step, np.random.default_rng(3), 6)] == [bits(s) for s in expected]
        assert env.failures == failures == 3
