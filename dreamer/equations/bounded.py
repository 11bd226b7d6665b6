"""Distributions of bounded continuous actions: a normal squashed by tanh (Dreamer V1), and a truncated one (V2)."""

import math

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr, ndtr, ndtri
from jaxtyping import Array, Float, Float32

from dreamer.devices import batch_axis

MEAN_SCALE = 5.0
"""The mean of a `tanh_normal` stays within this."""

INITIAL_STD = 5.0
"""Its standard deviation where the network says 0: the first policy mostly chooses an end of the range."""

EDGE = 1e-6
"""Draws of a `TruncatedNormal` stay this far from its bounds, as in TensorFlow Probability."""

_POINTS, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


class _Bounded(distrax.Distribution):
    """What is made of a normal variable of this mean and standard deviation, element by element."""

    def __init__(self, mean: Float32[Array, "*shape"], std: Float32[Array, "*shape"]):
        super().__init__()
        self.loc = mean
        self.scale = std

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample: a scalar."""
        return ()

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of `log_prob` and `entropy`."""
        return self.loc.shape


class TanhNormal(_Bounded):
    """``tanh`` of a normal variable; each element is a separate event.

    Args:
        mean: of the variable before tanh.
        std: its standard deviation.
    """

    def _sample_n(self, key: Array, n: int) -> Array:
        return jax.vmap(self.transform)(batch_axis.draw(jax.random.normal, key, (n, *self.batch_shape), axis=1))

    def transform(self, noise: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
        """The actions that standard normal numbers stand for, with the gradient of both parameters."""
        return jnp.tanh(self.loc + self.scale * noise)

    def mode(self) -> Float32[Array, "*shape"]:
        """The median, ``tanh(mean)``: the density itself may have its peaks at -1 and 1."""
        return jnp.tanh(self.loc)

    def log_prob(self, value: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
        """Log-density of actions in (-1, 1), by the change of variables."""
        # At the ends, where float32 rounds tanh to, the inverse is infinite.
        inside = 1 - float(np.finfo(np.float32).eps)
        before = jnp.arctanh(jnp.clip(value, -inside, inside))
        normal = -0.5 * jnp.square((before - self.loc) / self.scale) - jnp.log(self.scale) - 0.5 * math.log(2 * math.pi)
        return normal - _log_slope(before)

    def entropy(self) -> Float32[Array, "*shape"]:
        """``H[normal] + E[log(1 - tanh^2)]`` in nats; the expectation is a Gauss-Hermite sum over 32 points."""
        points = jnp.asarray(_POINTS, jnp.float32).reshape(-1, *[1] * self.loc.ndim)
        weights = jnp.asarray(_WEIGHTS, jnp.float32).reshape(points.shape)
        slope = (weights * _log_slope(self.loc[None] + self.scale[None] * points)).sum(0)
        return jnp.log(self.scale) + 0.5 * math.log(2 * math.pi * math.e) + slope


def _log_slope(x: Array) -> Array:
    """``log(1 - tanh(x)^2)``, also where that is below the smallest number."""
    return 2 * (math.log(2) - x - jax.nn.softplus(-2 * x))


class TruncatedNormal(_Bounded):
    """Normal that is cut off at -1 and 1; each element is a separate event.

    The gradient of a draw x is that of ``mean + std noise`` with ``noise = (x - mean) / std`` fixed: 1 for the mean and
    ``noise`` for the standard deviation, as if nothing were cut off. That is what Dreamer V2 learned with; how the
    truncation moves with the parameters is left out.

    Args:
        mean: of the normal that is cut off.
        std: its standard deviation.
    """

    def _bounds(self) -> tuple[Array, Array]:
        """-1 and 1 in standard deviations from the mean."""
        return (-1 - self.loc) / self.scale, (1 - self.loc) / self.scale

    def _log_mass(self) -> Array:
        """Log of the share of the normal that is left."""
        low, high = self._bounds()
        # Both bounds on the side where the tails are small, so that their difference keeps its digits.
        flip = low + high > 0
        low, high = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
        upper = log_ndtr(high)
        return upper + jnp.log1p(-jnp.exp(log_ndtr(low) - upper))

    def _sample_n(self, key: Array, n: int) -> Array:
        return jax.vmap(self.transform)(batch_axis.draw(jax.random.uniform, key, (n, *self.batch_shape), axis=1))

    def transform(self, uniform: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
        """The actions below which these shares of the truncated mass lie."""
        stop = jax.lax.stop_gradient
        low, high = (stop(x) for x in self._bounds())
        below, above = ndtr(low), ndtr(high)
        value = ndtri(below + uniform * (above - below)) * stop(self.scale) + stop(self.loc)
        noise = stop((jnp.clip(value, -1, 1) - self.loc) / self.scale)
        drawn = self.loc + self.scale * noise
        # Moved off the bounds with the gradient of the identity.
        return drawn + stop(jnp.clip(drawn, -1 + EDGE, 1 - EDGE) - drawn)

    def mode(self) -> Float32[Array, "*shape"]:
        """The mean of the normal, at most the bounds."""
        return jnp.clip(self.loc, -1, 1)

    def log_prob(self, value: Float32[Array, "*shape"]) -> Float32[Array, "*shape"]:
        """Log-density of actions in [-1, 1]."""
        normal = -0.5 * jnp.square((value - self.loc) / self.scale) - 0.5 * math.log(2 * math.pi)
        return normal - jnp.log(self.scale) - self._log_mass()

    def entropy(self) -> Float32[Array, "*shape"]:
        """``log(sqrt(2 pi e) std Z) + (a phi(a) - b phi(b)) / (2 Z)`` in nats, with bounds a, b and mass Z."""
        low, high = self._bounds()
        log_mass = self._log_mass()

        def edge(x: Array) -> Array:
            return x * jnp.exp(-0.5 * jnp.square(x) - 0.5 * math.log(2 * math.pi) - log_mass)

        spread = 0.5 * math.log(2 * math.pi * math.e) + jnp.log(self.scale) + log_mass
        return spread + 0.5 * (edge(low) - edge(high))


def tanh_normal(mean: Float[Array, "*shape"], std: Float[Array, "*shape"], event_ndims: int) -> distrax.Distribution:
    """`TanhNormal` with mean ``5 tanh(m / 5)`` and standard deviation ``softplus(s + log(e^5 - 1)) + 1e-4``.

    Args:
        mean: unbounded network output m for the mean.
        std: unbounded network output s for the standard deviation.
        event_ndims: number of trailing axes that form one action.

    Source: Hafner et al. 2020, "Dream to control", and its released code.
    """
    mean = MEAN_SCALE * jnp.tanh(mean.astype(jnp.float32) / MEAN_SCALE)
    std = jax.nn.softplus(std.astype(jnp.float32) + math.log(math.expm1(INITIAL_STD))) + 1e-4
    return distrax.Independent(TanhNormal(mean, std), event_ndims)


def truncated_normal(
    mean: Float[Array, "*shape"], std: Float[Array, "*shape"], low: float, event_ndims: int
) -> distrax.Distribution:
    """`TruncatedNormal` with mean ``tanh(m)`` and standard deviation ``2 sigmoid(s / 2) + low``.

    Args:
        mean: unbounded network output m for the mean.
        std: unbounded network output s for the standard deviation.
        low: smallest standard deviation.
        event_ndims: number of trailing axes that form one action.

    Source: Hafner et al. 2021, "Mastering Atari with discrete world models", and its released code.
    """
    std = 2 * jax.nn.sigmoid(std.astype(jnp.float32) / 2) + low
    return distrax.Independent(TruncatedNormal(jnp.tanh(mean.astype(jnp.float32)), std), event_ndims)


__all__ = ["TanhNormal", "TruncatedNormal", "tanh_normal", "truncated_normal"]
