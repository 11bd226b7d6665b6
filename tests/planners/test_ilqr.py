"""Iterative LQR on problems whose solution is known, and on the rules of Pendulum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import algorithms
from dreamer.config import ConfigError
from dreamer.planners import Planner
from dreamer.planners.ilqr import ilqr
from dreamer.types import Space
from tests.planners.worlds import World, no_prior, no_value
from tests.small import OBS_SPACES, small_config

SPACES = {"push": Space("continuous", (2,))}
HORIZON = 6
A = np.array([[1.0, 0.3], [-0.2, 0.9]])
B = np.array([[0.1, 0.4], [0.5, -0.2]])
Q = np.array([[1.0, 0.2], [0.2, 0.5]])
R = np.array([[2.0, 0.3], [0.3, 1.0]])


class Quadratic(World):
    """``x' = A x + B u`` and reward ``-(x' Q x + u R u)``; ``gain`` bends the dynamics."""

    def __init__(self, bend=0.0):
        self.bend = bend

    def step(self, state, action, noise):
        x = state["x"] @ A.T.astype(np.float32) + action["push"] @ B.T.astype(np.float32)
        x = x + self.bend * jnp.sin(3 * state["x"])
        return {"x": x, "reward": -cost(x, Q) - cost(action["push"], R)}


def cost(x, weight):
    return jnp.einsum("ni,ij,nj->n", x, weight.astype(np.float32), x)


def riccati():
    """The gain of the first step."""
    value = np.zeros((2, 2))
    for _ in range(HORIZON):
        stage = Q + value
        gain = np.linalg.solve(R + B.T @ stage @ B, B.T @ stage @ A)
        value = A.T @ stage @ (A - B @ gain)
    return gain


def make(*overrides):
    settings = f"planner={{kind: ilqr, horizon: {HORIZON}, iterations: 1, leaf: false}}"
    return ilqr(small_config(settings, *overrides), SPACES)


def plan(planner, model, x, before=None, first=True):
    start = {"x": jnp.asarray(x, jnp.float32), "reward": jnp.zeros(len(x))}
    before = planner.init(len(x)) if before is None else before
    is_first = jnp.full(len(x), first)
    return jax.jit(lambda: planner.plan(model, no_value, no_prior, start, before, is_first, jax.random.key(0)))()


def test_it_is_a_planner():
    assert isinstance(make(), Planner)


def test_one_iteration_solves_a_linear_quadratic_problem():
    x = np.array([[0.5, -0.3], [-0.2, 0.4]])
    action, _, _ = plan(make(), Quadratic(), x)
    np.testing.assert_allclose(action["push"], -x @ riccati().T, atol=1e-5)


def test_as_mpc_it_follows_that_solution():
    planner = make()
    x = np.array([[0.5, -0.3]])
    before = None
    for _ in range(4):
        action, before, _ = plan(planner, Quadratic(), x, before, first=before is None)
        np.testing.assert_allclose(action["push"], -x @ riccati().T, atol=1e-5)
        x = x @ A.T + np.asarray(action["push"]) @ B.T


def test_more_iterations_expect_more_of_a_problem_that_is_bent():
    returns = [
        float(plan(make(f"planner.iterations={n}"), Quadratic(bend=0.3), np.array([[1.0, -1.0]]))[2]["planner/return"])
        for n in (1, 8)
    ]
    assert returns[1] > returns[0] + 1e-3


def test_actions_stay_within_their_bounds():
    action, following, _ = plan(make("planner.iterations=4"), Quadratic(), np.array([[9.0, -9.0]]))
    assert np.abs(action["push"]).max() == 1.0
    assert np.abs(following).max() <= 1.0


def test_discrete_actions_are_refused():
    spaces = {"move": Space("discrete", (), 3)}
    with pytest.raises(ConfigError, match=r"plans one continuous action, .* move \(discrete\): use planner\.kind=cem"):
        ilqr(small_config(), spaces)


def acting_shapes(kind):
    """Shapes of what the policy of a Dreamer with such a world model returns for two environments."""
    planner = "planner={kind: ilqr, horizon: 2, iterations: 1}"
    algorithm = algorithms.make(small_config(f"world_model.kind={kind}", planner), OBS_SPACES, SPACES)
    nets = jax.eval_shape(algorithm.init, jax.random.key(0)).nets
    obs = {key: jnp.zeros((2, *space.shape), space.dtype) for key, space in OBS_SPACES.items()}
    memory, first, key = algorithm.initial(2), jnp.ones(2, bool), jax.random.key(0)
    return jax.eval_shape(lambda nets: algorithm.policy(nets, memory, obs, first, key, "mode"), nets)


def test_it_plans_in_a_world_model_of_normal_variables():
    action, memory, _ = acting_shapes("gaussian_rssm")
    assert action["push"].shape == (2, 2)
    assert memory.plan.shape == (2, 2, 2)


def test_categorical_latents_are_refused():
    with pytest.raises(ConfigError, match="categorical latents have none: use Gaussian latents"):
        acting_shapes("rssm")
