"""Calibration of forecasts that are right, too sure, or shifted, by construction."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dreamer.equations import transforms
from dreamer.report import calibration

BINS = transforms.symexp_bins(255)


def test_a_reliability_table_by_hand():
    probability = np.array([0.1, 0.1, 0.2, 0.9, 1.0])
    event = np.array([False, True, True, False, True])
    bins = calibration.reliability(probability, event, (0.0, 0.2, 0.8, 1.0))
    assert [(b.low, b.high, b.size) for b in bins] == [(0.0, 0.2, 2), (0.2, 0.8, 1), (0.8, 1.0, 2)]
    assert [b.predicted for b in bins] == pytest.approx([0.1, 0.2, 0.95])
    assert [b.observed for b in bins] == pytest.approx([0.5, 1, 0.5])
    assert calibration.calibration_error(bins) == pytest.approx((2 * 0.4 + 1 * 0.8 + 2 * 0.45) / 5)
    assert np.isnan(calibration.calibration_error(calibration.reliability(probability[:0], event[:0])))


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (3, 10), (10, 10), (150, 1000)])
def test_wilson_against_scipy(hits, count):
    expected = scipy.stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert calibration.wilson(hits / count, count) == pytest.approx(tuple(expected), abs=1e-4)


def test_a_calibrated_forecast_has_no_calibration_error(rng):
    probability = rng.uniform(size=50_000)
    event = rng.uniform(size=50_000) < probability
    assert calibration.calibration_error(calibration.reliability(probability, event)) < 0.01
    too_sure = calibration.reliability(np.where(probability > 0.5, 0.95, 0.05), event)
    assert calibration.calibration_error(too_sure) == pytest.approx(0.2, abs=0.01)


def test_weights_are_those_of_the_two_hot_encoding(rng):
    value = np.concatenate(
        [rng.normal(size=50) * 10.0 ** rng.integers(-3, 8, 50), [0, 1, -1e9, 1e9, BINS[0], BINS[-1]]]
    )
    below, weight = calibration.two_hot_weights(value.astype(np.float32), BINS)
    found = np.zeros((len(value), len(BINS)))
    found[np.arange(len(value)), below] += 1 - weight
    found[np.arange(len(value)), below + 1] += weight
    np.testing.assert_allclose(
        found, transforms.two_hot(*transforms.neighbours(jnp.asarray(value, jnp.float32), BINS), len(BINS)), atol=1e-4
    )


def test_the_pit_of_a_head_that_is_right_is_uniform(rng):
    # A certain head: all its mass where the value is encoded.
    value = rng.normal(size=20).astype(np.float32)
    certain = np.asarray(transforms.two_hot(*transforms.neighbours(jnp.asarray(value), BINS), len(BINS)))
    np.testing.assert_allclose(calibration.pit(certain, value, BINS), calibration.GRID, atol=1e-5)
    # An unsure one: values drawn from what it says.
    probs = rng.dirichlet(np.ones(9), 40_000)
    drawn = (probs.cumsum(-1) < rng.uniform(size=(40_000, 1))).sum(-1)
    bins = np.arange(9.0)
    cdf = calibration.pit(probs, drawn, bins)
    np.testing.assert_allclose(cdf, calibration.GRID, atol=0.01)
    assert calibration.coverage(cdf, 0.9) == pytest.approx(0.9, abs=0.01)


def test_the_pit_by_hand():
    probs, bins = np.array([[0.2, 0.5, 0.3]]), np.array([0.0, 1.0, 2.0])
    # A value of 1.5 is half the second bin, with PIT in [0.2, 0.7], and half the third, with PIT in [0.7, 1].
    u = np.array([0.0, 0.2, 0.45, 0.7, 0.85, 1.0])
    pit = calibration.pit(probs, np.array([1.5]), bins, u)
    np.testing.assert_allclose(pit, [0, 0, 0.25, 0.5, 0.75, 1], atol=1e-12)
    assert np.isnan(calibration.pit(probs[:0], np.zeros(0), bins)).all()


def test_heads_that_are_wrong_have_other_pits(rng):
    bins = np.linspace(-4, 4, 81)
    value = rng.normal(size=5000)

    def head(centre, width):
        weights = np.exp(-0.5 * ((bins - centre) / width) ** 2)
        return calibration.pit(np.tile(weights / weights.sum(), (5000, 1)), value, bins)

    assert np.abs(head(0, 1) - calibration.GRID).max() < 0.03
    # Too sure: values fall outside. Too unsure: all inside. Too high: values fall low.
    assert calibration.coverage(head(0, 0.5), 0.9) < 0.65
    assert calibration.coverage(head(0, 2), 0.9) > 0.98
    assert head(1, 1)[10] > 0.8


def test_perplexity_counts_classes():
    probs = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4])
    np.testing.assert_allclose(calibration.perplexity(probs), [1, 2, 4])
