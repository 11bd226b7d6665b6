"""Heads disagree about what they have not seen, agree on what they have, and are not drawn to what is only random."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dreamer import exploration
from dreamer.config import ConfigError
from dreamer.exploration.disagreement import DisagreementMemory, latent, spread
from dreamer.types import Batch, Space
from tests.small import small_config

SPACES = {"move": Space("discrete", (), 3), "push": Space("continuous", (2,))}
SIZES = "exploration={heads: 5, units: 32, layers: 1, target: latent}"
ROWS, STEPS = 8, 6


def unused(*args):
    """A function of a model that nothing here asks for."""
    raise AssertionError


class Plain(nnx.Module):
    """A model whose states are their own features, without parameters."""

    feature_size = 4
    noise = step = reward = cont = masks = filter = observe = decode = pack = unpack = loss = unused

    def initial(self, batch):
        return jnp.zeros((batch, 4))

    def features(self, state):
        return state


class Recurrent(Plain):
    """A model of which the first three features are recurrent."""

    encoder = rssm = ()

    def recurrent(self, state):
        return state[..., :3]


PLAIN: Any = Plain()
RECURRENT: Any = Recurrent()


def make(*overrides):
    """The bonus, its parameters and its memory."""
    bonus = exploration.make(small_config(SIZES, *overrides), SPACES, PLAIN)
    return bonus, *bonus.init(nnx.Rngs(params=1))


def random_steps(seed, first=()):
    """States and actions at random; resets at the indices ``first``."""
    rng = np.random.default_rng(seed)
    lead = (ROWS, STEPS)
    is_first = np.zeros(lead, bool)
    is_first[:, list(first)] = True
    action: dict[str, Any] = {
        "move": rng.integers(0, 3, lead).astype(np.int32),
        "push": rng.uniform(-1, 1, (*lead, 2)).astype(np.float32),
    }
    batch = Batch({}, action, np.zeros(lead, np.float32), is_first, is_first, is_first, ())
    return jnp.asarray(rng.normal(size=(*lead, 4)), jnp.float32), batch


def fit(draw, updates):
    """Descend the loss on what ``draw(update)`` gives; returns parameters, memory, and the disagreement each time."""
    bonus, nets, memory = make()
    optimizer = optax.adam(3e-3)

    @jax.jit
    def update(nets, memory, opt_state, states, batch):
        def total(nets):
            losses, after, metrics = bonus.loss(nets, memory, PLAIN, states, batch, bonus.config)
            weight, values = losses["bonus"]
            return weight * values.mean(), (after, metrics["bonus/disagreement"])

        gradient, (memory, disagreement) = jax.grad(total, has_aux=True)(nets)
        step, opt_state = optimizer.update(gradient, opt_state)
        return optax.apply_updates(nets, step), memory, opt_state, disagreement

    opt_state, found = optimizer.init(nets), []
    for number in range(updates):
        nets, memory, opt_state, disagreement = update(nets, memory, opt_state, *draw(number))
        found.append(float(disagreement))
    return nets, memory, found


def test_disagreement_falls_on_repeated_data_and_stays_high_elsewhere():
    states, batch = random_steps(0)
    nets, _, found = fit(lambda _: (states, batch), 400)
    bonus = make()[0]
    assert found[-1] < 0.25 * found[0]
    unit = DisagreementMemory(jnp.ones(()))
    known, new = (
        1 + bonus.reward(nets, unit, factor * x[:, :-1], jax.tree.map(lambda a: a[:, 1:], b.prev_action)).mean()
        for factor, x, b in ((1, states, batch), (3, *random_steps(9)))
    )
    assert new > 4 * known


def test_disagreement_does_not_grow_with_noise():
    """What follows is drawn anew at each update: errors stay at the variance, and heads come to agree on the mean."""
    _, memory, found = fit(random_steps, 300)
    assert found[-1] < 0.5 * found[0]
    assert max(found[100:]) < found[0]
    assert 0 < memory.typical < found[0]


def test_the_variance_is_that_over_heads_averaged_over_what_they_predict():
    predicted = jnp.asarray([[[1.0, 5.0]], [[5.0, 5.0]]])  # Two heads, one row: variances 4 and 0.
    np.testing.assert_allclose(spread(predicted), [2.0])


def test_a_reset_follows_from_nothing():
    bonus, nets, memory = make()
    states, batch = random_steps(0, first=(0, 3))
    losses = bonus.loss(nets, memory, PLAIN, states, batch, bonus.config)[0]["bonus"][1]
    assert losses.shape == (ROWS, STEPS - 1)
    assert (losses[:, 2] == 0).all()  # The pair of steps 2 and 3.
    assert (jnp.delete(losses, 2, 1) > 0).all()


def test_each_head_learns_as_if_it_were_alone():
    bonus, nets, memory = make()
    states, batch = random_steps(0)

    def total(nets, bonus):
        return bonus.loss(nets, memory, PLAIN, states, batch, bonus.config)[0]["bonus"][1].mean()

    together = jax.grad(total)(nets, bonus)
    pair = jax.tree.map(lambda x: x[1:3], nets)
    alone = jax.grad(total)(pair, bonus)
    for one, two in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one[1:3], two, rtol=1e-4, atol=1e-6)
    kernels = nets.mlp.layers[0].linear.kernel[...]
    assert len({kernel.tobytes() for kernel in np.asarray(kernels)}) == 5


def test_the_bonus_is_0_for_what_is_typical_and_in_units_of_it():
    bonus, nets, memory = make("behavior.return_rate=0.5")
    states, batch = random_steps(0)
    _, first, metrics = bonus.loss(nets, memory, PLAIN, states, batch, bonus.config)
    assert first.typical == metrics["bonus/disagreement"] > 0
    action = jax.tree.map(lambda x: x[:, 1:], batch.prev_action)
    np.testing.assert_allclose(bonus.reward(nets, first, states[:, :-1], action).mean(), 0, atol=1e-5)
    half = DisagreementMemory(first.typical / 2)
    np.testing.assert_allclose(bonus.reward(nets, half, states[:, :-1], action).mean(), 1, rtol=1e-5)
    far = bonus.loss(nets, first, PLAIN, 5 * states, batch, bonus.config)
    np.testing.assert_allclose(far[1].typical, (first.typical + far[2]["bonus/disagreement"]) / 2, rtol=1e-5)


def test_actions_count_and_continuous_ones_are_clipped():
    bonus, nets, memory = make()
    feature = jnp.ones((1, 4))
    memory = DisagreementMemory(jnp.ones(()))

    def reward(move, push):
        return float(
            bonus.reward(nets, memory, feature, {"move": jnp.array([move]), "push": jnp.array([[push, 0.0]])})[0]
        )

    assert reward(0, 0.5) != reward(1, 0.5)
    assert reward(0, 0.5) != reward(0, 1.0)
    assert reward(0, 1.0) == reward(0, 7.0)


def test_of_a_recurrent_model_the_sample_is_predicted():
    states = jnp.arange(8.0).reshape(2, 4)
    np.testing.assert_array_equal(latent(PLAIN, states), states)
    np.testing.assert_array_equal(latent(RECURRENT, states), states[:, 3:])
    bonus: Any = exploration.make(small_config(SIZES), SPACES, RECURRENT)
    assert bonus.outputs == 1


def test_embeddings_are_predicted_of_observations_alone():
    class Embedding(Plain):
        """A model that embeds an observation as its triple."""

        embedding_size = 2

        def embed(self, obs):
            return 3 * obs["position"]

    model: Any = Embedding()
    bonus: Any = exploration.make(small_config(SIZES, "exploration.target=embedding"), SPACES, model)
    assert bonus.outputs == 2
    nets, memory = bonus.init(nnx.Rngs(params=1))
    states, batch = random_steps(0)
    position = jnp.ones((ROWS, STEPS, 2))

    def error(states, position):
        seen = batch._replace(obs={"position": position})
        return bonus.loss(nets, memory, model, states, seen, bonus.config)[0]["bonus"][1][:, 0]

    # Heads that say 0: five of them, two entries, and the square of what was to be predicted.
    nets = jax.tree.map(jnp.zeros_like, nets)
    np.testing.assert_allclose(error(states, position), 5 * 2 * 9, rtol=1e-6)
    np.testing.assert_allclose(error(2 * states, 2 * position), 5 * 2 * 36, rtol=1e-6)


def test_a_model_without_embeddings_is_refused_where_they_are_predicted():
    with pytest.raises(ConfigError, match=r"target=embedding cannot be used with world_model\.kind=rssm: .*=latent\."):
        exploration.make(small_config(SIZES, "exploration.target=embedding"), SPACES, PLAIN)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("exploration.heads=1", r"exploration\.heads=1 cannot be used: expected an integer, at least 2"),
        ("exploration.kind=disagrement", r"Did you mean 'disagreement'\?"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(override, message):
    with pytest.raises(ConfigError, match=message):
        exploration.make(small_config(override), SPACES, PLAIN)
