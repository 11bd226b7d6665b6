"""Latents that are learned from embeddings: which parameters learn from it, and what predictions may see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer.config import ConfigError
from dreamer.world_models.latent import rssm
from dreamer.world_models.representation import NextStep, positions
from tests.small import ACTION_SPACES, OBS_SPACES, small_batch, small_config

KINDS = ("barlow", "infonce", "next_embedding")


def config_of(kind, *overrides):
    decoder = "world_model={decoder: false, representation: " + kind + "}"
    return small_config(decoder, "loss.straighten=0.1", "nets.dtype=float32", *overrides)


@functools.cache
def gradients(kind):
    """A function of whether the posterior hears the encoder: gradients of two losses by the model, by loss."""
    config = config_of(kind)
    batch = small_batch(rows=3, steps=6)

    @jax.jit
    def gradient(hears):
        model = rssm(config, OBS_SPACES, ACTION_SPACES, nnx.Rngs(params=0))
        kernel = model.rssm.posterior_mlp.layers[0].linear.kernel
        kernel[...] = kernel[...].at[config.rssm.deter :].multiply(hears)

        def values(model):
            losses, _ = model.loss(model.observe(batch, jax.random.key(1)), batch, config)
            return {name: losses[name][1].mean() for name in (kind, "straighten")}

        return jax.jacrev(values)(model)

    return gradient


def parts_reached(kind, loss, hears=1.0):
    """Parts of the model whose parameters have a gradient of a loss; all gradients are finite."""
    found = gradients(kind)(hears)[loss]
    r = found.rssm
    parts = {
        "encoder": found.encoder,
        "recurrence": (r.in_deter, r.in_stoch, r.in_action, r.mix, r.mix_norm, r.gates),
        "posterior": (r.posterior_mlp, r.posterior_logits),
        "prior": (r.prior_mlp, r.prior_logits),
        "heads": (found.reward_mlp, found.reward_head, found.cont_mlp, found.cont_head),
        "representation": found.representation,
    }
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    return {name for name, tree in parts.items() if any(np.abs(x).max() > 0 for x in jax.tree.leaves(tree))}


FILTER = {"encoder", "recurrence", "posterior"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_trains_the_filter_and_its_own_layers(kind):
    assert parts_reached(kind, kind) == FILTER | {"representation"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_learns_through_the_posterior_alone(kind):
    """It is never pulled towards what is easy to predict."""
    assert "encoder" not in parts_reached(kind, kind, hears=0.0)


def test_straightening_trains_the_filter():
    assert parts_reached("barlow", "straighten") == FILTER


# What is seen by a prediction of the next embedding

F, A, E, STEPS = 5, 3, 4, 6
IS_FIRST = jnp.array([[False, False, False, True, False, False]])


@pytest.fixture(scope="module")
def predictions():
    """A function of features and actions, after a reset at step 3."""
    config = small_config("nets.dtype=float32")
    module = NextStep(config, F, A, E, rngs=nnx.Rngs(params=0))
    return jax.jit(lambda feature, action: module.predict(feature, action, IS_FIRST))


def steps_that_change(predictions, what, step, rng):
    """Steps whose prediction is another one if the feature or the action of a step is."""
    before = {name: rng.normal(size=(1, STEPS, n)).astype(np.float32) for name, n in (("feature", F), ("action", A))}
    after = {name: value.copy() for name, value in before.items()}
    after[what][0, step] += 1
    difference = np.abs(predictions(**before) - predictions(**after)).max((0, 2))
    return np.flatnonzero(difference > 1e-6).tolist()


@pytest.mark.parametrize("what", ["feature", "action"])
@pytest.mark.parametrize(("step", "seen_at"), [(0, [0, 1, 2]), (2, [2]), (3, [3, 4, 5]), (5, [5])])
def test_a_prediction_sees_its_own_episode_up_to_its_step(predictions, what, step, seen_at, rng):
    assert steps_that_change(predictions, what, step, rng) == seen_at


def test_what_follows_a_reset_is_not_predicted(rng):
    config = small_config("nets.dtype=float32")
    module = NextStep(config, F, A, E, rngs=nnx.Rngs(params=0))

    feature, action = (jnp.asarray(rng.normal(size=(4, STEPS, n)), jnp.float32) for n in (F, A))
    is_first = jnp.broadcast_to(IS_FIRST, (4, STEPS))

    @jax.jit
    def loss(embed):
        return module.loss(feature, embed, action, is_first, config.loss)["next_embedding"][1]

    embed = rng.normal(size=(4, STEPS, E)).astype(np.float32)
    expected = loss(jnp.asarray(embed))
    for step, changes in ((0, False), (1, True), (3, False), (4, True)):
        other = embed.copy()
        other[:, step] += rng.normal(size=(4, E))
        assert (not np.isclose(loss(jnp.asarray(other)), expected, rtol=1e-5)) == changes, step


def test_positions_differ_and_are_of_one_size():
    found = positions(128, 8)
    np.testing.assert_allclose(found[0], [0] * 4 + [1] * 4)
    np.testing.assert_allclose(jnp.square(found).sum(-1), 4, rtol=1e-5)
    assert jnp.abs(found[:, None] - found[None]).max(-1)[~np.eye(128, dtype=bool)].min() > 0.1


def test_heads_must_fit_into_the_width():
    with pytest.raises(ConfigError, match=r"nets\.units=6 cannot be used with world_model\.representation=next_embed"):
        NextStep(config_of("next_embedding", "nets.units=6"), F, A, E, rngs=nnx.Rngs(params=0))
