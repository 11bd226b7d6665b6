"""The ensemble: official numbers, how errors grow by how members are asked, and the rollouts of a known system."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dreamer.config import EnsembleConfig
from dreamer.types import Action, Space
from dreamer.world_models import Dynamics, follow
from dreamer.world_models import ensemble as module
from dreamer.world_models.ensemble import (
    Ensemble,
    EnsembleDynamics,
    EnsembleNoise,
    GaussianPrediction,
    Normalizer,
    ensemble_loss,
    ensemble_optimizer,
)
from tests import golden_values as golden

ACTION_SPACES = {"push": Space("continuous", (1,))}


def make_ensemble(inputs=4, outputs=4, members=3, units=8, layers=2):
    config = EnsembleConfig(members=members, elites=1, units=units, layers=layers)
    return Ensemble(config, inputs, outputs, dtype="float32", rngs=nnx.Rngs(params=0))


@pytest.fixture(scope="module")
def data():
    return {name: jnp.asarray(value) for name, value in golden.load("pets_mbpo").items()}


def official_leaves(data, prefix):
    """Official arrays in the order of our leaves."""
    layers = [
        data[f"ensemble/{prefix}/{name}/{kind}"] for name in ("out", "dense0", "dense1") for kind in ("bias", "kernel")
    ]
    # They keep an axis of size 1 for rows in biases and bounds.
    members = [x[:, 0] if x.shape[1] == 1 else x for x in layers]
    return [data[f"ensemble/{prefix}/max_logvar"][0], *members, data[f"ensemble/{prefix}/min_logvar"][0]]


@pytest.fixture(scope="module")
def ensemble(data):
    """An ensemble with the official parameters."""
    leaves, structure = jax.tree.flatten(make_ensemble())
    theirs = official_leaves(data, "params")
    assert [x.shape for x in leaves] == [x.shape for x in theirs]
    return jax.tree.unflatten(structure, theirs)


def close(ours, theirs, tolerance=1e-5):
    """Equal to ``tolerance`` of the largest magnitude."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * (np.abs(theirs).max() + 1e-8))


def test_predictions_loss_and_gradients(data, ensemble):
    x, target = data["ensemble/input"], data["ensemble/target"]
    mean, log_var = ensemble(x)
    close(mean, data["ensemble/mean"])
    close(log_var, data["ensemble/logvar"])
    loss, gradient = jax.value_and_grad(ensemble_loss)(ensemble, x, target)
    close(loss, data["ensemble/loss"])
    for ours, theirs in zip(jax.tree.leaves(gradient), official_leaves(data, "grads"), strict=True):
        close(ours, theirs)


def test_scores_and_the_loss_of_shared_rows(data, ensemble):
    x, target = data["ensemble/holdout_input"], data["ensemble/holdout_target"]
    scores = module.holdout_scores(ensemble, x, target)
    close(scores, data["ensemble/holdout_score"])
    assert module.best_members(scores, 2).tolist() == [1, 2]


def test_three_updates(data, ensemble):
    optimizer = ensemble_optimizer(1e-3, 5e-5)
    moments = optimizer.init(ensemble)
    for number in (1, 2, 3):
        gradient = jax.grad(ensemble_loss)(ensemble, data["ensemble/input"], data["ensemble/target"])
        updates, moments = optimizer.update(gradient, moments, ensemble)
        ensemble = optax.apply_updates(ensemble, updates)
        if number in (1, 3):
            for ours, theirs in zip(jax.tree.leaves(ensemble), official_leaves(data, f"after_{number}"), strict=True):
                close(ours, theirs)


@pytest.mark.parametrize(
    ("name", "propagation", "elites"),
    [
        ("ts1", "ts1", [0, 1, 2]),
        ("tsinf", "tsinf", [0, 1, 2]),
        ("expectation", "e", [0, 1, 2]),
        ("ts1_elite20", "ts1", [2, 0]),
    ],
)
def test_propagation(data, ensemble, name, propagation, elites):
    """Four action sequences, six particles each; members are dealt by the official permutations."""
    actions = jnp.repeat(data["propagate/actions"].transpose(1, 0, 2), 6, axis=1)
    deals = jnp.stack([module.deal(order, len(elites)) for order in data["propagate/permutations"]])
    model = EnsembleDynamics(
        ensemble=ensemble.only(jnp.array(elites)),
        normalizer=Normalizer(data["propagate/input_mean"][0], data["propagate/input_std"][0]),
        action_spaces=ACTION_SPACES,
        propagation=propagation,
        ends=lambda obs: jnp.abs(obs[:, 0]) > data["propagate/done_threshold"],
    )
    start = model.start(jnp.tile(data["propagate/state"][None], (24, 1)), jax.random.key(0))._replace(member=deals[0])

    def body(state, inputs):
        state = model.step(state, *inputs)
        return state, state

    noise = EnsembleNoise(data["propagate/noise"], deals)
    _, states = jax.lax.scan(body, start, ({"push": actions}, noise))
    close(states.obs, data[f"propagate/{name}/obs"])
    close(model.reward(states).mean(), data[f"propagate/{name}/reward"])
    ended = np.asarray(states.is_terminal)
    np.testing.assert_array_equal(ended, data[f"propagate/{name}/done"])
    # Rewards after the step that ended a row count 0.
    survives = np.cumprod(np.concatenate([np.ones((1, 24)), 1 - ended[:-1]]), 0)
    value = (survives * np.asarray(states.reward)).sum(0).reshape(4, 6).mean(1)
    close(value, data[f"propagate/{name}/value"])


