"""Encoder and decoder of images, built from convolutions that halve and double them."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dreamer.config import halvings
from dreamer.devices.phases import phase
from dreamer.nn.convolutions import halve, map_parts, same_conv, upsample_conv
from dreamer.nn.layers import BlockLinear, Layer, Linear, RMSNorm, add_bias, fan_in_init


class Conv(nnx.Module):
    """Convolution of stride 1 with zero padding that keeps the size, optionally after doubling the image.

    Args:
        inputs: input channels.
        outputs: output channels.
        kernel: odd side of the kernel in pixels.
        upsample: double height and width by repetition first.
        dtype: dtype of the computation and of the result.
        rngs: source of the initial kernel.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, upsample: bool = False, dtype: str, rngs: nnx.Rngs):
        self.upsample = upsample
        self.dtype = dtype
        shape = (kernel, kernel, inputs, outputs)
        self.kernel = nnx.Param(fan_in_init(rngs.params(), shape, kernel * kernel * inputs))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))

    def __call__(self, x: Float[Array, "batch h w inputs"]) -> Float[Array, "batch h2 w2 outputs"]:
        """Convolve ``[N, H, W, inputs]`` to ``[N, H, W, outputs]`` (twice H and W with ``upsample``)."""
        x = x.astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        x = upsample_conv(x, kernel) if self.upsample else same_conv(x, kernel)
        return add_bias(x, self.bias[...])


class ImageEncoder(nnx.Module):
    """Convolution, 2 x 2 maximum, RMSNorm, SiLU, repeated: ``[N, H, W, C]`` in [-0.5, 0.5] to ``[N, features]``."""

    def __init__(self, shape: tuple[int, int, int], depths: Sequence[int], kernel: int, *, dtype: str, rngs: nnx.Rngs):
        height, width, channels = shape
        depths = depths[: halvings(height, width, len(depths))]
        sizes = [channels, *depths]
        self.convs = nnx.List([Conv(i, o, kernel, dtype=dtype, rngs=rngs) for i, o in zip(sizes, depths, strict=False)])
        self.norms = nnx.List([RMSNorm(depth) for depth in depths])
        self.outputs = height * width * depths[-1] // 4 ** len(depths)

    @phase("convolutions")
    def __call__(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch features"]:
        """Encode images."""
        return map_parts(self._encode, x)

    def _encode(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch features"]:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.silu(norm(halve(conv(x))))
        return x.reshape(x.shape[0], -1)


class ImageDecoder(nnx.Module):
    """Features to images in (0, 1): a spatial start from both parts of the features, then upsampling convolutions.

    Args:
        shape: height, width and channels.
        recurrent: size R of the recurrent part of the features; each block of it paints some channels of the start.
        sample: size S of the sampled part.
        units: half the width of the layer that reads the sampled part.
        depths: channels after each halving.
        kernel: odd side of the kernels in pixels.
        blocks: diagonal blocks, at most, of the layer that reads the recurrent part.
        dtype: dtype of the computation.
        rngs: source of initial parameters.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        recurrent: int,
        sample: int,
        units: int,
        depths: Sequence[int],
        kernel: int,
        blocks: int,
        *,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        height, width, channels = shape
        depths = list(depths[: halvings(height, width, len(depths))])
        factor = 2 ** len(depths)
        self.start = (height // factor, width // factor, depths[-1])
        self.blocks = math.gcd(blocks, depths[-1])
        size = math.prod(self.start)
        self.from_recurrent = BlockLinear(recurrent, size, self.blocks, dtype=dtype, rngs=rngs)
        self.from_sample = nnx.List(
            [Layer(sample, 2 * units, dtype=dtype, rngs=rngs), Linear(2 * units, size, dtype=dtype, rngs=rngs)]
        )
        self.start_norm = RMSNorm(depths[-1])
        sizes = [*depths[::-1], channels]
        self.convs = nnx.List(
            [Conv(i, o, kernel, upsample=True, dtype=dtype, rngs=rngs) for i, o in itertools.pairwise(sizes)]
        )
        self.norms = nnx.List([RMSNorm(depth) for depth in sizes[1:-1]])

    @phase("convolutions")
    def __call__(
        self, recurrent: Float[Array, "batch R"], sample: Float[Array, "batch S"]
    ) -> Float[Array, "batch h w c"]:
        """Decode both parts of the features to float32 images ``[N, H, W, C]``."""
        return map_parts(self._paint, self._start(recurrent, sample))

    def _start(
        self, recurrent: Float[Array, "batch R"], sample: Float[Array, "batch S"]
    ) -> Float[Array, "batch h w c"]:
        height, width, depth = self.start
        # Each block paints its own group of channels over the whole start image: split the result into blocks, each an
        # image, and move the axis of blocks next to that of their channels.
        x = self.from_recurrent(recurrent).reshape(-1, self.blocks, height, width, depth // self.blocks)
        x = x.transpose(0, 2, 3, 1, 4).reshape(-1, height, width, depth)
        hidden, output = self.from_sample
        y = output(hidden(sample))
        return x + y.reshape(x.shape)

    def _paint(self, x: Float[Array, "batch h w c"]) -> Float[Array, "batch h2 w2 c2"]:
        x = jax.nn.silu(self.start_norm(x))
        for conv, norm in zip(self.convs[:-1], self.norms, strict=True):
            x = jax.nn.silu(norm(conv(x)))
        return jax.nn.sigmoid(self.convs[-1](x).astype(jnp.float32))
