"""Squashing of unbounded numbers: symlog, symexp, and the two-hot encoding over exponentially spaced bins.

Source: Hafner et al., "Mastering diverse control tasks through world models", Nature 2025, section Methods; for
`signed_hyperbolic`, Pohlen et al. 2018, "Observe and look further: achieving consistent performance on Atari".
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32


def symlog(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Compress large magnitudes and keep the sign: ``sign(x) log(1 + |x|)``."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Inverse of `symlog`: ``sign(x) (exp(|x|) - 1)``."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


_SLOPE = 1e-3
"""Slope that `signed_hyperbolic` keeps for large numbers, so that it has an inverse with a bounded derivative."""


def signed_hyperbolic(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Compress large magnitudes less than `symlog` does: ``h(x) = sign(x) (sqrt(|x| + 1) - 1) + 0.001 x``."""
    return jnp.sign(x) * (jnp.sqrt(jnp.abs(x) + 1) - 1) + _SLOPE * x


def signed_parabolic(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Inverse of `signed_hyperbolic`: ``sign(x) (z^2 - 1)``, z the positive root of ``0.001 z^2 + z = |x| + 1.001``."""
    right = jnp.abs(x) + 1 + _SLOPE
    # The root is written so that nothing cancels: -1 + sqrt(1 + 4 e r) would leave four digits of float32.
    root = 2 * right / (1 + jnp.sqrt(1 + 4 * _SLOPE * right))
    return jnp.sign(x) * (jnp.square(root) - 1)


@functools.cache
def symexp_bins(count: int) -> np.ndarray:
    """Bin centres ``symexp(linspace(-20, 20, count))`` in raw units, float32 ``[count]``, exactly antisymmetric.

    Args:
        count: odd number of bins, so that the middle one is exactly 0.

    Raises:
        ValueError: ``count`` is even or below 3.
    """
    if count < 3 or count % 2 == 0:
        raise ValueError(f"symexp_bins got count={count}, expected an odd number of at least 3.")
    # Compute one half and mirror it, so that rounding cannot make a uniform prediction differ from 0.
    half = np.linspace(-20, 0, count // 2 + 1)
    half = np.sign(half) * np.expm1(np.abs(half))
    return np.concatenate([half, -half[:-1][::-1]]).astype(np.float32)


def neighbours(
    x: Float32[Array, "*shape"], bins: np.ndarray
) -> tuple[Int32[Array, "*shape"], Float32[Array, "*shape"]]:
    """The two bins around each number: the index of the lower one, and the weight of the upper one.

    ``x`` is the mean of the two with weights ``1 - weight`` and ``weight``; beyond the ends, the outermost bin has it
    all.

    Args:
        x: values in the units of ``bins``.
        bins: `symexp_bins`, float32 ``[K]``.
    """
    x = jnp.clip(x, bins[0], bins[-1])
    centres = jnp.asarray(bins)
    last = len(bins) - 2
    # Centres are evenly spaced in symlog, so nothing has to be searched: count spacings from the middle, which is 0.
    half = len(bins) // 2
    guess = jnp.floor(symlog(x) * np.float32(half / np.log1p(float(bins[-1]))))
    below = jnp.clip(guess.astype(jnp.int32) + half, 0, last)
    # The logarithm is rounded: close to a centre, the guess may be one too high or too low. Compare with the centres.
    below = below - (x < centres[below]) + (x >= centres[below + 1])
    # The largest centre belongs to the last pair.
    below = jnp.minimum(below, last)
    low = centres[below]
    high = centres[below + 1]
    return below, (x - low) / (high - low)


def two_hot(below: Int32[Array, "*shape"], weight: Float32[Array, "*shape"], count: int) -> Float32[Array, "*shape K"]:
    """The encoding of numbers from their `neighbours`: weights over all K = ``count`` bins, of which two are not 0."""
    bins = jax.lax.broadcasted_iota(jnp.int32, (*below.shape, count), below.ndim)
    below = below[..., None]
    weight = weight[..., None]
    return jnp.where(bins == below, 1 - weight, jnp.where(bins == below + 1, weight, 0))


@jax.custom_vjp
def two_hot_dot(
    values: Float32[Array, "*shape K"], below: Int32[Array, "*shape"], weight: Float32[Array, "*shape"]
) -> Float32[Array, "*shape"]:
    """``(values * two_hot(below, weight, K)).sum(-1)``, which looks up two values instead of reading all.

    Its gradient reaches ``values`` only. It is plain arithmetic on the few numbers that are saved for it, so it fuses
    with whatever it is added to, and no array of weights is ever written to memory.
    """
    pair = jnp.take_along_axis(values, jnp.stack([below, below + 1], -1), -1)
    return (1 - weight) * pair[..., 0] + weight * pair[..., 1]


def _two_hot_dot_backward(saved: tuple[Array, Array, int], gradient: Array) -> tuple[Array, None, None]:
    below, weight, count = saved
    # The derivative by each value is its weight.
    return gradient[..., None] * two_hot(below, weight, count), None, None


two_hot_dot.defvjp(
    lambda values, below, weight: (two_hot_dot(values, below, weight), (below, weight, values.shape[-1])),
    _two_hot_dot_backward,
)


def two_hot_mean(probs: Float32[Array, "*shape K"], bins: np.ndarray) -> Float32[Array, "*shape"]:
    """Mean of antisymmetric ``bins`` under ``probs``, exactly 0 for uniform probabilities on every backend.

    Bins reach 4.85e8, where a plain sum leaves rounding noise of several units. The two probabilities of a mirrored
    pair are subtracted first, ``sum_k (p[m+k] - p[m-k]) b[m+k]``, which fused multiply-adds cannot disturb.
    """
    middle = len(bins) // 2
    difference = probs[..., middle + 1 :] - probs[..., :middle][..., ::-1]
    return (difference * _row(bins[middle + 1 :], difference)).sum(-1)


def _row(values: np.ndarray, like: Array) -> Array:
    """``values [K]`` with leading axes of size 1, because the tests forbid implicit rank promotion."""
    return jnp.asarray(values, jnp.float32).reshape((1,) * (like.ndim - 1) + (-1,))
