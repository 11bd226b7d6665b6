"""Gradients of returns through a model that is known."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.agent import Agent
from dreamer.behaviors import Behavior
from dreamer.behaviors.actor_critic import ActorCritic, ActorCriticNets
from dreamer.behaviors.estimators import Estimators, actor_critic, dynamics_backprop, judge
from dreamer.config import ConfigError
from dreamer.types import Space
from dreamer.world_models import follow
from tests.small import ACTION_SPACES, OBS_SPACES, small_batch, small_config, total_loss

PUSH = {"push": Space("continuous", (2,))}


def batch():
    whole = small_batch()
    return jax.tree.map(jnp.asarray, whole._replace(prev_action={"push": whole.prev_action["push"]}))


def test_it_is_a_behaviour():
    behavior = dynamics_backprop(small_config(), PUSH, 28)
    assert isinstance(behavior, Estimators)
    assert isinstance(behavior, Behavior)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["behavior.returns=v2"], r"behavior\.returns=v2 cannot be used with loss\.replay_critic=0\.3"),
        (["behavior={returns: v1, horizon: 1}", "loss.replay_critic=0"], r"behavior\.horizon=1 cannot be used"),
        (["behavior={returns: v1, starts: 1}", "loss.replay_critic=0"], r"behavior\.starts=1 cannot be used"),
        (["optimizer.order=model_first"], r"behavior\.replay_gradient=true cannot be used with optimizer\.order=m"),
        (["world_model.cont=none"], r"cont=none cannot be used with behavior\.cont_discount=true: .* there is none"),
        (["world_model.cont=mode"], r"cont=mode cannot be used with behavior\.cont_discount=true: .* has lost it"),
    ],
    ids=["replay", "horizon", "starts", "stages", "discount", "mode"],
)
def test_parts_that_exclude_one_another_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        actor_critic(small_config(*overrides), PUSH, 28)


@pytest.mark.parametrize(
    ("gradient", "spaces", "expected"),
    [
        ("reinforce", PUSH, ActorCritic),
        ("dynamics", PUSH, "dynamics"),
        ("mix", PUSH, "mix"),
        ("auto", PUSH, "dynamics"),
        ("auto", ACTION_SPACES, ActorCritic),
    ],
    ids=str,
)
def test_the_gradient_that_is_chosen(gradient, spaces, expected):
    behavior = actor_critic(small_config(f"behavior.gradient={gradient}"), spaces, 28)
    assert expected is type(behavior) or expected == getattr(behavior, "gradient", None)


REWARDS = np.array([2.0, 3.0, 5.0, 7.0] + [1.0] * 200)


def unused(*args: Any) -> Any:
    """A function of a model that nothing here asks for."""
    raise AssertionError


class Path:
    """A model with one path: a state is its number on it, and its own features."""

    noise = step = cont = masks = unused

    def features(self, state):
        return state[..., None]

    def reward(self, state):
        return SimpleNamespace(mean=lambda: jnp.asarray(REWARDS)[state])


@pytest.mark.parametrize("member", ["v1", "v2", "v3_2023", "v3"])
def test_a_value_is_without_the_reward_of_arriving(member):
    """With a critic that is exact, as each member defines it."""
    discounts = 0.9 ** np.arange(len(REWARDS))
    to_go = np.array([(REWARDS[t:] * discounts[: len(REWARDS) - t]).sum() for t in range(5)])
    learned = jnp.asarray(to_go[:4] if member in ("v1", "v2") else to_go[1:], jnp.float32)
    critic: Any = lambda feature: SimpleNamespace(mean=lambda: learned[feature[..., 0]])  # noqa: E731
    nets = ActorCriticNets(actor=critic, critic=critic)
    overrides = [f"behavior={{returns: {member}, return_horizon: 10}}", "loss.replay_critic=0"]
    behavior = actor_critic(small_config(*overrides), PUSH, 28)
    np.testing.assert_allclose(behavior.value(nets, Path(), jnp.arange(4)), to_go[1:], rtol=1e-5)


def test_returns_by_hand():
    """One rollout of two steps, lambda 0: every return is one reward and one value."""
    column = lambda *numbers: jnp.array(numbers, jnp.float32)[:, None]  # noqa: E731
    reward, discount, value = column(1, 2, 3), column(0.5, 0.9, 0.8), column(10, 20, 30)
    found = {kind: judge(kind, reward, discount, 0.0, value, 0.9) for kind in ("v1", "v2", "v3")}
    # v3: R[t] = r[t+1] + d[t+1] v[t+1]
    np.testing.assert_allclose(found["v3"].action_return[:, 0], [2 + 0.9 * 20, 3 + 0.8 * 30])
    np.testing.assert_allclose(found["v3"].action_weight[:, 0], [0.5 / 0.9, 0.5 * 0.9 / 0.9])
    # v2: R[t] = r[t] + d[t] v[t+1], and the first action is judged by R[1].
    np.testing.assert_allclose(found["v2"].state_return[:, 0], [1 + 0.5 * 20, 2 + 0.9 * 30])
    np.testing.assert_allclose(found["v2"].state_weight[:, 0], [1, 0.5])
    np.testing.assert_allclose(found["v2"].action_return[:, 0], [2 + 0.9 * 30])
    np.testing.assert_allclose(found["v2"].action_weight[:, 0], [1])
    # v1: the same without the first state.
    assert found["v1"].first == 1
    np.testing.assert_allclose(found["v1"].state_return[:, 0], [2 + 0.9 * 30])
    np.testing.assert_allclose(found["v1"].state_weight[:, 0], [1])


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rssm", "gaussian_rssm"])
def test_the_actor_learns_through_the_model_and_moves_only_itself(model):
    config = small_config("behavior.kind=dynamics_backprop", f"world_model.kind={model}", "rssm.free_nats=0")
    agent = Agent(config, OBS_SPACES, PUSH)
    key = jax.random.key(3)
    # Fresh heads predict zeros, and nothing would pass through them.
    nets = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), agent.state.nets)

    @jax.jit
    def gradient(nets, memory):
        def chosen(nets):
            _, out = total_loss(agent)(nets, memory, stored, key, config)
            return out.losses["actor"][1].mean()

        return jax.grad(chosen)(nets)

    stored = batch()._replace(stored=jax.tree.map(lambda x: jnp.zeros((2, *x.shape), x.dtype), agent.algorithm.stored))
    found = gradient(nets, agent.state.memory)
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


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["gru", "norm_gru", "early_reset_gru", "block_gru"])
def test_the_derivative_of_imagined_values_by_actions_is_that_of_finite_differences(cell):
    """``dV/da`` along a whole rollout of a frozen model, with the same random numbers, to 1e-3 of the largest.

    Of Gaussian latents: a categorical sample jumps, and has no derivative to compare with.
    """
    config = small_config("world_model.kind=gaussian_rssm", f"rssm.cell={cell}", "nets={activation: elu, norm: none}")
    agent = Agent(config, OBS_SPACES, PUSH)
    key = jax.random.key(3)
    nets = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(key, x.shape), agent.state.nets)
    model = nets.world_model
    actions = 0.5 * jax.random.normal(key, (4, 1, 2))

    @jax.jit
    def value(actions):
        states = follow(model, model.initial(1), {"push": actions}, key)
        feature = model.features(states)
        one = jnp.ones((4, 1))
        return judge("v3", model.reward(states).mean(), 0.9 * one, 0.95, nets.behavior.critic(feature).mean(), 1.0)

    def total(actions):
        return value(actions).action_return[0, 0]

    exact = np.asarray(jax.grad(total)(actions))
    assert np.abs(exact).max() > 0
    numeric = np.zeros_like(exact)
    for index in np.ndindex(exact.shape):
        step = jnp.zeros_like(actions).at[index].set(1e-2)
        numeric[index] = (total(actions + step) - total(actions - step)) / 2e-2
    np.testing.assert_allclose(exact, numeric, rtol=0, atol=1e-3 * np.abs(exact).max())
