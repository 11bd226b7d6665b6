"""Probability distributions of the latents, the heads and the actor, on distrax's interface.

Every random number of Dreamer is drawn in this file or in `rssm`, from `jax.random.uniform` (categorical variables, by
inversion of the cumulative distribution) or `jax.random.normal` (continuous actions). All arithmetic is float32,
whatever the compute dtype of the networks.
"""

import math
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int

from dreamer.devices import batch_axis
from dreamer.equations import transforms

_LOG_ZERO = -1e9
"""Log-probability of a forbidden class: its exponential is exactly 0, and 0 times it is 0 and not NaN."""

_FEW = 8
"""With up to this many classes, arithmetic moves their axis before the last: along an axis of four, nothing is
vectorised. With more, that does not matter or takes longer (1,024 x 32 variables on one core of a CPU)."""


def unimix_log_probs(
    logits: Float[Array, "*batch C"], unimix: float, mask: Bool[Array, "*batch C"] | None = None
) -> Float32[Array, "*batch C"]:
    """Log of ``(1 - unimix) softmax(logits) + unimix / C``: no class is impossible, in sampling, KL and entropy.

    With a mask, C counts the allowed classes, of which there must be at least one. No other class has any share: its
    probability is exactly 0, its log-probability large, negative and finite, and no gradient reaches its logit.
    """
    logits = logits.astype(jnp.float32)
    if mask is not None:
        return _masked_unimix(logits, unimix, mask)
    return jnp.log(unimix_probs(logits, unimix)) if unimix else jax.nn.log_softmax(logits, -1)


def unimix_probs(logits: Float[Array, "*batch C"], unimix: float) -> Float32[Array, "*batch C"]:
    """``(1 - unimix) softmax(logits) + unimix / C``, the exponential of `unimix_log_probs` without its logarithm."""
    logits = logits.astype(jnp.float32)
    if _has_few_classes(logits):
        # Variables last, where arithmetic is vectorised.
        probs = jnp.swapaxes(jax.nn.softmax(jnp.swapaxes(logits, -1, -2), -2), -1, -2)
    else:
        probs = jax.nn.softmax(logits, -1)
    return (1 - unimix) * probs + unimix / logits.shape[-1] if unimix else probs


def _has_few_classes(x: Array) -> bool:
    return x.ndim > 1 and x.shape[-1] <= _FEW


def _masked_unimix(
    logits: Float32[Array, "*batch C"], unimix: float, mask: Bool[Array, "*batch C"]
) -> Float32[Array, "*batch C"]:
    log_probs = jax.nn.log_softmax(jnp.where(mask, logits, _LOG_ZERO), -1)
    if unimix:
        # Forbidden classes get a share here too, and lose it below: log(0) would have a gradient of NaN.
        log_probs = jnp.log((1 - unimix) * jnp.exp(log_probs) + unimix / mask.sum(-1, keepdims=True))
    return jnp.where(mask, log_probs, _LOG_ZERO)


def draw_class(key: Array, probs: Float32[Array, "*batch C"]) -> Int[Array, "*batch"]:
    """Draw class indices."""
    return invert_cdf(batch_axis.draw(jax.random.uniform, key, probs.shape[:-1]), probs)


def invert_cdf(uniform: Float32[Array, "*batch"], probs: Float32[Array, "*batch C"]) -> Int[Array, "*batch"]:
    """The class of each uniform draw in [0, 1): the number of classes with a cumulative probability below it."""
    # Rounding can leave the last sum below 1. It is not compared, so that the last class catches a draw above it.
    if _has_few_classes(probs):
        # Variables last, where arithmetic is vectorised.
        cumulative = jnp.cumsum(jnp.swapaxes(probs, -1, -2), -2)
        return (cumulative[..., :-1, :] < uniform[..., None, :]).sum(-2)
    # The running sum is a product with a triangle: one fast operation on every backend. Full precision, since
    # accelerators would otherwise round the probabilities to ten bits.
    triangle = np.triu(np.ones((probs.shape[-1],) * 2, np.float32))
    cumulative = jnp.matmul(probs, triangle, precision=jax.lax.Precision.HIGHEST)
    return (cumulative[..., :-1] < uniform[..., None]).sum(-1)


