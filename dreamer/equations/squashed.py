"""Continuous actions within bounds: a normal variable, squashed by tanh."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32


class SquashedNormal(NamedTuple):
    """``scale tanh(u)`` with u normal; the last axis is one event.

    Source: Haarnoja et al. 2018, "Soft actor-critic: off-policy maximum entropy deep reinforcement learning with a
    stochastic actor", appendix C; the 1e-6 is that of its code.
    """

    mean: Float32[Array, "*batch A"]
    """Of u."""
    std: Float32[Array, "*batch A"]
    """Of u."""
    scale: float | Float32[Array, "A"] = 1.0
    """The largest action."""

    def sample_and_log_prob(self, key: Array) -> tuple[Float32[Array, "*batch A"], Float32[Array, "*batch"]]:
        """Draw actions, with the gradient by mean and std, and their log-probabilities, summed over the event.

        ``log p = sum(log N(u) - log(scale (1 - tanh(u)^2) + 1e-6))``
        """
        noise = jax.random.normal(key, self.mean.shape)
        squashed = jnp.tanh(self.mean + self.std * noise)
        log_normal = jax.scipy.stats.norm.logpdf(noise) - jnp.log(self.std)
        log_slope = jnp.log(self.scale * (1 - jnp.square(squashed)) + 1e-6)
        return self.scale * squashed, (log_normal - log_slope).sum(-1)

    def mode(self) -> Float32[Array, "*batch A"]:
        """The action of the mean."""
        return self.scale * jnp.tanh(self.mean)


__all__ = ["SquashedNormal"]
