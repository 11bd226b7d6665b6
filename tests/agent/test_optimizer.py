"""LaProp, clipping and Muon against float64 twins in NumPy, and against the optax pieces that are not the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamer.agent.optimizer import adam_group, clip_by_tensor_norm, learning_rate, make_optimizer, matrix_axes
from dreamer.config import AdamConfig, OptimizerConfig
from dreamer.types import Parts
from tests.family_golden import load

CONFIG = OptimizerConfig(lr=1e-2, warmup=4)


def numpy_laprop(parameters, gradients, config):
    """The published update, written out; returns the parameters after each step."""
    p, history = np.asarray(parameters, np.float64), []
    square, momentum = np.zeros_like(p), np.zeros_like(p)
    for step, g in enumerate(np.asarray(gradients, np.float64)):
        limit = config.clip * max(config.clip_min, np.linalg.norm(p))
        g = g / max(1.0, np.linalg.norm(g) / limit)
        square = config.beta2 * square + (1 - config.beta2) * g**2
        g = g / (np.sqrt(square / (1 - config.beta2 ** (step + 1))) + config.eps)
        momentum = config.beta1 * momentum + (1 - config.beta1) * g
        rate = config.lr * min(1.0, step / config.warmup)
        p = p - rate * momentum / (1 - config.beta1 ** (step + 1))
        history.append(p)
    return history


def run(optimizer, parameters, gradients):
    state, history = optimizer.init(parameters), []
    for g in gradients:
        updates, state = jax.jit(optimizer.update)(g, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        history.append(parameters)
    return history


def test_against_float64(rng):
    p = jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32)
    gradients = jnp.asarray(rng.normal(size=(12, 3, 4, 5)) * 10 ** rng.uniform(-3, 2, (12, 1, 1, 1)), jnp.float32)
    ours, expected = run(make_optimizer(CONFIG), p, gradients), numpy_laprop(p, gradients, CONFIG)
    np.testing.assert_allclose(ours[-1], expected[-1], rtol=1e-4, atol=1e-6)
    assert np.abs(ours[-1] - p).max() > 1e-2


def test_the_first_update_of_a_warmup_changes_nothing(rng):
    p = jnp.asarray(rng.normal(size=4), jnp.float32)
    np.testing.assert_array_equal(run(make_optimizer(CONFIG), p, [p])[0], p)


def test_warmup_by_hand():
    rates = [float(learning_rate(CONFIG, step)) for step in range(6)]
    np.testing.assert_allclose(rates, [0, 0.0025, 0.005, 0.0075, 0.01, 0.01], rtol=1e-6)
    assert float(learning_rate(OptimizerConfig(lr=0.5, warmup=0), 0)) == 0.5


def test_annealing_by_hand():
    config = OptimizerConfig(lr=1.0, warmup=2, anneal=5)
    rates = [float(learning_rate(config, step)) for step in range(8)]
    np.testing.assert_allclose(rates, [0, 0.5, 1.0, 0.7, 0.4, 0.1, 0.1, 0.1], rtol=1e-6)
    theirs = optax.linear_schedule(1.0, 0.1, transition_steps=3, transition_begin=2)
    np.testing.assert_allclose(rates[2:], [theirs(step) for step in range(2, 8)], rtol=1e-6)


def test_the_steps_of_an_annealed_optimizer_shrink(rng):
    p, g = jnp.asarray(rng.normal(size=4), jnp.float32), [jnp.ones(4)] * 6
    steps = np.diff(run(make_optimizer(OptimizerConfig(lr=1e-3, warmup=0, anneal=5, clip=0.0)), p, g), axis=0)
    np.testing.assert_allclose(steps[:, 0], [-0.82e-3, -0.64e-3, -0.46e-3, -0.28e-3, -0.1e-3], rtol=1e-3)


def test_clipping_is_per_whole_tensor():
    p, g = jnp.ones((8, 2)), jnp.concatenate([jnp.full((8, 1), 100.0), jnp.full((8, 1), 1e-3)], 1)
    clip = clip_by_tensor_norm(0.3, 1e-3)
    ours, _ = clip.update(g, clip.init(p), p)
    np.testing.assert_allclose(jnp.linalg.norm(ours), 0.3 * jnp.linalg.norm(p), rtol=1e-5)
    np.testing.assert_allclose(ours / g, jnp.full((8, 2), float(ours[0, 0] / g[0, 0])), rtol=1e-5)
    unitwise = optax.adaptive_grad_clip(0.3)
    theirs, _ = unitwise.update(g, unitwise.init(p), p)
    assert not np.allclose(ours, theirs, rtol=0.1), "optax clips by unit: another algorithm"


@pytest.mark.parametrize("factor", [0.0, 0.1])
def test_small_gradients_pass(factor):
    p = jnp.ones((3, 3))
    clip = clip_by_tensor_norm(0.3, 1e-3)
    ours, _ = clip.update(factor * p, clip.init(p), p)
    np.testing.assert_array_equal(ours, factor * p)


def test_zero_parameters_can_leave_zero():
    clip = clip_by_tensor_norm(0.3, 1e-3)
    ours, _ = clip.update(jnp.full(4, 5.0), clip.init(jnp.zeros(4)), jnp.zeros(4))
    np.testing.assert_allclose(jnp.linalg.norm(ours), 0.3e-3, rtol=1e-5)


def test_laprop_is_neither_adam_nor_rmsprop_with_momentum(rng):
    """Optax's relatives differ from the second step on; ours is built from its parts because no whole is the same."""
    config = OptimizerConfig(lr=1e-2, warmup=0, clip=0.0)
    p = jnp.asarray(rng.normal(size=6), jnp.float32)
    gradients = jnp.asarray(rng.normal(size=(5, 6)), jnp.float32)
    ours = run(make_optimizer(config), p, gradients)[-1]
    for relative in (optax.adam(1e-2, eps=1e-20), optax.rmsprop(1e-2, decay=0.999, eps=1e-20, momentum=0.9)):
        assert np.abs(run(relative, p, gradients)[-1] - ours).max() > 1e-3


