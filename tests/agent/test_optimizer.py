"""LaProp and clipping against a float64 numpy twin, and against the optax pieces that are not the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dreamer.agent.optimizer import clip_by_tensor_norm, learning_rate, make_optimizer
from dreamer.config import OptimizerConfig

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
