"""Layers against plain formulations, their initialisation, and their parameter counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer import algorithms
from dreamer import config as configs
from dreamer.nn import images
from dreamer.nn import layers as networks
from dreamer.types import Space


def rngs(seed=0):
    return nnx.Rngs(params=seed)


def test_block_linear_equals_concatenated_einsum(rng):
    layer = networks.BlockLinear(24, 16, 4, shared=5, dtype="float32", rngs=rngs())
    x, shared = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((7, 24), (7, 5)))
    joined = jnp.concatenate([x.reshape(7, 4, 6), jnp.repeat(shared[:, None], 4, 1)], -1)
    bias = jnp.asarray(rng.normal(size=16), jnp.float32)
    layer.bias[...] = bias
    expected = jnp.einsum("ngk,gko->ngo", joined, layer.kernel[...]).reshape(7, 16) + bias[None]
    np.testing.assert_allclose(layer(x, shared), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_block_matmul_is_the_same_on_every_backend(rng, backend, monkeypatch):
    x, kernel = jnp.asarray(rng.normal(size=(5, 12)), jnp.float32), jnp.asarray(rng.normal(size=(3, 4, 2)), jnp.float32)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    ours = networks.block_matmul(x, kernel)
    dense = jax.scipy.linalg.block_diag(*kernel)
    np.testing.assert_allclose(ours, x @ dense, rtol=1e-5, atol=1e-6)


def test_rms_norm_by_hand():
    norm = networks.RMSNorm(2)
    np.testing.assert_allclose(norm(jnp.array([[3.0, 4.0]])), [[3 / np.sqrt(12.5001), 4 / np.sqrt(12.5001)]], rtol=1e-6)


def test_norm_is_computed_in_float32():
    x = jnp.full((1, 4096), 300.0, jnp.bfloat16)
    out = networks.RMSNorm(4096)(x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), 1.0, rtol=1e-2)


def test_initial_kernels_have_the_variance_of_their_fan_in():
    kernel = networks.fan_in_init(jax.random.key(0), (400, 300), 400)
    np.testing.assert_allclose(kernel.std(), 400**-0.5, rtol=0.01)
    assert np.abs(kernel).max() <= 2 * networks.INIT_SCALE / np.sqrt(400)


def test_block_kernels_count_the_input_of_all_blocks():
    kernel = networks.BlockLinear(800, 800, 8, dtype="float32", rngs=rngs()).kernel[...]
    assert kernel.shape == (8, 100, 100)
    np.testing.assert_allclose(kernel.std(), 800**-0.5, rtol=0.01)


def test_a_scale_of_zero_gives_zero_output():
    layer = networks.Linear(5, 3, scale=0.0, dtype="float32", rngs=rngs())
    assert (np.asarray(layer(jnp.ones((2, 5)))) == 0).all()


@pytest.mark.parametrize(("side", "count"), [(64, 4), (48, 4), (96, 4), (32, 3), (16, 2), (12, 2), (6, 1)])
def test_images_are_halved_to_three_pixels_or_more(side, count):
    assert configs.halvings(side, side, 4) == count


@pytest.mark.parametrize(("height", "width"), [(50, 50), (64, 63), (5, 5), (512, 512), (4, 64)])
def test_illegal_images_are_refused_with_the_legal_sizes(height, width):
    with pytest.raises(ValueError, match=rf"{height}x{width} pixels cannot be encoded.*Legal sides are \[6, 8, "):
        configs.halvings(height, width, 4)


@pytest.mark.parametrize(("shape", "channels"), [((16, 16, 1), 1), ((48, 64, 3), 3), ((96, 96, 4), 4)])
def test_image_encoder_and_decoder_shapes(shape, channels):
    def encode(x):
        encoder = images.ImageEncoder(shape, [8, 8, 16, 16], 5, dtype="float32", rngs=rngs())
        y = encoder(x)
        assert y.shape == (2, encoder.outputs)
        return y

    def decode(deter, stoch):
        decoder = images.ImageDecoder(shape, 32, 12, 16, [8, 8, 16, 16], 5, 8, dtype="float32", rngs=rngs())
        return decoder(deter, stoch)

    jax.eval_shape(encode, jax.ShapeDtypeStruct((2, *shape), jnp.float32))
    deter, stoch = jax.ShapeDtypeStruct((2, 32), jnp.float32), jax.ShapeDtypeStruct((2, 12), jnp.float32)
    assert jax.eval_shape(decode, deter, stoch).shape == (2, *shape[:2], channels)


def count(tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


def abstract_networks(size, obs, action):
    """Shapes of all parameters, without computing any."""
    algorithm = algorithms.make(configs.load([f"size/{size}"]), obs, action)
    return jax.eval_shape(algorithm.init, jax.random.key(0)).nets


def test_parameter_counts_of_size_1m():
    nets = abstract_networks("1m", {"vector": Space("vector", (24,))}, {"action": Space("continuous", (6,))})
    assert count(nets) == 640_867
    m = nets.world_model
    parts = [m.encoder, m.rssm, m.decoder, (m.reward_mlp, m.reward_head), (m.cont_mlp, m.cont_head)]
    assert [count(part) for part in parts] == [10_112, 364_416, 51_096, 57_663, 41_153]
    assert [count(nets.behavior.actor), count(nets.behavior.critic)] == [50_316, 66_111]


def test_parameter_counts_of_size_12m_with_pixels():
    nets = abstract_networks("12m", {"image": Space("image", (64, 64, 3))}, {"action": Space("discrete", (), 18)})
    assert count(nets) == 10_498_772
    m = nets.world_model
    assert [count(x) for x in (m.encoder, m.rssm, m.decoder)] == [220_416, 5_982_720, 1_272_003]
    assert [count(nets.behavior.actor), count(nets.behavior.critic)] == [792_594, 853_503]


@pytest.mark.parametrize(
    ("size", "millions"), [("25m", 21.8), ("50m", 38.6), ("100m", 86.6), ("200m", 154), ("400m", 345)]
)
def test_larger_sizes_have_about_the_published_number_of_parameters(size, millions):
    nets = abstract_networks(size, {"vector": Space("vector", (24,))}, {"action": Space("continuous", (6,))})
    np.testing.assert_allclose(count(nets) / 1e6, millions, rtol=0.01)


@pytest.mark.parametrize("shape", [(7, 12), (3, 5, 12)])
def test_the_gradient_of_a_narrow_product_is_that_of_a_plain_one(rng, shape):
    """On CPUs, kernels with few outputs get their gradient another way."""
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(12, 6)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(*shape[:-1], 6)), jnp.float32)

    def loss(product):
        return lambda x, kernel: (weight * jnp.tanh(product(x, kernel))).sum()

    assert "transpose" in str(jax.make_jaxpr(jax.grad(loss(networks.matmul), (0, 1)))(x, kernel))
    ours, plain = (
        jax.jit(jax.value_and_grad(loss(product), (0, 1)))(x, kernel) for product in (networks.matmul, jnp.matmul)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_narrow_products_keep_their_dtype_and_other_products_are_plain(rng, monkeypatch):
    x, narrow, wide = (jnp.asarray(rng.normal(size=s), jnp.bfloat16) for s in ((4, 8), (8, 4), (8, 5)))
    gradient = jax.grad(lambda kernel: networks.matmul(x, kernel).sum())(narrow)
    assert gradient.dtype == networks.matmul(x, narrow).dtype == jnp.bfloat16

    def special(kernel):
        return "custom_vjp" in str(jax.make_jaxpr(lambda x: networks.matmul(x, kernel))(x))

    assert special(narrow)
    assert not special(wide)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not special(narrow)
