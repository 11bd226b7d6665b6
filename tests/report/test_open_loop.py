"""Errors of dreams in a world that counts, where all of them are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.report import open_loop
from dreamer.world_models.rssm import StoredLatent
from tests import counter_world as world

ROWS, STEPS, SAMPLES = 4000, 3, 4
FAULTS = world.Faults(drift=0.25, noise=0.5, cont=0.9, fading=0.1, reward_noise=0.5, label=0.3, grey=0.5)
SEEN = np.array([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5]])
"""Posteriors of the three steps."""


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
        jnp.broadcast_to(jnp.log(jnp.asarray(SEEN, jnp.float32))[:, None], (ROWS, STEPS, 1, 2)),
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
    x = 1 + 1.25 * K
    np.testing.assert_allclose(dreams.reward.mean(1), x, atol=0.02)
    np.testing.assert_allclose(dreams.reward_spread.mean(1), 0.5**2, atol=0.01)
    np.testing.assert_allclose(dreams.reward_probs.sum(-1), 1, rtol=1e-4)
    np.testing.assert_allclose(dreams.cont, np.broadcast_to((0.9 - 0.1 * x)[:, None], (STEPS, ROWS)), rtol=1e-4)
    np.testing.assert_allclose(dreams.cont_spread, 0, atol=1e-6)
    kl = np.log(2) + (SEEN * np.log(SEEN)).sum(-1)
    np.testing.assert_allclose(dreams.kl, np.broadcast_to(kl[:, None], (STEPS, ROWS)), atol=1e-5)
    np.testing.assert_allclose(dreams.prior_entropy, np.log(2), rtol=1e-4)


def test_the_return_that_is_imagined_with_the_policy():
    """From 1, the counts are 2, 3 and 4, from which it goes on with probabilities 0.7, 0.55 and 0.4.

    From -2, they are -1, 0 and 1, and it surely goes on from the first two.
    """
    nets = world.networks(world.Faults(cont=1.0, fading=0.15))
    start = StoredLatent(jnp.asarray([[1.0, 0], [-2.0, 0]]), jnp.zeros((2, 1), jnp.uint8))
    found = open_loop.imagined_return(world.BEHAVIOR, nets, start, 0.9, 3, 2, jax.random.key(0))
    expected = [2 + 0.9 * 0.7 * 3 + 0.9**2 * 0.7 * 0.55 * 4, -1 + 0.9 * 0 + 0.9**2 * 1]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_what_is_filtered_begins_anew_at_a_reset():
    """Two episodes in one sequence: the count, its value and its reward start again."""
    nets = world.networks(world.Faults(value=3.0, leaning=0.5))
    held_out = world.episodes([3, 3], [True, False])
    joined = jax.tree.map(lambda x: np.concatenate([x[:1], x[1:]], 1), held_out.batch._replace(stored=None))
    batch = joined._replace(stored=StoredLatent(np.full((1, 2), 7, np.float32), np.ones((1, 1), np.uint8)))
    found = open_loop.filter_states(world.BEHAVIOR, nets, batch, jax.random.key(0))
    x = np.array([[0, 1, 2, 0, 1, 2]])
    np.testing.assert_allclose(found.stored.deter[..., 0], x)
    np.testing.assert_allclose(found.value, 3.0 * x, rtol=1e-3, atol=1e-5)
    odds = found.posterior[..., 0, 1] - found.posterior[..., 0, 0]
    np.testing.assert_allclose(odds, 0.5 * x, atol=1e-5)


def test_the_correction_is_unbiased(rng):
    samples = jnp.asarray(rng.normal(2, 3, (4, 200_000)).astype(np.float32))
    error, variance = open_loop.unbiased_error(samples, jnp.full(200_000, 1.5))
    assert float(error.mean()) == pytest.approx(0.25, abs=0.05)
    assert float(variance.mean()) == pytest.approx(9, abs=0.1)
