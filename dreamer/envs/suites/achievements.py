"""The score of Crafter and Craftax."""

from collections.abc import Mapping, Sequence

import numpy as np


def score(logs: Sequence[Mapping[str, float]]) -> float:
    """``exp(mean_i ln(1 + s_i)) - 1``, with s_i the percentage of episodes that unlocked achievement i.

    Args:
        logs: ``info["log"]`` of at least one episode: how often each achievement was unlocked; all have the same names.

    Returns:
        A number from 0 to 100. Source: Hafner, *Benchmarking the Spectrum of Agent Capabilities*, on the score.
    """
    counts = np.array([[log[name] for name in logs[0]] for log in logs])
    percent = 100 * (counts >= 1).mean(0)
    return float(np.expm1(np.log1p(percent).mean()))


__all__ = ["score"]