def test_steps_do_not_depend_on_the_scale_of_the_loss(rng):
    config = OptimizerConfig(lr=1e-2, warmup=0, clip=0.0)
    p = jnp.asarray(rng.normal(size=6), jnp.float32)
    gradients = jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    small = run(make_optimizer(config), p, gradients * 1e-9)[-1]
    np.testing.assert_allclose(small, run(make_optimizer(config), p, gradients)[-1], rtol=1e-5)


def test_clipping_without_parameters_is_refused():
    with pytest.raises(ValueError, match="needs the parameters"):
        clip_by_tensor_norm(0.3, 1e-3).update(jnp.ones(2), optax.EmptyState(), None)


MUON = OptimizerConfig(kind="muon", lr=1e-2, warmup=0, muon_rms=0.2, muon_beta=0.9)


def numpy_muon(gradients, config):
    """The step after gradients ``[T, inputs, outputs]``: Nesterov's momentum, orthogonalised by its decomposition."""
    momentum = np.zeros_like(gradients[0], np.float64)
    for gradient in gradients:
        momentum = config.muon_beta * momentum + (1 - config.muon_beta) * gradient
    left, _, right = np.linalg.svd(config.muon_beta * momentum + (1 - config.muon_beta) * gradient, full_matrices=False)
    return -config.lr * config.muon_rms * max(gradient.shape) ** 0.5 * left @ right


def singular_values(step, config):
    return np.linalg.svd(np.asarray(step, np.float64) / (config.lr * config.muon_rms * max(step.shape) ** 0.5))[1]


def last_step(config, parameters, gradients):
    history = run(make_optimizer(config), parameters, gradients)
    return jax.tree.map(lambda after, before: np.asarray(after - before), history[-1], history[-2])


def test_muon_moves_matrices_along_their_orthogonal_momentum(rng):
    """Five steps of Newton and Schulz bring singular values to 0.7 to 1.2, and keep the directions."""
    gradients = rng.normal(size=(6, 8, 5)).astype(np.float32)
    step = last_step(MUON, jnp.zeros((8, 5)), [jnp.asarray(g) for g in gradients])
    expected = numpy_muon(gradients, MUON)
    assert (step * expected).sum() > 0.98 * np.linalg.norm(step) * np.linalg.norm(expected)
    assert 0.6 < singular_values(step, MUON).min() <= singular_values(step, MUON).max() < 1.3


def test_muon_follows_what_is_faint(rng):
    """With one direction a fiftieth as strong as the other, the step has both, and LaProp hardly the faint one."""
    loud, faint = np.linalg.qr(rng.normal(size=(8, 2)))[0].T
    gradient = jnp.asarray(np.outer(loud, [1, 1, 1, 1]) + 0.02 * np.outer(faint, [1, -1, 1, -1]), jnp.float32)
    parameters = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)

    def share(kind):
        step = last_step(dataclasses.replace(MUON, kind=kind), parameters, [gradient] * 3)
        return np.abs(faint @ step @ [1, -1, 1, -1]) / np.abs(loud @ step @ [1, 1, 1, 1])

    assert share("muon") > 0.5
    assert share("laprop") < 0.1


def test_muon_does_not_depend_on_the_scale_of_the_loss(rng):
    gradients = jnp.asarray(rng.normal(size=(3, 6, 4)), jnp.float32)
    step, small = (last_step(MUON, jnp.zeros((6, 4)), list(gradients * scale)) for scale in (1, 1e-9))
    np.testing.assert_allclose(small, step, rtol=1e-4, atol=1e-7)


