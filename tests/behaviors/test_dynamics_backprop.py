"""Gradients of returns through a model that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.agent import Agent
from dreamer.behaviors import Behavior
from dreamer.behaviors.dynamics_backprop import DynamicsBackprop, dynamics_backprop
from dreamer.config import ConfigError
from dreamer.types import Space
from tests.small import ACTION_SPACES, OBS_SPACES, small_batch, small_config, total_loss

PUSH = {"push": Space("continuous", (2,))}


def batch():
    whole = small_batch()
    return jax.tree.map(jnp.asarray, whole._replace(prev_action={"push": whole.prev_action["push"]}))


def test_it_is_a_behaviour():
    behavior = dynamics_backprop(small_config(), PUSH, 28)
    assert isinstance(behavior, DynamicsBackprop)
    assert isinstance(behavior, Behavior)


def test_discrete_actions_are_refused():
    with pytest.raises(ConfigError, match=r"the actions move are discrete, .* Use behavior\.kind=actor_critic"):
        dynamics_backprop(small_config(), ACTION_SPACES, 28)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rssm", "gaussian_rssm"])
def test_the_actor_learns_through_the_model_and_moves_only_itself(model):
    config = small_config("behavior.kind=dynamics_backprop", f"world_model.kind={model}", "rssm.free_nats=0")
    agent = Agent(config, OBS_SPACES, PUSH)
    key = jax.random.key(3)
    # Fresh heads predict zeros, and nothing would pass through them.
    nets = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), agent.state.nets)

    @jax.jit
    def gradient(nets, name):
        def chosen(nets):
            _, out = total_loss(agent)(nets, agent.state.memory, stored, key, config)
            return out.losses["actor"][1].mean()

        return jax.grad(chosen)(nets)

    stored = batch()._replace(stored=jax.tree.map(lambda x: jnp.zeros((2, *x.shape), x.dtype), agent.algorithm.stored))
    found = gradient(nets, 0)
    size = {
        part: float(sum(jnp.abs(x).sum() for x in jax.tree.leaves(tree)))
        for part, tree in (
            ("model", found.world_model),
            ("actor", found.behavior.actor),
            ("critic", found.behavior.critic),
        )
    }
    assert size["actor"] > 0
    assert size["model"] == 0
    assert size["critic"] == 0


@pytest.mark.slow
def test_the_gradient_is_that_of_the_return():
    """Against finite differences of the return of one step, with the same random numbers, of actions within (-1, 1).

    With more steps there is another path, through what the policy reads of later states, which is left out by design.
    """
    config = small_config(
        "behavior={kind: dynamics_backprop, entropy: 0, return_limit: 1e6, horizon: 1, min_std: 0.05, max_std: 0.1}",
        "world_model.kind=gaussian_rssm",
    )
    agent = Agent(config, OBS_SPACES, PUSH)
    key = jax.random.key(3)
    nets = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), agent.state.nets)
    stored = batch()._replace(stored=jax.tree.map(lambda x: jnp.zeros((2, *x.shape), x.dtype), agent.algorithm.stored))

    @jax.jit
    def loss(bias):
        changed = jax.tree.map(lambda x: x, nets)
        changed.behavior.actor.heads["push"].bias[...] += bias
        _, out = total_loss(agent)(changed, agent.state.memory, stored, key, config)
        return 1e6 * out.losses["actor"][1].mean()

    zero = jnp.zeros(2)
    exact = jax.grad(loss)(zero)
    for i in range(2):
        step = 1e-2 * jnp.eye(2)[i]
        numeric = (loss(step) - loss(-step)) / 2e-2
        np.testing.assert_allclose(exact[i], numeric, rtol=0.01)
