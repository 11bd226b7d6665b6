"""Averages of metrics over updates; of skipped updates, only the number counts.

`dreamer.agent.guard` decides which updates are skipped, and why.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from dreamer.types import Metrics

SKIPPED = "guard/skipped"
"""Metric of an update: 1 if it was skipped, else 0."""

IN_ROW = "guard/skipped_in_row"
"""Metric of an update: consecutive skipped updates up to it."""

BAD = "guard/bad"
"""Metric of an update: the first tensor that was not finite, as an index of `dreamer.agent.guard.names`; -1: none."""


def complete(metrics: Metrics) -> Metrics:
    """Metrics of an update that may come from an algorithm without a guard: then it was not skipped."""
    unguarded = {SKIPPED: jnp.zeros(()), IN_ROW: jnp.zeros((), jnp.int32), BAD: jnp.full((), -1, jnp.int32)}
    return metrics | {name: value for name, value in unguarded.items() if name not in metrics}


def add(sums: Metrics, metrics: Metrics) -> Metrics:
    """Sums of metrics, including those of one more update."""
    skipped = metrics[SKIPPED] > 0
    added = {name: jnp.where(skipped, total, total + metrics[name]) for name, total in sums.items()}
    added[SKIPPED] = sums[SKIPPED] + metrics[SKIPPED]
    added[IN_ROW] = metrics[IN_ROW]
    added[BAD] = jnp.where(skipped, metrics[BAD], sums[BAD])
    return added


def divide(sums: Metrics, updates: Int32[Array, ""]) -> Metrics:
    """Means of metrics from their sums over ``updates`` updates; NaN without any."""
    means = {name: total / (updates - sums[SKIPPED]) for name, total in sums.items()}
    return means | {SKIPPED: sums[SKIPPED] / updates, IN_ROW: sums[IN_ROW], BAD: sums[BAD]}


def average(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The means on the host, over updates or means of several updates: numbers for a line of the log, without `BAD`."""
    if not metrics or SKIPPED not in metrics[0]:
        return {key: float(np.mean([m[key] for m in metrics])) for key in (metrics[0] if metrics else {})}
    done = [m for m in metrics if m[SKIPPED] < 1]
    means = {key: float(np.mean([m[key] for m in done])) if done else float("nan") for key in metrics[0] if key != BAD}
    return means | {SKIPPED: float(np.mean([m[SKIPPED] for m in metrics])), IN_ROW: float(metrics[-1][IN_ROW])}
