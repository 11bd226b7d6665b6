"""Confidence bands by resampling whole episodes, for any number that is a function of sums.

Steps of one episode resemble each other, so resampling steps would give bands that are too narrow. The cluster
bootstrap draws as many episodes as there are, with replacement, and computes the number again. A mean, a ratio and a
correlation depend only on sums over steps, so each draw only weights the sums of the episodes.

Scores have one number for each episode, which is simpler: see `dreamer.evaluate.statistics`, with the same level.

Source: Davison and Hinkley, "Bootstrap Methods and their Application" (1997), sections 2.4 and 3.8.
"""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dreamer.evaluate.statistics import LEVEL

RESAMPLES = 1000
"""Number of draws."""

SumsStatistic = Callable[[np.ndarray], np.ndarray]
"""From sums ``[R, *sums]`` over the episodes of each of R draws to numbers ``[R, ...]``."""


class Band(NamedTuple):
    """A number ``[]`` or a curve ``[K]``, and its confidence band; NaN without data, or with only one episode."""

    value: np.ndarray
    """``[...]``."""
    low: np.ndarray
    """``[...]``, like ``value``."""
    high: np.ndarray
    """``[...]``, like ``value``."""


def bootstrap(sums: np.ndarray, statistic: SumsStatistic, rng: np.random.Generator, resamples: int = RESAMPLES) -> Band:
    """The statistic of all episodes together, and its percentile band, which holds a share `LEVEL` of the draws.

    Args:
        sums: sums over the steps of each episode, ``[E, *sums]``.
        statistic: computes the number from sums over all steps.
        rng: source of the draws.
        resamples: number of draws.
    """
    episodes = len(sums)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice", RuntimeWarning)
        value = statistic(sums.sum(0, keepdims=True))[0]
        if episodes < 2:
            return Band(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
        # How often each episode is drawn, [R, E]; weighted sums over episodes are then [R, *sums].
        weights = rng.multinomial(episodes, np.full(episodes, 1 / episodes), resamples)
        draws = statistic(np.tensordot(weights.astype(np.float64), sums, 1))
        low, high = np.nanpercentile(draws, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
    return Band(value, low, high)


def sums_by_episode(values: np.ndarray, episode: np.ndarray, episodes: int) -> np.ndarray:
    """Sums of ``values [N, ...]`` over the points of each episode, ``[episodes, ...]`` in float64.

    Args:
        values: one row per point.
        episode: number of the episode of each point, ``[N]``.
        episodes: how many there are; those without a point get zeros.
    """
    sums = np.zeros((episodes, *values.shape[1:]))
    np.add.at(sums, episode, values)
    return sums


def mean(sums: np.ndarray) -> np.ndarray:
    """`SumsStatistic` of ``[R, ..., 2]``, sum and count: the mean."""
    return sums[..., 0] / sums[..., 1]


def moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The numbers whose sums `pearson` needs, ``[N, 6]``, for pairs ``x [N], y [N]``; centred first, for accuracy."""
    if not len(x):
        return np.zeros((0, 6))
    x = x.astype(np.float64) - x.mean()
    y = y.astype(np.float64) - y.mean()
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], -1)


def pearson(sums: np.ndarray) -> np.ndarray:
    """`SumsStatistic` of ``[R, 6]`` sums of `moments`: Pearson's correlation; NaN where x or y does not vary."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    n = np.maximum(n, 1)
    variance_x = xx / n - (x / n) ** 2
    variance_y = yy / n - (y / n) ** 2
    # Numbers that are all equal have no variance except for rounding.
    varies = (variance_x > 1e-12) & (variance_y > 1e-12)
    product = np.where(varies, variance_x * variance_y, np.nan)
    return (xy / n - x * y / n**2) / np.sqrt(product)
