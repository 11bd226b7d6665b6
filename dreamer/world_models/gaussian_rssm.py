"""A recurrent state-space model whose latents are Gaussian, as in PlaNet, Dreamer V1, and an option of V2.

Source: Hafner et al. 2019, "Learning latent dynamics for planning from pixels", and the official code of Dreamer V1 and
V2. The recurrent core here is the block GRU of V3; see `dreamer.world_models.gru` for theirs.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from dreamer.config import RSSMConfig
from dreamer.devices import batch_axis
from dreamer.equations import distributions
from dreamer.world_models.base import Noise
from dreamer.world_models.rssm import RSSM

MIN_STD = 0.1
"""Smallest standard deviation of prior and posterior."""


class GaussianLatent(NamedTuple):
    """State of the model: everything it remembers."""

    deter: Float[Array, "*batch D"]
    """Recurrent state ``[..., D]``."""
    stoch: Float[Array, "*batch S"]
    """Sample of S Gaussian variables, ``[..., S]``."""


class GaussianRSSM(RSSM):
    """Block GRU with ``rssm.stoch`` Gaussian latents; ``rssm.classes`` and ``rssm.unimix`` mean nothing here."""

    @staticmethod
    def widths(sizes: RSSMConfig) -> tuple[int, int]:
        """Size of a sample, and of the parameters of its distribution: mean and standard deviation."""
        return sizes.stoch, 2 * sizes.stoch

    def initial(self, batch: int) -> Any:
        """States at the start of an episode: zeros."""
        c = self.config
        return GaussianLatent(jnp.zeros((batch, c.deter), self.dtype), jnp.zeros((batch, c.stoch), self.dtype))

    def noise(self, key: Array, batch: int) -> Float32[Array, "batch S"]:
        """The normal numbers that one step draws the variables with."""
        return batch_axis.draw(jax.random.normal, key, (batch, self.config.stoch))

    def distribution(self, parameters: Any) -> Any:
        """The S variables as one event, from mean and standard deviation x ``[*batch, S]`` as networks give them.

        The latter is ``softplus(x) + 0.1``, or with ``rssm.std=sigmoid``, ``2 sigmoid(x / 2) + 0.1``.
        """
        mean, raw = (x.astype(jnp.float32) for x in parameters)
        sigmoid = self.config.std == "sigmoid"
        std = 2 * jax.nn.sigmoid(raw / 2) if sigmoid else jax.nn.softplus(raw)
        return distributions.Gaussian(mean, std + MIN_STD)

    def parts(self, latent: Any) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch S"]]:
        """The recurrent state and the sample."""
        return latent.deter, latent.stoch

    def pack(self, latent: Any) -> Any:
        """Replay keeps states as they are."""
        return latent

    def unpack(self, stored: Any) -> Any:
        """Inverse of `pack`."""
        return GaussianLatent(*(jnp.asarray(x, self.dtype) for x in stored))

    def _split(self, flat: Float[Array, "*batch parameters"]) -> Any:
        return tuple(jnp.split(flat, 2, -1))

    def _state(self, deter: Float[Array, "batch D"], parameters: Any, noise: Noise | None) -> Any:
        # Reparameterised: the gradient of a sample reaches its mean and standard deviation.
        drawn = self.distribution(parameters)
        sample = drawn.mean if noise is None else drawn.mean + drawn.std * noise
        return GaussianLatent(deter, sample.astype(self.dtype))


__all__ = ["MIN_STD", "GaussianLatent", "GaussianRSSM"]
