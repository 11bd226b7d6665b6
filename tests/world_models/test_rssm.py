"""The recurrent state-space model: identities between its verbs, resets, and independence of batch rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer.equations.kl import kl_balance
from dreamer.world_models.rssm import RSSM, Latent
from tests.small import ACTION_SPACES, same_tree, small_config

EMBED, T, B = 5, 6, 3


@pytest.fixture(scope="module")
def model():
    return RSSM(small_config(), EMBED, ACTION_SPACES, rngs=nnx.Rngs(params=0))


@pytest.fixture
def sequence(rng):
    action = {
        "move": jnp.asarray(rng.integers(0, 3, (T, B)), jnp.int32),
        "push": jnp.asarray(rng.uniform(-2, 2, (T, B, 2)), jnp.float32),
    }
    embed = jnp.asarray(rng.normal(size=(T, B, EMBED)), jnp.float32)
    return action, embed


def start_latent(rng, model, batch=B):
    c = model.config
    stoch = jax.nn.one_hot(rng.integers(0, c.classes, (batch, c.stoch)), c.classes)
    return Latent(jnp.asarray(rng.normal(size=(batch, c.deter)), jnp.float32), stoch)


def test_observe_equals_steps(model, sequence, rng):
    action, embed = sequence
    flat, first = model.flatten_action(action), jnp.asarray(rng.random((T, B)) < 0.3)
    start, key = start_latent(rng, model), jax.random.key(1)
    observed = jax.jit(model.observe)(start, flat, embed, first, key)
    latent, keys = start, jax.random.split(key, T)
    for t in range(T):
        step = model.observe_step(latent, flat[t], embed[t], first[t], model.noise(keys[t], B))
        latent = step.latent
        np.testing.assert_allclose(observed.latent.deter[t], latent.deter, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(observed.posterior[t], step.posterior, rtol=1e-4, atol=1e-4)


def test_a_reset_forgets_latent_and_action(model, sequence, rng):
    action, embed = sequence
    flat, noise = model.flatten_action(action), model.noise(jax.random.key(1), B)
    first = jnp.ones(B, bool)
    remembered = model.observe_step(start_latent(rng, model), flat[0], embed[0], first, noise)
    fresh = model.observe_step(model.initial(B), jnp.zeros_like(flat[0]), embed[0], first, noise)
    assert same_tree(remembered, fresh)
    kept = model.observe_step(start_latent(rng, model), flat[0], embed[0], ~first, noise)
    assert np.abs(kept.latent.deter - fresh.latent.deter).max() > 1e-3


@pytest.mark.parametrize("part", ["deter", "stoch", "action"])
def test_without_a_reset_every_input_matters(model, sequence, rng, part):
    action, embed = sequence
    flat, start, keep = model.flatten_action(action)[0], start_latent(rng, model), jnp.zeros(B, bool)
    noise = model.noise(jax.random.key(1), B)
    before = model.observe_step(start, flat, embed[0], keep, noise).latent.deter
    if part == "action":
        flat = flat[:, ::-1]
    else:
        start = start._replace(**{part: jnp.roll(getattr(start, part), 1, -1)})
    assert np.abs(model.observe_step(start, flat, embed[0], keep, noise).latent.deter - before).max() > 1e-4


def test_batch_rows_are_independent(model, sequence, rng):
    action, embed = sequence
    flat, first, start = model.flatten_action(action), jnp.zeros((T, B), bool), start_latent(rng, model)
    key = jax.random.key(2)
    observe = jax.jit(model.observe)
    before = observe(start, flat, embed, first, key)
    after = observe(start, flat, embed.at[:, 1].add(10.0), first, key)
    for row, same in ((0, True), (1, False), (2, True)):
        rows = (jax.tree.map(lambda x, row=row: x[:, row], result) for result in (before, after))
        assert same_tree(*rows) == same


def test_actions_beyond_one_are_scaled_to_one(model, rng):
    latent = start_latent(rng, model, 1)
    large = model.recurrence(latent, jnp.array([[0.0, 1.0, 0.0, 50.0, -3.0]]))
    np.testing.assert_array_equal(large, model.recurrence(latent, jnp.array([[0.0, 1.0, 0.0, 1.0, -1.0]])))


def test_flat_actions_are_sorted_keys_with_one_hot_classes(model):
    flat = model.flatten_action({"push": jnp.array([[0.5, -2.0]]), "move": jnp.array([2])})
    np.testing.assert_array_equal(flat, [[0, 0, 1, 0.5, -2.0]])


def test_packing_is_lossless(model, rng):
    latent = start_latent(rng, model)
    assert same_tree(model.unpack(model.pack(latent)), latent)


def test_free_nats_apply_per_step_after_summing(model):
    logits = jnp.zeros((2, 3, 4))
    peaked = logits.at[1, :, 0].set(9.0)  # One step far from the prior, one equal to it.
    dyn, rep = kl_balance(model.distribution, peaked, logits, model.config.free_nats)
    exact = model.distribution(peaked).kl_to(model.distribution(logits))
    assert float(exact[1]) > 3
    np.testing.assert_allclose(dyn, [1.0, exact[1]], rtol=1e-6)
    np.testing.assert_allclose(rep, [1.0, exact[1]], rtol=1e-6)


def test_kl_gradients_go_where_they_belong(model, rng):
    q, p = (jnp.asarray(rng.normal(size=(2, 3, 4)) * 3, jnp.float32) for _ in range(2))
    for index, (to_posterior, to_prior) in enumerate([(False, True), (True, False)]):
        grads = jax.grad(lambda q, p, index=index: kl_balance(model.distribution, q, p, 1.0)[index].sum(), (0, 1))(q, p)
        assert [bool(np.abs(g).max() > 0) for g in grads] == [to_posterior, to_prior]


def test_gates_begin_by_remembering_for_times_that_are_spread(rng):
    def memories(*overrides):
        """Steps for which each unit remembers if no input moves its gates."""
        model = RSSM(small_config(*overrides), EMBED, ACTION_SPACES, rngs=nnx.Rngs(params=0))
        model.gates.kernel[...] = jnp.zeros_like(model.gates.kernel[...])
        before = Latent(jnp.ones((1, model.config.deter)), start_latent(rng, model, 1).stoch)
        return 1 / (1 - model.recurrence(before, jnp.zeros((1, 5)))[0])

    published, longest, blocks = 1 + np.e, 50.0, 2
    np.testing.assert_allclose(memories(), published, rtol=1e-5)
    spread = memories(f"rssm.longest_memory={longest}").reshape(blocks, -1)
    expected = np.geomspace(published, longest, spread.shape[1])
    np.testing.assert_allclose(spread, np.tile(expected, (blocks, 1)), rtol=1e-4)
