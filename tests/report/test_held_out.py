"""Held-out episodes hold what the environment answered, in the timing of `dreamer.types`."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from dreamer.agent import Agent
from dreamer.algorithms import Algorithm
from dreamer.envs import EnvError
from dreamer.report.held_out import collect
from dreamer.types import Space
from dreamer.world_models.rssm import StoredLatent
from tests.small import latent_spec, run_config


def ask(*_: Any) -> Any:
    raise AssertionError("was asked")


class Alternating(Agent):
    """An agent without networks: as many steps into its episode, it takes action 0 or 1 in turn."""

    def __init__(self):
        self.config = run_config("unused", "run.eval_envs=20")
        self.obs_spaces = {"vector": Space("vector", (1,))}
        self.action_spaces = {"action": Space("discrete", (), 2)}
        self.policy_steps = 7
        self.algorithm = Algorithm(ask, ask, ask, ask, stored=latent_spec(1, 1, 2))

    def initial(self, batch):
        return np.zeros(batch, np.int64)

    def policy(self, state, obs, is_first, mode="sample"):
        assert mode == "sample"
        state = np.where(is_first, 0, state + 1)
        n = len(is_first)
        return {"action": (state % 2).astype(np.int32)}, state, StoredLatent(np.zeros((n, 1)), np.zeros((n, 1)))


class Counting(gymnasium.Env):
    """Shows the step and its seed; the reward is 10 times the action; the task ends after as many steps as asked."""

    observation_space = gymnasium.spaces.Box(0, 2**32, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    seeds: list[int]

    def __init__(self, length, seeds):
        self.length, self.seeds = length, seeds

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.seeds.append(seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        return np.full(1, self.time, np.float32), 10.0 * float(action), self.time == self.length, False, {}


def test_steps_are_aligned_and_padded():
    lengths = iter([3, 2])
    found = collect(Alternating(), lambda: Counting(next(lengths), []), 2, seed=0)
    assert found.length.tolist() == [4, 3]
    batch = found.batch
    np.testing.assert_array_equal(batch.obs["vector"][..., 0], [[0, 1, 2, 3], [0, 1, 2, 0]])
    # Actions 0, 1, 0 are chosen in steps 0, 1, 2, and are the previous ones in steps 1, 2, 3.
    np.testing.assert_array_equal(batch.prev_action["action"], [[0, 0, 1, 0], [0, 0, 1, 0]])
    np.testing.assert_array_equal(batch.reward, [[0, 0, 10, 0], [0, 0, 10, 0]])
    np.testing.assert_array_equal(batch.is_first, [[1, 0, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(batch.is_terminal, [[0, 0, 0, 1], [0, 0, 1, 0]])
    np.testing.assert_array_equal(found.valid, [[1, 1, 1, 1], [1, 1, 1, 0]])


def test_every_environment_plays_its_turn_and_endless_ones_are_cut():
    lengths = iter([3, 10**9, *[2] * 40])
    found = collect(Alternating(), lambda: Counting(next(lengths), []), 22, seed=0, most_steps=5)
    # Twenty environments play one round, and the first two another one.
    assert found.length.tolist() == [4, 6, *[3] * 18, 4, 6]
    assert not found.batch.is_last[1].any() and not found.batch.is_terminal[1].any()


def test_seeds_are_those_of_nobody_else_and_the_agent_is_left_as_it_was():
    first: list[int] = []
    again: list[int] = []
    other: list[int] = []
    agent = Alternating()
    collect(agent, lambda: Counting(2, first), 3, seed=0)
    collect(agent, lambda: Counting(2, again), 3, seed=0)
    collect(agent, lambda: Counting(2, other), 3, seed=1)
    assert first == again and len(set(first + other)) == 6
    assert agent.policy_steps == 7


def test_another_environment_is_refused():
    agent = Alternating()
    agent.obs_spaces = {"vector": Space("vector", (2,))}
    with pytest.raises(EnvError, match=r"observation 'vector' is vector \[1\], and was vector \[2\] when the agent"):
        collect(agent, lambda: Counting(2, []), 1, seed=0)
    with pytest.raises(ValueError, match="episodes=0, expected at least 1"):
        collect(agent, lambda: Counting(2, []), 0, seed=0)
