"""The Gaussian latents: distribution by hand, reparameterised samples, and packing."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer.equations.distributions import Gaussian
from dreamer.world_models import LatentVariableModel, WorldModel
from dreamer.world_models.gaussian_rssm import MIN_STD
from dreamer.world_models.latent import gaussian_rssm
from tests.small import ACTION_SPACES, OBS_SPACES, same_tree, small_config


@pytest.fixture(scope="module")
def model():
    return jax.jit(lambda: gaussian_rssm(small_config(), OBS_SPACES, ACTION_SPACES, nnx.Rngs(params=0)))()


def test_divergence_and_entropy_are_those_of_independent_normals(rng):
    one, two = (
        Gaussian(jnp.asarray(rng.normal(size=(2, 3))), jnp.asarray(rng.uniform(0.5, 2, (2, 3)))) for _ in range(2)
    )
    p, q = (distrax.MultivariateNormalDiag(x.mean, x.std) for x in (one, two))
    np.testing.assert_allclose(one.kl_to(two), p.kl_divergence(q), rtol=1e-5)
    np.testing.assert_allclose(one.entropy(), p.entropy(), rtol=1e-5)


def test_it_is_what_the_protocols_ask_for(model):
    assert isinstance(model, WorldModel)
    assert isinstance(model, LatentVariableModel)
    assert model.feature_size == 16 + 3


def test_standard_deviations_are_softplus_and_a_tenth(model):
    found = model.belief((jnp.zeros((1, 3)), jnp.array([[-50.0, 0.0, 3.0]])))
    np.testing.assert_allclose(found.std, [[MIN_STD, np.log(2) + 0.1, np.log1p(np.exp(3)) + 0.1]], rtol=1e-5)


def test_noise_moves_the_sample_by_standard_deviations(model):
    state = model.initial(2)
    action = {"move": jnp.zeros(2, jnp.int32), "push": jnp.zeros((2, 2))}
    mean = model.step(state, action, jnp.zeros((2, 3)))
    moved = model.step(state, action, jnp.ones((2, 3)))
    expected = model.expectation(mean)
    np.testing.assert_allclose(mean.stoch, expected.mean, rtol=1e-5)
    np.testing.assert_allclose(moved.stoch - mean.stoch, expected.std, rtol=1e-4)


def test_packing_is_lossless(model, rng):
    state = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), model.initial(4))
    assert same_tree(model.unpack(model.pack(state)), state)
