"""Errors of dreams in a world that counts, where all of them are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.report import open_loop
from dreamer.world_models.rssm import StoredLatent
from tests import counter_world as world

ROWS, STEPS, SAMPLES = 4000, 3, 4
FAULTS = world.Faults(drift=0.25, noise=0.5, posterior=(0.9, 0.1), cont=0.8, label=0.3, grey=0.5)


@pytest.fixture(scope="module")
def dreams():
    """From count 1, with action 1 at each step: the world goes on to 2, 3 and 4."""
    model = world.networks(FAULTS).world_model
    x = jnp.asarray([2.0, 3.0, 4.0])
    target = {
        "vector": jnp.broadcast_to(jnp.stack([jnp.expm1(x), jnp.zeros(3)], -1), (ROWS, STEPS, 2)),
        "label": jnp.zeros((ROWS, STEPS), jnp.int32),
        "image": jnp.full((ROWS, STEPS, 4, 6, 1), 51, jnp.uint8),
    }
    last = {
        "vector": jnp.broadcast_to(jnp.asarray([jnp.expm1(1.0), 0.0]), (ROWS, 2)),
        "label": jnp.ones(ROWS, jnp.int32),
        "image": jnp.full((ROWS, 4, 6, 1), 255, jnp.uint8),
    }
    average = {
        "vector": jnp.asarray([3.0, 0.0]),
        "label": jnp.asarray([0.6, 0.4]),
        "image": jnp.full((4, 6, 1), 0.3),
    }
    inputs = (
        StoredLatent(jnp.broadcast_to(jnp.asarray([1.0, 0.0]), (ROWS, 2)), jnp.zeros((ROWS, 1), jnp.uint8)),
        {"move": jnp.ones((ROWS, STEPS), jnp.int32)},
        target,
        last,
        average,
        jnp.broadcast_to(jnp.log(jnp.asarray(FAULTS.posterior)), (ROWS, STEPS, 1, 2)),
        jnp.broadcast_to(jnp.asarray([1.0, 1.0, 0.0]), (ROWS, STEPS)),
        jax.random.key(0),
    )
    return jax.device_get(jax.jit(lambda *x: open_loop.dream(model, world.OBS_SPACES, SAMPLES, *x))(*inputs))


K = np.arange(1, STEPS + 1)


def test_errors_of_a_vector(dreams):
    found = dreams.errors["vector"]
    # Half of each, because the other entry is right. Without the correction, noise^2 / 8 = 0.031 would be added.
    np.testing.assert_allclose(found.model.mean(1), (0.25 * K) ** 2 / 2, atol=0.012)
    np.testing.assert_allclose(found.spread.mean(1), 0.5**2 / 2, atol=0.005)
    np.testing.assert_allclose(found.repeat[:, 0], K**2 / 2, rtol=1e-5)
    np.testing.assert_allclose(found.mean[:, 0], (3 - (1.0 + K)) ** 2 / 2, atol=1e-5)


def test_errors_of_classes_are_brier_scores(dreams):
    found = dreams.errors["label"]
    np.testing.assert_allclose(found.model, 0.3**2 + 0.3**2, atol=1e-6)
    np.testing.assert_allclose(found.repeat, 2, atol=1e-6)
    np.testing.assert_allclose(found.mean, 0.4**2 + 0.4**2, atol=1e-6)
    assert np.abs(found.spread).max() < 1e-6


def test_errors_of_images(dreams):
    found = dreams.errors["image"]
    np.testing.assert_allclose(found.model, 0.3**2, atol=1e-6)
    np.testing.assert_allclose(found.repeat, 0.8**2, atol=1e-6)
    np.testing.assert_allclose(found.mean, 0.1**2, atol=1e-6)


def test_where_the_errors_sit_sums_the_near_steps_alone(dreams):
    model, repeat, _ = dreams.where["vector"]
    np.testing.assert_allclose(model / ROWS, [0.25**2 + 0.5**2, 0], atol=0.02)
    np.testing.assert_allclose(repeat / ROWS, [1 + 4, 0], rtol=1e-4)
    model, _, mean = dreams.where["image"]
    assert model.shape == (4, 6) and dreams.where["label"][0].shape == ()
    np.testing.assert_allclose(model / ROWS, 2 * 0.3**2, rtol=1e-4)
    np.testing.assert_allclose(mean / ROWS, 2 * 0.1**2, rtol=1e-4)


def test_heads_and_divergence(dreams):
    np.testing.assert_allclose(dreams.reward[:, 0], 1 + 1.25 * K, rtol=1e-3)
    np.testing.assert_allclose(
        (dreams.reward_probs.sum(-1), dreams.cont), (1 + 0 * dreams.cont, 0.8 + 0 * dreams.cont), rtol=1e-4
    )
    assert np.abs(dreams.reward_spread).max() < 1e-6 and np.abs(dreams.cont_spread).max() < 1e-6
    np.testing.assert_allclose(dreams.kl, 0.9 * np.log(1.8) + 0.1 * np.log(0.2), rtol=1e-4)
    np.testing.assert_allclose(dreams.prior_entropy, np.log(2), rtol=1e-4)


def test_the_return_that_is_imagined_with_the_policy():
    nets = world.networks(world.Faults(cont=0.8))
    start = StoredLatent(jnp.asarray([[1.0, 0], [-2.0, 0]]), jnp.zeros((2, 1), jnp.uint8))
    found = open_loop.imagined_return(world.BEHAVIOR, nets, start, 0.9, 3, 2, jax.random.key(0))
    weights = 0.72 ** np.arange(3)
    np.testing.assert_allclose(found, [(weights * [2, 3, 4]).sum(), (weights * [-1, 0, 1]).sum()], rtol=1e-3, atol=1e-3)


def test_the_correction_is_unbiased(rng):
    samples = jnp.asarray(rng.normal(2, 3, (4, 200_000)).astype(np.float32))
    error, variance = open_loop.unbiased_error(samples, jnp.full(200_000, 1.5))
    assert float(error.mean()) == pytest.approx(0.25, abs=0.05)
    assert float(variance.mean()) == pytest.approx(9, abs=0.1)