def with_outputs(kernels, biases, log_var=-60.0):
    """An ensemble of linear members, ``x_k W_k + b_k``, whose chance has the given log-variance."""
    kernels, biases = np.asarray(kernels, np.float32), np.asarray(biases, np.float32)
    outputs = kernels.shape[-1]
    ensemble = make_ensemble(kernels.shape[1], outputs, len(kernels), layers=0)
    leaves, structure = jax.tree.flatten(ensemble)
    # In the order of our leaves: upper bound, bias, kernel, lower bound. Far from both bounds, a log-variance is raw.
    raw_bias = np.concatenate([biases, np.full_like(biases, log_var)], -1)
    raw_kernel = np.concatenate([kernels, np.zeros_like(kernels)], -1)
    found = [jnp.full(outputs, 50.0), jnp.asarray(raw_bias), jnp.asarray(raw_kernel), jnp.full(outputs, -80.0)]
    assert [x.shape for x in leaves] == [x.shape for x in found]
    return jax.tree.unflatten(structure, found)


def linear_dynamics(ensemble, propagation="ts1"):
    inputs = ensemble.members.head.kernel[...].shape[1]
    unit = Normalizer(jnp.zeros(inputs), jnp.ones(inputs))
    return EnsembleDynamics(ensemble, unit, ACTION_SPACES, propagation, ends=lambda obs: jnp.zeros(len(obs), bool))


def test_chance_and_disagreement_are_told_apart():
    members = GaussianPrediction(mean=jnp.array([[[1.0]], [[3.0]]]), log_var=jnp.log(jnp.array([[[0.5]], [[1.5]]])))
    aleatoric, epistemic = module.spread(members)
    np.testing.assert_allclose((aleatoric[0, 0], epistemic[0, 0]), (1.0, 1.0), rtol=1e-6)
    # The variance of the mixture is their sum.
    mean, log_var = module.mixture(members)
    np.testing.assert_allclose((mean[0, 0], np.exp(log_var[0, 0])), (2.0, 2.0), rtol=1e-6)


def final_std(propagation, horizon, rows=6000):
    """Standard deviation after a rollout under members that drift by -1, 0 and 1 and know no chance."""
    kernels = np.zeros((3, 2, 2))  # Of one observation and one action; they predict a change and a reward.
    model = linear_dynamics(with_outputs(kernels, [[-1, 0], [0, 0], [1, 0]]), propagation)
    start = model.start(jnp.zeros((rows, 1)), jax.random.key(0))
    actions: Action = {"push": jnp.zeros((horizon, rows, 1))}
    return float(follow(model, start, actions, jax.random.key(1)).obs[-1].std())


def test_errors_add_up_with_one_member_and_cancel_with_many():
    """A drift has the standard deviation sqrt(2 / 3); 16 of the same add up to 16, 16 independent ones to 4."""
    drift = (2 / 3) ** 0.5
    np.testing.assert_allclose(final_std("tsinf", 16), 16 * drift, rtol=1e-3)
    np.testing.assert_allclose(final_std("ts1", 16), 4 * drift, rtol=0.03)
    np.testing.assert_allclose(final_std("ds", 16), 4 * drift, rtol=0.03)
    assert final_std("e", 16) < 1e-5


