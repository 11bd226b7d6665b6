"""What follows is one of two things: a categorical latent says so, a Gaussian one expects something in between.

After the first observation, 0, comes -1 or 1, at random. Both models are trained alike; then the second step is
imagined from the first, thousands of times, and decoded. Source of the argument: Hafner et al. 2021, "Mastering Atari
with discrete world models": a mixture of categorical posteriors is categorical, so a prior can be equal to it, but a
Gaussian prior cannot be equal to a mixture of Gaussian ones.

What is shown holds for one latent variable that a linear decoder reads. Then what is decoded is distributed as the
latent is, and a Gaussian is at least 0.46 away from the two modes, whatever its mean and width. It is no limit of the
whole model: with two hidden layers, the decoder bends the one mode into two, and the distance is 0.06. Several
categorical variables are no help here, as the prior draws them independently: where training happens to write the same
bit into two of them, dreams have them disagree.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dreamer import config as configs
from dreamer import world_models
from dreamer.equations.transforms import symexp
from dreamer.types import Batch, Space

OBS_SPACES = {"place": Space("vector", (1,))}
ACTION_SPACES = {"move": Space("discrete", (), 2)}
ROWS = 256
UPDATES = 1000
DREAMS = 10_000


def sequences(key) -> Batch:
    """Two steps each: 0, then -1 or 1."""
    second = jax.random.rademacher(key, (ROWS,), jnp.float32)
    place = jnp.stack([jnp.zeros(ROWS), second], 1)[..., None]
    nothing = jnp.zeros((ROWS, 2), bool)
    return Batch(
        obs={"place": place},
        prev_action={"move": jnp.zeros((ROWS, 2), jnp.int32)},
        reward=jnp.zeros((ROWS, 2)),
        is_first=nothing.at[:, 0].set(True),
        is_last=nothing,
        is_terminal=nothing,
        stored=(),
    )


def imagined_places(kind: str) -> np.ndarray:
    """What a model of this kind expects to see second, once trained: one draw for each dream."""
    config = configs.load(
        [],
        [
            f"world_model.kind={kind}",
            "rssm={deter: 8, hidden: 16, stoch: 1, classes: 4, blocks: 2, prior_layers: 1, free_nats: 0}",
            "nets={units: 16, encoder_layers: 1, decoder_layers: 0, bins: 3, symlog: false, dtype: float32}",
        ],
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, UPDATES))

    def loss(model, key):
        data_key, model_key = jax.random.split(key)
        batch = sequences(data_key)._replace(stored=model.pack(model.initial(ROWS)))
        losses, _ = model.loss(model.observe(batch, model_key), batch, config)
        return sum(weight * value.mean() for weight, value in losses.values())

    def update(carry, key):
        model, moments = carry
        change, moments = optimizer.update(jax.grad(loss)(model, key), moments)
        return (optax.apply_updates(model, change), moments), None

    @jax.jit
    def run(key):
        train_key, seen_key, dream_key = jax.random.split(key, 3)
        model = world_models.make(config, OBS_SPACES, ACTION_SPACES, nnx.Rngs(params=0))
        (model, _), _ = jax.lax.scan(update, (model, optimizer.init(model)), jax.random.split(train_key, UPDATES))
        still = {"move": jnp.zeros(DREAMS, jnp.int32)}
        first = model.filter(
            model.initial(DREAMS),
            still,
            {"place": jnp.zeros((DREAMS, 1))},
            jnp.ones(DREAMS, bool),
            model.noise(seen_key, DREAMS),
        )
        second = model.step(first, still, model.noise(dream_key, DREAMS))
        return symexp(model.decode(second)["place"][:, 0])

    return np.asarray(run(jax.random.key(0)))


def total_variation(places: np.ndarray) -> float:
    """Half of the summed differences from 1/2 near -1, 1/2 near 1, and nothing elsewhere."""
    left = np.mean(np.abs(places + 1) < 0.5)
    right = np.mean(np.abs(places - 1) < 0.5)
    return float(abs(left - 0.5) + abs(right - 0.5) + (1 - left - right)) / 2


def test_total_variation_by_hand():
    assert total_variation(np.array([-1.1, 0.9])) == 0
    assert total_variation(np.array([1.0, 1.0])) == 0.5
    assert total_variation(np.array([-1.0, 0.0, 0.0, 1.0])) == 0.5


@pytest.mark.slow
def test_a_categorical_latent_has_two_modes():
    # From 0.005 to 0.018, with six seeds.
    assert total_variation(imagined_places("rssm")) < 0.05


@pytest.mark.slow
def test_a_gaussian_latent_has_one_mode():
    assert total_variation(imagined_places("gaussian_rssm")) > 0.2
