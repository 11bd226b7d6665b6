"""An explorer sees the states and steps of the model, with the reward of the step that led to each."""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.exploration import Curious, CuriousState
from dreamer.types import Batch
from dreamer.world_models import Dynamics, imagine


class Count(NamedTuple):
    """A state is the sum of the actions; so is the reward of the task."""

    def noise(self, key, batch):
        return jnp.zeros(batch)

    def step(self, state, action, noise):
        return state + action["move"]

    def features(self, state):
        return state[..., None]

    def reward(self, state):
        return SimpleNamespace(mean=lambda: state)

    def cont(self, state):
        return 0.9 * jnp.ones_like(state)

    def masks(self, state):
        return {}


@jax.tree_util.Partial
def bonus(feature, action):
    """Ten times the state that was left, and the action."""
    return 10 * feature[..., 0] + action["move"]


def test_it_is_all_that_imagination_asks_for():
    assert isinstance(Curious(Count(), bonus, 1.0, 0.0), Dynamics)


def test_the_bonus_is_that_of_the_step_that_led_there():
    curious = Curious(Count(), bonus, intrinsic=2.0, extrinsic=0.5)
    start = CuriousState(jnp.array([1.0]), jnp.zeros(1))

    def policy(state, key):
        return {"move": jnp.full(1, 2.0)}, None

    states = imagine(curious, start, policy, 2, jax.random.key(0)).states
    assert states.state[:, 0].tolist() == [1, 3, 5]
    assert states.bonus[1:, 0].tolist() == [12, 32]
    assert curious.reward(states).mean()[1:, 0].tolist() == [2 * 12 + 0.5 * 3, 2 * 32 + 0.5 * 5]
    assert curious.features(states).shape == (3, 1, 1)
    np.testing.assert_allclose(curious.cont(states), 0.9 * np.ones((3, 1)))
    np.testing.assert_allclose(curious._replace(further=0.5).cont(states), 0.45 * np.ones((3, 1)))


def test_real_steps_are_relived_with_the_same_rewards():
    curious = Curious(Count(), bonus, intrinsic=1.0, extrinsic=0.5)
    states = jnp.array([[1.0, 3.0, 7.0, 8.0]])
    batch = Batch(
        obs={},
        prev_action={"move": jnp.array([[9.0, 2.0, 4.0, 1.0]])},
        reward=jnp.array([[0.0, 4.0, 0.0, 6.0]]),
        is_first=np.array([[False, False, True, False]]),
        is_last=np.zeros((1, 4), bool),
        is_terminal=np.zeros((1, 4), bool),
        stored=(),
    )
    seen, relived = curious.relive(states, batch)
    assert seen.states.state.tolist() == states.tolist()
    assert seen.states.bonus.tolist() == [[0, 12, 0, 71]]
    assert relived.reward.tolist() == [[0, 14, 0, 74]]
