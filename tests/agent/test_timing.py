"""The timing convention of `dreamer.types`, from a scripted environment all the way to the batches of replay."""

import functools
import itertools

import gymnasium
import numpy as np
import pytest

from dreamer.config import EnvConfig, ReplayConfig
from dreamer.envs import VectorEnv
from dreamer.envs.driver import Driver
from dreamer.replay import Layout, Replay
from dreamer.world_models.rssm import StoredLatent
from tests.small import latent_spec

EPISODES = ((3, "terminated"), (1, "truncated"), (6, "truncated"), (2, "terminated"), (1, "terminated"))
TURNS = 46
ROWS = 31
"""Fewer than turns, so that the ring wraps around."""


class Numbers(gymnasium.Env):
    """The observation is a running number; the reward is 100 times the action that was just received."""

    def __init__(self, start, skip):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.number = start - 1
        self.script = itertools.islice(itertools.cycle(EPISODES), skip, None)
        self.first, self.last, self.terminal = set(), set(), set()
        self.steps = 0

    def _observe(self):
        self.number += 1
        return np.array([self.number], np.float32)

    def reset(self, *, seed=None, options=None):
        self.left, self.end = next(self.script)
        obs = self._observe()
        self.first.add(self.number)
        return obs, {}

    def step(self, action):
        obs = self._observe()
        self.steps += 1
        self.left -= 1
        terminated, truncated = (self.left == 0 and self.end == end for end in ("terminated", "truncated"))
        if terminated or truncated:
            self.last.add(self.number)
        if terminated:
            self.terminal.add(self.number)
        return obs, 100 * float(action[0]), terminated, truncated, {}


def play(repeat):
    """Environments, replay and driver after `TURNS` turns; two environments whose numbers never meet."""
    members = [Numbers(0, 0), Numbers(-97, 2)]
    config = EnvConfig(count=2, workers="sync", repeat=repeat, rehearse=False)
    vector = VectorEnv(functools.partial(next, iter(members)), config, seed=0)
    (key,) = vector.obs_spaces
    (act,) = vector.action_spaces

    def policy(memory, obs, is_first):
        number = obs[key]
        stoch = np.zeros((2, 1), np.uint8)
        return {act: np.float32(0.01) * number}, memory, StoredLatent(number.copy(), stoch)

    spec = latent_spec(deter=1, stoch=1, classes=2, dtype=np.float32)
    settings = ReplayConfig(capacity=2 * ROWS, batch_size=8, batch_length=5, online=False)
    replay = Replay(settings, 2, Layout.of(vector.obs_spaces, vector.action_spaces, spec), np.random.default_rng(0))
    driver = Driver(vector, policy, None)
    for _ in range(TURNS):
        replay.add(*driver.act())
        driver.advance()
    return members, replay, driver, key, act


@pytest.mark.parametrize("repeat", [1, 2])
def test_batches_obey_the_convention(repeat):
    members, replay, _, key, act = play(repeat)
    first, last, terminal = (
        [*(members[0].__dict__[name] | members[1].__dict__[name])] for name in ("first", "last", "terminal")
    )
    seen = []
    for _ in range(60):
        batch, _ = replay.sample()
        obs = batch.obs[key][..., 0]
        before = np.concatenate([batch.stored.deter, obs[:, :-1]], 1)  # obs[t-1], from the latent at t = 0
        # Numbers go up by one per simulator step and per reset, so neighbours are neighbours of one environment.
        passed = obs - before
        assert ((passed >= 1) & (passed <= repeat)).all()
        action = batch.prev_action[act][..., 0]
        np.testing.assert_allclose(action, 0.01 * before, rtol=1e-6)
        np.testing.assert_array_equal(batch.is_first, np.isin(obs, first))
        np.testing.assert_array_equal(batch.is_last, np.isin(obs, last))
        np.testing.assert_array_equal(batch.is_terminal, np.isin(obs, terminal))
        np.testing.assert_array_equal(batch.is_first, np.isin(before, last))
        np.testing.assert_allclose(
            batch.reward, np.where(batch.is_first, 0.0, 100 * action * passed), rtol=1e-5, atol=1e-5
        )
        seen.append(np.stack([obs, batch.is_first, batch.is_last, batch.is_terminal]))
    # All of this was really in the data: both environments, and ends of both kinds.
    numbers, is_first, is_last, is_terminal = np.concatenate(seen, 1)
    assert numbers.min() < 0 < numbers.max()
    assert is_first.any()
    assert is_terminal.any()
    assert (is_last > is_terminal).any()


@pytest.mark.parametrize("repeat", [1, 2])
def test_resets_are_not_counted_as_steps(repeat):
    members, _, driver, _, _ = play(repeat)
    resets = sum(len(env.first) - 1 for env in members)
    assert resets > 10
    assert driver.env_steps == sum(env.steps for env in members)
    assert driver.agent_steps == 2 * TURNS - resets
    assert driver.episodes == sum(len(env.last) for env in members)
    assert (driver.env_steps == driver.agent_steps) == (repeat == 1)