def test_muon_leaves_vectors_to_laprop(rng):
    parameters = {"bias": jnp.ones(4), "column": jnp.ones((4, 1)), "kernel": jnp.ones((4, 3))}
    gradients = [jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), parameters)] * 3
    ours = run(make_optimizer(MUON), parameters, gradients)[-1]
    theirs = run(make_optimizer(dataclasses.replace(MUON, kind="laprop")), parameters, gradients)[-1]
    for key in ("bias", "column"):
        np.testing.assert_array_equal(ours[key], theirs[key])
    assert np.abs(ours["kernel"] - theirs["kernel"]).max() > 1e-3


def test_blocks_are_matrices_of_their_own_and_convolutions_are_flat(rng):
    blocks = jnp.asarray(rng.normal(size=(3, 2, 6, 4)), jnp.float32)
    together = last_step(MUON, jnp.zeros((2, 6, 4)), list(blocks))
    alone = last_step(MUON, jnp.zeros((6, 4)), list(blocks[:, 1]))
    np.testing.assert_allclose(together[1], alone, rtol=1e-4, atol=1e-7)
    filters = jnp.asarray(rng.normal(size=(3, 2, 2, 5, 4)), jnp.float32)
    convolution = last_step(MUON, jnp.zeros((2, 2, 5, 4)), list(filters))
    flat = last_step(MUON, jnp.zeros((20, 4)), list(filters.reshape(3, 20, 4)))
    np.testing.assert_allclose(convolution.reshape(20, 4), flat, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shape", [(), (4,), (4, 1), (1, 4), (2, 1, 4)])
def test_what_is_no_matrix(shape):
    assert matrix_axes(jnp.ones(shape)) is None


@pytest.mark.parametrize(("name", "eps", "decay"), [("v1_pieces", 1e-7, 0.0), ("v2_pieces", 1e-5, 1e-6)])
def test_adam_is_that_of_the_released_code_of_v1_and_v2(name, eps, decay):
    data = {key.removeprefix("adam/"): value for key, value in load(name).items() if key.startswith("adam/")}
    group = AdamConfig(lr=0.01, eps=eps, clip=100.0, decay=decay)
    optimizer = make_optimizer(OptimizerConfig(kind="keras_adam", model=group, warmup=0))
    history = run(optimizer, {"w": jnp.asarray(data["param"])}, [{"w": jnp.asarray(g)} for g in data["grads"]])
    for count, parameters in enumerate(history, 1):
        np.testing.assert_allclose(parameters["w"], data[f"after_{count}"], rtol=0, atol=1e-6)


def test_groups_have_their_own_rates_and_norms():
    """Adam's first step is its rate, whatever the gradient; a group's norm is of no other's concern."""
    model, bonus, actor, critic = (AdamConfig(lr=lr, eps=1e-12, clip=1.0) for lr in (1.0, 0.5, 0.1, 0.01))
    config = OptimizerConfig(kind="adam", warmup=0, model=model, bonus=bonus, actor=actor, critic=critic)
    optimizer = make_optimizer(config)
    nets = Parts(
        world_model={"w": jnp.ones(2)},
        behavior={"actor": jnp.ones(2), "critic": jnp.ones(2)},
        bonus={"bonus": jnp.ones(2), "behavior": {"actor": jnp.ones(2)}},
    )
    gradient = jax.tree.map(jnp.ones_like, nets)._replace(world_model={"w": jnp.full(2, 1e6)})
    gradient.behavior["critic"] = -jnp.ones(2)
    (after,) = run(optimizer, nets, [gradient])
    np.testing.assert_allclose(after.world_model["w"], 0, atol=1e-5)
    np.testing.assert_allclose(after.behavior["actor"], 0.9, rtol=1e-5)
    np.testing.assert_allclose(after.behavior["critic"], 1.01, rtol=1e-5)
    np.testing.assert_allclose(after.bonus["bonus"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(after.bonus["behavior"]["actor"], 0.9, rtol=1e-5)


def test_names_of_observations_and_actions_choose_no_group():
    nets = Parts(
        world_model={"decoder": {"critic": 0, "bonus": 0}},
        behavior={"actor": {"heads": {"critic": 0, "bonus": 0}}},
        bonus={"behavior": {"critic": {"actor": 0}}, "bonus": 0},
    )
    assert adam_group(nets) == Parts(
        world_model={"decoder": {"critic": "model", "bonus": "model"}},
        behavior={"actor": {"heads": {"critic": "actor", "bonus": "actor"}}},
        bonus={"behavior": {"critic": {"actor": "explorer critic"}}, "bonus": "bonus"},
    )


def test_adam_is_that_of_optax_with_the_epsilon_of_optax():
    rng = np.random.default_rng(0)
    gradients = [{"w": jnp.asarray(rng.normal(size=3), jnp.float32)} for _ in range(4)]
    group = AdamConfig(lr=0.01, eps=0.1, clip=0.0)
    ours = run(make_optimizer(OptimizerConfig(kind="adam", model=group, warmup=0)), {"w": jnp.ones(3)}, gradients)
    twin = run(optax.adam(0.01, eps=0.1), {"w": jnp.ones(3)}, gradients)
    np.testing.assert_allclose(ours[-1]["w"], twin[-1]["w"], rtol=1e-6)
