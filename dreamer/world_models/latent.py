"""World model: encoder, RSSM, decoder, reward and continue heads, and the loss that trains them on replay."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from dreamer.config import Config, NetsConfig
from dreamer.equations import distributions
from dreamer.equations.transforms import symlog
from dreamer.nn.images import ImageDecoder, ImageEncoder
from dreamer.nn.layers import MLP, Linear
from dreamer.types import Batch, Latent, Masks, Metrics, Observation, Spaces, mask_keys
from dreamer.world_models.rssm import RSSM, Observed, features, kl_losses


class Encoder(nnx.Module):
    """Observation dict to one embedding: an MLP over all vectors and classes, a convolutional network per image size.

    Vectors are squashed by symlog, classes become one-hot, images are scaled to [-0.5, 0.5]. Keys are joined in sorted
    order; images of equal height and width share one network, stacked along channels.
    """

    def __init__(self, config: NetsConfig, spaces: Spaces, *, rngs: nnx.Rngs):
        self.spaces = tuple(sorted(spaces.items()))
        self.dtype = config.dtype
        flat = flat_size(spaces)
        self.mlp = MLP(flat, config.units, config.encoder_layers, dtype=config.dtype, rngs=rngs) if flat else None
        depths = [config.depth * mult for mult in config.mults]
        self.groups = image_groups(spaces)
        self.images = nnx.List(
            [
                ImageEncoder((height, width, channels), depths, config.kernel, dtype=config.dtype, rngs=rngs)
                for (height, width), channels in group_channels(spaces).items()
            ]
        )
        self.outputs = (self.mlp.outputs if self.mlp else 0) + sum(image.outputs for image in self.images)

    def __call__(self, obs: Observation) -> Float[Array, "batch E"]:
        """Embed observations with one leading axis."""
        parts = []
        if self.mlp is not None:
            parts.append(self.mlp(self._vectors(obs)))
        for network, (_, keys) in zip(self.images, self.groups, strict=True):
            image = jnp.concatenate([obs[key] for key in keys], -1)
            parts.append(network(image.astype(self.dtype) / 255 - 0.5))
        return jnp.concatenate(parts, -1)

    def _vectors(self, obs: Observation) -> Float[Array, "batch V"]:
        parts = []
        for key, space in self.spaces:
            if space.kind == "vector":
                parts.append(symlog(jnp.asarray(obs[key], jnp.float32)))
            elif space.kind == "discrete":
                onehot = jax.nn.one_hot(obs[key], space.classes, dtype=jnp.float32)
                parts.append(onehot.reshape(onehot.shape[0], -1))
        return jnp.concatenate(parts, -1).astype(self.dtype)


class Decoder(nnx.Module):
    """Latent to predictions of every observation key, float32.

    ``vector``: mean in symlog space, ``[N, n]``. ``discrete``: logits ``[N, *shape, classes]``. ``image``: mean in
    [0, 1], ``[N, H, W, C]``.
    """

    def __init__(self, config: NetsConfig, spaces: Spaces, deter: int, stoch: int, blocks: int, *, rngs: nnx.Rngs):
        self.spaces = tuple(sorted(spaces.items()))
        flat = {key: space for key, space in self.spaces if space.kind != "image"}
        dtype = config.dtype
        self.mlp = MLP(deter + stoch, config.units, config.decoder_layers, dtype=dtype, rngs=rngs) if flat else None
        self.heads = nnx.Dict(
            {key: Linear(self.mlp.outputs, flat_size({key: flat[key]}), dtype=dtype, rngs=rngs) for key in flat}
            if self.mlp
            else {}
        )
        depths = [config.depth * mult for mult in config.mults]
        self.groups = image_groups(spaces)
        self.images = nnx.List(
            [
                ImageDecoder(
                    (*size, channels), deter, stoch, config.units, depths, config.kernel, blocks, dtype=dtype, rngs=rngs
                )
                for size, channels in group_channels(spaces).items()
            ]
        )

    def __call__(self, latent: Latent) -> dict[str, Float32[Array, "batch *shape"]]:
        """Predict observations for latents with one leading axis."""
        spaces = dict(self.spaces)
        predictions = self.vectors(features(latent), list(self.heads))
        stoch = latent.stoch.reshape(latent.stoch.shape[0], -1)
        for network, (_, keys) in zip(self.images, self.groups, strict=True):
            images, start = network(latent.deter, stoch), 0
            for key in keys:
                channels = spaces[key].shape[-1]
                predictions[key] = images[..., start : start + channels]
                start += channels
        return predictions

    def vectors(self, feature: Float[Array, "*batch F"], keys: Sequence[str]) -> dict[str, Float32[Array, "..."]]:
        """Predictions ``[*batch, ...]`` of some keys that are no images; no other head is computed."""
        if self.mlp is None or not keys:
            return {}
        spaces, hidden, predictions = dict(self.spaces), self.mlp(feature), {}
        for key in keys:
            space, out = spaces[key], self.heads[key](hidden).astype(jnp.float32)
            classes = (space.classes,) if space.kind == "discrete" else ()
            predictions[key] = out.reshape(*out.shape[:-1], *space.shape, *classes)
        return predictions


class WorldModel(nnx.Module):
    """Everything that is learned from real experience.

    Args:
        config: the run's config.
        obs_spaces: observation spaces.
        action_spaces: action spaces.
        rngs: source of initial parameters.

    Raises:
        ValueError: an observation key is an action mask that does not fit, see `dreamer.types.mask_keys`.
    """

    def __init__(self, config: Config, obs_spaces: Spaces, action_spaces: Spaces, *, rngs: nnx.Rngs):
        self.mask_keys = tuple(mask_keys(obs_spaces, action_spaces).items())
        nets, rssm = config.nets, config.rssm
        stoch = rssm.stoch * rssm.classes
        inputs, dtype = rssm.deter + stoch, nets.dtype
        self.encoder = Encoder(nets, obs_spaces, rngs=rngs)
        self.rssm = RSSM(rssm, self.encoder.outputs, action_spaces, dtype=dtype, rngs=rngs)
        self.decoder = Decoder(nets, obs_spaces, rssm.deter, stoch, rssm.blocks, rngs=rngs)
        self.reward_mlp = MLP(inputs, nets.units, nets.reward_layers, dtype=dtype, rngs=rngs)
        self.reward_head = Linear(self.reward_mlp.outputs, nets.bins, scale=0.0, dtype=dtype, rngs=rngs)
        self.cont_mlp = MLP(inputs, nets.units, nets.cont_layers, dtype=dtype, rngs=rngs)
        self.cont_head = Linear(self.cont_mlp.outputs, 1, dtype=dtype, rngs=rngs)

    def reward(self, feature: Float[Array, "*batch F"]) -> distributions.SymexpTwoHot:
        """Distribution of the reward received on arriving in a state."""
        return distributions.SymexpTwoHot(self.reward_head(self.reward_mlp(feature)))

    def cont_logit(self, feature: Float[Array, "*batch F"]) -> Float32[Array, "*batch"]:
        """Logit of the probability that the episode goes on from a state (times the discount, if so trained)."""
        return self.cont_head(self.cont_mlp(feature)).astype(jnp.float32)[..., 0]

    def observed_masks(self, obs: Observation) -> Masks:
        """The action masks in an observation.

        A mask that forbids everything, as it may after the end of an episode, counts as none.
        """
        masks = {action: jnp.asarray(obs[key]) > 0 for action, key in self.mask_keys}
        return {action: mask | ~mask.any(-1, keepdims=True) for action, mask in masks.items()}

    def action_masks(self, feature: Float[Array, "*batch F"]) -> Masks:
        """The action masks that the decoder expects in a state.

        A class is allowed if that is more probable than not, and so is the class that is most probably allowed: there
        is always one.
        """
        logits = self.decoder.vectors(feature, [key for _, key in self.mask_keys])
        masks = {}
        for action, key in self.mask_keys:
            log_odds = logits[key][..., 1] - logits[key][..., 0]
            masks[action] = (log_odds > 0) | (log_odds == log_odds.max(-1, keepdims=True))
        return masks


class WorldModelOutput(NamedTuple):
    """By-products of `world_model_loss`, batch first."""

    latent: Latent
    """Posterior latents ``[B, T, ...]``."""
    logits: Float[Array, "B T S C"]
    """Posterior logits."""
    predictions: dict[str, Array]
    """Decoded observations ``[B, T, ...]``, see `Decoder`."""
    metrics: Metrics


def world_model_loss(
    model: WorldModel, batch: Batch, key: Array, config: Config
) -> tuple[dict[str, Float32[Array, "B T"]], WorldModelOutput]:
    """Losses of every part of the world model at every step, unscaled.

    ``obs/KEY`` reconstruction, ``reward``, ``cont`` prediction, ``dyn`` and ``rep`` KL. Source: Hafner et al. 2025,
    equations 2 to 4.

    Args:
        model: parameters.
        batch: B sequences of T steps.
        key: random key.
        config: the run's config.

    Returns:
        Losses by name, each ``[B, T]``, and by-products.
    """
    rows, steps = batch.reward.shape
    observed = observe_batch(model, batch, key)
    latent, logits = jax.tree.map(lambda x: x.swapaxes(0, 1), observed)
    flat = jax.tree.map(lambda x: x.reshape(rows * steps, *x.shape[2:]), latent)
    predictions = jax.tree.map(lambda x: x.reshape(rows, steps, *x.shape[1:]), model.decoder(flat))
    losses = reconstruction_losses(predictions, batch.obs, dict(model.decoder.spaces))
    feature = features(latent)
    losses["reward"] = -model.reward(feature).log_prob(jnp.asarray(batch.reward, jnp.float32))
    # Differs from the paper: the discount is part of the target, as in the official code, and not of the return.
    discount = 1 - 1 / config.behavior.return_horizon if config.behavior.cont_discount else 1.0
    losses["cont"] = binary_cross_entropy(model.cont_logit(feature), (1.0 - jnp.asarray(batch.is_terminal)) * discount)
    prior = model.rssm.prior(latent.deter)
    losses["dyn"], losses["rep"] = kl_losses(model.rssm, logits, prior)
    metrics = {
        "model/prior_entropy": model.rssm.distribution(prior).entropy().mean(),
        "model/posterior_entropy": model.rssm.distribution(logits).entropy().mean(),
    }
    return losses, WorldModelOutput(latent, logits, predictions, metrics)


def observe_batch(model: WorldModel, batch: Batch, key: Array) -> Observed:
    """Embed and filter the sequences of a batch; returns time-first posteriors ``[T, B, ...]``."""
    rows, steps = batch.reward.shape
    embed = model.encoder(jax.tree.map(lambda x: jnp.reshape(x, (rows * steps, *x.shape[2:])), batch.obs))
    embed = embed.reshape(rows, steps, -1).swapaxes(0, 1)
    actions = model.rssm.flatten_action({k: jnp.swapaxes(v, 0, 1) for k, v in batch.prev_action.items()})
    start = model.rssm.unpack(batch.latent)
    return model.rssm.observe(start, actions, embed, jnp.swapaxes(batch.is_first, 0, 1), key)


def reconstruction_losses(
    predictions: dict[str, Array], obs: Observation, spaces: Spaces
) -> dict[str, Float32[Array, "B T"]]:
    """``obs/KEY``: squared error (vectors in symlog space, images in 0..1) or cross-entropy, summed over the event."""
    losses = {}
    for key, prediction in predictions.items():
        space, target = spaces[key], jnp.asarray(obs[key])
        if space.kind == "discrete":
            log_probs = jax.nn.log_softmax(prediction, -1)
            losses[f"obs/{key}"] = -distributions.Categorical(log_probs, len(space.shape)).log_prob(target)
            continue
        target = target.astype(jnp.float32) / 255 if space.kind == "image" else symlog(target.astype(jnp.float32))
        losses[f"obs/{key}"] = jnp.square(prediction - target).sum(tuple(range(2, target.ndim)))
    return losses


def binary_cross_entropy(logit: Float32[Array, "*batch"], target: Float32[Array, "*batch"]) -> Float32[Array, "*batch"]:
    """``-(p log sigmoid(x) + (1 - p) log sigmoid(-x))`` for target probabilities p."""
    return -(target * jax.nn.log_sigmoid(logit) + (1 - target) * jax.nn.log_sigmoid(-logit))


def flat_size(spaces: Spaces) -> int:
    """Entries of all vectors and one-hot classes together."""
    return sum(
        math.prod(space.shape) * (space.classes if space.kind == "discrete" else 1)
        for space in spaces.values()
        if space.kind != "image"
    )


def image_groups(spaces: Spaces) -> tuple[tuple[tuple[int, int], tuple[str, ...]], ...]:
    """Image keys by (height, width), sorted: each group goes through one convolutional network."""
    groups: dict[tuple[int, int], tuple[str, ...]] = {}
    for key, space in sorted(spaces.items()):
        if space.kind == "image":
            size = (space.shape[0], space.shape[1])
            groups[size] = (*groups.get(size, ()), key)
    return tuple(sorted(groups.items()))


def group_channels(spaces: Spaces) -> dict[tuple[int, int], int]:
    """Channels of all images of a (height, width) together."""
    return {size: sum(spaces[key].shape[-1] for key in keys) for size, keys in image_groups(spaces)}
