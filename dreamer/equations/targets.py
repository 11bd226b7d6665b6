"""One value from several members: targets that do not believe the most hopeful of them."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from dreamer.types import Number

Pessimism = Literal["mean", "min", "quantile", "lcb"]
"""How several values become one, see `conservative`."""


def conservative(
    values: Float[Array, "K *batch"], kind: Pessimism, quantile: Number, beta: Number
) -> Float32[Array, "*batch"]:
    """One value from the values of K members, from believing all alike to believing the lowest.

    * ``mean``: their mean.
    * ``min``: the lowest (Fujimoto et al. 2018, "Addressing function approximation error in actor-critic methods").
    * ``quantile``: that share of the way from the lowest to the highest, by rank; between two ranks, linear.
    * ``lcb``: a lower confidence bound, ``mean - beta std``, with the standard deviation over the members themselves.

    Where values are normal and members many, the quantile q is the bound with ``beta = -Phi^-1(q)``. The gradient
    reaches every value that counts.

    Args:
        values: of the members, along the first axis.
        kind: one of the four.
        quantile: 0 is the lowest, 0.5 the median, 1 the highest; read by ``quantile`` alone.
        beta: standard deviations below the mean; read by ``lcb`` alone.
    """
    values = values.astype(jnp.float32)
    if kind == "mean":
        return values.mean(0)
    if kind == "min":
        return values.min(0)
    if kind == "quantile":
        return jnp.quantile(values, quantile, axis=0)
    # Members that agree have a spread without a gradient: that of the root of 0 would be infinite.
    spread = jnp.sqrt(jnp.maximum(values.var(0), 1e-12))
    return values.mean(0) - beta * spread


__all__ = ["Pessimism", "conservative"]
