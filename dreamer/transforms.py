"""Squashing of unbounded numbers: symlog, symexp, and the two-hot encoding over exponentially spaced bins.

Source: Hafner et al., "Mastering diverse control tasks through world models", Nature 2025, section Methods.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32


def symlog(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Compress large magnitudes and keep the sign: ``sign(x) log(1 + |x|)``."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Inverse of `symlog`: ``sign(x) (exp(|x|) - 1)``."""
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


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
    # One half is computed and mirrored: rounding then cannot make a uniform prediction differ from 0.
    half = np.linspace(-20, 0, count // 2 + 1)
    half = np.sign(half) * np.expm1(np.abs(half))
    return np.concatenate([half, -half[:-1][::-1]]).astype(np.float32)


def two_hot(x: Float32[Array, "*shape"], bins: np.ndarray) -> Float32[Array, "*shape K"]:
    """Weights on the two bins around ``x`` whose weighted mean is ``x``; beyond the ends, all weight on the last bin.

    Bin k gets ``clip(min((x - b[k-1]) / (b[k] - b[k-1]), (b[k+1] - x) / (b[k+1] - b[k])), 0, 1)``, a hat function. As
    plain arithmetic without indices it fuses with whatever consumes it, so the weights never need to exist in memory.

    Args:
        x: values in the units of ``bins``.
        bins: increasing bin centres, float32 ``[K]``.
    """
    width = np.diff(bins)
    x = jnp.clip(x, bins[0], bins[-1])[..., None]
    # The outermost bins have one neighbour only; a virtual one this far away makes the missing side at least 1.
    below = np.concatenate([bins[:1] * 2, bins[:-1]])
    above = np.concatenate([bins[1:], bins[-1:] * 2])
    rise = (x - _row(below, x)) / _row(np.concatenate([-bins[:1], width]), x)
    fall = (_row(above, x) - x) / _row(np.concatenate([width, bins[-1:]]), x)
    return jnp.clip(jnp.minimum(rise, fall), 0, 1)


def two_hot_mean(probs: Float32[Array, "*shape K"], bins: np.ndarray) -> Float32[Array, "*shape"]:
    """Mean of antisymmetric ``bins`` under ``probs``, exactly 0 for uniform probabilities on every backend.

    Bins reach 4.85e8, where a plain sum leaves rounding noise of several units. The two probabilities of a mirrored
    pair are subtracted first, ``sum_k (p[m+k] - p[m-k]) b[m+k]``, which fused multiply-adds cannot disturb.
    """
    middle = len(bins) // 2
    difference = probs[..., middle + 1 :] - probs[..., :middle][..., ::-1]
    return (difference * _row(bins[middle + 1 :], difference)).sum(-1)


def _row(values: np.ndarray, like: Array) -> Array:
    """``values [K]`` with leading axes of size 1, because implicit rank promotion is switched off in the tests."""
    return jnp.asarray(values, jnp.float32).reshape((1,) * (like.ndim - 1) + (-1,))
