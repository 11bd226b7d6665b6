"""Statistics of scores: compared with scipy, numpy, and numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from dreamer.evaluate import statistics


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end(rng):
    assert statistics.iqm([100.0, 1.0, 2.0, -50.0]) == 1.5
    assert statistics.iqm([1.0, 2.0, 6.0]) == 3.0
    assert statistics.iqm([0.0, 0, 1, 2, 3, 4, 99, 99]) == 2.5
    scores = rng.normal(size=(3, 21))
    middle = np.sort(scores, -1)[:, 5:-5].mean(-1)
    np.testing.assert_allclose(statistics.iqm(scores), middle)


@pytest.mark.parametrize("name", ["mean", "median", "iqm"])
def test_an_interval_is_that_of_scipy(name, rng):
    statistic = {"mean": np.mean, "median": np.median, "iqm": lambda x, axis: stats.trim_mean(x, 0.25, axis)}[name]
    scores = rng.gamma(2.0, 100.0, 30)
    expected = stats.bootstrap([scores], statistic, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    low, high = statistics.describe([scores])[f"{name}_interval"]
    width = expected.high - expected.low
    np.testing.assert_allclose((low, high), (expected.low, expected.high), atol=0.06 * width)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says(rng):
    truth = 3.0
    covered = 0
    for _ in range(100):
        interval = statistics.interval([rng.normal(truth, 2.0, 40)], np.mean)
        assert interval is not None
        low, high = interval
        covered += low <= truth <= high
    assert 88 <= covered <= 99


def test_runs_are_resampled_separately(rng):
    runs = [rng.normal(0, 1, 20), rng.normal(1000, 1, 40)]
    interval = statistics.interval(runs, np.mean)
    assert interval is not None
    low, high = interval
    # The mean of 60 episodes has a standard error of 0.13 if each run keeps its number of episodes, and of 62 if not.
    assert 0.35 < high - low < 0.65
    assert low < np.concatenate(runs).mean() < high


def test_scores_that_cannot_vary_have_no_interval_or_one_of_zero_width():
    assert statistics.interval([[1.0]], np.mean) is None
    assert statistics.interval([[1.0, 2.0], [3.0]], np.mean) is None
    assert statistics.interval([], np.mean) is None
    assert statistics.interval([[2.0] * 5], np.mean) == (2.0, 2.0)
    assert statistics.describe([[4.0]]) == {
        **{"mean": 4.0, "median": 4.0, "iqm": 4.0},
        **{"mean_interval": None, "median_interval": None, "iqm_interval": None},
    }


def test_the_same_scores_give_the_same_interval(rng):
    scores = rng.normal(size=12)
    assert statistics.interval([scores], np.median) == statistics.interval([scores], np.median)
    assert statistics.interval([scores], np.mean) != statistics.interval([scores], np.mean, seed=1)


def test_intervals_at_many_places_are_those_of_each(rng):
    scores = rng.normal(size=(4, 5))
    low, high = statistics.intervals_of_means(scores)
    for row, ends in zip(scores, zip(low, high, strict=True), strict=True):
        assert ends == pytest.approx(statistics.interval([row], np.mean))


def test_a_statistic_of_several_samples():
    def product(a, b, axis=-1):
        return a.mean(axis) * b.mean(axis)

    assert statistics.joint_interval([[0.0, 2.0], [5.0, 5.0, 5.0]], product) == (0.0, 10.0)
