"""Rollouts in a model: the same as unrolled steps, after a policy and after given actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer.types import Action, Trajectory
from dreamer.world_models import follow, imagine
from dreamer.world_models.latent import rssm
from tests.small import ACTION_SPACES, OBS_SPACES, small_config

H, N = 5, 3


@pytest.fixture(scope="module")
def model():
    return jax.jit(lambda: rssm(small_config(), OBS_SPACES, ACTION_SPACES, nnx.Rngs(params=0)))()


@pytest.fixture
def start(model, rng):
    zeros = model.initial(N)
    stoch = jax.nn.one_hot(rng.integers(0, zeros.stoch.shape[-1], (N, zeros.stoch.shape[1])), zeros.stoch.shape[-1])
    return zeros._replace(deter=jnp.asarray(rng.normal(size=zeros.deter.shape), jnp.float32), stoch=stoch)


def assert_close(one, two):
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_imagining_equals_unrolled_steps(model, start):
    key, traced = jax.random.key(3), []

    def policy(state, key):
        """Any function of the state will do; this one tells when it is traced."""
        traced.append(1)
        move = (state.deter[:, :3]).argmax(-1).astype(jnp.int32)
        return {"move": move, "push": state.deter[:, 3:5] + jax.random.normal(key, (N, 2))}, state.deter.sum(-1)

    def unrolled():
        state, states, chosen = start, [start], []
        step_key, last_key = jax.random.split(key)
        for step in jax.random.split(step_key, H):
            policy_key, model_key = jax.random.split(step)
            chosen.append(policy(state, policy_key))
            state = model.step(state, chosen[-1][0], model.noise(model_key, N))
            states.append(state)
        chosen.append(policy(state, last_key))
        states, (actions, extras) = (jax.tree.map(lambda *x: jnp.stack(x), *xs) for xs in (states, chosen))
        return Trajectory(states, actions, extras)

    trajectory = jax.jit(lambda: imagine(model, start, policy, H, key))()
    assert len(traced) == 2, "traced once inside the scan and once after it"
    expected = jax.jit(unrolled)()
    assert trajectory.states.deter.shape == (H + 1, N, start.deter.shape[-1])
    assert_close(trajectory, expected)


def test_following_equals_unrolled_steps(model, start, rng):
    key = jax.random.key(4)
    action: Action = {
        "move": jnp.asarray(rng.integers(0, 3, (H, N)), jnp.int32),
        "push": jnp.asarray(rng.uniform(-1, 1, (H, N, 2)), jnp.float32),
    }

    def unrolled():
        state, states = start, []
        for h, step_key in enumerate(jax.random.split(key, H)):
            now = {name: value[h] for name, value in action.items()}
            state = model.step(state, now, model.noise(step_key, N))
            states.append(state)
        return jax.tree.map(lambda *x: jnp.stack(x), *states)

    assert_close(jax.jit(lambda: follow(model, start, action, key))(), jax.jit(unrolled)())
