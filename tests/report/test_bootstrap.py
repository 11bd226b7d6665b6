"""Bands from resampled episodes, against scipy, and correlation against numpy."""

import numpy as np
import pytest
import scipy.stats

from dreamer.report import bootstrap


def data(rng, episodes=12):
    """Points of episodes of different sizes, each at a different level."""
    sizes = rng.integers(3, 30, episodes)
    episode = np.repeat(np.arange(episodes), sizes)
    return episode, rng.normal(size=episodes)[episode] + 0.3 * rng.normal(size=len(episode))


def test_the_band_of_a_mean_against_scipy(rng):
    episode, values = data(rng)
    sums = bootstrap.sums_by_episode(np.stack([values, np.ones_like(values)], -1), episode, 12)
    band = bootstrap.bootstrap(sums, bootstrap.mean, rng, resamples=20_000)
    assert band.value == pytest.approx(values.mean())
    # scipy resamples the numbers of the episodes, with the same statistic.
    expected = scipy.stats.bootstrap(
        (np.arange(12),),
        lambda index, axis: sums[index, 0].sum(axis) / sums[index, 1].sum(axis),
        confidence_level=bootstrap.LEVEL,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    np.testing.assert_allclose([band.low, band.high], expected, atol=0.02)
    # Points of one episode resemble each other, which makes the band wider than that of as many separate points.
    alone = bootstrap.sums_by_episode(np.stack([values, np.ones_like(values)], -1), np.arange(len(values)), len(values))
    narrow = bootstrap.bootstrap(alone, bootstrap.mean, rng)
    assert band.high - band.low > 1.5 * (narrow.high - narrow.low)


def test_the_band_of_a_correlation_against_scipy(rng):
    x = rng.normal(size=80)
    y = 0.6 * x + rng.normal(size=80)
    sums = bootstrap.sums_by_episode(bootstrap.moments(x, y), np.arange(80), 80)
    band = bootstrap.bootstrap(sums, bootstrap.pearson, rng, resamples=20_000)
    assert band.value == pytest.approx(scipy.stats.pearsonr(x, y)[0])
    expected = scipy.stats.bootstrap(
        (x, y),
        lambda x, y, axis: scipy.stats.pearsonr(x, y, axis=axis).statistic,
        paired=True,
        confidence_level=bootstrap.LEVEL,
        method="percentile",
        n_resamples=5000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    np.testing.assert_allclose([band.low, band.high], expected, atol=0.02)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_correlation_is_accurate_far_from_zero(rng, offset):
    x = offset + rng.normal(size=50)
    y = offset - x + 0.1 * rng.normal(size=50)
    sums = bootstrap.moments(x, y).sum(0, keepdims=True)
    assert bootstrap.pearson(sums)[0] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)


def test_what_does_not_vary_has_no_correlation():
    sums = bootstrap.moments(np.full(9, 0.1), np.arange(9.0)).sum(0, keepdims=True)
    with np.errstate(invalid="ignore"):
        assert np.isnan(bootstrap.pearson(sums)[0])


def test_one_episode_has_no_band_and_none_no_mean(rng):
    band = bootstrap.bootstrap(np.array([[6.0, 3.0]]), bootstrap.mean, rng)
    assert band.value == 2
    assert np.isnan(band.low)
    assert np.isnan(band.high)
    empty = bootstrap.bootstrap(np.zeros((4, 2)), bootstrap.mean, rng)
    assert np.isnan([empty.value, empty.low, empty.high]).all()
    assert bootstrap.moments(np.zeros(0), np.zeros(0)).shape == (0, 6)


def test_sums_by_episode():
    values = np.array([[1.0, 10], [2, 20], [4, 40]])
    np.testing.assert_array_equal(
        bootstrap.sums_by_episode(values, np.array([2, 0, 2]), 4), [[2, 20], [0, 0], [5, 50], [0, 0]]
    )