@jax.custom_jvp
def straight_through(onehot: Float32[Array, "*shape C"], probs: Float32[Array, "*shape C"]) -> Array:
    """``onehot`` with the derivative of ``probs``; NaN where these are NaN, because they stand for no class."""
    # If one probability is NaN, all are. So the first one is enough, and where no derivative is wanted, the others need
    # not be computed.
    return onehot + 0 * probs[..., :1]


@straight_through.defjvp
def _straight_through_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    _, probs_tangent = tangents
    return straight_through(*primals), probs_tangent


class Categorical(distrax.Distribution):
    """Independent categorical variables, summed over ``event_ndims`` axes; samples are class indices.

    Args:
        log_probs: normalised log-probabilities ``[*batch, *event, C]``, for example from `unimix_log_probs`.
        event_ndims: number of axes before C that form one event.
        mask: classes that may be drawn, if not all; those that ``log_probs`` was made with.
        probs: exponential of ``log_probs``, if it is at hand. Drawing then needs no logarithm.
    """

    def __init__(
        self,
        log_probs: Float32[Array, "*shape C"],
        event_ndims: int = 0,
        mask: Bool[Array, "*shape C"] | None = None,
        probs: Float32[Array, "*shape C"] | None = None,
    ):
        super().__init__()
        self.log_probs = log_probs
        self.probs = jnp.exp(log_probs) if probs is None else probs
        self.event_ndims = event_ndims
        self.mask = mask

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.log_probs.shape[self.log_probs.ndim - 1 - self.event_ndims : -1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of `log_prob` and `entropy`."""
        return self.log_probs.shape[: self.log_probs.ndim - 1 - self.event_ndims]

    def _sum(self, x: Array) -> Array:
        return x.sum(tuple(range(x.ndim - self.event_ndims, x.ndim)))

    def _draw(self, key: Array) -> Array:
        drawn = draw_class(key, self.probs)
        if self.mask is None:
            return drawn
        # A draw of exactly 0, or above a sum that was rounded down, lands on a first or last class of probability 0.
        allowed = jnp.take_along_axis(self.mask, drawn[..., None], -1)[..., 0]
        return jnp.where(allowed, drawn, self.mode())

    def _sample_n(self, key: Array, n: int) -> Array:
        return jax.vmap(self._draw)(jax.random.split(key, n))

    def sample(self, *, seed: Any, sample_shape: Any = ()) -> Array:
        """Draw class indices, ``int32 [*sample_shape, *batch, *event]``."""
        if sample_shape == ():
            return self._draw(seed)
        return super().sample(seed=seed, sample_shape=sample_shape)

    def log_prob(self, value: Int[Array, "*shape"]) -> Float32[Array, "*batch"]:
        """Log-probability of class indices, summed over the event axes."""
        onehot = jax.nn.one_hot(value, self.log_probs.shape[-1], dtype=jnp.float32)
        return self._sum((onehot * self.log_probs).sum(-1))

    def entropy(self) -> Float32[Array, "*batch"]:
        """Entropy in nats, summed over the event axes."""
        return self._sum(-(self.probs * self.log_probs).sum(-1))

    def mode(self) -> Int[Array, "*shape"]:
        """Most probable class indices."""
        return self.log_probs.argmax(-1)

    def kl_to(self, other: "Categorical") -> Float32[Array, "*batch"]:
        """``KL(self || other)`` in nats, summed over the event axes."""
        return self._sum((self.probs * (self.log_probs - other.log_probs)).sum(-1))


class OneHot(Categorical):
    """`Categorical` whose samples are one-hot vectors that pass gradients on to the probabilities."""

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.log_probs.shape[self.log_probs.ndim - 1 - self.event_ndims :]

    def sample(self, *, seed: Any, sample_shape: Any = ()) -> Array:
        """Draw one-hot vectors, ``float32 [*sample_shape, *batch, *event, C]``, with the gradient of `invert`."""
        return self._straight_through(super().sample(seed=seed, sample_shape=sample_shape))

    def invert(self, uniform: Float32[Array, "*shape"]) -> Float32[Array, "*shape C"]:
        """The one-hot vectors that uniform draws in [0, 1) stand for.

        Straight-through gradient: the value is the sample, the derivative that of the (mixed) probabilities.
        """
        return self._straight_through(invert_cdf(uniform, self.probs))

    def _straight_through(self, classes: Int[Array, "*shape"]) -> Float32[Array, "*shape C"]:
        onehot = jax.nn.one_hot(classes, self.log_probs.shape[-1], dtype=jnp.float32)
        return straight_through(onehot, jnp.broadcast_to(self.probs, onehot.shape))

    def log_prob(self, value: Float[Array, "*shape C"]) -> Float32[Array, "*batch"]:
        """Log-probability of one-hot vectors, summed over the event axes."""
        return self._sum((value * self.log_probs).sum(-1))


class Gaussian(NamedTuple):
    """Independent normal variables; the last axis is one event."""

    mean: Float32[Array, "*batch S"]
    std: Float32[Array, "*batch S"]

    def entropy(self) -> Float32[Array, "*batch"]:
        """Entropy in nats, ``sum(log(std) + log(2 pi e) / 2)``."""
        return (jnp.log(self.std) + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def kl_to(self, other: "Gaussian") -> Float32[Array, "*batch"]:
        """``KL(self || other)`` in nats, ``sum(log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2)``."""
        ratio = self.std / other.std
        distance = (self.mean - other.mean) / other.std
        return (0.5 * (jnp.square(ratio) + jnp.square(distance) - 1) - jnp.log(ratio)).sum(-1)


class SymexpTwoHot(distrax.Distribution):
    """Distribution of a real number over bins ``symexp(linspace(-20, 20))``: regression as classification.

    The loss is the cross-entropy with the two-hot encoded target; it is indifferent to the scale of the target. The
    mean is taken in raw units, without a further symexp.

    Args:
        logits: unnormalised log-probabilities ``[*batch, K]``.
    """

    def __init__(self, logits: Float[Array, "*batch K"]):
        super().__init__()
        self.logits = logits.astype(jnp.float32)
        self.bins = transforms.symexp_bins(logits.shape[-1])

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample: a scalar."""
        return ()

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of `log_prob` and `mean`."""
        return self.logits.shape[:-1]

    def _sample_n(self, key: Array, n: int) -> Array:
        keys = jax.random.split(key, n)
        classes = jax.vmap(lambda key: draw_class(key, jax.nn.softmax(self.logits, -1)))(keys)
        return jnp.asarray(self.bins)[classes]

    def mean(self) -> Float32[Array, "*batch"]:
        """Expected value in raw units; exactly 0 for equal logits."""
        return transforms.two_hot_mean(jax.nn.softmax(self.logits, -1), self.bins)

    def log_prob(self, value: Float32[Array, "*batch"]) -> Float32[Array, "*batch"]:
        """Negative cross-entropy with the two-hot encoding of ``value``; no gradient reaches ``value``."""
        around = transforms.neighbours(jax.lax.stop_gradient(value), self.bins)
        # Weights sum to 1, so sum_k w_k log p_k = sum_k w_k logit_k - logsumexp(logits), without an array of
        # log-probabilities.
        return transforms.two_hot_dot(self.logits, *around) - jax.nn.logsumexp(self.logits, -1)


def bounded_normal(
    mean: Float[Array, "*shape"], std: Float[Array, "*shape"], low: float, high: float, event_ndims: int
) -> distrax.Distribution:
    """Normal with mean in (-1, 1) and standard deviation in (low, high), for continuous actions.

    ``Normal(tanh(mean), (high - low) sigmoid(std + 2) + low)``. Samples are not squashed: the environment clips them,
    and the log-probability is that of the unclipped sample.

    Args:
        mean: unbounded network output for the mean.
        std: unbounded network output for the standard deviation.
        low: smallest standard deviation.
        high: largest standard deviation.
        event_ndims: number of trailing axes that form one action.
    """
    std = (high - low) * jax.nn.sigmoid(std.astype(jnp.float32) + 2) + low
    return distrax.Independent(_Normal(jnp.tanh(mean.astype(jnp.float32)), std), event_ndims)


class _Normal(distrax.Normal):
    """Draws the same numbers for each row of a batch, however the batch is sharded."""

    def _sample_n(self, key: Array, n: int) -> Array:
        draws = batch_axis.draw(jax.random.normal, key, (n, *self.batch_shape), axis=1)
        return self.loc[None] + self.scale[None] * draws


def binary_cross_entropy(logit: Float32[Array, "*batch"], target: Float32[Array, "*batch"]) -> Float32[Array, "*batch"]:
    """``-(p log sigmoid(x) + (1 - p) log sigmoid(-x))`` for target probabilities p."""
    return -(target * jax.nn.log_sigmoid(logit) + (1 - target) * jax.nn.log_sigmoid(-logit))
