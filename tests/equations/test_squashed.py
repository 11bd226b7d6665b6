"""The squashed normal distribution against the density of its draws."""

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.equations.squashed import SquashedNormal

WIDE = SquashedNormal(mean=jnp.array([[0.3, -0.5]]), std=jnp.array([[0.8, 0.2]]), scale=jnp.array([[2.0, 1.0]]))


def test_the_density_is_one_in_total():
    """Action by action: the mean of 1 / density over draws is the width of what can be drawn."""
    alone = SquashedNormal(mean=jnp.full((100_000, 1), 0.3), std=jnp.full((100_000, 1), 0.8), scale=2.0)
    action, log_prob = alone.sample_and_log_prob(jax.random.key(0))
    inside = jnp.abs(action[:, 0]) < 1.0
    np.testing.assert_allclose((inside * jnp.exp(-log_prob)).mean(), 2.0, rtol=0.02)


def test_the_log_probability_by_hand(monkeypatch):
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.full(shape, 0.5))
    action, log_prob = WIDE.sample_and_log_prob(jax.random.key(0))
    u = np.array([0.3 + 0.8 * 0.5, -0.5 + 0.2 * 0.5])
    scale, std = np.array([2.0, 1.0]), np.array([0.8, 0.2])
    np.testing.assert_allclose(action[0], scale * np.tanh(u), rtol=1e-6)
    normal = -0.5 * 0.5**2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(log_prob[0], (normal - np.log(scale / np.cosh(u) ** 2)).sum(), rtol=1e-5)


def test_the_mode_is_the_action_of_the_mean():
    np.testing.assert_allclose(WIDE.mode(), [[2 * np.tanh(0.3), np.tanh(-0.5)]], rtol=1e-6)


def test_far_out_all_is_finite():
    far = SquashedNormal(mean=jnp.array([[30.0]]), std=jnp.array([[1.0]]))
    action, log_prob = far.sample_and_log_prob(jax.random.key(0))
    gradient = jax.grad(lambda mean: far._replace(mean=mean).sample_and_log_prob(jax.random.key(0))[1].sum())(far.mean)
    assert action == 1.0
    assert np.isfinite(log_prob).all() and np.isfinite(gradient).all()
