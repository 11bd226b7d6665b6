"""Updates that must not happen: those in which a loss, a gradient or a new parameter is not finite.

An update finds out by itself, inside its program, and then leaves everything that is learned as it was. All it looks at
are sums that it computes anyway: losses, and sums of squares of gradients, parameters and steps, which clipping and
metrics need. A parameter and a step that have finite norms make a finite parameter. Moments of the optimizer are not
looked at. A gradient whose sum of squares is finite leaves finite moments behind, if they were finite before; and the
momentum is added to the parameters, where it shows.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from dreamer.types import Metrics, ReturnRange, named_leaves

SKIPPED, IN_ROW, BAD = "guard/skipped", "guard/skipped_in_row", "guard/bad"
"""Metrics of an update: 1 if it was skipped, else 0; skipped ones in a row up to it; and the number of the first tensor
that was not finite, an index of `names`, -1 without one."""


class Checked(NamedTuple):
    """What must be finite, one scalar for each tensor, in the order in which an update computes them."""

    losses: Mapping[str, Any]
    return_range: ReturnRange
    gradients: Any
    parameters: Any
    """Finite if those after the step are."""


def sums_of_squares(tree: Any) -> Any:
    """The sum of squares of each leaf.

    It is not finite if an element is not, or if it is beyond the range of float32: then the norm is above 1.8e19, and
    no step is to be trusted either.
    """
    leaves, treedef = jax.tree.flatten(tree)
    sums: list[Any] = [None] * len(leaves)
    alike = defaultdict(list)
    for i, x in enumerate(leaves):
        # Two of three arrays are biases or scales. Those of one length are added up together: a few operations to
        # compile, and on an accelerator to launch, instead of some hundred.
        alike[x.shape if x.ndim == 1 else i].append(i)
    for places in alike.values():
        if len(places) == 1:
            sums[places[0]] = jnp.sum(jnp.square(leaves[places[0]]))
        else:
            together = jnp.sum(jnp.square(jnp.stack([leaves[i] for i in places])), 1)
            for row, i in enumerate(places):
                sums[i] = together[row]
    return jax.tree.unflatten(treedef, sums)


def norm(squares: Any) -> Float32[Array, ""]:
    """L2 norm of all arrays together, from their `sums_of_squares`."""
    return jnp.sqrt(sum(jax.tree.leaves(squares), start=jnp.zeros(())))


def first_bad(checked: Checked) -> Int32[Array, ""]:
    """Number of the first scalar that is not finite, in the order of `names`; -1 if all are."""
    bad = ~jnp.isfinite(jnp.stack(jax.tree.leaves(checked)))
    return jnp.where(bad.any(), jnp.argmax(bad), -1).astype(jnp.int32)


def names(checked: Checked) -> tuple[str, ...]:
    """Names of what is checked, for example ``gradients.actor.mlp.layers.0.linear.kernel``; leaves may be anything."""
    return tuple(named_leaves(checked))


def choose(condition: Bool[Array, ""], one: Any, other: Any) -> Any:
    """One pytree or the other, leaf by leaf. NaN in the one that is not chosen does no harm."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


# --------------------------------------------------------------------------------------------------------------------
# Averages over updates, to which those that were skipped contribute nothing but their number


def add(sums: Metrics, metrics: Metrics) -> Metrics:
    """Sums of metrics with those of one more update."""
    skipped = metrics[SKIPPED] > 0
    added = {name: jnp.where(skipped, total, total + metrics[name]) for name, total in sums.items()}
    added[SKIPPED] = sums[SKIPPED] + metrics[SKIPPED]
    added[IN_ROW] = metrics[IN_ROW]
    added[BAD] = jnp.where(skipped, metrics[BAD], sums[BAD])
    return added


def divide(sums: Metrics, updates: Int32[Array, ""]) -> Metrics:
    """Means of metrics, from the sums of so many updates; NaN without any."""
    means = {name: total / (updates - sums[SKIPPED]) for name, total in sums.items()}
    return means | {SKIPPED: sums[SKIPPED] / updates, IN_ROW: sums[IN_ROW], BAD: sums[BAD]}


def average(metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The same on the host, for updates or for the means of several: numbers for a line of the log, without `BAD`."""
    if not metrics or SKIPPED not in metrics[0]:
        return {key: float(np.mean([m[key] for m in metrics])) for key in (metrics[0] if metrics else {})}
    done = [m for m in metrics if m[SKIPPED] < 1]
    means = {key: float(np.mean([m[key] for m in done])) if done else float("nan") for key in metrics[0] if key != BAD}
    return means | {SKIPPED: float(np.mean([m[SKIPPED] for m in metrics])), IN_ROW: float(metrics[-1][IN_ROW])}
