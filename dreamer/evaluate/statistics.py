"""What scores of episodes or runs say, and how sure that is: means, medians, interquartile means, and their intervals.

Intervals are percentile bootstraps: of many data sets drawn from the one there is, with replacement, the statistic lies
within the interval in 95 %. With several runs, every run is drawn from by itself (stratified), as in Agarwal et al.
2021, *Deep reinforcement learning at the edge of the statistical precipice*, who also argue for the interquartile mean.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Statistic = Callable[..., Any]
"""``statistic(array, axis=-1) -> array`` without that axis."""

LEVEL = 0.95
"""Confidence of every interval."""

RESAMPLES = 5000
"""Data sets that are drawn."""

MOST_NUMBERS = 2_000_000
"""Scores that are drawn before the next ones replace them, to save memory."""


def iqm(scores: Any, axis: int = -1) -> Any:
    """Interquartile mean: that of the scores without the lowest and the highest quarter, each rounded down."""
    from scipy import stats  # Slow to import.

    return stats.trim_mean(scores, 0.25, axis)


def interval(samples: Sequence[Any], statistic: Statistic, seed: int = 0) -> tuple[float, float] | None:
    """Bootstrap interval of a statistic of all samples together.

    Args:
        samples: scores of each run, ``[n_i]``; every bootstrap draws n_i from sample i.
        statistic: of the joined samples.
        seed: decides the draws.

    Returns:
        Its ends; None if a sample has fewer than two scores, of which nothing can be drawn.
    """

    def joined(*drawn: np.ndarray, axis: int = -1) -> Any:
        return statistic(np.concatenate(drawn, axis), axis=axis)

    return interval_of(samples, joined, seed)


def interval_of(samples: Sequence[Any], statistic: Statistic, seed: int = 0) -> tuple[float, float] | None:
    """As `interval`, of any statistic of several samples: ``statistic(*samples, axis=-1)``."""
    arrays = [np.asarray(sample, np.float64) for sample in samples]
    if min((len(array) for array in arrays), default=0) < 2:
        return None
    low, high = _bootstrap(arrays, statistic, seed)
    return float(low), float(high)


def intervals_of_means(scores: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ends ``[P]`` of the intervals of the means of N scores, N at least 2, at each of P places: ``scores [P, N]``."""
    low, high = _bootstrap([scores], np.mean, seed)
    return low, high


def _bootstrap(arrays: Sequence[np.ndarray], statistic: Statistic, seed: int) -> tuple[Any, Any]:
    """Low and high end of the interval; scores lie along the last axis."""
    from scipy import stats

    found = stats.bootstrap(
        arrays,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, min(RESAMPLES, MOST_NUMBERS // sum(array.size for array in arrays))),
        vectorized=True,
        axis=-1,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return found.low, found.high


def describe(samples: Sequence[Any]) -> dict[str, Any]:
    """``mean``, ``median`` and ``iqm`` of all samples together, each with its ``NAME_interval`` (None without one).

    Args:
        samples: scores of the episodes of each run.
    """
    joined = np.concatenate([np.asarray(sample, np.float64) for sample in samples])
    found: dict[str, Any] = {}
    for name, statistic in (("mean", np.mean), ("median", np.median), ("iqm", iqm)):
        found[name] = float(statistic(joined))
        found[f"{name}_interval"] = interval(samples, statistic)
    return found


__all__ = ["LEVEL", "RESAMPLES", "describe", "interval", "interval_of", "intervals_of_means", "iqm"]
