"""Convolutions of stride 2: by their definition, and the published sizes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer.config import ConfigError, NetsConfig
from dreamer.envs.check import diagnosis
from dreamer.nn.activations import LayerNorm
from dreamer.nn.strided import StridedConv, StridedDecoder, StridedEncoder
from dreamer.types import Space

DREAMER_V1 = NetsConfig(
    convolutions="valid", depth=32, mults=(1, 2, 4, 8), activation="elu", conv_activation="relu", norm="none"
)
DREAMER_V3_2023 = NetsConfig(convolutions="same", depth=32, mults=(1, 2, 4, 8), norm="layer")


def rngs():
    return nnx.Rngs(params=0)


def nets(**values):
    return NetsConfig(**{"depth": 2, "mults": (1, 2, 4, 8), "dtype": "float32", **values})


def count(function):
    return sum(x.size for x in jax.tree.leaves(jax.eval_shape(function)))


def shape_of(make, *inputs):
    return jax.eval_shape(lambda *xs: make()(*xs), *(jax.ShapeDtypeStruct(x, jnp.float32) for x in inputs))


@pytest.mark.parametrize(("padding", "before"), [("valid", 0), ("same", 1)])
def test_a_convolution_by_its_definition(rng, padding, before):
    conv = StridedConv(2, 3, 4, nets(convolutions=padding), rngs=rngs())
    x = rng.normal(size=(1, 6, 6, 2)).astype(np.float32)
    kernel = np.asarray(conv.kernel[...])
    padded = np.pad(x[0], [(before, before), (before, before), (0, 0)])
    side = (len(padded) - 4) // 2 + 1
    expected = np.zeros((side, side, 3))
    for row, column in itertools.product(range(side), range(side)):
        patch = padded[2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
        expected[row, column] = np.einsum("klc,klco->o", patch, kernel)
    np.testing.assert_allclose(conv(jnp.asarray(x))[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("padding", "kernel", "cut"), [("valid", 5, 0), ("valid", 6, 0), ("same", 4, 1)])
def test_a_transposed_convolution_by_its_definition(rng, padding, kernel, cut):
    """Every pixel stamps the kernel, mirrored, onto the image at twice its place; padding cuts the edges off."""
    conv = StridedConv(2, 3, kernel, nets(convolutions=padding), transpose=True, rngs=rngs())
    x = rng.normal(size=(1, 3, 3, 2)).astype(np.float32)
    stamp = np.asarray(conv.kernel[...])[::-1, ::-1]
    expected = np.zeros((4 + kernel, 4 + kernel, 3))
    for row, column in itertools.product(range(3), range(3)):
        expected[2 * row : 2 * row + kernel, 2 * column : 2 * column + kernel] += np.einsum(
            "c,klco->klo", x[0, row, column], stamp
        )
    expected = expected[cut : len(expected) - cut, cut : len(expected) - cut]
    np.testing.assert_allclose(conv(jnp.asarray(x))[0], expected, rtol=1e-4, atol=1e-5)


def test_initial_kernels_have_the_variance_of_the_mean_of_both_fans():
    kernel = StridedConv(60, 100, 4, nets(convolutions="same"), rngs=rngs()).kernel[...]
    np.testing.assert_allclose(kernel.std(), (16 * 80) ** -0.5, rtol=0.01)


def test_dreamer_v1_has_the_published_sizes():
    def encoder():
        return StridedEncoder((64, 64, 3), DREAMER_V1, rngs=rngs())

    def decoder():
        return StridedDecoder((64, 64, 3), 230, DREAMER_V1, rngs=rngs())

    assert shape_of(encoder, (2, 64, 64, 3)).shape == (2, 1024)
    assert count(encoder) == 16 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 256) + 32 + 64 + 128 + 256
    images = shape_of(decoder, (2, 200), (2, 30))
    assert (images.shape, images.dtype) == ((2, 64, 64, 3), jnp.float32)
    dense = 230 * 1024 + 1024
    kernels = 25 * (1024 * 128 + 128 * 64) + 36 * (64 * 32 + 32 * 3)
    assert count(decoder) == dense + kernels + 128 + 64 + 32 + 3


def test_dreamer_v3_of_2023_has_the_published_sizes():
    def encoder():
        return StridedEncoder((64, 64, 3), DREAMER_V3_2023, rngs=rngs())

    def decoder():
        return StridedDecoder((64, 64, 3), 230, DREAMER_V3_2023, rngs=rngs())

    assert shape_of(encoder, (2, 64, 64, 3)).shape == (2, 4 * 4 * 256)
    # No biases where LayerNorm follows with scale and offset.
    assert count(encoder) == 16 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 256) + 2 * (32 + 64 + 128 + 256)
    assert shape_of(decoder, (2, 200), (2, 30)).shape == (2, 64, 64, 3)
    dense = 230 * 4096 + 4096
    kernels = 16 * (256 * 128 + 128 * 64 + 64 * 32 + 32 * 3)
    assert count(decoder) == dense + kernels + 2 * (128 + 64 + 32) + 3


@pytest.mark.parametrize(("size", "features"), [((32, 32), 4 * 4 * 8), ((96, 64), 6 * 4 * 16)])
def test_with_padding_other_sizes_are_halved_as_often_as_they_can_be(size, features):
    config = nets(convolutions="same")
    assert shape_of(lambda: StridedEncoder((*size, 1), config, rngs=rngs()), (2, *size, 1)).shape == (2, features)
    assert shape_of(lambda: StridedDecoder((*size, 1), 5, config, rngs=rngs()), (2, 3), (2, 2)).shape == (2, *size, 1)


def test_without_padding_images_are_64_pixels_wide_and_high():
    expected = (
        "An image of 64x32 pixels cannot be encoded: nets.convolutions=valid expects 64x64. Resize the image by "
        "env.size=[64,64], or use nets.convolutions=same or pool."
    )
    for make in (
        lambda: StridedEncoder((64, 32, 3), DREAMER_V1, rngs=rngs()),
        lambda: StridedDecoder((64, 32, 3), 230, DREAMER_V1, rngs=rngs()),
    ):
        with pytest.raises(ConfigError) as error:
            make()
        assert str(error.value) == expected
    (finding,) = diagnosis.observation_keys({"image": Space("image", (64, 32, 3))}, DREAMER_V1)
    assert (finding.level, finding.text) == ("error", f"Observation 'image': {expected}")
    (finding,) = diagnosis.observation_keys({"image": Space("image", (64, 64, 3))}, DREAMER_V1)
    assert finding.text == "Observation 'image': uint8 [64, 64, 3]: convolutions, 64x64 -> 2x2."


@pytest.mark.parametrize(("activation", "least"), [("relu", 0.0), ("elu", -1.0), ("silu", -0.279)])
def test_hidden_layers_have_the_activation_and_the_norm_of_the_config(rng, activation, least):
    config = nets(convolutions="same", conv_activation=activation, norm="layer", mults=(4,))
    encoder = StridedEncoder((6, 6, 1), config, rngs=rngs())
    out = encoder(jnp.asarray(rng.normal(size=(50, 6, 6, 1)), jnp.float32)).reshape(-1, 8)
    assert least <= out.min() <= 0.7 * least
    # A layer of zeros is normalised to zeros, so LayerNorm's offset alone is left.
    norm = encoder.layers[0].norm
    assert isinstance(norm, LayerNorm)
    norm.offset[...] = jnp.arange(8.0)
    np.testing.assert_allclose(
        encoder(jnp.zeros((1, 6, 6, 1))).reshape(-1, 8)[0], getattr(jax.nn, activation)(jnp.arange(8.0)), rtol=1e-6
    )


@pytest.mark.parametrize(("convolutions", "side"), [("valid", 64), ("same", 6)])
def test_images_are_predicted_around_the_middle_and_without_bounds(convolutions, side):
    decoder = StridedDecoder((side, side, 1), 3, nets(convolutions=convolutions), rngs=rngs())
    images = decoder(jnp.zeros((1, 2)), jnp.zeros((1, 1)))
    np.testing.assert_array_equal(images, 0.5)
    assert decoder.output.bias is not None
    decoder.output.bias[...] = jnp.array([2.0])
    np.testing.assert_array_equal(decoder(jnp.zeros((1, 2)), jnp.zeros((1, 1))), 2.5)
