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


class SymlogTwoHot(distrax.Distribution):
    """Distribution over bins ``linspace(-20, 20)`` of the symlog of a number, whose mean is sent through symexp.

    As in DreamerV3 of 2023. `SymexpTwoHot` has the same bins in raw units, where the mean is taken, too.

    Args:
        logits: unnormalised log-probabilities ``[*batch, K]``, K odd.
    """

    def __init__(self, logits: Float[Array, "*batch K"]):
        super().__init__()
        self.logits = logits.astype(jnp.float32)
        count = self.logits.shape[-1]
        # Mirrored, so that rounding cannot make a uniform prediction differ from 0.
        half = np.linspace(-20, 0, count // 2 + 1)
        self.bins = np.concatenate([half, -half[:-1][::-1]]).astype(np.float32)

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
        return transforms.symexp(jnp.asarray(self.bins)[classes])

    def mean(self) -> Float32[Array, "*batch"]:
        """``symexp(sum_k p_k b_k)``; exactly 0 for equal logits."""
        return transforms.symexp(transforms.two_hot_mean(jax.nn.softmax(self.logits, -1), self.bins))

    def log_prob(self, value: Float32[Array, "*batch"]) -> Float32[Array, "*batch"]:
        """Negative cross-entropy with the two-hot encoding of ``symlog(value)``; no gradient reaches ``value``."""
        last = len(self.bins) - 1
        # Bins are evenly spaced: the place of a number among them is a division.
        place = (transforms.symlog(jax.lax.stop_gradient(value)) + 20) * (last / 40)
        place = jnp.clip(place, 0, last)
        below = jnp.minimum(jnp.floor(place), last - 1)
        target = transforms.two_hot_dot(self.logits, below.astype(jnp.int32), place - below)
        return target - jax.nn.logsumexp(self.logits, -1)


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
    "normal": Kind(UnitNormal, scale=1.0, bins=False),
}
"""By the names of ``nets.reward_head`` and ``nets.critic_head``."""

__all__ = ["KINDS", "Kind", "SymlogTwoHot", "UnitNormal"]
