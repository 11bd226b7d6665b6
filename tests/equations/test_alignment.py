"""Agreement with embeddings: by hand, with rows that do not count, and where nothing varies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.equations.alignment import barlow_twins, info_nce

A = jnp.array([1, 1, -1, -1], jnp.float32)
B = jnp.array([1, -1, 1, -1], jnp.float32)
X = jnp.stack([A, B], -1)
TARGET = jnp.stack([A, A + B], -1)


def test_correlations_by_hand():
    """C is [[1, r], [0, r]] with r = 1 / sqrt(2)."""
    r = 2**-0.5
    expected = (1 - r) ** 2 + 0.1 * r**2
    assert float(barlow_twins(X, TARGET, 0.1)) == pytest.approx(expected, rel=1e-5)
    assert float(barlow_twins(X, X, 0.1)) == pytest.approx(0, abs=1e-6)
    assert float(barlow_twins(X, -X, 0.1)) == pytest.approx(8, rel=1e-5)


def test_shift_and_scale_do_not_matter(rng):
    x, target = (jnp.asarray(rng.normal(size=(20, 3)), jnp.float32) for _ in range(2))
    scale = jnp.array([[0.1, 3, 50]])
    expected = barlow_twins(x, target, 0.3)
    np.testing.assert_allclose(barlow_twins(scale * x - 7, target, 0.3), expected, rtol=1e-4)
    np.testing.assert_allclose(barlow_twins(x, scale * target + 7, 0.3), expected, rtol=1e-4)


def test_rows_that_do_not_count_change_nothing(rng):
    x, target = (jnp.concatenate([part, 100 * rng.normal(size=(3, 2))]).astype(jnp.float32) for part in (X, TARGET))
    valid = jnp.arange(7) < 4
    value, gradient = jax.value_and_grad(barlow_twins)(x, target, 0.1, valid)
    alone, expected = jax.value_and_grad(barlow_twins)(X, TARGET, 0.1)
    np.testing.assert_allclose(value, alone, rtol=1e-4)
    np.testing.assert_allclose(gradient, np.concatenate([expected, np.zeros((3, 2))]), atol=1e-5)


@pytest.mark.parametrize("valid", [True, False])
def test_what_does_not_vary_follows_nothing_and_has_a_finite_gradient(valid):
    x = jnp.full((4, 2), 5.0) if valid else X
    value, gradient = jax.value_and_grad(barlow_twins)(x, TARGET, 0.1, jnp.full(4, valid))
    assert float(value) == pytest.approx(2)
    assert np.isfinite(gradient).all()


def test_no_gradient_reaches_the_targets(rng):
    x, target = (jnp.asarray(rng.normal(size=(6, 3)), jnp.float32) for _ in range(2))
    for loss in (lambda target: barlow_twins(x, target, 0.1), lambda target: info_nce(x, target).mean()):
        assert not jax.grad(loss)(target).any()


def test_telling_targets_apart_by_hand():
    """The own target is three times as probable as the other: 3 / (3 + 1)."""
    np.testing.assert_allclose(info_nce(jnp.log(3.0) * jnp.eye(2), jnp.eye(2)), 2 * [-np.log(0.75)], rtol=1e-5)


def test_a_guess_costs_the_logarithm_of_the_rows(rng):
    target = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    np.testing.assert_allclose(info_nce(jnp.zeros((5, 3)), target), np.log(5), rtol=1e-6)


def test_large_products_are_finite(rng):
    x = jnp.asarray(1e4 * rng.normal(size=(5, 3)), jnp.float32)
    value, gradient = jax.value_and_grad(lambda x: info_nce(x, x).mean())(x)
    assert np.isfinite(value) and np.isfinite(gradient).all()
