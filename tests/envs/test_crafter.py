"""Crafter against the library's own environment, deaths and limits, the log of achievements, and the score."""

import collections
import math

import crafter
import numpy as np
import pytest

from dreamer import envs
from dreamer.config import EnvConfig
from dreamer.envs import EnvError
from dreamer.envs.suites.achievements import score
from dreamer.envs.suites.crafter import Crafter, summarize

NOOP = 0


class Line(list):
    """Stands for the sets in which the library keeps creatures; its order does not depend on addresses in memory."""

    add = list.append


class Steady(crafter.engine.World):
    """The library's world with `Line`s."""

    def reset(self, seed=None):
        super().reset(seed)
        self._chunks = collections.defaultdict(Line)


@pytest.fixture
def meadow(monkeypatch):
    """Worlds of nothing but grass with a cow on every ninth cell; making a real one takes a second."""

    def generate(world, player):
        for cell in np.ndindex(*world.area):
            world[cell] = "grass"
            if cell[0] % 3 == cell[1] % 3 == 0 and world[cell][1] is None:
                world.add(crafter.objects.Cow(world, cell))

    monkeypatch.setattr(crafter.worldgen, "generate_world", generate)


@pytest.mark.slow
def test_same_as_the_library(monkeypatch, rng):
    with monkeypatch.context() as patch:
        patch.setattr(crafter.engine, "World", Steady)
        raw = crafter.Env(seed=3)
    env = envs.make("crafter_reward", EnvConfig())
    np.testing.assert_array_equal(env.reset(seed=3)[0]["image"], raw.reset(), strict=True)
    rewards = []
    for action in rng.integers(0, 17, 400):
        obs, *answer, info = env.step({"action": action.astype(np.int32)})
        image, reward, over, raw_info = raw.step(action)
        np.testing.assert_array_equal(obs["image"], image, strict=True)
        assert answer == [reward, over, False] and info["env_steps"] == 1
        assert info.get("log") == (
            {f"achievement_{k}": v for k, v in raw_info["achievements"].items()} if over else None
        )
        rewards.append(reward)
        if over:
            break
    assert over
    assert raw_info["discount"] == 0
    assert {1.0} < set(rewards)
    np.testing.assert_array_equal(env.reset()[0]["image"], raw.reset())


def play(env, seed, steps=40):
    images = [env.reset(seed=seed)[0]] + [env.step(NOOP)[0] for _ in range(steps)]
    return np.array([*images, env.reset()[0]])


def test_seeds_decide_everything(meadow):
    images, env = play(Crafter(), 1), Crafter()
    np.testing.assert_array_equal(images, play(env, 1))
    np.testing.assert_array_equal(images, play(env, 1))
    assert (images != play(env, 2)).any()


def test_creatures_vanish_in_the_same_order_wherever_they_lie_in_memory(meadow):
    def survivors(burden):
        env = Crafter()
        env.reset(seed=0)
        kept = []
        for _ in range(60):
            kept.append([object() for _ in range(burden)])
            env.step(NOOP)
        return [tuple(creature.pos) for creature in env._env._world.objects]

    assert survivors(0) == survivors(3)


def test_every_episode_has_another_world(monkeypatch):
    seen = []
    monkeypatch.setattr(
        crafter.worldgen, "generate_world", lambda world, player: seen.append(world.random.randint(2**31 - 1))
    )
    for seed in (None, 1, 1):
        env = Crafter()
        env.reset(seed=seed)
        env.reset()
    assert seen[2:4] == seen[4:6] and len(set(seen[:4])) == 4


def test_death_terminates_and_the_limit_truncates(meadow):
    env = Crafter()
    env.reset(seed=0)
    assert env._env._length == 10_000
    env._env._player.inventory["health"] = 0
    assert env.step(NOOP)[2:4] == (True, False)
    env.reset()
    env._env._length = 3
    answers = [env.step(NOOP)[2:] for _ in range(3)]
    assert [answer[:2] for answer in answers] == [(False, False), (False, False), (False, True)]
    assert [set(answer[2]) for answer in answers] == [set(), set(), {"log"}]
    env.reset()
    env._env._step = 2
    env._env._player.inventory["health"] = 0
    assert env.step(NOOP)[2:4] == (True, False)


def test_the_log_counts_the_achievements_of_one_episode(meadow):
    env = Crafter()
    for count in (2, 0):
        env.reset(seed=0)
        for _ in range(count):
            env._env._player.achievements["collect_wood"] += 1
        env._env._player.inventory["health"] = 0
        log = env.step(NOOP)[4]["log"]
        assert len(log) == 22 and log["achievement_collect_wood"] == sum(log.values()) == count


@pytest.mark.parametrize(("task", "expected"), [("reward", [1.0, -0.1]), ("noreward", [0.0, 0.0])])
def test_rewards(meadow, task, expected):
    env = envs.make(f"crafter_{task}", EnvConfig())
    env.reset(seed=0)
    inner = env.unwrapped._env  # type: ignore[attr-defined]
    inner._player.achievements["collect_wood"] += 1
    first = env.step({"action": np.int32(NOOP)})[1]
    inner._player.inventory["health"] -= 1
    assert [first, env.step({"action": np.int32(NOOP)})[1]] == pytest.approx(expected)


def test_rendering_disturbs_nothing(meadow):
    env = envs.make("crafter_reward", EnvConfig(), render=True)
    found = []
    for render in (False, True):
        env.reset(seed=0)
        env.unwrapped._env._step = 200  # type: ignore[attr-defined]  # at night, when drawing needs random numbers
        images = []
        for _ in range(15):
            images.append(env.step({"action": np.int32(NOOP)})[0]["image"])
            if render:
                frame = env.render()
                assert (frame.shape, frame.dtype) == ((360, 360, 3), np.uint8) and frame.any()
        found.append(np.array(images))
    np.testing.assert_array_equal(found[0], found[1])


def test_score():
    names = [f"achievement_{name}" for name in crafter.constants.achievements]
    none, every = dict.fromkeys(names, 0.0), dict.fromkeys(names, 7.0)
    one = none | {names[3]: 1.0}
    assert score([none]) == 0 and score([every, every]) == pytest.approx(100)
    assert score([one]) == pytest.approx(101 ** (1 / 22) - 1)
    # Rates of 75 % for one achievement and 50 % for the other 21.
    assert score([every, none, one, every]) == pytest.approx(math.exp((math.log(76) + 21 * math.log(51)) / 22) - 1)
    assert summarize([one]) == {"crafter_score": score([one])}


def test_names():
    assert [name for name in envs.tasks() if name.startswith("crafter_")] == ["crafter_noreward", "crafter_reward"]
    with pytest.raises(EnvError, match=r"Crafter has no task 'rewards'\. Did you mean 'crafter_reward'"):
        envs.make("crafter_rewards", EnvConfig())
    env = envs.make("crafter_reward", EnvConfig())
    assert env.obs_spaces["image"].shape == (64, 64, 3) and env.action_spaces["action"].classes == 17


def test_the_run_finds_the_summary():
    assert envs.summarizer("crafter_noreward") is summarize
    assert envs.summarizer("gym_CartPole-v1") is envs.summarizer("custom_env") is None
