"""Models that planners are tested in, whose best plans are known."""

import jax.numpy as jnp

from dreamer.planners import Prior


class Sure:
    """A prediction that is certain."""

    def __init__(self, value):
        self.value = value

    def mean(self):
        return self.value


class World:
    """A model without noise, ends and masks, whose states are dictionaries with the key ``reward``."""

    def noise(self, key, batch):
        return ()

    def step(self, state, action, noise):
        raise NotImplementedError

    def features(self, state):
        return state["reward"][..., None]

    def reward(self, state):
        return Sure(state["reward"])

    def cont(self, state):
        return jnp.ones_like(state["reward"])

    def masks(self, state):
        return {}


def no_value(state):
    """A leaf that is worth nothing."""
    return 0 * state["reward"]


def _refuse(*arguments):
    raise AssertionError("was asked")


no_prior = Prior(_refuse, _refuse)
"""A policy that must not be asked."""


class Target(World):
    """The reward is minus the distance of the action from what is wanted.

    The best class is 2 and the best push (0.5, -0.25); after ``end`` steps the episode is over, and rewards that would
    follow are huge.
    """

    def __init__(self, end=100):
        self.end = end

    def step(self, state, action, noise):
        off = jnp.square(action["push"] - jnp.array([[0.5, -0.25]])).sum(-1) + 1.0 * (action["move"] != 2)
        time = state["time"] + 1
        return {"time": time, "reward": jnp.where(time > self.end, 1000.0 * off, -off)}

    def cont(self, state):
        return jnp.where(state["time"] >= self.end, 0.0, 1.0)
