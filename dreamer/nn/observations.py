"""From observations to an embedding, from features back to observations, and the losses of these predictions."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from dreamer.config import NetsConfig
from dreamer.equations import distributions
from dreamer.equations.transforms import symlog
from dreamer.nn.grids import GridDecoder, GridEncoder
from dreamer.nn.images import ImageDecoder, ImageEncoder
from dreamer.nn.layers import hidden_layers, output_layer
from dreamer.types import Observation, Spaces


class Encoder(nnx.Module):
    """Observations to one embedding: an MLP for all vectors and classes, a convolutional network for each image size.

    Vectors are squashed by symlog, classes become one-hot vectors, images are scaled to [-0.5, 0.5]. Keys are joined in
    sorted order; images of equal height and width share one network, stacked along channels. Grids of many classes have
    networks of their own, see `dreamer.nn.grids`.
    """

    def __init__(self, config: NetsConfig, spaces: Spaces, *, rngs: nnx.Rngs):
        self.spaces = tuple(sorted(spaces.items()))
        self.dtype = config.dtype
        flat = flat_size(spaces)
        self.mlp = hidden_layers(config, flat, config.encoder_layers, rngs=rngs) if flat else None
        depths = [config.depth * mult for mult in config.mults]
        self.groups = image_groups(spaces)
        self.images = nnx.List(
            [
                ImageEncoder((height, width, channels), depths, config.kernel, dtype=config.dtype, rngs=rngs)
                for (height, width), channels in group_channels(spaces).items()
            ]
        )
        self.grids: nnx.Dict[GridEncoder] = nnx.Dict(
            {
                key: GridEncoder(space, depths, config.kernel, dtype=config.dtype, rngs=rngs)
                for key, space in self.spaces
                if space.is_grid
            }
        )
        convolved = sum(image.outputs for image in self.images) + sum(grid.outputs for grid in self.grids.values())
        self.outputs = (self.mlp.outputs if self.mlp else 0) + convolved

    def __call__(self, obs: Observation) -> Float[Array, "batch E"]:
        """Embed observations with one leading axis."""
        parts = []
        if self.mlp is not None:
            parts.append(self.mlp(self._vectors(obs)))
        for network, (_, keys) in zip(self.images, self.groups, strict=True):
            image = jnp.concatenate([obs[key] for key in keys], -1)
            parts.append(network(image.astype(self.dtype) / 255 - 0.5))
        parts.extend(network(jnp.asarray(obs[key])) for key, network in self.grids.items())
        return jnp.concatenate(parts, -1)

    def _vectors(self, obs: Observation) -> Float[Array, "batch V"]:
        parts = []
        for key, space in self.spaces:
            if space.kind == "vector":
                parts.append(symlog(jnp.asarray(obs[key], jnp.float32)))
            elif space.kind == "discrete" and not space.is_grid:
                onehot = jax.nn.one_hot(obs[key], space.classes, dtype=jnp.float32)
                parts.append(onehot.reshape(onehot.shape[0], -1))
        return jnp.concatenate(parts, -1).astype(self.dtype)


class Decoder(nnx.Module):
    """Features to predictions of observation keys, float32.

    ``vector``: mean in symlog space, ``[N, n]``. ``discrete``: logits ``[N, *shape, classes]``. ``image``: mean in
    [0, 1], ``[N, H, W, C]``. Of grids of many classes, only losses are known.

    Args:
        config: sizes.
        spaces: observation spaces.
        recurrent: size R of the recurrent part of the features.
        sample: size S of the sampled part.
        blocks: see `ImageDecoder`.
        rngs: source of initial parameters.
    """

    def __init__(self, config: NetsConfig, spaces: Spaces, recurrent: int, sample: int, blocks: int, *, rngs: nnx.Rngs):
        self.spaces = tuple(sorted(spaces.items()))
        flat = {key: space for key, space in self.spaces if space.kind != "image" and not space.is_grid}
        dtype = config.dtype
        self.mlp = hidden_layers(config, recurrent + sample, config.decoder_layers, rngs=rngs) if flat else None
        self.heads = nnx.Dict(
            {key: output_layer(config, self.mlp.outputs, flat_size({key: flat[key]}), rngs=rngs) for key in flat}
            if self.mlp
            else {}
        )
        depths = [config.depth * mult for mult in config.mults]
        self.groups = image_groups(spaces)
        self.images = nnx.List(
            [
                ImageDecoder(
                    (*size, channels),
                    recurrent,
                    sample,
                    config.units,
                    depths,
                    config.kernel,
                    blocks,
                    dtype=dtype,
                    rngs=rngs,
                )
                for size, channels in group_channels(spaces).items()
            ]
        )
        self.grids: nnx.Dict[GridDecoder] = nnx.Dict(
            {
                key: GridDecoder(
                    space, recurrent, sample, config.units, depths, config.kernel, blocks, dtype=dtype, rngs=rngs
                )
                for key, space in self.spaces
                if space.is_grid
            }
        )

    def __call__(
        self, recurrent: Float[Array, "batch R"], sample: Float[Array, "batch S"]
    ) -> dict[str, Float32[Array, "batch *shape"]]:
        """Predict observations from both parts of the features."""
        spaces = dict(self.spaces)
        predictions = self.vectors(jnp.concatenate([recurrent, sample], -1), list(self.heads))
        for network, (_, keys) in zip(self.images, self.groups, strict=True):
            images = network(recurrent, sample)
            # The images of a group lie side by side along channels.
            start = 0
            for key in keys:
                channels = spaces[key].shape[-1]
                predictions[key] = images[..., start : start + channels]
                start += channels
        return predictions

    def vectors(self, feature: Float[Array, "*batch F"], keys: Sequence[str]) -> dict[str, Float32[Array, "..."]]:
        """Predictions ``[*batch, ...]`` of some keys that are not images; no other head is computed."""
        if self.mlp is None or not keys:
            return {}
        spaces = dict(self.spaces)
        hidden = self.mlp(feature)
        predictions = {}
        for key in keys:
            space = spaces[key]
            out = self.heads[key](hidden).astype(jnp.float32)
            classes = (space.classes,) if space.kind == "discrete" else ()
            predictions[key] = out.reshape(*out.shape[:-1], *space.shape, *classes)
        return predictions

    def grid_losses(
        self, recurrent: Float[Array, "*batch R"], sample: Float[Array, "*batch S"], obs: Observation
    ) -> dict[str, Float32[Array, "*batch"]]:
        """``obs/KEY`` of every grid of many classes."""
        lead = recurrent.shape[:-1]
        recurrent, sample = (x.reshape(-1, x.shape[-1]) for x in (recurrent, sample))
        grids = {key: jnp.asarray(obs[key]).reshape(-1, *obs[key].shape[-2:]) for key in self.grids}
        return {
            f"obs/{key}": self.grids[key].loss(recurrent, sample, classes).reshape(lead)
            for key, classes in grids.items()
        }


def reconstruction_losses(
    predictions: dict[str, Array], obs: Observation, spaces: Spaces
) -> dict[str, Float32[Array, "B T"]]:
    """``obs/KEY``: squared error (vectors in symlog, images in [0, 1]) or cross-entropy, summed over the event."""
    losses = {}
    for key, prediction in predictions.items():
        space = spaces[key]
        target = jnp.asarray(obs[key])
        if space.kind == "discrete":
            log_probs = jax.nn.log_softmax(prediction, -1)
            losses[f"obs/{key}"] = -distributions.Categorical(log_probs, len(space.shape)).log_prob(target)
            continue
        target = target.astype(jnp.float32) / 255 if space.kind == "image" else symlog(target.astype(jnp.float32))
        losses[f"obs/{key}"] = jnp.square(prediction - target).sum(tuple(range(2, target.ndim)))
    return losses


def flat_size(spaces: Spaces) -> int:
    """Number of entries of all vectors and one-hot classes together, without grids of many classes."""
    return sum(
        math.prod(space.shape) * (space.classes if space.kind == "discrete" else 1)
        for space in spaces.values()
        if space.kind != "image" and not space.is_grid
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
