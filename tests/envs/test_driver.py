"""The driver's scores, lengths and counters, worked out by hand."""

import functools
import itertools

import gymnasium
import numpy as np
import pytest

from dreamer.config import EnvConfig
from dreamer.envs import EnvError, VectorEnv
from dreamer.envs.driver import Driver, Episode
from dreamer.world_models.rssm import StoredLatent


class Scripted(gymnasium.Env):
    """Plays lists of rewards over and over; a list that ends with None terminates, otherwise it is truncated."""

    def __init__(self, *episodes):
        self.observation_space = gymnasium.spaces.Box(0, 9, (1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.episodes = itertools.cycle(episodes)

    def reset(self, *, seed=None, options=None):
        self.rewards = list(next(self.episodes))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        reward = self.rewards.pop(0)
        terminated = self.rewards == [None]
        if isinstance(reward, str):
            raise RuntimeError(reward)
        return np.ones(1, np.float32), reward, terminated, not self.rewards, {}


def drive(*envs, repeat=1):
    config = EnvConfig(count=len(envs), repeat=repeat, rehearse=False)
    vector = VectorEnv(functools.partial(next, iter(envs)), config, seed=0)
    (act,) = vector.action_spaces

    def policy(memory, obs, is_first):
        n = len(is_first)
        return {act: np.zeros(n, np.int32)}, memory + 1, StoredLatent(np.zeros((n, 1), np.float32), np.zeros((n, 1)))

    return Driver(vector, policy, 0)


def turns(driver, count):
    found = []
    for _ in range(count):
        driver.act()
        found.append(driver.advance())
    return found


def test_scores_and_lengths():
    driver = drive(Scripted([1, 2, 3, None], [10]), Scripted([5, -1.5, None]))
    found = turns(driver, 7)
    # Environment 0: 3 steps, reset, 1 step, reset, 1 step. Environment 1: 2 steps, reset, 2 steps, reset, 1 step.
    assert found == [
        [],
        [Episode(3.5, 2, 1)],
        [Episode(6.0, 3, 0)],
        [],
        [Episode(10.0, 1, 0), Episode(3.5, 2, 1)],
        [],
        [],
    ]
    assert (driver.agent_steps, driver.env_steps, driver.episodes) == (5 + 5, 5 + 5, 4)


def test_lengths_count_env_steps_under_action_repeat():
    driver = drive(Scripted([1, 2, 3, None], [10]), repeat=2)
    # Two of the three rewards come with the first action, the last one alone.
    assert turns(driver, 4) == [[], [Episode(6.0, 3, 0)], [], [Episode(10.0, 1, 0)]]
    assert (driver.agent_steps, driver.env_steps, driver.episodes) == (3, 4, 2)


def test_the_row_shows_what_the_policy_saw():
    driver = drive(Scripted([7, None]))
    rows = []
    for _ in range(3):
        rows.append(driver.act())
        driver.advance()
    assert [row.step.is_first.tolist() for row in rows] == [[True], [False], [True]]
    assert [row.step.is_last.tolist() for row in rows] == [[False], [True], [False]]
    assert [row.step.reward.tolist() for row in rows] == [[0.0], [7.0], [0.0]]


class Reporting(VectorEnv):
    """Reports the number of the environment at the end of its episodes."""

    def step(self, action):
        step = super().step(action)
        return step._replace(log={int(i): {"number": float(i)} for i in np.flatnonzero(step.is_last)})


def test_episodes_carry_what_their_environments_report(monkeypatch):
    monkeypatch.setattr(f"{__name__}.VectorEnv", Reporting)
    found = turns(drive(Scripted([1, 2, None]), Scripted([5, None])), 2)
    assert found == [[Episode(5.0, 1, 1, {"number": 1.0})], [Episode(3.0, 2, 0, {"number": 0.0})]]


def test_a_failing_environment_leaves_the_counters():
    driver = drive(Scripted([1, "the simulator broke", None]))
    turns(driver, 1)
    driver.act()
    with pytest.raises(EnvError, match="the simulator broke"):
        driver.advance()
    assert (driver.agent_steps, driver.env_steps, driver.episodes) == (1, 1, 0)
