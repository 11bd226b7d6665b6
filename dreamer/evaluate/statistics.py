"""Means, medians and interquartile means of the scores of episodes or runs, and their confidence intervals.

Intervals are percentile bootstraps: the data is resampled with replacement many times, and the statistic of 95 % of the
resamples lies within the interval. With several runs, each run is resampled separately (stratified), as in Agarwal et
al. 2021, *Deep reinforcement learning at the edge of the statistical precipice*, who recommend the interquartile mean.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Statistic = Callable[..., Any]
"""``statistic(array, axis=-1) -> array`` without that axis."""

LEVEL = 0.95
"""Confidence of every interval."""

RESAMPLES = 5000
"""Number of resamples."""

MOST_NUMBERS = 2_000_000
"""Scores in memory at a time: resamples are drawn in batches of this size."""


def iqm(scores: Any, axis: int = -1) -> Any:
    """Interquartile mean: the mean without the lowest and the highest quarter of the scores, each rounded down."""
    from scipy import stats  # Slow to import.

    return stats.trim_mean(scores, 0.25, axis)


def interval(samples: Sequence[Any], statistic: Statistic, seed: int = 0) -> tuple[float, float] | None:
    """Bootstrap interval of a statistic of all samples together.

    Args:
        samples: scores of each run, ``[n_i]``; every resample has n_i scores of sample i.
        statistic: of the concatenated samples.
        seed: of the resamples.

    Returns:
        Its ends; None if a sample has fewer than two scores, which cannot be resampled.
    """

    def pooled_statistic(*resamples: np.ndarray, axis: int = -1) -> Any:
        return statistic(np.concatenate(resamples, axis), axis=axis)

    return joint_interval(samples, pooled_statistic, seed)


def joint_interval(samples: Sequence[Any], statistic: Statistic, seed: int = 0) -> tuple[float, float] | None:
    """As `interval`, for a statistic that takes the samples separately: ``statistic(*samples, axis=-1)``."""
    arrays = [np.asarray(sample, np.float64) for sample in samples]
    if min((len(array) for array in arrays), default=0) < 2:
        return None
    low, high = _bootstrap(arrays, statistic, seed)
    return float(low), float(high)


def intervals_of_means(scores: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ends ``[P]`` of the intervals of the means of ``scores [P, N]`` at each of P points, with N at least 2."""
    return _bootstrap([scores], np.mean, seed)


def _bootstrap(arrays: Sequence[np.ndarray], statistic: Statistic, seed: int) -> tuple[Any, Any]:
    """Low and high end of the interval; scores are on the last axis."""
    from scipy import stats

    interval = stats.bootstrap(
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
    return interval.low, interval.high


def describe(samples: Sequence[Any]) -> dict[str, Any]:
    """``mean``, ``median`` and ``iqm`` of all samples together, each with its ``NAME_interval`` (None without one).

    Args:
        samples: scores of the episodes of each run.
    """
    pooled = np.concatenate([np.asarray(sample, np.float64) for sample in samples])
    description: dict[str, Any] = {}
    for name, statistic in (("mean", np.mean), ("median", np.median), ("iqm", iqm)):
        description[name] = float(statistic(pooled))
        description[f"{name}_interval"] = interval(samples, statistic)
    return description


__all__ = ["LEVEL", "RESAMPLES", "describe", "interval", "intervals_of_means", "iqm", "joint_interval"]
