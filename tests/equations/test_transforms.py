"""Squashing and two-hot encoding, by hand and against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.equations import transforms
from tests.golden_values import load


def test_symlog_by_hand():
    x = jnp.array([-np.e + 1, 0.0, np.e - 1, np.e**2 - 1])
    np.testing.assert_allclose(transforms.symlog(x), [-1, 0, 1, 2], rtol=1e-6)


def test_symexp_inverts_symlog(rng):
    x = jnp.asarray(rng.normal(size=200) * 10 ** rng.uniform(-3, 4, 200), jnp.float32)
    np.testing.assert_allclose(transforms.symexp(transforms.symlog(x)), x, rtol=2e-5)


def test_the_squashing_of_muzero_is_the_published_one():
    data = load("muzero")
    squashed = transforms.signed_hyperbolic(jnp.asarray(data["transform/x"]))
    np.testing.assert_allclose(squashed, data["transform/h"], rtol=1e-5)
    # The published inverse loses four digits to cancellation.
    np.testing.assert_allclose(
        transforms.signed_parabolic(squashed), data["transform/round_trip"], rtol=1e-3, atol=1e-4
    )


def test_signed_parabolic_inverts_signed_hyperbolic(rng):
    x = jnp.asarray(rng.normal(size=200) * 10 ** rng.uniform(-3, 4, 200), jnp.float32)
    np.testing.assert_allclose(transforms.signed_parabolic(transforms.signed_hyperbolic(x)), x, rtol=1e-4, atol=1e-6)
    assert transforms.signed_parabolic(jnp.float32(0)) == 0


def test_bins_are_antisymmetric_with_an_exact_zero():
    bins = transforms.symexp_bins(255)
    assert bins[127] == 0
    np.testing.assert_array_equal(bins, -bins[::-1])
    assert (np.diff(bins) > 0).all()
    np.testing.assert_allclose(bins[-1], np.expm1(20.0), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 254])
def test_bins_refuse_counts_without_a_middle(count):
    with pytest.raises(ValueError, match=f"count={count}, expected an odd number"):
        transforms.symexp_bins(count)


def numpy_two_hot(x: float, bins: np.ndarray) -> np.ndarray:
    """The textbook form: weights of the two neighbours, in float64."""
    bins = bins.astype(np.float64)
    weights = np.zeros(len(bins))
    x = np.clip(x, bins[0], bins[-1])
    above = int(np.clip(np.searchsorted(bins, x, "right"), 1, len(bins) - 1))
    share = (x - bins[above - 1]) / (bins[above] - bins[above - 1])
    weights[above - 1], weights[above] = 1 - share, share
    return weights


def two_hot(x, bins):
    return transforms.two_hot(*transforms.neighbours(jnp.asarray(x), bins), len(bins))


def test_two_hot_by_hand():
    bins = transforms.symexp_bins(5)  # -4.85e8, -22025.466, 0, 22025.466, 4.85e8
    x = jnp.array([0.0, 5506.3665, 11012.733, -9e9, 4.9e8, -17620.373, 242593614.0])
    expected = [
        [0, 0, 1, 0, 0],
        [0, 0, 0.75, 0.25, 0],
        [0, 0, 0.5, 0.5, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0.8, 0.2, 0, 0],
        [0, 0, 0, 0.5, 0.5],
    ]
    np.testing.assert_allclose(two_hot(x, bins), np.array(expected), atol=1e-6)


@pytest.mark.parametrize("count", [3, 5, 41, 255, 1001])
def test_the_bin_below_a_number_is_the_one_that_a_search_finds(rng, count):
    """Exactly, also for the numbers next to a centre, where a rounded logarithm falls on its other side."""
    bins = transforms.symexp_bins(count)
    adjacent = [np.nextafter(bins, np.float32(end)) for end in (-np.inf, np.inf)]
    many = rng.normal(size=20000) * 10 ** rng.uniform(-8, 9, 20000)
    x = np.concatenate([bins, *adjacent, many]).astype(np.float32)
    x = x[(x == 0) | (np.abs(x) >= np.finfo(np.float32).tiny)]  # Processors may take smaller numbers for 0.
    x = np.concatenate([x, [np.finfo(np.float32).tiny, -np.finfo(np.float32).tiny]])
    below, weight = jax.jit(lambda x: transforms.neighbours(x, bins))(x)
    inside = np.clip(x, bins[0], bins[-1])
    np.testing.assert_array_equal(below, np.clip(np.searchsorted(bins, inside, "right") - 1, 0, count - 2))
    assert (np.asarray(weight) >= 0).all() and (np.asarray(weight) <= 1).all()


def test_two_hot_against_float64(rng):
    bins = transforms.symexp_bins(255)
    x = np.concatenate([rng.normal(size=50), rng.normal(size=50) * 1e3, bins[[0, 3, 127, 254]], [1e12, -1e12]])
    x = x.astype(np.float32)
    ours = np.asarray(jax.jit(lambda x: two_hot(x, bins))(x))
    np.testing.assert_allclose(ours, [numpy_two_hot(float(v), bins) for v in x], atol=2e-6)
    np.testing.assert_allclose(ours.sum(-1), 1, atol=2e-6)


def test_two_hot_dot_is_the_sum_that_it_stands_for(rng):
    """Two numbers are looked up instead of adding all that have a weight; against sums over all in float64."""
    bins = transforms.symexp_bins(255)
    x = jnp.asarray(rng.normal(size=(3, 20)) * 10.0 ** rng.integers(-2, 6, (3, 20)), jnp.float32)
    values, weight = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 20, 255), (3, 20)))
    encoded = np.array([[numpy_two_hot(float(v), bins) for v in row] for row in x])

    def loss(values):
        return (weight * transforms.two_hot_dot(values, *transforms.neighbours(x, bins))).sum()

    ours, gradient = jax.jit(jax.value_and_grad(loss))(values)
    wide = np.asarray(weight, np.float64)
    np.testing.assert_allclose(ours, (wide * (encoded * np.asarray(values, np.float64)).sum(-1)).sum(), rtol=1e-5)
    np.testing.assert_allclose(gradient, wide[..., None] * encoded, rtol=0, atol=1e-5)


def test_a_number_that_is_not_one_makes_its_loss_no_number():
    below, weight = transforms.neighbours(jnp.array([np.nan]), transforms.symexp_bins(255))
    assert np.isnan(transforms.two_hot_dot(jnp.zeros((1, 255)), below, weight)).all()


def test_mean_of_the_encoding_is_the_number(rng):
    bins = transforms.symexp_bins(255)
    x = jnp.asarray(rng.normal(size=100) * 10 ** rng.uniform(-2, 5, 100), jnp.float32)
    np.testing.assert_allclose(transforms.two_hot_mean(two_hot(x, bins), bins), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", [0.0, 0.3, -7.0])
@pytest.mark.parametrize("count", [41, 127, 255])
def test_uniform_prediction_is_exactly_zero_under_jit(count, level):
    """A plain sum, or a product with the bins, gives 1 for some numbers of bins."""
    bins = transforms.symexp_bins(count)
    mean = jax.jit(lambda x: transforms.two_hot_mean(jax.nn.softmax(x, -1), bins))(jnp.full((64, count), level))
    assert (np.asarray(mean) == 0).all()
