"""Two uses of one array, of which the second is heard however faint its gradient is."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from dreamer.devices import batch_axis
from dreamer.types import Number

FAINT = 4.0
"""A second gradient whose norm is more than this many times smaller than that of the first is lifted."""

LOUDEST = 1e4
"""The second gradient is never multiplied by more than this, for example while it is next to nothing."""


@jax.custom_vjp
def fork(x: Any, power: Number) -> tuple[Any, Any]:
    """``(x, x)``; the gradient of the second copy is multiplied by ``(ratio / FAINT) ** power``, if that is above 1.

    ``ratio`` is the norm of the gradient of the first copy over that of the second. With a power of 1, the second is
    brought to a quarter of the first; with 2, it becomes the louder the fainter it was: as loud as the first from 16
    times fainter, ten times as loud from 160; with 0, it stays as it is. It is never scaled down, nor up by more than
    `LOUDEST`.

    Some losses have a small gradient exactly where it matters: what they need of ``x`` is faint, and only grows if
    the gradient is followed. An optimizer that divides by the size of the sum of all gradients does not follow it.

    Args:
        x: a pytree of floating-point arrays ``[rows, ...]``.
        power: exponent of the ratio of norms, each over all arrays and all rows of a batch; gets no gradient.
    """
    return x, x


def _forward(x: Any, power: Number) -> tuple[tuple[Any, Any], Array]:
    return (x, x), jnp.asarray(power, jnp.float32)


def _backward(power: Array, gradients: tuple[Any, Any]) -> tuple[Any, Array]:
    first, second = gradients
    # Each device has averaged its loss over its own rows; the ratio is that of all rows.
    squares = batch_axis.mean((_sum_of_squares(first), _sum_of_squares(second)))
    # A gradient of exactly 0, as from a head whose last layer is still 0, stays 0 whatever it is multiplied by.
    ratio = jnp.sqrt(squares[0]) / jnp.maximum(jnp.sqrt(squares[1]), jnp.finfo(jnp.float32).tiny)
    scale = jnp.clip((jnp.minimum(ratio, LOUDEST) / FAINT) ** power, 1.0, LOUDEST)
    return jax.tree.map(lambda a, b: a + (scale * b).astype(b.dtype), first, second), jnp.zeros_like(power)


def _sum_of_squares(tree: Any) -> Float32[Array, ""]:
    return sum((jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)), start=jnp.zeros(()))


fork.defvjp(_forward, _backward)

__all__ = ["FAINT", "LOUDEST", "fork"]
