"""Actor and critic losses, by hand and by their effect."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer.agent import Agent
from dreamer.behaviors import actor_critic as behavior
from dreamer.behaviors.actor_critic import (
    Imagined,
    Visit,
    actor_loss,
    critic_loss,
    evaluate_trajectory,
    imagine_trajectory,
    replay_critic_loss,
)
from dreamer.behaviors.heads import Actor, Critic
from dreamer.types import Batch, Space
from dreamer.world_models.rssm import Latent, StoredLatent
from tests.small import small_batch, small_config

F, H, N = 6, 3, 4
DISCRETE = {"move": Space("discrete", (), 3)}
SPACES = {
    "buttons": Space("discrete", (4,), 2),
    "move": Space("discrete", (), 3),
    "push": Space("continuous", (2,)),
}


@pytest.fixture(scope="module")
def config():
    return small_config("behavior.actor_unimix=0.01")


def imagined(rng, action, returns, feature, weight=None, masks=None, policy=None, value_logits=None):
    array = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    visits = Visit(
        feature=feature,
        policy=policy or {},
        masks=masks or {},
        reward=array(H + 1, N),
        cont=jnp.ones((H + 1, N)),
        value_logits=value_logits,
        value=jnp.zeros((H + 1, N)),
        slow_value=array(H + 1, N),
    )
    returns = jnp.broadcast_to(jnp.float32(returns), (H, N))
    return Imagined(action, visits, returns, jnp.ones((H, N)) if weight is None else weight)


@pytest.fixture
def feature(rng):
    return jnp.asarray(rng.normal(size=(H + 1, N, F)), jnp.float32)


def test_the_policy_is_a_joint_distribution_over_all_keys(config):
    actor = Actor(config, F, SPACES, rngs=nnx.Rngs(params=0))
    policy = actor(jnp.ones((5, F)))
    sample = policy.sample(seed=jax.random.key(0))
    assert {k: v.shape for k, v in sample.items()} == {"buttons": (5, 4), "move": (5,), "push": (5, 2)}
    assert policy.log_prob(sample).shape == policy.entropy().shape == (5,)
    uniform = 4 * np.log(2) + np.log(3)
    normal = 2 * (0.5 * np.log(2 * np.pi * np.e) + np.log(0.9 / (1 + np.exp(-2)) + 0.1))
    np.testing.assert_allclose(policy.entropy(), uniform + normal, rtol=0.01)


def test_the_discrete_policy_keeps_a_share_of_every_action(config):
    actor = Actor(config, F, DISCRETE, rngs=nnx.Rngs(params=0))
    actor.heads["move"].bias[...] = jnp.array([50.0, 0.0, 0.0])
    log_prob = actor(jnp.ones((1, F))).log_prob({"move": jnp.array([1])})
    np.testing.assert_allclose(jnp.exp(log_prob), 0.01 / 3, rtol=1e-3)


def test_actor_loss_by_hand(config, rng, feature):
    actor = Actor(config, F, DISCRETE, rngs=nnx.Rngs(params=0))
    action = {"move": jnp.asarray(rng.integers(0, 3, (H + 1, N)), jnp.int32)}
    weight = jnp.asarray(rng.uniform(size=(H, N)), jnp.float32)
    rollout = imagined(rng, action, 6.0, feature, weight, policy=actor.outputs(feature))
    loss, metrics = actor_loss(actor, rollout, jnp.float32(2.0), config.behavior)
    policy = actor(feature[:-1])
    expected = -weight * (policy.log_prob({"move": action["move"][:-1]}) * 3.0 + 3e-4 * policy.entropy())
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/advantage_mean"], 3.0, rtol=1e-6)


def test_actor_loss_counts_allowed_actions_only(config, rng, feature):
    actor = Actor(config, F, DISCRETE, rngs=nnx.Rngs(params=0))
    # With equal probabilities, so that the entropy is the logarithm of the number of allowed classes.
    actor.heads["move"].kernel[...] = jnp.zeros_like(actor.heads["move"].kernel[...])
    action = {"move": jnp.full((H + 1, N), 2)}
    masks = {"move": jnp.broadcast_to(jnp.array([True, False, True]), (H + 1, N, 3))}
    rollout = imagined(rng, action, 6.0, feature, masks=masks, policy=actor.outputs(feature))
    loss, metrics = actor_loss(actor, rollout, jnp.float32(2.0), config.behavior)
    np.testing.assert_allclose(loss, (3.0 - 3e-4) * np.full((H, N), np.log(2)), rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/entropy"], np.log(2), rtol=1e-5)


@pytest.mark.parametrize(("returns", "sign"), [(5.0, 1), (-5.0, -1)])
def test_the_actor_moves_towards_actions_with_a_positive_advantage(config, rng, feature, returns, sign):
    actor = Actor(config, F, SPACES, rngs=nnx.Rngs(params=0))
    action = jax.jit(lambda: actor(jnp.ones((H + 1, N, F))).sample(seed=jax.random.key(1)))()
    chosen = jax.tree.map(lambda x: x[:-1], action)

    def likelihood(actor):
        return actor(feature[:-1]).log_prob(chosen).mean()

    def loss(actor):
        rollout = imagined(np.random.default_rng(0), action, returns, feature, policy=actor.outputs(feature))
        return actor_loss(actor, rollout, jnp.float32(1.0), config.behavior)[0].mean()

    @jax.jit
    def step(actor):
        gradient = jax.grad(loss)(actor)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, actor, gradient)

    assert sign * (likelihood(step(actor)) - likelihood(actor)) > 0


@pytest.fixture
def critic(config, rng):
    """One with opinions: for a fresh one, which finds all returns equally likely, no target is better than another."""
    critic = Critic(config, F, rngs=nnx.Rngs(params=0))
    critic.head.kernel[...] = jnp.asarray(0.3 * rng.normal(size=critic.head.kernel.shape), jnp.float32)
    return critic


def test_a_fresh_critic_expects_nothing(config, feature):
    fresh = Critic(config, F, rngs=nnx.Rngs(params=0))
    np.testing.assert_array_equal(fresh(feature).mean(), jnp.zeros((H + 1, N)))


def test_critic_loss_by_hand(config, critic, rng, feature):
    weight = jnp.asarray(rng.uniform(size=(H, N)), jnp.float32)
    rollout = imagined(rng, {}, 2.5, feature, weight, value_logits=critic.logits(feature))
    prediction = critic(feature[:-1])
    expected = -weight * (prediction.log_prob(rollout.returns) + prediction.log_prob(rollout.visits.slow_value[:-1]))
    np.testing.assert_allclose(critic_loss(critic, rollout, config.behavior), expected, rtol=1e-6)


def test_replay_critic_loss_takes_real_rewards_and_stops_at_the_end_of_an_episode(config, critic, rng):
    feature = jnp.asarray(rng.normal(size=(1, 6, F)), jnp.float32)
    #           cut off by a time limit in step 1             the task is over in step 4
    batch = Batch(
        obs={},
        prev_action={},
        reward=np.array([[9.0, 3.0, 0.0, 5.0, 7.0, 0.0]], np.float32),
        is_first=np.array([[False, False, True, False, False, True]]),
        is_last=np.array([[False, True, False, False, True, False]]),
        is_terminal=np.array([[False, False, False, False, True, False]]),
        stored=StoredLatent(np.zeros((1, 1)), np.zeros((1, 1))),
    )
    bootstrap = jnp.array([[7.0, 20.0, 100.0, 40.0, 100.0, 30.0]])
    loss = replay_critic_loss(critic, critic, feature, batch, bootstrap, config.behavior)
    prediction = critic(feature[:, :-1])
    # Step 0 falls back on the value of the last observation. Steps 1 and 4 end an episode: no loss. Step 2 mixes the
    # value of step 3 with what comes after it, which is the last reward alone.
    discount = 1 - 1 / 333
    target = jnp.array([[3 + discount * 20, 0.0, 5 + discount * (0.05 * 40 + 0.95 * 7), 7.0, 0.0]])
    losses = -(prediction.log_prob(target) + prediction.log_prob(prediction.mean()))
    np.testing.assert_allclose(loss, losses * np.array([[1.0, 0.0, 1.0, 1.0, 0.0]]), rtol=1e-5)


def test_imagination_starts_from_the_last_states_of_every_sequence():
    states = jnp.arange(10.0).reshape(2, 5, 1)
    seen, batch = types.SimpleNamespace(states={"count": states}), small_batch(steps=5)
    few = small_config("behavior.starts=2", "replay.batch_length=5").behavior
    assert behavior.start_states(seen, batch, few)["count"][:, 0].tolist() == [3, 4, 8, 9]
    every = small_config("behavior.starts=0", "replay.batch_length=5").behavior
    assert behavior.start_states(seen, batch, every)["count"][:, 0].tolist() == list(range(10))


def test_the_critic_learns_from_the_last_steps_of_a_sequence(config, critic, rng):
    """Features of the last three of four steps, and their rewards."""
    feature = jnp.asarray(rng.normal(size=(1, 3, F)), jnp.float32)
    no = np.zeros((1, 4), bool)
    reward = np.array([[9.0, 8.0, 2.0, 5.0]], np.float32)
    batch = Batch({}, {}, reward, no, no.copy(), no.copy(), StoredLatent(np.zeros((1, 1)), np.zeros((1, 1))))
    loss = replay_critic_loss(critic, critic, feature, batch, jnp.zeros((1, 3)), config.behavior)
    prediction = critic(feature[:, :-1])
    target = jnp.array([[2 + (1 - 1 / 333) * 0.95 * 5, 5.0]])
    expected = -(prediction.log_prob(target) + prediction.log_prob(prediction.mean()))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("late", [False, True])
def test_predictions_made_while_imagining_equal_those_made_afterwards(config, late, monkeypatch):
    """The heads are evaluated inside the loop, for speed; the plain way is to stack all states first."""
    monkeypatch.setattr(behavior, "reuse_pays", lambda loops: late)
    agent = Agent(config, {"obs": Space("vector", (5,))}, SPACES)
    state, c = agent.state, config.rssm
    keys = jax.random.split(jax.random.key(7), 4)
    stoch = jax.nn.one_hot(jax.random.randint(keys[0], (N, c.stoch), 0, c.classes), c.classes)
    start = Latent(jax.random.normal(keys[1], (N, c.deter)), stoch)
    # Fresh heads predict zeros; noise makes every gradient count.
    noisy = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(keys[2], x.shape), (state.nets, state.memory.behavior.slow_critic)
    )
    (model, learners, _), slow = noisy
    # As trained heads do, these give little to bins of 1e8; returns of a million would leave the critic's gradient,
    # a difference of nearly equal shares, to rounding.
    near_zero = -0.5 * jnp.linspace(-20, 20, config.nets.bins) ** 2
    for head in (model.reward_head, learners.critic.head, slow.head):
        head.bias[...] += near_zero

    def loss(learners, trajectory):
        imagined = evaluate_trajectory(trajectory, config.behavior)
        losses = actor_loss(learners.actor, imagined, jnp.float32(1.0), config.behavior)[0]
        return (losses + critic_loss(learners.critic, imagined, config.behavior)).mean()

    def inside(learners):
        trajectory = imagine_trajectory(model, learners, slow, start, H, keys[3])
        return loss(learners, trajectory), trajectory

    def afterwards(learners, trajectory):
        feature = model.features(trajectory.states)
        visits = Visit(
            feature=feature,
            policy=learners.actor.outputs(feature),
            masks={},
            reward=model.reward(trajectory.states).mean(),
            cont=model.cont(trajectory.states),
            value_logits=learners.critic.logits(feature),
            value=jax.lax.stop_gradient(learners.critic(feature).mean()),
            slow_value=slow(feature).mean(),
        )
        return loss(learners, trajectory._replace(extras=visits))

    (ours, trajectory), our_gradient = jax.jit(jax.value_and_grad(inside, has_aux=True))(learners)
    # The same trajectory: imagined again by another program, its states would differ by more than the heads do.
    monkeypatch.setattr(behavior, "take", lambda network, module, x, result, loops: network(module, x))
    plain, plain_gradient = jax.jit(jax.value_and_grad(afterwards))(learners, trajectory)
    np.testing.assert_allclose(ours, plain, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (our_gradient, plain_gradient)), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())
