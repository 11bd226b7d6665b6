"""Curvature of a path: by hand, across resets, and where nothing moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.equations.curvature import STANDSTILL, curvature

# Ahead, ahead but further, left, back to the right, rest, ahead.
STEPS = jnp.array([[1, 0], [3, 0], [0, 2], [0, -1], [0, 0], [1, 0]], jnp.float32)
PATH = jnp.concatenate([jnp.zeros((1, 2)), jnp.cumsum(STEPS, 0)])[None]
NEVER = jnp.zeros((1, 7), bool)


def test_angles_by_hand():
    np.testing.assert_allclose(curvature(PATH, NEVER), [[0, 0, 0, 1, 2, 0, 0]], atol=1e-6)


@pytest.mark.parametrize(("reset", "expected"), [(2, [0, 0, 0, 0, 2, 0, 0]), (3, [0, 0, 0, 0, 0, 0, 0]), (0, None)])
def test_no_angle_is_measured_across_a_reset(reset, expected):
    is_first = NEVER.at[0, reset].set(True)
    found = curvature(PATH, is_first)
    np.testing.assert_allclose(found, curvature(PATH, NEVER) if expected is None else [expected], atol=1e-6)


def test_what_lies_beyond_a_reset_has_no_gradient_of_it():
    is_first = NEVER.at[0, 3].set(True)
    for path in (PATH, PATH.at[:, 3:].add(50)):
        gradient = jax.grad(lambda x: curvature(x, is_first)[:, 3:5].sum())(path)
        assert not gradient.any()


def test_only_directions_count(rng):
    path = jnp.asarray(rng.normal(size=(2, 6, 3)), jnp.float32)
    is_first = jnp.zeros((2, 6), bool)
    np.testing.assert_allclose(curvature(0.01 * path, is_first), curvature(path, is_first), rtol=1e-4)
    # So no gradient points towards smaller steps, and the loss alone does not make states alike.
    gradient = jax.grad(lambda x: curvature(x, is_first).mean())(path)
    assert float((gradient * path).sum()) == pytest.approx(0, abs=1e-6)
    assert np.abs(gradient).max() > 1e-3


@pytest.mark.parametrize("size", [0.0, 0.1 * STANDSTILL])
def test_a_state_that_rests_has_neither_loss_nor_gradient(size, rng):
    path = jnp.asarray(size * rng.choice([-1, 1], size=(2, 5, 3)), jnp.float32)
    value, gradient = jax.value_and_grad(lambda x: curvature(x, jnp.zeros((2, 5), bool)).mean())(path)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("steps", [1, 2])
def test_too_few_steps_have_no_curvature(steps):
    np.testing.assert_array_equal(curvature(PATH[:, :steps], NEVER[:, :steps]), np.zeros((1, steps)))
