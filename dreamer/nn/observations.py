"""From observations to an embedding, from features back to observations, and the losses of these predictions."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, UInt8

from dreamer.config import NetsConfig
from dreamer.equations import distributions
from dreamer.equations.transforms import symlog
from dreamer.nn.grids import GridDecoder, GridEncoder
from dreamer.nn.images import ImageDecoder, ImageEncoder
from dreamer.nn.layers import hidden_layers, output_layer
from dreamer.nn.strided import StridedDecoder, StridedEncoder
from dreamer.types import Observation, Spaces


class Encoder(nnx.Module):
    """Observations to one embedding: an MLP for all vectors and classes, a convolutional network for each image size.

    Vectors are squashed by symlog, unless ``nets.symlog`` is false, classes become one-hot vectors, images are scaled
    to [-0.5, 0.5]. Keys are joined in sorted order; images of equal height and width share one network, stacked along
    channels. Grids of many classes have separate networks, see `dreamer.nn.grids`.
    """

    def __init__(self, config: NetsConfig, spaces: Spaces, *, rngs: nnx.Rngs):
        self.spaces = tuple(sorted(spaces.items()))
        self.dtype = config.dtype
        self.symlog = config.symlog
        self.image_bits = config.image_bits
        flat = flat_size(spaces)
        self.mlp = hidden_layers(config, flat, config.encoder_layers, rngs=rngs) if flat else None
        depths = [config.depth * mult for mult in config.mults]
        self.groups = image_groups(spaces)
        self.images = nnx.List(
            [_image_encoder((*size, channels), config, rngs=rngs) for size, channels in group_channels(spaces).items()]
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
            parts.append(network(scale_image(image, self.image_bits, self.dtype) - 0.5))
        parts.extend(network(jnp.asarray(obs[key])) for key, network in self.grids.items())
        return jnp.concatenate(parts, -1)

    def _vectors(self, obs: Observation) -> Float[Array, "batch V"]:
        parts = []
        for key, space in self.spaces:
            if space.kind == "vector":
                vector = jnp.asarray(obs[key], jnp.float32)
                parts.append(symlog(vector) if self.symlog else vector)
            elif space.kind == "discrete" and not space.is_grid:
                onehot = jax.nn.one_hot(obs[key], space.classes, dtype=jnp.float32)
                parts.append(onehot.reshape(onehot.shape[0], -1))
        return jnp.concatenate(parts, -1).astype(self.dtype)


class Decoder(nnx.Module):
    """Features to predictions of observation keys, float32.

    ``vector``: mean in symlog space, ``[*batch, n]``, also where ``nets.symlog`` is false and it is learned as it is.
    ``discrete``: logits ``[*batch, *shape, classes]``. ``image``: mean, where black is 0 and white is 1,
    ``[*batch, H, W, C]``. Of grids of many classes, only losses are known.

    Args:
        config: sizes and kinds of the networks.
        spaces: observation spaces.
        recurrent: size R of the recurrent part of the features.
        sample: size S of the sampled part.
        blocks: see `ImageDecoder`.
        rngs: source of initial parameters.
    """

    def __init__(self, config: NetsConfig, spaces: Spaces, recurrent: int, sample: int, blocks: int, *, rngs: nnx.Rngs):
        self.spaces = tuple(sorted(spaces.items()))
        self.symlog = config.symlog
        self.image_bits = config.image_bits
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
                _image_decoder((*size, channels), config, recurrent, sample, blocks, rngs=rngs)
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
        self, recurrent: Float[Array, "*batch R"], sample: Float[Array, "*batch S"]
    ) -> dict[str, Float32[Array, "..."]]:
        """Predict observations from both parts of the features."""
        predictions = self._means(recurrent, sample)
        if self.symlog:
            return predictions
        kinds = {key: space.kind for key, space in self.spaces}
        return {key: symlog(x) if kinds[key] == "vector" else x for key, x in predictions.items()}

    def losses(
        self, recurrent: Float[Array, "B T R"], sample: Float[Array, "B T S"], obs: Observation
    ) -> dict[str, Float32[Array, "B T"]]:
        """`reconstruction_losses` of every key, of vectors and images as ``nets`` says that they are learned."""
        predictions = self._means(recurrent, sample)
        losses = reconstruction_losses(
            predictions, obs, dict(self.spaces), squash=self.symlog, image_bits=self.image_bits
        )
        return losses | self.grid_losses(recurrent, sample, obs)

    def _means(
        self, recurrent: Float[Array, "*batch R"], sample: Float[Array, "*batch S"]
    ) -> dict[str, Float32[Array, "..."]]:
        """Predictions in the units in which they are learned."""
        spaces = dict(self.spaces)
        lead = recurrent.shape[:-1]
        # Convolutions want one leading axis.
        recurrent, sample = (x.reshape(-1, x.shape[-1]) for x in (recurrent, sample))
        predictions = self.vectors(jnp.concatenate([recurrent, sample], -1), list(self.heads))
        for network, (_, keys) in zip(self.images, self.groups, strict=True):
            images = network(recurrent, sample)
            # The images of a group lie side by side along channels.
            start = 0
            for key in keys:
                channels = spaces[key].shape[-1]
                predictions[key] = images[..., start : start + channels]
                start += channels
        return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), predictions)

    def vectors(self, feature: Float[Array, "*batch F"], keys: Sequence[str]) -> dict[str, Float32[Array, "..."]]:
        """Predictions ``[*batch, ...]`` of some keys that are not images, as learned; no other head is computed."""
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


def _image_encoder(shape: tuple[int, int, int], config: NetsConfig, *, rngs: nnx.Rngs) -> ImageEncoder | StridedEncoder:
    if config.convolutions != "pool":
        return StridedEncoder(shape, config, rngs=rngs)
    depths = [config.depth * mult for mult in config.mults]
    return ImageEncoder(shape, depths, config.kernel, dtype=config.dtype, rngs=rngs)


def _image_decoder(
    shape: tuple[int, int, int], config: NetsConfig, recurrent: int, sample: int, blocks: int, *, rngs: nnx.Rngs
) -> ImageDecoder | StridedDecoder:
    if config.convolutions != "pool":
        return StridedDecoder(shape, recurrent + sample, config, rngs=rngs)
    depths = [config.depth * mult for mult in config.mults]
    return ImageDecoder(
        shape, recurrent, sample, config.units, depths, config.kernel, blocks, dtype=config.dtype, rngs=rngs
    )


def reconstruction_losses(
    predictions: dict[str, Array], obs: Observation, spaces: Spaces, *, squash: bool = True, image_bits: int = 8
) -> dict[str, Float32[Array, "B T"]]:
    """``obs/KEY``: squared error (images in 0 to 1) or cross-entropy, summed over the event.

    Half of the squared error is the negative log-likelihood of a normal with the predicted mean and unit variance, as
    in PlaNet and Dreamer V1 and V2, less a constant: ``loss.reconstruction=0.5``.

    Args:
        predictions: means and logits ``[B, T, ...]``, see `Decoder`.
        obs: what was observed.
        spaces: of the observation keys.
        squash: vectors are compared in symlog space.
        image_bits: see `scale_image`.
    """
    losses = {}
    for key, prediction in predictions.items():
        space = spaces[key]
        target = jnp.asarray(obs[key])
        if space.kind == "discrete":
            log_probs = jax.nn.log_softmax(prediction, -1)
            losses[f"obs/{key}"] = -distributions.Categorical(log_probs, len(space.shape)).log_prob(target)
            continue
        if space.kind == "image":
            target = scale_image(target, image_bits, "float32")
        else:
            target = symlog(target.astype(jnp.float32)) if squash else target.astype(jnp.float32)
        losses[f"obs/{key}"] = jnp.square(prediction - target).sum(tuple(range(2, target.ndim)))
    return losses


def scale_image(image: UInt8[Array, "*shape"], bits: int, dtype: str) -> Float[Array, "*shape"]:
    """Bytes as numbers from 0, black, to 1, white; with fewer than 8 bits, the middle of its bin.

    PlaNet draws a number within the bin instead, the same for the encoder and the target. Source: Kingma and Dhariwal
    2018, "Glow: Generative flow with invertible 1x1 convolutions".
    """
    if bits == 8:
        return image.astype(dtype) / 255
    # Differs from the paper: no noise, because an encoder takes no random key. In targets alone, noise would add a
    # constant to the expected loss.
    return ((image >> (8 - bits)).astype(dtype) + 0.5) / 2**bits


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
