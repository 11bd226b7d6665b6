"""Spread within groups and effective rank, for vectors whose covariance is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.equations.spread import deviations, effective_rank


def test_deviations_by_hand():
    x = jnp.array([[1.0, 0.0], [3.0, 0.0], [10.0, 5.0], [7.0, 1.0], [7.0, 3.0]])
    found, degrees = deviations(x, jnp.array([0, 0, 2, 4, 4]), 6)
    np.testing.assert_allclose(found, [[-1, 0], [1, 0], [0, 0], [0, -1], [0, 1]])
    assert int(degrees) == 5 - 3


def test_what_differs_between_groups_alone_does_not_count(rng):
    group = jnp.asarray(rng.integers(0, 7, 200))
    x = jnp.asarray(100.0 * rng.normal(size=(7, 4)), jnp.float32)[group]
    found, _ = deviations(x, group, 7)
    np.testing.assert_allclose(found, 0, atol=1e-3)


def test_deviations_estimate_the_variance_without_bias(rng):
    """Groups of two: the mean of squares would be half of the variance."""
    x = jnp.asarray(3.0 * rng.normal(size=(20_000, 2)), jnp.float32)
    found, degrees = deviations(x, jnp.arange(20_000) // 2, 10_000)
    np.testing.assert_allclose(jnp.square(found).sum(0) / degrees, 9, rtol=0.05)


@pytest.mark.parametrize("shape", [(64, 6), (6, 64)])
def test_the_rank_of_a_known_covariance(rng, shape):
    """Eigenvalues 4, 2, 1 and 1, the rest 0: shares 1/2, 1/4, 1/8 and 1/8 have an entropy of 1.75 ln 2."""
    left, right = (np.linalg.qr(rng.normal(size=(size, 4)))[0] for size in shape)
    x = left @ np.diag(np.sqrt([4.0, 2.0, 1.0, 1.0])) @ right.T
    assert float(effective_rank(jnp.asarray(x, jnp.float32))) == pytest.approx(2**1.75, rel=1e-3)
    assert float(effective_rank(jnp.asarray(1e-3 * x, jnp.float32))) == pytest.approx(2**1.75, rel=1e-3)


def test_the_rank_of_one_direction_and_of_none(rng):
    x = np.outer(rng.normal(size=30), rng.normal(size=8))
    assert float(effective_rank(jnp.asarray(x, jnp.float32))) == pytest.approx(1, abs=1e-3)
    assert float(effective_rank(jnp.zeros((30, 8)))) == 0
