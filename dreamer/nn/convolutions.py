"""Convolutions of images, convolutions after doubling, and halving: each plain first, then in a faster form.

Accelerators get the plain convolutions, in one piece. On CPUs, where XLA's convolutions are slow on large batches, the
same sums are taken in another order. Skip the faster forms unless you work on speed; the tests compare both.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dreamer.devices import backend

_PARTS = 4
"""Parts of a batch that a CPU convolves in parallel: a multiple of its cores would do as well, but compile longer."""

_PART_BYTES = 2**20
"""Batches below this size are not worth splitting."""

_CHUNK_BYTES = 4 * 2**20
"""Images and errors of one chunk of a kernel's gradient should stay in the cache."""

_MOST_CHUNKS = 8
"""The compiler spends 35 ms on the convolution of each chunk of each part."""


def plain_conv(x: Float[Array, "batch h w i"], kernel: Float[Array, "k l i o"]) -> Float[Array, "batch h w o"]:
    """Cross-correlation with zero padding, same height and width."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def same_conv(x: Float[Array, "batch h w i"], kernel: Float[Array, "k l i o"]) -> Float[Array, "batch h w o"]:
    """`plain_conv`, in the form that suits the backend."""
    return _chunked_conv(x, kernel) if _on_cpu() else plain_conv(x, kernel)


@jax.custom_vjp
def _chunked_conv(x: Array, kernel: Array) -> Array:
    """`plain_conv`, but the gradient of the kernel is a sum over chunks of images.

    XLA's CPU backend makes that gradient a convolution over the whole batch, with transposed copies that leave the
    cache. On 1,024 images it takes two to seven times as long as chunks of a few megabytes.
    """
    return plain_conv(x, kernel)


def _chunked_conv_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return plain_conv(x, kernel), (x, kernel)


def _chunked_conv_backward(saved: tuple[Array, Array], error: Array) -> tuple[Array, Array]:
    x, kernel = saved
    # A convolution is linear in its images and in its kernel, so each gradient is a transpose with the other fixed.
    (x_error,) = jax.linear_transpose(lambda x: plain_conv(x, kernel), x)(error)
    # As many chunks as keep each within the cache, but no more than there are images or than compile quickly.
    chunks = min(_MOST_CHUNKS, len(x), max(1, (x.nbytes + error.nbytes) // _CHUNK_BYTES))
    # The kernel's gradient is a sum over images, so it may be summed chunk by chunk.
    gradient = jnp.zeros_like(kernel)
    for part, part_error in zip(jnp.array_split(x, chunks), jnp.array_split(error, chunks), strict=True):
        (part_gradient,) = jax.linear_transpose(functools.partial(plain_conv, part), kernel)(part_error)
        gradient += part_gradient
    return x_error, gradient


_chunked_conv.defvjp(_chunked_conv_forward, _chunked_conv_backward)


def map_parts(network: Callable[[Array], Array], x: Float[Array, "batch ..."]) -> Float[Array, "batch ..."]:
    """``network(x)`` for a network that treats the entries of a batch alike; on CPUs, several parts in parallel.

    XLA's CPU backend computes a convolution of a large batch on one core, but independent ones on all.
    """
    if not _on_cpu() or x.nbytes < _PART_BYTES or len(x) < _PARTS:
        return network(x)
    return jnp.concatenate([network(part) for part in jnp.array_split(x, _PARTS)])


def _on_cpu() -> bool:
    return backend.on_cpu()


def plain_upsample_conv(
    x: Float[Array, "batch h w i"], kernel: Float[Array, "k k i o"]
) -> Float[Array, "batch h2 w2 o"]:
    """`plain_conv` of ``x`` doubled by repetition: every pixel becomes a 2 x 2 square."""
    return plain_conv(x.repeat(2, 1).repeat(2, 2), kernel)


def upsample_conv(x: Float[Array, "batch h w i"], kernel: Float[Array, "k k i o"]) -> Float[Array, "batch h2 w2 o"]:
    """`plain_upsample_conv`, without ever forming the doubled image.

    Each of the four phases (even or odd row and column) of the result sees every input pixel through a sum of several
    kernel taps. So one smaller convolution of the small image, with four times the channels, gives the same numbers:
    with a 5 x 5 kernel, 9 products for each output pixel instead of 25.
    """
    size, _, inputs, outputs = kernel.shape
    phases = _phase_matrix(size).astype(kernel.dtype)
    taps = phases.shape[1]
    # Sum the taps that fall on the same input pixel: for each row phase p and column phase q, a kernel of a x b taps.
    small = jnp.einsum("pak,qbl,klio->abipqo", phases, phases, kernel)
    # The four phases are channels of one convolution.
    x = same_conv(x, small.reshape(taps, taps, inputs, 4 * outputs))
    # Interleave: row h of phase p is row 2h + p of the result, and so for columns.
    batch, height, width, _ = x.shape
    x = x.reshape(batch, height, width, 2, 2, outputs).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, 2 * height, 2 * width, outputs)


def _phase_matrix(size: int) -> np.ndarray:
    """``[2, taps, size]``: which taps of a kernel of odd ``size`` fall on which pixel of the image before doubling."""
    radius = size // 2
    # In the small image, the kernel spans half as many pixels to each side, rounded up.
    reach = (radius + 1) // 2
    matrix = np.zeros((2, 2 * reach + 1, size), np.float32)
    for phase in range(2):
        for tap in range(size):
            # At output row 2h + phase, this tap reads doubled row 2h + phase + tap - radius, a copy of input row
            # h + (phase + tap - radius) // 2. Adding `reach` makes that offset an index from 0 on.
            matrix[phase, (phase + tap - radius) // 2 + reach, tap] = 1
    return matrix


def plain_halve(x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c"]:
    """Largest value of every 2 x 2 square; largest values that are equal share the gradient."""
    return _squares(x).max((2, 4))


@jax.custom_vjp
def halve(x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c"]:
    """`plain_halve`, which saves four bits per square for its gradient instead of the whole image.

    The images before the first halving are the largest arrays of an update.
    """
    return plain_halve(x)


def _halve_forward(x: Array) -> tuple[Array, Array]:
    largest = plain_halve(x)
    is_largest = _squares(x) == largest[:, :, None, :, None]
    # One bit for each place that holds the largest value; the sum of different bits is their union.
    return largest, (is_largest * _SQUARE_BITS).sum((2, 4), dtype=jnp.uint8)


def _halve_backward(bits: Array, error: Array) -> tuple[Array]:
    # As many bits as there are equal largest values, which share the gradient.
    share = error / jax.lax.population_count(bits).astype(error.dtype)
    # Each place whose bit is set gets its share, the others nothing.
    squares = jnp.where(bits[:, :, None, :, None] & _SQUARE_BITS, share[:, :, None, :, None], 0)
    # Inverse of `_squares`.
    batch, height, width, channels = error.shape
    return (squares.reshape(batch, 2 * height, 2 * width, channels),)


halve.defvjp(_halve_forward, _halve_backward)

_SQUARE_BITS = np.array([[1, 2], [4, 8]], np.uint8).reshape(1, 1, 2, 1, 2, 1)
"""A bit for each place in a square, along the axes of `_squares`."""


def _squares(x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 2 w2 2 c"]:
    """Rows and columns split into pairs."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels)
