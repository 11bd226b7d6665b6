"""What latents can be learned from beside or instead of a decoder: the embeddings of observations.

Nothing has to be drawn to be predicted: features are compared with what the encoder makes of the observation, of the
same step (`SameStep`) or of the next one (`NextStep`). No gradient reaches the embeddings as targets, so the encoder
learns through the posterior alone: what it tells the latent is what the latent then has to know.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from dreamer.config import Config, ConfigError, LossConfig
from dreamer.equations.alignment import barlow_twins, info_nce
from dreamer.nn.activations import RMSNorm
from dreamer.nn.layers import Layer, Linear
from dreamer.world_models.base import Losses

BLOCKS = 2
"""Blocks of the transformer, as published."""

HEADS = 4
"""Heads of its attention, as published."""


class SameStep(nnx.Module):
    """Compares a linear projection of the features with the embedding of the same step.

    Args:
        config: the run's config; ``world_model.representation`` is barlow or infonce.
        feature: size F of the features.
        embed: size E of an embedding.
        rngs: source of initial parameters.

    Source: Morihira et al. 2026, "R2-Dreamer: redundancy-reduced world models without decoders or augmentation", and
    its official code, which has both losses.
    """

    def __init__(self, config: Config, feature: int, embed: int, *, rngs: nnx.Rngs):
        self.kind = config.world_model.representation
        self.projection = Linear(feature, embed, bias=False, dtype=config.nets.dtype, rngs=rngs)

    def loss(
        self,
        feature: Float[Array, "B T F"],
        embed: Float[Array, "B T E"],
        prev_action: Float[Array, "B T A"],
        is_first: Bool[Array, "B T"],
        weights: LossConfig,
    ) -> Losses:
        """``barlow``, one number for the batch, or ``infonce`` ``[B, T]``. Actions and resets do not matter here."""
        projected, target = (x.reshape(-1, x.shape[-1]) for x in (self.projection(feature), embed))
        if self.kind == "barlow":
            return {"barlow": (weights.barlow, barlow_twins(projected, target, weights.redundancy))}
        return {"infonce": (weights.infonce, info_nce(projected, target).reshape(is_first.shape))}


class NextStep(nnx.Module):
    """Predicts the embedding of the next step from features and actions up to this one, with a causal transformer.

    A step has two tokens, its feature and the action taken in it. A token sees no later token and no other episode, and
    where the next step is a reset, nothing is predicted.

    Args:
        config: the run's config.
        feature: size F of the features.
        action: size A of a flat action.
        embed: size E of an embedding.
        rngs: source of initial parameters.

    Raises:
        ConfigError: ``nets.units``, the width of the transformer, is not a multiple of `HEADS`.

    Source: Bredis et al. 2026, "Next embedding prediction makes world models stronger", and its official code. Differs
    from it: there, the action token of a step holds the action before it, attention and predictions cross resets, and
    positions are learned. Norms are those of all networks here.
    """

    def __init__(self, config: Config, feature: int, action: int, embed: int, *, rngs: nnx.Rngs):
        units = config.nets.units
        dtype = config.nets.dtype
        if units % HEADS:
            raise ConfigError(
                f"nets.units={units} cannot be used with world_model.representation=next_embedding: expected a "
                f"multiple of {HEADS}, the number of heads of its attention."
            )
        self.in_feature = Linear(feature, units, dtype=dtype, rngs=rngs)
        self.in_action = Linear(action, units, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([TransformerBlock(units, dtype=dtype, rngs=rngs) for _ in range(BLOCKS)])
        self.norm = RMSNorm(units)
        self.hidden = Layer(units, units, dtype=dtype, rngs=rngs)
        # Without a bias, which correlations do not depend on.
        self.projection = Linear(units, embed, bias=False, dtype=dtype, rngs=rngs)

    def loss(
        self,
        feature: Float[Array, "B T F"],
        embed: Float[Array, "B T E"],
        prev_action: Float[Array, "B T A"],
        is_first: Bool[Array, "B T"],
        weights: LossConfig,
    ) -> Losses:
        """``next_embedding``: `barlow_twins` of predictions and the embeddings that came, one number for the batch."""
        predicted = self.predict(feature[:, :-1], prev_action[:, 1:], is_first[:, :-1])
        predicted, target = (x.reshape(-1, x.shape[-1]) for x in (predicted, embed[:, 1:]))
        follows = ~is_first[:, 1:].reshape(-1)
        loss = barlow_twins(predicted, target, weights.redundancy, follows)
        return {"next_embedding": (weights.next_embedding, loss)}

    def predict(
        self, feature: Float[Array, "B T F"], action: Float[Array, "B T A"], is_first: Bool[Array, "B T"]
    ) -> Float[Array, "B T E"]:
        """The embedding expected after each step, from features and the actions taken in these steps."""
        rows, steps, _ = feature.shape
        tokens = jnp.stack([self.in_feature(feature), self.in_action(action)], 2)
        tokens = tokens.reshape(rows, 2 * steps, -1)
        x = tokens + positions(2 * steps, tokens.shape[-1]).astype(tokens.dtype)[None]
        episode = jnp.repeat(jnp.cumsum(is_first, 1), 2, 1)
        visible = (episode[:, :, None] == episode[:, None, :]) & jnp.tri(2 * steps, dtype=bool)[None]
        for block in self.blocks:
            x = block(x, visible)
        # What is predicted is read at the tokens of actions, which have seen the feature of their step, too.
        return self.projection(self.hidden(self.norm(x[:, 1::2])))


class TransformerBlock(nnx.Module):
    """Attention, then two layers, each added to its input and reading it normalised.

    Source: Vaswani et al. 2017, "Attention is all you need", with the norms before the layers (Xiong et al. 2020).
    """

    def __init__(self, units: int, *, dtype: str, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(units)
        self.in_attention = Linear(units, 3 * units, bias=False, dtype=dtype, rngs=rngs)
        self.out_attention = Linear(units, units, dtype=dtype, rngs=rngs)
        self.mlp_norm = RMSNorm(units)
        self.in_mlp = Linear(units, 4 * units, dtype=dtype, rngs=rngs)
        self.out_mlp = Linear(4 * units, units, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B tokens units"], visible: Bool[Array, "B tokens tokens"]
    ) -> Float[Array, "B tokens units"]:
        """Tokens, each having looked at those that are ``visible`` to it, ``[row, looking, seen]``."""
        heads = self.in_attention(self.attention_norm(x)).reshape(*x.shape[:2], 3, HEADS, -1)
        query, key, value = (heads[:, :, i] for i in range(3))
        attended = jax.nn.dot_product_attention(query, key, value, mask=visible[:, None])
        x = x + self.out_attention(attended.reshape(x.shape))
        return x + self.out_mlp(jax.nn.gelu(self.in_mlp(self.mlp_norm(x))))


def positions(length: int, size: int) -> Float32[Array, "length size"]:
    """Sines and cosines of the place in a sequence, of wavelengths from 2 pi to 10,000 times that.

    Source: Vaswani et al. 2017, section 3.5.
    """
    angles = jnp.arange(length)[:, None] / jnp.geomspace(1, 10_000, size // 2)[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def make_representation(
    config: Config, feature: int, action: int, embed: int, *, rngs: nnx.Rngs
) -> SameStep | NextStep | None:
    """What ``world_model.representation`` names, for features, flat actions and embeddings of these sizes."""
    if config.world_model.representation == "none":
        return None
    if config.world_model.representation == "next_embedding":
        return NextStep(config, feature, action, embed, rngs=rngs)
    return SameStep(config, feature, embed, rngs=rngs)


__all__ = ["BLOCKS", "HEADS", "NextStep", "SameStep", "TransformerBlock", "make_representation"]
