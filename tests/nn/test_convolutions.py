"""Convolutions against their plain formulations: values and gradients, in single and double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer.nn import convolutions
from dreamer.nn.images import ImageDecoder, ImageEncoder

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def random(rng, *shape, dtype):
    return jnp.asarray(rng.normal(size=shape), dtype)


def assert_same(ours, theirs, *args, rng, tolerance):
    """Values and all gradients agree, relative to their size."""
    value, pull = jax.vjp(ours, *args)
    expected, pull_expected = jax.vjp(theirs, *args)
    error = jnp.asarray(rng.normal(size=value.shape), value.dtype)
    for a, b in zip((value, *pull(error)), (expected, *pull_expected(error)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


@pytest.mark.parametrize("size", [1, 3, 5, 7])
def test_convolution_after_doubling_equals_the_plain_one(rng, size, dtype):
    x, kernel = random(rng, 2, 6, 4, 3, dtype=dtype), random(rng, size, size, 3, 5, dtype=dtype)

    assert_same(
        convolutions.upsample_conv,
        convolutions.plain_upsample_conv,
        x,
        kernel,
        rng=rng,
        tolerance=TOLERANCE[dtype],
    )


@pytest.mark.parametrize("chunks", [1, 3, 8])  # 11 images: chunks of unequal size
def test_chunked_gradient_equals_the_plain_one(rng, dtype, chunks, monkeypatch):
    x, kernel = random(rng, 11, 6, 4, 3, dtype=dtype), random(rng, 5, 5, 3, 5, dtype=dtype)
    monkeypatch.setattr(convolutions, "_CHUNK_BYTES", x.nbytes * 8 // 3 // chunks)

    def gradient(kernel):
        return jax.grad(lambda kernel: convolutions.same_conv(x, kernel).sum())(kernel)

    # Values, the gradient for the images, and a gradient for the kernel from every chunk.
    assert str(jax.make_jaxpr(gradient)(kernel)).count("= conv_general_dilated[") == 2 + chunks
    assert_same(convolutions.same_conv, convolutions.plain_conv, x, kernel, rng=rng, tolerance=TOLERANCE[dtype])


@pytest.mark.parametrize("backend", ["gpu", "tpu"])
def test_accelerators_convolve_in_one_piece(rng, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, kernel = random(rng, 256, 16, 16, 4, dtype="float32"), random(rng, 3, 3, 4, 4, dtype="float32")
    network = lambda x: convolutions.same_conv(x, kernel)  # noqa: E731
    program = str(jax.make_jaxpr(jax.grad(lambda x: convolutions.map_parts(network, x).sum()))(x))
    assert "custom_vjp" not in program
    assert "concatenate" not in program
    assert "split" not in program


@pytest.mark.slow
@pytest.mark.parametrize("images", [3, 4, 10])
def test_a_network_in_parts_equals_one_in_one(rng, images, monkeypatch):
    encoder = ImageEncoder((16, 16, 3), [4, 8], 5, dtype="float32", rngs=nnx.Rngs(params=0))
    decoder = ImageDecoder((16, 16, 3), 16, 8, 8, [4, 8], 5, 2, dtype="float32", rngs=nnx.Rngs(params=1))
    x = random(rng, images, 16, 16, 3, dtype="float32")
    deter, stoch = random(rng, images, 16, dtype="float32"), random(rng, images, 8, dtype="float32")

    def encode(encoder, x):
        return encoder(x)

    def decode(decoder, deter, stoch):
        return decoder(deter, stoch)

    def with_gradients(function, *args):
        @jax.jit
        def both(*args):
            value, pull = jax.vjp(function, *args)
            return value, pull(jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape))

        return both(*args)

    whole = with_gradients(encode, encoder, x), with_gradients(decode, decoder, deter, stoch)
    monkeypatch.setattr(convolutions, "_PART_BYTES", 1)
    text = str(jax.make_jaxpr(encode)(encoder, x))
    assert ("concatenate" in text) == (images >= 4)
    parts = with_gradients(encode, encoder, x), with_gradients(decode, decoder, deter, stoch)
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1.0, float(jnp.abs(b).max())))


def test_halving_takes_the_largest_and_shares_the_gradient_of_equals():
    x = jnp.array([[1.0, 5.0], [5.0, 2.0]]).reshape(1, 2, 2, 1)
    assert convolutions.halve(x).tolist() == [[[[5.0]]]]
    gradient = jax.grad(lambda x: convolutions.halve(x).sum())(x)
    assert gradient.reshape(2, 2).tolist() == [[0.0, 0.5], [0.5, 0.0]]


@pytest.mark.parametrize("values", [3, 1000])  # few values: many squares with several largest ones
def test_halving_with_four_bits_equals_the_plain_one(rng, dtype, values):
    x = jnp.asarray(rng.integers(0, values, (3, 6, 4, 5)), dtype)
    assert_same(convolutions.halve, convolutions.plain_halve, x, rng=rng, tolerance=0)
