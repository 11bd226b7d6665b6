"""Distributions of a real number that a network can predict, by the name that the config gives them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from dreamer.equations import transforms
from dreamer.equations.distributions import SymexpTwoHot


class UnitNormal(distrax.Distribution):
    """Normal of unit variance: ``log p(x) = -(x - mean)^2 / 2 - log(2 pi) / 2``.

    Args:
        outputs: the mean, ``[*batch, 1]``.
    """

    def __init__(self, outputs: Float[Array, "*batch 1"]):
        super().__init__()
        self.outputs = outputs.astype(jnp.float32)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample: a scalar."""
        return ()

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of `log_prob` and `mean`."""
        return self.outputs.shape[:-1]

    def _sample_n(self, key: Array, n: int) -> Array:
        return self.mean()[None] + jax.random.normal(key, (n, *self.batch_shape))

    def mean(self) -> Float32[Array, "*batch"]:
        """Expected value."""
        return self.outputs[..., 0]

    def log_prob(self, value: Float32[Array, "*batch"]) -> Float32[Array, "*batch"]:
        """Log-density of ``value``; no gradient reaches it."""
        error = jax.lax.stop_gradient(value) - self.mean()
        return -0.5 * jnp.square(error) - 0.5 * np.log(2 * np.pi).astype(np.float32)


class SquashedTwoHot(distrax.Distribution):
    """Distribution over evenly spaced bins of a squashed number, whose mean is sent through the inverse.

    Args:
        logits: unnormalised log-probabilities ``[*batch, K]``, K odd.
        bins: their K places, antisymmetric and evenly spaced.
        squash: increasing and odd function.
        unsquash: its inverse.
    """

    def __init__(
        self,
        logits: Float[Array, "*batch K"],
        bins: np.ndarray,
        squash: Callable[[Array], Array],
        unsquash: Callable[[Array], Array],
    ):
        super().__init__()
        self.logits = logits.astype(jnp.float32)
        self.bins = bins.astype(np.float32)
        self.squash = squash
        self.unsquash = unsquash

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample: a scalar."""
        return ()

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape of `log_prob` and `mean`."""
        return self.logits.shape[:-1]

    def _sample_n(self, key: Array, n: int) -> Array:
        classes = jax.random.categorical(key, self.logits, shape=(n, *self.batch_shape))
        return self.unsquash(jnp.asarray(self.bins)[classes])

    def mean(self) -> Float32[Array, "*batch"]:
        """``unsquash(sum_k p_k b_k)``; exactly 0 for equal logits."""
        return self.unsquash(transforms.two_hot_mean(jax.nn.softmax(self.logits, -1), self.bins))

    def log_prob(self, value: Float32[Array, "*batch"]) -> Float32[Array, "*batch"]:
        """Negative cross-entropy with the two-hot encoding of ``squash(value)``; no gradient reaches ``value``."""
        last = len(self.bins) - 1
        highest = float(self.bins[-1])
        # Bins are evenly spaced: the place of a number among them is a division.
        place = (self.squash(jax.lax.stop_gradient(value)) + highest) * (last / (2 * highest))
        place = jnp.clip(place, 0, last)
        below = jnp.minimum(jnp.floor(place), last - 1)
        target = transforms.two_hot_dot(self.logits, below.astype(jnp.int32), place - below)
        return target - jax.nn.logsumexp(self.logits, -1)


class SymlogTwoHot(SquashedTwoHot):
    """Distribution over bins ``linspace(-20, 20)`` of the symlog of a number, whose mean is sent through symexp.

    As in DreamerV3 of 2023. `SymexpTwoHot` has the same bins in raw units, where the mean is taken, too.

    Args:
        logits: unnormalised log-probabilities ``[*batch, K]``, K odd.
    """

    def __init__(self, logits: Float[Array, "*batch K"]):
        # Mirrored, so that rounding cannot make a uniform prediction differ from 0.
        half = np.linspace(-20, 0, logits.shape[-1] // 2 + 1)
        bins = np.concatenate([half, -half[:-1][::-1]])
        super().__init__(logits, bins, transforms.symlog, transforms.symexp)


class HyperbolicTwoHot(SquashedTwoHot):
    """Distribution over the whole numbers from ``-(K - 1) / 2`` to ``(K - 1) / 2`` as `signed_hyperbolic` of a number.

    As in MuZero, with K = 601. With K = 41, numbers up to 425 can be predicted.

    Args:
        logits: unnormalised log-probabilities ``[*batch, K]``, K odd.
    """

    def __init__(self, logits: Float[Array, "*batch K"]):
        count = logits.shape[-1]
        bins = np.arange(count) - count // 2
        super().__init__(logits, bins, transforms.signed_hyperbolic, transforms.signed_parabolic)


class Kind(NamedTuple):
    """How a network predicts a number."""

    distribution: Callable[[Array], Any]
    """Of its outputs ``[*batch, K]``."""
    scale: float
    """Factor on the initial kernel of the output layer; two-hot heads begin with a uniform prediction, of mean 0."""
    bins: bool
    """Whether K is ``nets.bins``, or else 1."""

    def outputs(self, bins: int) -> int:
        """K, the size of the output."""
        return bins if self.bins else 1


KINDS = {
    "symexp_twohot": Kind(SymexpTwoHot, scale=0.0, bins=True),
    "symlog_twohot": Kind(SymlogTwoHot, scale=0.0, bins=True),
    "hyperbolic_twohot": Kind(HyperbolicTwoHot, scale=0.0, bins=True),
    "normal": Kind(UnitNormal, scale=1.0, bins=False),
}
"""By the names of ``nets.reward_head`` and ``nets.critic_head``."""

__all__ = ["KINDS", "HyperbolicTwoHot", "Kind", "SquashedTwoHot", "SymlogTwoHot", "UnitNormal"]
