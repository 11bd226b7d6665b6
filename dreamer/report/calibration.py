"""Whether probabilities mean what they say: reliability of a binary forecast, and the PIT of a two-hot distribution."""

from typing import NamedTuple

import numpy as np

EDGES = (0.0, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 1.0)
"""Bins of predicted probabilities; narrow at the ends, where those of continuing nearly always lie."""

GRID = np.linspace(0, 1, 21)
"""Levels at which the distribution of the PIT is computed."""


class Bin(NamedTuple):
    """Predictions in one range of probabilities, and how often the event occurred."""

    low: float
    high: float
    size: int
    """Number of predictions."""
    predicted: float
    """Mean of the predictions."""
    observed: float
    """Share of events."""
    observed_low: float
    """Lower end of the 95 % Wilson interval of that share, as if the predictions were independent."""
    observed_high: float
    """Its upper end."""


def reliability(probability: np.ndarray, event: np.ndarray, edges: tuple[float, ...] = EDGES) -> list[Bin]:
    """Table of a reliability diagram; bins without predictions are left out.

    Args:
        probability: predictions ``[N]``.
        event: whether it occurred, bool ``[N]``.
        edges: edges of the bins; a prediction on an edge belongs to the bin above it, 1 to the last bin.

    Source: Murphy and Winkler, "Reliability of subjective probability forecasts", Applied Statistics 26 (1977).
    """
    index = np.clip(np.digitize(probability, edges) - 1, 0, len(edges) - 2)
    bins = []
    for number in range(len(edges) - 1):
        inside = index == number
        count = int(inside.sum())
        if count:
            share = float(event[inside].mean())
            low, high = wilson(share, count)
            predicted = float(probability[inside].mean())
            bins.append(
                Bin(
                    low=edges[number],
                    high=edges[number + 1],
                    size=count,
                    predicted=predicted,
                    observed=share,
                    observed_low=low,
                    observed_high=high,
                )
            )
    return bins


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share of ``count`` independent trials; by default 95 %."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: mean over predictions of ``|predicted - observed|`` of their bin; NaN without any.

    Source: Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015.
    """
    total = sum(b.size for b in bins)
    return sum(b.size * abs(b.predicted - b.observed) for b in bins) / total if total else float("nan")


def two_hot_weights(value: np.ndarray, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the bin below each value ``[N]``, and weight of the bin above: `transforms.neighbours` in float64."""
    value = np.clip(value.astype(np.float64), bins[0], bins[-1])
    below = np.clip(np.searchsorted(bins, value, side="right") - 1, 0, len(bins) - 2)
    centres = bins.astype(np.float64)
    return below, (value - centres[below]) / (centres[below + 1] - centres[below])


def pit(probs: np.ndarray, value: np.ndarray, bins: np.ndarray, grid: np.ndarray = GRID) -> np.ndarray:
    """Distribution function of the PIT of two-hot predictions: the identity if they are calibrated.

    A two-hot head predicts the distribution of a class J, which is one of the two bins around the value with the
    weights of its encoding. The PIT of J is uniform on ``[F(J-1), F(J)]``, so its distribution function at u is the
    mean over values and over both bins of ``clip((u - F(J-1)) / p(J), 0, 1)``: no random draws are needed.

    Args:
        probs: predicted probabilities of the bins, ``[N, K]``.
        value: observed values, ``[N]``.
        bins: centres of the bins, ``[K]``.
        grid: levels u in [0, 1].

    Returns:
        Distribution function at each level, ``[len(grid)]``; NaN without values.

    Source: Czado, Gneiting and Held, "Predictive model assessment for count data", Biometrics 65 (2009), equation 2.
    """
    if not len(value):
        return np.full(len(grid), np.nan)
    probs = probs.astype(np.float64) / probs.sum(-1, keepdims=True, dtype=np.float64)
    cumulative = np.cumsum(probs, -1)
    below, weight = two_hot_weights(value, bins)
    rows = np.arange(len(value))
    total = np.zeros(len(grid))
    # Each value counts for both bins around it, by the weights of its encoding.
    for index, share in ((below, 1 - weight), (below + 1, weight)):
        p = probs[rows, index]
        before = cumulative[rows, index] - p
        # A class that was predicted to be impossible has its whole PIT at one point.
        inside = np.clip((grid - before[:, None]) / np.maximum(p, 1e-12)[:, None], 0, 1)
        total += (share[:, None] * inside).sum(0)
    return total / len(value)


def coverage(cdf: np.ndarray, level: float, grid: np.ndarray = GRID) -> float:
    """Share of values inside the central interval that should hold ``level`` of them, from the result of `pit`."""
    low, high = np.interp([(1 - level) / 2, (1 + level) / 2], grid, cdf)
    return float(high - low)


def perplexity(probs: np.ndarray) -> np.ndarray:
    """Exponential of the entropy of ``probs [..., C]``: how many equally likely classes would be as uncertain."""
    return np.exp(-(probs * np.log(np.maximum(probs, 1e-30))).sum(-1))
