"""Encoder, decoder and the losses of the world model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer.config import ConfigError
from dreamer.equations.distributions import binary_cross_entropy
from dreamer.nn import observations
from dreamer.types import Space
from dreamer.world_models import latent as wm
from dreamer.world_models.base import LatentVariableModel, WorldModel, observed_masks
from dreamer.world_models.rssm import Latent
from tests.small import small_agent, small_batch, small_config

SPACES = {
    "front": Space("image", (16, 16, 3)),
    "back": Space("image", (16, 16, 1)),
    "tall": Space("image", (32, 16, 3)),
    "class": Space("discrete", (2,), 3),
    "joints": Space("vector", (5,)),
}


def observation(rng, batch=2):
    return {
        key: jnp.asarray(
            rng.integers(0, 256 if space.kind == "image" else space.classes, (batch, *space.shape))
            if space.kind != "vector"
            else rng.normal(size=(batch, *space.shape)) * 100,
            space.dtype,
        )
        for key, space in SPACES.items()
    }


@pytest.fixture(scope="module")
def config():
    return small_config()


MASK_SPACES = {"action_mask": Space("discrete", (2, 3), 2)}


def build(config, obs_spaces):
    return wm.rssm(config, obs_spaces, {"move": Space("discrete", (2,), 3)}, nnx.Rngs(params=0))


@pytest.fixture(scope="module")
def masked(config):
    """A world model whose decoder predicts the same masks in every state: its biases."""
    model = jax.jit(lambda: build(config, MASK_SPACES))()
    head = model.decoder.heads["action_mask"]
    head.kernel[...] = jnp.zeros_like(head.kernel[...])
    head.bias[...] = jnp.array([[[0, 1], [1, 0], [5, 5.1]], [[2, 0], [1, 0], [2, 0]]], jnp.float32).reshape(-1)
    return model


def test_a_class_is_allowed_if_that_is_probable_or_the_most_probable(masked):
    masks = masked.masks_of(jnp.ones((5, 4, 28)))
    assert masks.keys() == {"move"}
    expected = np.broadcast_to([[True, False, True], [False, True, False]], (5, 4, 2, 3))
    np.testing.assert_array_equal(masks["move"], expected)


def test_predicting_masks_decodes_nothing_else(config):
    def program(obs_spaces, function, argument):
        model = jax.eval_shape(lambda: build(config, obs_spaces))
        return jax.make_jaxpr(lambda model, x: function(model)(x))(model, argument)

    feature, latent = jnp.ones((5, 28)), Latent(jnp.zeros((2, 16)), jnp.zeros((2, 3, 4)))
    assert "conv" not in str(program(SPACES | MASK_SPACES, lambda model: model.masks_of, feature))
    assert "conv" in str(program(SPACES | MASK_SPACES, lambda model: model.decode, latent))
    assert not program(SPACES, lambda model: model.masks_of, feature).eqns


def test_an_observed_mask_that_forbids_everything_counts_as_none():
    obs = {"action_mask": np.array([[[1, 0, 0], [0, 0, 0]]], np.int32)}
    expected = [[[True, False, False], [True, True, True]]]
    np.testing.assert_array_equal(observed_masks(obs, {"move": "action_mask"})["move"], expected)


@pytest.mark.parametrize("keys", [["joints"], ["class"], ["back", "front"], ["joints", "tall"], sorted(SPACES)])
def test_any_mix_of_observations_is_encoded_and_decoded(keys, config, rng):
    spaces = {key: SPACES[key] for key in keys}
    obs = {key: value for key, value in observation(rng).items() if key in keys}

    def run(obs):
        encoder = observations.Encoder(config.nets, spaces, rngs=nnx.Rngs(params=0))
        decoder = observations.Decoder(config.nets, spaces, 16, 12, 2, rngs=nnx.Rngs(params=0))
        embed = encoder(obs)
        assert embed.shape == (2, encoder.outputs)
        return decoder(jnp.zeros((2, 16)), jnp.zeros((2, 12)))

    predictions = jax.eval_shape(run, obs)
    assert predictions.keys() == spaces.keys()
    for key, space in spaces.items():
        classes = (space.classes,) if space.kind == "discrete" else ()
        assert predictions[key].shape == (2, *space.shape, *classes)
        assert predictions[key].dtype == jnp.float32


def test_images_of_one_size_share_a_network_and_others_do_not():
    assert observations.image_groups(SPACES) == (((16, 16), ("back", "front")), ((32, 16), ("tall",)))
    assert observations.group_channels(SPACES) == {(16, 16): 4, (32, 16): 3}


def test_reconstruction_losses_by_hand():
    spaces = {"i": Space("image", (1, 1, 2)), "c": Space("discrete", (), 2), "v": Space("vector", (2,))}
    obs = {
        "i": jnp.array([[[[[0, 255]]]]], jnp.uint8),
        "c": jnp.array([[1]]),
        "v": jnp.array([[[np.e - 1, 0.0]]], jnp.float32),
    }
    predictions = {
        "i": jnp.array([[[[[0.5, 0.75]]]]]),
        "c": jnp.array([[[0.0, np.log(3.0)]]], jnp.float32),
        "v": jnp.array([[[0.0, 2.0]]]),
    }
    losses = observations.reconstruction_losses(predictions, obs, spaces)
    np.testing.assert_allclose(losses["obs/i"], [[0.25 + 0.0625]], rtol=1e-6)
    np.testing.assert_allclose(losses["obs/c"], [[-np.log(0.75)]], rtol=1e-6)
    np.testing.assert_allclose(losses["obs/v"], [[1 + 4]], rtol=1e-6)


def test_without_symlog_vectors_are_seen_and_learned_as_they_are_but_decoded_as_ever(config):
    spaces = {"joints": Space("vector", (2,))}
    plain = small_config("nets.symlog=false").nets
    seen = {"joints": jnp.array([[np.e - 1, -5.0]], jnp.float32)}
    encoder = observations.Encoder(plain, spaces, rngs=nnx.Rngs(params=0))
    np.testing.assert_allclose(encoder._vectors(seen), [[np.e - 1, -5.0]], rtol=1e-6)

    decoder = observations.Decoder(plain, spaces, 16, 12, 2, rngs=nnx.Rngs(params=0))
    head = decoder.heads["joints"]
    head.kernel[...] = jnp.zeros_like(head.kernel[...])
    head.bias[...] = jnp.array([np.e - 1, -3.0])
    deter, stoch = jnp.zeros((1, 1, 16)), jnp.zeros((1, 1, 12))
    obs = {"joints": seen["joints"][None]}
    np.testing.assert_allclose(decoder.losses(deter, stoch, obs)["obs/joints"], [[4.0]], rtol=1e-6)
    np.testing.assert_allclose(decoder(deter, stoch)["joints"], [[[1.0, -np.log(4)]]], rtol=1e-6)


def test_of_fewer_bits_the_middle_of_each_bin_is_seen_and_predicted():
    image = jnp.array([0, 7, 8, 255], jnp.uint8)
    np.testing.assert_array_equal(observations.scale_image(image, 5, "float32") * 64, [1, 1, 3, 63])
    np.testing.assert_array_equal(observations.scale_image(image, 1, "float32"), [0.25, 0.25, 0.25, 0.75])
    np.testing.assert_allclose(observations.scale_image(image, 8, "float32") * 255, [0, 7, 8, 255], rtol=1e-6)
    obs = {"i": image.reshape(1, 1, 2, 2, 1)}
    losses = observations.reconstruction_losses(
        {"i": jnp.full((1, 1, 2, 2, 1), 1 / 64)}, obs, {"i": Space("image", (2, 2, 1))}, image_bits=5
    )
    np.testing.assert_allclose(losses["obs/i"], [[(2 / 64) ** 2 + (62 / 64) ** 2]], rtol=1e-6)


@pytest.mark.parametrize("convolutions", ["valid", "same"])
def test_images_go_through_the_convolutions_of_the_config(convolutions, rng):
    """The encoder sees and the decoder learns images of fewer bits; those of one size share a network."""
    nets = small_config(f"nets.convolutions={convolutions}", "nets.image_bits=5", "nets.norm=layer").nets
    spaces = {"front": Space("image", (64, 64, 3)), "back": Space("image", (64, 64, 1))}
    obs = {key: jnp.asarray(rng.integers(0, 256, (2, 3, *space.shape)), jnp.uint8) for key, space in spaces.items()}

    def run(obs):
        encoder = observations.Encoder(nets, spaces, rngs=nnx.Rngs(params=0))
        decoder = observations.Decoder(nets, spaces, 16, 12, 2, rngs=nnx.Rngs(params=0))
        assert len(encoder.images) == len(decoder.images) == 1
        parts = jnp.zeros((2, 3, 16)), jnp.zeros((2, 3, 12))
        return encoder(jax.tree.map(lambda x: x[0], obs)), decoder(*parts), decoder.losses(*parts, obs)

    embed, predictions, losses = jax.eval_shape(run, obs)
    assert embed.ndim == 2
    assert {key: x.shape for key, x in predictions.items()} == {key: x.shape for key, x in obs.items()}
    assert {key: x.shape for key, x in losses.items()} == {"obs/front": (2, 3), "obs/back": (2, 3)}


def test_binary_cross_entropy_is_least_at_the_target():
    target = jnp.array([0.25])
    grad = jax.grad(lambda x: binary_cross_entropy(x, target).sum())
    np.testing.assert_allclose(grad(jnp.log(jnp.array([1 / 3]))), 0, atol=1e-6)
    assert float(grad(jnp.array([0.0]))[0]) > 0
    np.testing.assert_allclose(binary_cross_entropy(jnp.array([0.0]), target), np.log(2), rtol=1e-6)


def test_the_encoder_squashes_vectors_and_scales_images(config):
    spaces = {"joints": Space("vector", (2,))}
    encoder = observations.Encoder(config.nets, spaces, rngs=nnx.Rngs(params=0))
    flat = encoder._vectors({"joints": jnp.array([[np.e - 1, -(np.e**2 - 1)]], jnp.float32)})
    np.testing.assert_allclose(flat, [[1, -2]], rtol=1e-6)


def test_features_are_the_recurrent_state_then_the_sample(config):
    model = jax.jit(lambda: build(config, {"joints": Space("vector", (2,))}))()
    deter = jnp.arange(16.0)[None]
    stoch = 100 + jnp.arange(12.0).reshape(1, 3, 4)
    np.testing.assert_array_equal(model.features(Latent(deter, stoch))[0], [*range(16), *range(100, 112)])
    assert model.feature_size == 28


def test_it_is_what_the_protocols_ask_for(config):
    model = jax.jit(lambda: build(config, {"joints": Space("vector", (2,))}))()
    assert isinstance(model, WorldModel)
    assert isinstance(model, LatentVariableModel)


def test_without_a_decoder_nothing_is_decoded_and_nothing_reconstructed(rng):
    blind = small_config("world_model.decoder=false")
    model = jax.jit(lambda: build(blind, SPACES))()
    assert model.decoder is None
    assert model.decode(model.initial(2)) is None
    assert model.masks(model.initial(2)) == {}


@pytest.mark.parametrize("representation", ["none", "barlow"])
def test_masks_need_a_decoder(representation):
    blind = small_config(f"world_model={{decoder: false, representation: {representation}}}")
    with pytest.raises(ConfigError, match=r"world_model\.decoder=false .* action masks"):
        build(blind, MASK_SPACES)


def test_a_path_is_straightened_only_where_something_else_keeps_states_apart():
    with pytest.raises(ConfigError, match=r"loss\.straighten=0\.1 cannot be used: expected 0 without decoder"):
        small_config("world_model.decoder=false", "loss.straighten=0.1")
    small_config("world_model={decoder: false, representation: infonce}", "loss.straighten=0.1")


# The lift of rewards


def encoder_gradients(reward, pairs, *, known=False):
    """Of the model's losses by the encoder's parameters, with ``(loss.reward, loss.reward_lift)`` for each pair."""
    batch = small_batch()._replace(reward=reward)
    model = small_agent().state.nets.world_model
    head = model.reward_head
    head.kernel[...] = 0.01 * jax.random.normal(jax.random.key(1), head.kernel[...].shape)
    if known:
        # The bin in the middle is a reward of 0; beside this bias, no other has any probability.
        head.bias[...] = head.bias[...].at[20].set(200.0)

    def gradient(weight, lift):
        config = small_config(f"loss.reward={weight}", f"loss.reward_lift={lift}")

        @jax.jit
        @jax.grad
        def of_the_total(model):
            losses, _ = model.loss(model.observe(batch, jax.random.key(0)), batch, config)
            return sum(weight * value.mean() for weight, value in losses.values())

        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(of_the_total(model).encoder)])

    return [gradient(*pair) for pair in pairs]


def test_a_faint_reward_is_lifted(rng):
    reward = rng.choice([-1, 1], (2, 4)).astype(np.float32)
    others, published, once, more = encoder_gradients(reward, [(0, 0), (1, 0), (1, 1), (1, 2)])
    alone = published - others

    def factor(lifted):
        """What the gradient of the reward is multiplied by; those of the other losses are as they were."""
        factor = (lifted - others) @ alone / (alone @ alone)
        np.testing.assert_allclose(lifted, others + factor * alone, atol=1e-3 * np.abs(lifted).max())
        return factor

    assert factor(once) > 2
    assert factor(more) == pytest.approx(factor(once) ** 2, rel=1e-2)


def test_a_reward_that_is_known_is_not_lifted():
    published, lifted = encoder_gradients(np.zeros((2, 4), np.float32), [(1, 0), (1, 2)], known=True)
    np.testing.assert_allclose(lifted, published, rtol=1e-5, atol=1e-7)
