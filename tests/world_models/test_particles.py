"""Particles in an ensemble: how far they spread, what they earn, and who is asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.config import PlannerConfig
from dreamer.planners.shooting import CEM
from dreamer.world_models import Dynamics, follow
from dreamer.world_models.particles import Particles
from tests.world_models.test_ensemble import ACTION_SPACES, linear_dynamics, with_outputs

DRIFT = (2 / 3) ** 0.5
"""Standard deviation of drifts by -1, 0 and 1."""


def drifting(propagation, count):
    """Particles of members that drift by -1, 0 and 1, earn what they drift by, and know no chance."""
    ensemble = with_outputs(np.zeros((3, 2, 2)), [[-1, -1], [0, 0], [1, 1]])
    return Particles(linear_dynamics(ensemble, propagation), count)


def rollout(model, rows, horizon):
    start = model.start(jnp.zeros((rows, 1)))
    return follow(model, start, {"push": jnp.zeros((horizon, rows, 1))}, jax.random.key(0))


def test_they_are_what_a_planner_asks_for():
    assert isinstance(drifting("tsinf", 3), Dynamics)


@pytest.mark.parametrize(("propagation", "growth"), [("tsinf", 16), ("ts1", 4)])
def test_the_spread_within_a_row_grows_as_its_errors_add_up_or_cancel(propagation, growth):
    """16 drifts of one member add up to 16, 16 independent ones to 4."""
    states = rollout(drifting(propagation, 600), 10, 16)
    spread = states.each.obs[-1, ..., 0].std(1)
    np.testing.assert_allclose(spread.mean(), growth * DRIFT, rtol=0.03)


@pytest.mark.parametrize("propagation", ["tsinf", "ts1"])
def test_each_row_asks_all_members_equally(propagation):
    """So the mean over the particles of a row is 0 after every step."""
    states = rollout(drifting(propagation, 6), 4, 5)
    np.testing.assert_allclose(states.each.obs.mean(2), 0, atol=1e-5)
    np.testing.assert_allclose(drifting(propagation, 6).reward(states).mean(), 0, atol=1e-5)


def test_what_has_ended_earns_nothing_more():
    """The member that drifts by 1 ends above 1.5, in its second step, and earns 1 in each of them."""
    model = drifting("tsinf", 3)
    model = model._replace(model=model.model._replace(ends=lambda obs: obs[:, 0] > 1.5))
    states = rollout(model, 2, 4)
    # | step | members -1, 0, 1 earn | mean   |
    # | 1, 2 | -1, 0, 1              | 0      |
    # | 3, 4 | -1, 0, nothing        | -1 / 3 |
    np.testing.assert_allclose(model.reward(states).mean()[:, 0], [0, 0, -1 / 3, -1 / 3], atol=1e-6)
    np.testing.assert_allclose(model.cont(states), 1)


def test_a_plan_in_an_exact_ensemble_is_worth_the_real_return():
    """Of ``x' = x + 0.1 v``, ``v' = 0.9 v + 0.2 a``, with a reward of ``x - 0.5 a``."""
    kernel = np.array([[0, 0, 1.0], [0.1, -0.1, 0], [0, 0.2, -0.5]])
    model = Particles(linear_dynamics(with_outputs([kernel] * 3, np.zeros((3, 3))), "tsinf"), 3)
    actions = np.random.default_rng(0).uniform(-1, 1, (2, 4, 7, 1)).astype(np.float32)
    obs = np.random.default_rng(1).normal(size=(2, 1, 2))
    planner = CEM(PlannerConfig(horizon=7, leaf=False), ACTION_SPACES, discount=1.0)
    start = model.start(jnp.float32(obs[:, 0]))
    objective = planner._objective(model, lambda state: jnp.zeros(()), start, jax.random.key(0), rows=2)
    obs = np.repeat(obs, 4, axis=1)
    real = 0.0
    for action in np.moveaxis(actions[..., 0], 2, 0):
        real = real + obs[..., 0] - 0.5 * action
        obs = np.stack([obs[..., 0] + 0.1 * obs[..., 1], 0.9 * obs[..., 1] + 0.2 * action], -1)
    np.testing.assert_allclose(objective({"push": jnp.asarray(actions)}), real, atol=1e-5)
