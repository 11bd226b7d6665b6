"""Grids of many classes (`Space.is_grid`), such as maps of symbols: embedded cell by cell, and convolved.

As one-hot vectors, the 21 x 79 cells and 5,977 classes of NetHack's screen would be ten million inputs, and as many
outputs. What is decoded is an image of the binary digits of the classes instead.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from dreamer.nn.images import ImageDecoder, ImageEncoder
from dreamer.nn.layers import fan_in_init
from dreamer.types import Space

EMBEDDING = 16
"""Numbers that stand for a class."""

_SIDE = 16
"""Convolutions halve images until no side is longer than this."""


def padded_size(space: Space) -> tuple[int, int]:
    """Height and width of a grid with the cells that are added below and on the right, so that it can be halved."""
    factor = 2 ** max(1, math.ceil(math.log2(max(space.shape) / _SIDE)))
    height, width = (max(3, math.ceil(side / factor)) * factor for side in space.shape)
    return height, width


class GridEncoder(nnx.Module):
    """Embedding of every cell, then `ImageEncoder`: classes ``[N, H, W]`` to ``[N, features]``."""

    def __init__(self, space: Space, depths: Sequence[int], kernel: int, *, dtype: str, rngs: nnx.Rngs):
        height, width = padded_size(space)
        self.padding = ((0, 0), (0, height - space.shape[0]), (0, width - space.shape[1]), (0, 0))
        self.table = nnx.Param(fan_in_init(rngs.params(), (space.classes, EMBEDDING), EMBEDDING))
        self.image = ImageEncoder((height, width, EMBEDDING), depths, kernel, dtype=dtype, rngs=rngs)
        self.outputs = self.image.outputs

    def __call__(self, classes: Int[Array, "batch h w"]) -> Float[Array, "batch features"]:
        """Encode grids."""
        return self.image(jnp.pad(self.table[...][classes], self.padding))


class GridDecoder(nnx.Module):
    """`ImageDecoder` of the binary digits of every cell's class, as many channels as the largest class has digits.

    Arguments are those of `ImageDecoder`, and the space instead of a shape.
    """

    def __init__(
        self,
        space: Space,
        recurrent: int,
        sample: int,
        units: int,
        depths: Sequence[int],
        kernel: int,
        blocks: int,
        *,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.digits = (space.classes - 1).bit_length()
        shape = (*padded_size(space), self.digits)
        self.image = ImageDecoder(shape, recurrent, sample, units, depths, kernel, blocks, dtype=dtype, rngs=rngs)

    def loss(
        self, recurrent: Float[Array, "batch R"], sample: Float[Array, "batch S"], classes: Int[Array, "batch h w"]
    ) -> Float32[Array, "batch"]:
        """Squared error of the digits' probabilities, summed over digits and cells."""
        # Differs from the paper: all other classes have a cross-entropy.
        _, height, width = classes.shape
        guess = self.image(recurrent, sample)[:, :height, :width]
        digits = jnp.stack([classes >> place & 1 for place in range(self.digits)], -1)
        return jnp.square(guess - digits).sum((1, 2, 3))


__all__ = ["GridDecoder", "GridEncoder", "padded_size"]
