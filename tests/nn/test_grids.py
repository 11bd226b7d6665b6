"""Grids of many classes: sizes, the embedding's gradient, the digits, and an agent that learns from one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer import algorithms
from dreamer.config import halvings
from dreamer.nn.grids import GridDecoder, GridEncoder, padded_size
from dreamer.types import Space
from tests.small import ACTION_SPACES, small_batch, small_config

GRID = Space("discrete", (17, 20), 300)


@pytest.mark.parametrize(
    ("space", "is_grid"),
    [
        (Space("discrete", (21, 79), 5977), True),
        (Space("discrete", (16, 16), 256), True),
        (Space("discrete", (16, 16), 255), False),
        (Space("discrete", (7, 7), 11), False),
        (Space("discrete", (72,), 1000), False),
        (Space("discrete", (), 100_000), False),
        (Space("discrete", (64, 600), 2), False),  # An action mask, for example.
        (Space("image", (300, 300, 3)), False),
    ],
)
def test_only_tables_of_many_classes_are_grids(space, is_grid):
    assert space.is_grid == is_grid


@pytest.mark.parametrize(
    ("shape", "size"), [((21, 79), (24, 80)), ((16, 16), (16, 16)), ((2, 40), (12, 40)), ((17, 20), (18, 20))]
)
def test_padding_makes_every_size_legal(shape, size):
    height, width = padded_size(Space("discrete", shape, 300))
    assert (height, width) == size
    assert max(size) / 2 ** halvings(height, width, 4) <= 16


def test_the_embedding_learns_the_classes_that_are_there():
    encoder = GridEncoder(GRID, [4], 3, dtype="float32", rngs=nnx.Rngs(params=0))
    classes = np.full((2, 17, 20), 7)
    classes[1, 16, 19] = 299  # The last cell counts, and so does the last class.
    seen = jnp.asarray(classes)
    embedded = encoder(seen)
    assert embedded.shape == (2, encoder.outputs)
    assert not jnp.array_equal(embedded[0], embedded[1])
    gradient = nnx.grad(lambda network: jnp.square(network(seen)).sum())(encoder)["table"][...]
    assert np.flatnonzero(np.abs(gradient).sum(1)).tolist() == [7, 299]


def test_the_loss_is_that_of_binary_digits():
    decoder = GridDecoder(GRID, 4, 3, 8, [4], 3, 2, dtype="float32", rngs=nnx.Rngs(params=0))
    rng = np.random.default_rng(0)
    recurrent, sample = (jnp.asarray(rng.normal(size=(2, size)), jnp.float32) for size in (4, 3))
    classes = rng.integers(0, 300, (2, 17, 20))
    digits = np.array([[int(digit) for digit in f"{number:09b}"[::-1]] for number in classes.reshape(-1)])
    guess = np.asarray(decoder.image(recurrent, sample))[:, :17, :20]
    expected = np.square(guess - digits.reshape(2, 17, 20, 9)).sum((1, 2, 3))
    np.testing.assert_allclose(decoder.loss(recurrent, sample, jnp.asarray(classes)), expected, rtol=1e-5)


def test_an_agent_sees_and_predicts_a_grid_without_one_hot_vectors():
    spaces = {"screen": Space("discrete", (21, 79), 5977), "vector": Space("vector", (4,))}
    config = small_config()
    batch = small_batch()
    batch = batch._replace(obs={"screen": np.zeros((2, 4, 21, 79), np.int32), "vector": batch.obs["vector"]})
    algorithm = algorithms.make(config, spaces, ACTION_SPACES)
    key = jax.random.key(0)
    state = jax.eval_shape(algorithm.init, key)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.nets)) < 200_000
    _, _, metrics = jax.eval_shape(lambda state: algorithm.update(state, batch, key, config), state)
    assert "loss/obs/screen" in metrics
    predictions, _ = jax.eval_shape(lambda nets: algorithm.predict(nets, batch, key, 2), state.nets)
    assert list(predictions) == ["vector"]
