"""Encoders and decoders of images by convolutions of stride 2, as in the systems before the present DreamerV3.

``nets.convolutions=valid``, without padding, for images of 64 x 64: Hafner et al. 2019, "Learning latent dynamics for
planning from pixels" (PlaNet), and the official code of Dreamer V1 and V2. ``nets.convolutions=same``, with padding:
the official code of DreamerV3 in 2023. None of them bounds the images that it predicts.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from dreamer.config import NetsConfig, halvings, smallest_image
from dreamer.devices.phases import phase
from dreamer.nn.activations import activate, make_norm
from dreamer.nn.convolutions import map_parts
from dreamer.nn.layers import add_bias, fan_in_init, output_layer

KERNEL = 4
"""Side of the kernels of encoders, and of the decoder with padding."""

VALID_KERNELS = (5, 5, 6, 6)
"""Sides of the kernels of the decoder without padding, whose images have sides of 1, 5, 13, 30 and 64 pixels."""


class StridedConv(nnx.Module):
    """Convolution of stride 2, which halves an image, or its transpose, which doubles it.

    Args:
        inputs: input channels.
        outputs: output channels.
        kernel: side of the kernel in pixels.
        config: says whether there is padding.
        transpose: double instead of halving.
        bias: add one.
        rngs: source of the initial kernel.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        config: NetsConfig,
        *,
        transpose: bool = False,
        bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.padding = config.convolutions.upper()
        self.transpose = transpose
        self.dtype = config.dtype
        # All of these systems divide by the mean of fan-in and fan-out.
        # Differs from the paper: those before 2023 draw uniform numbers of the same variance.
        fan = kernel**2 * (inputs + outputs) // 2
        self.kernel = nnx.Param(fan_in_init(rngs.params(), (kernel, kernel, inputs, outputs), fan))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "batch h w inputs"]) -> Float[Array, "batch h2 w2 outputs"]:
        """Convolve ``[N, H, W, inputs]``."""
        convolve = jax.lax.conv_transpose if self.transpose else jax.lax.conv_general_dilated
        kernel = self.kernel[...].astype(self.dtype)
        x = convolve(x.astype(self.dtype), kernel, (2, 2), self.padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return x if self.bias is None else add_bias(x, self.bias[...])


class StridedLayer(nnx.Module):
    """`StridedConv`, norm, activation; arguments are those of `StridedConv`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, config: NetsConfig, *, transpose: bool = False, rngs: nnx.Rngs
    ):
        # As in 2023: LayerNorm has an offset itself.
        bias = config.norm != "layer"
        self.conv = StridedConv(inputs, outputs, kernel, config, transpose=transpose, bias=bias, rngs=rngs)
        self.norm = make_norm(config.norm, outputs)
        self.activation = config.image_activation

    def __call__(self, x: Float[Array, "batch h w inputs"]) -> Float[Array, "batch h2 w2 outputs"]:
        """Apply the three to ``[N, H, W, inputs]``."""
        return activate(self.activation)(self.norm(self.conv(x)))


class StridedEncoder(nnx.Module):
    """Layers that halve images: ``[N, H, W, C]`` in [-0.5, 0.5] to ``[N, features]``.

    Args:
        shape: height, width and channels.
        config: ``depth`` times ``mults`` are the channels after each halving.
        rngs: source of initial parameters.

    Raises:
        ConfigError: images of this size cannot be encoded.
    """

    def __init__(self, shape: tuple[int, int, int], config: NetsConfig, *, rngs: nnx.Rngs):
        height, width, channels = shape
        depths = _depths(height, width, config)
        self.layers = nnx.List(
            [StridedLayer(i, o, KERNEL, config, rngs=rngs) for i, o in itertools.pairwise([channels, *depths])]
        )
        self.outputs = math.prod(smallest_image(height, width, config)) * depths[-1]

    @phase("convolutions")
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch features"]:
        """Encode images."""
        return map_parts(self._encode, x)

    def _encode(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch features"]:
        for layer in self.layers:
            x = layer(x)
        return x.reshape(x.shape[0], -1)


class StridedDecoder(nnx.Module):
    """Features to images with a mean of about 0.5: a linear layer, then layers that double.

    Args:
        shape: height, width and channels.
        features: size of both parts of the features together.
        config: as of `StridedEncoder`, whose depths are read in reverse.
        rngs: source of initial parameters.

    Raises:
        ConfigError: images of this size cannot be decoded.
    """

    def __init__(self, shape: tuple[int, int, int], features: int, config: NetsConfig, *, rngs: nnx.Rngs):
        height, width, channels = shape
        depths = _depths(height, width, config)
        small = smallest_image(height, width, config)
        kernels: tuple[int, ...]
        if config.convolutions == "valid":
            # One pixel, with as many channels as the encoder has features.
            self.start = (1, 1, math.prod(small) * depths[-1])
            kernels = VALID_KERNELS
        else:
            self.start = (*small, depths[-1])
            kernels = (KERNEL,) * len(depths)
        sizes = [self.start[-1], *depths[-2::-1]]
        self.from_features = output_layer(config, features, math.prod(self.start), rngs=rngs)
        self.layers = nnx.List(
            [
                StridedLayer(i, o, kernel, config, transpose=True, rngs=rngs)
                for (i, o), kernel in zip(itertools.pairwise(sizes), kernels[:-1], strict=True)
            ]
        )
        self.output = StridedConv(sizes[-1], channels, kernels[-1], config, transpose=True, rngs=rngs)

    @phase("convolutions")
    def __call__(
        self, recurrent: Float[Array, "batch R"], sample: Float[Array, "batch S"]
    ) -> Float32[Array, "batch h w c"]:
        """Decode both parts of the features to images ``[N, H, W, C]``."""
        start = self.from_features(jnp.concatenate([recurrent, sample], -1))
        return map_parts(self._paint, start.reshape(-1, *self.start))

    def _paint(self, x: Float[Array, "batch h w c"]) -> Float32[Array, "batch h2 w2 c2"]:
        for layer in self.layers:
            x = layer(x)
        return self.output(x).astype(jnp.float32) + 0.5


def _depths(height: int, width: int, config: NetsConfig) -> list[int]:
    """Channels after each halving by the encoder."""
    return [config.depth * mult for mult in config.mults[: halvings(height, width, len(config.mults))]]


__all__ = ["KERNEL", "VALID_KERNELS", "StridedConv", "StridedDecoder", "StridedEncoder", "StridedLayer"]