@pytest.mark.parametrize("propagation", ["e", "ts1", "tsinf"])
def test_an_exact_ensemble_imagines_the_real_return(propagation):
    """Of ``x' = x + 0.1 v``, ``v' = 0.9 v + 0.2 a``, with a reward of ``x - 0.5 a``."""
    kernel = np.array([[0, 0, 1.0], [0.1, -0.1, 0], [0, 0.2, -0.5]])
    model = linear_dynamics(with_outputs([kernel] * 3, np.zeros((3, 3))), propagation)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 6, 1)).astype(np.float32)
    obs = np.random.default_rng(1).normal(size=(6, 2))
    states = follow(model, model.start(jnp.float32(obs), jax.random.key(0)), {"push": actions}, jax.random.key(1))
    real = 0.0
    for action in actions[..., 0]:
        real = real + obs[:, 0] - 0.5 * action
        obs = np.stack([obs[:, 0] + 0.1 * obs[:, 1], 0.9 * obs[:, 1] + 0.2 * action], -1)
    np.testing.assert_allclose(states.reward.sum(0), real, atol=1e-5)
    np.testing.assert_allclose(states.obs[-1], obs, atol=1e-5)


def test_rows_are_dealt_in_equal_shares_or_not_at_all():
    order = jnp.array([5, 0, 3, 1, 2, 4])
    assert module.deal(order, 3).tolist() == [0, 1, 2, 1, 2, 0]
    with pytest.raises(ValueError, match="7 rows were dealt to 3 members, expected a multiple of 3 rows"):
        module.deal(jnp.arange(7), 3)


def test_it_is_what_imagination_asks_for():
    assert isinstance(linear_dynamics(make_ensemble(2, 2, layers=0)), Dynamics)


def test_what_never_varies_is_not_scaled():
    normalizer = Normalizer.of(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
    np.testing.assert_allclose(normalizer(jnp.array([[3.0, 6.0]])), [[1.0, 1.0]])


def test_rows_count_by_their_weight(data, ensemble):
    """Weights of a whole number are rows that are there as many times, and of 0, rows that are not there."""
    x, target = data["ensemble/input"], data["ensemble/target"]
    weight = jnp.tile(jnp.array([[2.0, 1.0, 0.0]]), (3, 1))
    repeated = ensemble_loss(ensemble, x[:, jnp.array([0, 0, 1])], target[:, jnp.array([0, 0, 1])])
    np.testing.assert_allclose(ensemble_loss(ensemble, x[:, :3], target[:, :3], weight), repeated, rtol=1e-6)
    scores = module.holdout_scores(ensemble, x[0, jnp.array([0, 0, 1])], target[0, jnp.array([0, 0, 1])])
    weighted = module.holdout_scores(ensemble, x[0, :3], target[0, :3], weight[0])
    np.testing.assert_allclose(weighted, scores, rtol=1e-6)


def test_a_member_has_a_bootstrap_sample_of_what_is_not_held_out():
    rows = jax.random.normal(jax.random.key(0), (20_000, 3))
    counts, is_held_out = module.bootstrap(rows, 3, 0.2)
    np.testing.assert_allclose(is_held_out.mean(), 0.2, atol=0.01)
    assert (counts[:, is_held_out] == 0).all()
    # Poisson with a mean of 1, for each member apart from the others.
    kept = np.asarray(counts[:, ~is_held_out])
    np.testing.assert_allclose(kept.mean(1), 1, atol=0.03)
    np.testing.assert_allclose(kept.var(1), 1, atol=0.05)
    np.testing.assert_allclose(np.corrcoef(kept), np.eye(3), atol=0.03)


def test_what_becomes_of_a_row_does_not_depend_on_its_batch():
    rows = jax.random.normal(jax.random.key(0), (50, 3))
    counts, is_held_out = module.bootstrap(rows, 2, 0.3)
    order = jnp.array([7, 3, 7, 40])
    again, again_held_out = module.bootstrap(rows[order], 2, 0.3)
    np.testing.assert_array_equal(again, counts[:, order])
    np.testing.assert_array_equal(again_held_out, is_held_out[order])


def test_some_members_are_replaced(ensemble):
    other = jax.tree.map(lambda x: x + 1, ensemble)
    mixed = ensemble.replace(jnp.array([False, True, False]), other)
    for old, new, found in zip(*(jax.tree.leaves(e.members) for e in (ensemble, other, mixed)), strict=True):
        np.testing.assert_array_equal(found, jnp.stack([old[0], new[1], old[2]]))
    np.testing.assert_array_equal(mixed.max_log_var[...], other.max_log_var[...])


@pytest.mark.parametrize("name", ["hopper", "ant", "humanoid", "walker", "inverted_pendulum"])
def test_the_length_of_rollouts(data, name):
    schedule = tuple(data[f"rollout_length/{name}/schedule"].tolist())
    found = jax.vmap(lambda epoch: module.rollout_length(schedule, epoch))(jnp.arange(321))
    assert found.tolist() == data[f"rollout_length/{name}/length"].tolist()
