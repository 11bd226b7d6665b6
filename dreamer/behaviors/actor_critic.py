"""Actor and critic, learned inside the world model: imagination, advantages, and their losses.

Source: Hafner et al. 2025, equations 5 to 7; the replay loss of the critic from the released code of April 2024.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Float32

from dreamer.behaviors.base import Reward
from dreamer.behaviors.heads import Actor, Critic, PolicyOutputs
from dreamer.config import BehaviorConfig, Config
from dreamer.devices import backend, batch_axis
from dreamer.devices.phases import phase
from dreamer.equations import returns
from dreamer.equations.distributions import Categorical
from dreamer.equations.returns import ReturnRange
from dreamer.nn import reuse
from dreamer.nn.layers import prepare
from dreamer.nn.loops import Loops, reuse_pays
from dreamer.types import Action, Batch, Masks, Metrics, Mode, Spaces, State, Trajectory, is_off
from dreamer.world_models.base import Dynamics, Losses, Seen
from dreamer.world_models.imagine import imagine


class ActorCriticNets(NamedTuple):
    """Parameters that have gradients."""

    actor: Actor
    critic: Critic


class ActorCriticMemory(NamedTuple):
    """What follows from update to update."""

    slow_critic: Critic
    return_range: ReturnRange
    updates: Any = ()
    """Updates done, an integer, if the slow critic does not move in every one."""


class Visit(NamedTuple):
    """All that is predicted in an imagined state, ``[N, ...]``, or along a trajectory, ``[H+1, N, ...]``.

    Only ``policy`` and ``value_logits`` have a gradient, that of actor and critic, see `imagine_trajectory`.
    """

    feature: Float[Array, "*time N F"]
    """What the policy and the critics read."""
    policy: PolicyOutputs
    """What the actor makes of it."""
    masks: Masks
    """Classes that are expected to be allowed."""
    reward: Float32[Array, "*time N"]
    """Expected on arriving here."""
    cont: Float32[Array, "*time N"]
    """Probability of continuing from here."""
    value_logits: Float[Array, "*time N K"]
    """What the critic makes of it."""
    value: Float32[Array, "*time N"]
    """Its mean, without a gradient."""
    slow_value: Float32[Array, "*time N"]
    """The slow critic's."""


class Imagined(NamedTuple):
    """An imagined rollout with everything its losses need."""

    action: Action
    """``[H+1, N, ...]`` by action key."""
    visits: Visit
    """``[H+1, N, ...]``."""
    returns: Float32[Array, "H N"]
    """Lambda-returns from each state but the last."""
    weight: Float32[Array, "H N"]
    """Probability, with discount, of reaching each of these states."""


@phase("imagination")
def imagine_trajectory(
    model: Dynamics,
    nets: ActorCriticNets,
    slow_critic: Critic,
    start: State,
    horizon: int,
    key: Array,
    *,
    reward: Reward | None = None,
    loops: Loops = "auto",
) -> Trajectory:
    """Follow the actor for ``horizon`` steps from states ``[N, ...]``, choosing what the model expects to be allowed.

    Args:
        model: parameters, which get no gradient.
        nets: parameters, which get the gradients of the policy and of the value logits alone.
        slow_critic: parameters, which get no gradient.
        start: states to start from.
        horizon: steps H.
        key: random key.
        reward: what is rewarded; None: what the model expects.
        loops: ``nets.loops``.

    Returns:
        Time first, the start included; its extras are the `Visit` of every state.
    """
    stop = jax.lax.stop_gradient
    model, slow_critic, start = stop((model, slow_critic, start))
    reused = reuse_pays(loops)
    # What is reused has its gradient from a batch of all steps, see `take`. Then the loop is left without one.
    actor, critic = stop(nets) if reused else nets

    def visit(state: State, feature: Array, outputs: PolicyOutputs, masks: Masks) -> Visit:
        value_logits = critic.logits(feature)
        return Visit(
            feature=feature,
            policy=outputs,
            masks=masks,
            reward=(reward or model.reward)(state).mean(),
            cont=model.cont(state),
            value_logits=value_logits,
            value=critic.distribution(stop(value_logits)).mean(),
            slow_value=slow_critic(feature).mean(),
        )

    def policy(state: State, key: Array) -> tuple[Action, Any]:
        state = stop(state)
        feature = model.features(state)
        outputs = actor.outputs(feature)
        masks = model.masks(state)
        extras = visit(state, feature, outputs, masks) if in_loop else (outputs, masks)
        return actor.distribution(stop(outputs), masks).sample(seed=key), extras

    # What the actor does not need is computed where it is fastest: on a CPU while a state is in its cache, elsewhere
    # in a few operations for all steps.
    in_loop = backend.on_cpu()
    if in_loop:
        return imagine(model, start, policy, horizon, key)
    model, actor = prepare((model, actor))
    trajectory = imagine(model, start, policy, horizon, key)
    states = stop(trajectory.states)
    return trajectory._replace(extras=visit(states, model.features(states), *trajectory.extras))


@phase("returns")
def evaluate_trajectory(trajectory: Trajectory, config: BehaviorConfig) -> Imagined:
    """Add the lambda-returns that follow from the predictions, and the weight of every step.

    The reward of leaving state t is predicted from state t+1. A start state from a terminal step has a low
    continuation, so its whole trajectory weighs little.
    """
    visits = trajectory.extras
    # With cont_discount the head was trained on discounted targets: the discount must not be applied again.
    discount = 1.0 if config.cont_discount else 1 - 1 / config.return_horizon
    target = returns.lambda_return(visits.reward, visits.cont * discount, config.return_lambda, visits.value)
    weight = returns.survival_weights(visits.cont, discount)[:-1]
    return Imagined(trajectory.action, visits, target, weight)


@phase("actor")
def actor_loss(
    actor: Actor, imagined: Imagined, scale: Float32[Array, ""], config: BehaviorConfig, loops: Loops = "auto"
) -> tuple[Float32[Array, "H N"], Metrics]:
    """REINFORCE with the critic as baseline, and an entropy bonus.

    ``-w (log pi(a|s) sg((R - v) / max(1, S)) + eta H[pi(.|s)])`` at every imagined step but the last.

    Args:
        actor: parameters that receive the gradient; those that were followed.
        imagined: rollout of the actor.
        scale: divisor of the advantages, see `returns.return_scale`.
        config: behaviour config.
        loops: ``nets.loops``.
    """
    action, visits = jax.tree.map(lambda x: x[:-1], (imagined.action, imagined.visits))
    outputs = take(Actor.outputs, actor, visits.feature, visits.policy, loops)
    policy = actor.distribution(outputs, visits.masks)
    advantage = (imagined.returns - visits.value) / scale
    entropy = policy.entropy()
    loss = -imagined.weight * (policy.log_prob(action) * advantage + config.entropy * entropy)
    metrics = {
        "actor/entropy": entropy.mean(),
        "actor/advantage_mean": advantage.mean(),
        "actor/advantage_magnitude": jnp.abs(advantage).mean(),
    }
    return loss, metrics


@phase("critic")
def critic_loss(
    critic: Critic, imagined: Imagined, config: BehaviorConfig, loops: Loops = "auto"
) -> Float32[Array, "H N"]:
    """Cross-entropy with the imagined returns, and with the slow critic's prediction as a regulariser.

    Args:
        critic: parameters that receive the gradient; those that predicted the values.
        imagined: rollout of the actor.
        config: behaviour config.
        loops: ``nets.loops``.
    """
    visits = jax.tree.map(lambda x: x[:-1], imagined.visits)
    prediction = critic.distribution(take(Critic.logits, critic, visits.feature, visits.value_logits, loops))
    loss = -prediction.log_prob(imagined.returns)
    loss -= config.slow_regularizer * prediction.log_prob(visits.slow_value)
    return imagined.weight * loss


def take(network: reuse.Network, module: nnx.Module, feature: Array, result: Any, loops: Loops) -> Any:
    """What a network said in imagination, ``result [H, N, ...]``, with its gradient for ``module``."""
    return (reuse.reuse if reuse_pays(loops) else reuse.plain)(network, module, feature, result)


@phase("critic")
def replay_critic_loss(
    critic: Critic,
    slow_critic: Critic,
    feature: Float[Array, "B K F"],
    batch: Batch,
    bootstrap: Float32[Array, "B K"],
    config: BehaviorConfig,
) -> Float32[Array, "B K_minus_1"]:
    """Cross-entropy with lambda-returns over real rewards.

    If ``config.replay_gradient``, its gradient reaches the world model through ``feature``.

    Args:
        critic: parameters that receive the gradient.
        slow_critic: parameters of the regulariser.
        feature: posterior features of the last K steps.
        batch: the sequences; its last K steps are used.
        bootstrap: imagined return from each of these states, the value to fall back on.
        config: behaviour config.
    """
    steps = feature.shape[1]
    if not config.replay_gradient:
        feature = jax.lax.stop_gradient(feature)
    reward, is_last, is_terminal = (
        jnp.asarray(x)[:, -steps:].astype(jnp.float32) for x in (batch.reward, batch.is_last, batch.is_terminal)
    )
    discount = (1 - is_terminal) * (1 - 1 / config.return_horizon)
    mixing = (1 - is_last) * config.return_lambda
    target = returns.lambda_return(*(x.T for x in (reward, discount, mixing, bootstrap))).T
    prediction = critic(feature[:, :-1])
    slow_value = slow_critic(jax.lax.stop_gradient(feature[:, :-1])).mean()
    loss = -prediction.log_prob(target) - config.slow_regularizer * prediction.log_prob(slow_value)
    # The step that ends an episode has no action to learn the value of.
    return (1 - is_last[:, :-1]) * loss


@phase("returns")
def next_scale(
    range_: ReturnRange, imagined_returns: Float32[Array, "H N"], config: BehaviorConfig
) -> tuple[ReturnRange, Float32[Array, ""]]:
    """The range of returns after those of a batch, on all its devices; and what advantages are divided by."""
    everywhere = batch_axis.all_rows(imagined_returns, 1)
    range_ = returns.update_return_range(range_, everywhere, config.return_rate)
    return range_, returns.return_scale(range_, config.return_limit)


def all_losses(
    critic: Critic,
    slow_critic: Critic,
    actor_losses: Float32[Array, "actions N"],
    critic_losses: Float32[Array, "states N"],
    imagined: Imagined,
    *,
    feature: Float[Array, "B K F"],
    batch: Batch,
    config: Config,
) -> Losses:
    """What was learned from imagination, ``[B, K]``, and what the critic learns from replay, each with its weight.

    Args:
        critic: parameters.
        slow_critic: the regularizer.
        actor_losses: of every action that is judged; N = B K rollouts.
        critic_losses: of every imagined state whose value learns.
        imagined: the rollouts.
        feature: of the states that they started from, the last K of every sequence.
        batch: the sequences.
        config: the run's config, whose numbers may be traced.
    """
    rows_starts = feature.shape[:2]
    learned: Losses = {
        "actor": (config.loss.actor, actor_losses.mean(0).reshape(rows_starts)),
        "critic": (config.loss.critic, critic_losses.mean(0).reshape(rows_starts)),
    }
    weight = config.loss.replay_critic
    if is_off(weight):
        return learned
    # The critic also learns from real rewards, falling back on the imagined return of each state.
    replayed = replay_critic_loss(
        critic,
        slow_critic,
        feature=feature,
        batch=batch,
        bootstrap=imagined.returns[0].reshape(rows_starts),
        config=config.behavior,
    )
    return learned | {"replay_critic": (weight, replayed)}


def imagination_metrics(imagined: Imagined, range_: ReturnRange, scale: Float32[Array, ""]) -> Metrics:
    """Summary of a rollout for the log."""
    visits = imagined.visits
    return {
        "imagined/reward": visits.reward[1:].mean(),
        "imagined/cont": visits.cont.mean(),
        "imagined/return": imagined.returns.mean(),
        "imagined/value": visits.value.mean(),
        "imagined/slow_value": visits.slow_value.mean(),
        "imagined/weight": imagined.weight.mean(),
        "imagined/return_low": range_.low,
        "imagined/return_high": range_.high,
        "imagined/return_scale": scale,
    }


@dataclasses.dataclass(frozen=True)
class ActorCritic:
    """REINFORCE with a critic, the behaviour of DreamerV3. See `dreamer.behaviors.base.Behavior`.

    Attributes:
        config: the run's config; sizes only, numbers come with each call of `loss`.
        action_spaces: spaces of the action keys.
        feature_size: size F of the features of a state.
    """

    config: Config
    action_spaces: Spaces
    feature_size: int

    def init(self, rngs: nnx.Rngs) -> tuple[ActorCriticNets, ActorCriticMemory]:
        """Fresh actor and critic; the slow critic starts as a copy, and the range of returns at 0."""
        actor = Actor(self.config, self.feature_size, self.action_spaces, rngs=rngs)
        critic = Critic(self.config, self.feature_size, rngs=rngs)
        range_ = ReturnRange(jnp.zeros(()), jnp.zeros(()))
        updates = () if self._moves_always(self.config.behavior) else jnp.zeros((), jnp.int32)
        return ActorCriticNets(actor, critic), ActorCriticMemory(jax.tree.map(jnp.copy, critic), range_, updates)

    def act(
        self, nets: ActorCriticNets, feature: Float[Array, "*batch F"], masks: Masks, key: Array, mode: Mode
    ) -> Action:
        """Draw actions from the policy, or take its mode."""
        distribution = nets.actor(feature, masks)
        return distribution.sample(seed=key) if mode == "sample" else distribution.mode()

    def log_probs(self, nets: ActorCriticNets, feature: Float[Array, "*batch F"], masks: Masks) -> dict[str, Array]:
        """Those of the policy, ``[*batch, ..., C]`` by key of discrete actions."""
        distributions = nets.actor(feature, masks).distributions
        return {key: one.log_probs for key, one in distributions.items() if isinstance(one, Categorical)}

    def value(self, nets: ActorCriticNets, model: Dynamics, state: State) -> Float32[Array, "*batch"]:
        """The critic's expected return."""
        return nets.critic(model.features(state)).mean()

    def loss(
        self,
        nets: ActorCriticNets,
        memory: ActorCriticMemory,
        model: Dynamics,
        seen: Seen,
        batch: Batch,
        key: Array,
        config: Config,
        reward: Reward | None = None,
    ) -> tuple[Losses, ActorCriticMemory, Metrics]:
        """Losses of actor and critic on imagined trajectories, and of the critic on replayed ones."""
        behavior = config.behavior
        _, starts = start_shape(batch, behavior)
        trajectory = imagine_trajectory(
            model,
            nets,
            memory.slow_critic,
            start=start_states(seen, batch, behavior),
            horizon=behavior.horizon,
            key=key,
            reward=reward,
            loops=config.nets.loops,
        )
        imagined = evaluate_trajectory(trajectory, behavior)
        range_, scale = next_scale(memory.return_range, imagined.returns, behavior)
        actor_losses, metrics = actor_loss(nets.actor, imagined, scale, behavior, config.nets.loops)
        critic_losses = critic_loss(nets.critic, imagined, behavior, config.nets.loops)
        feature = model.features(last_states(seen, starts))
        losses = all_losses(
            nets.critic,
            memory.slow_critic,
            actor_losses,
            critic_losses,
            imagined,
            feature=feature,
            batch=batch,
            config=config,
        )
        metrics |= imagination_metrics(imagined, range_, scale)
        return losses, memory._replace(return_range=range_), metrics

    def after_update(self, nets: ActorCriticNets, memory: ActorCriticMemory, config: Config) -> ActorCriticMemory:
        """The slow critic follows the critic; if not in every update, it is a copy after the first."""
        behavior = config.behavior
        if self._moves_always(behavior):
            slow = optax.incremental_update(nets.critic, memory.slow_critic, behavior.slow_rate)
            return memory._replace(slow_critic=slow)
        due = memory.updates % behavior.slow_every == 0
        rate = jnp.where(due, jnp.where(memory.updates == 0, 1.0, behavior.slow_rate), 0.0)
        slow = optax.incremental_update(nets.critic, memory.slow_critic, rate)
        return memory._replace(slow_critic=slow, updates=memory.updates + 1)

    @staticmethod
    def _moves_always(behavior: BehaviorConfig) -> bool:
        return isinstance(behavior.slow_every, int) and behavior.slow_every == 1


def start_shape(batch: Batch, config: BehaviorConfig) -> tuple[int, int]:
    """Sequences of a batch, and states of each from which imagination starts: the last ``config.starts``, or all."""
    rows, steps = batch.reward.shape
    return rows, config.starts or steps


def last_states(seen: Seen, count: int) -> State:
    """The last states of every sequence, ``[B, count, ...]``."""
    return jax.tree.map(lambda x: x[:, -count:], seen.states)


def start_states(seen: Seen, batch: Batch, config: BehaviorConfig) -> State:
    """The states from which imagination starts, in one axis ``[N, ...]``."""
    rows, starts = start_shape(batch, config)
    return jax.tree.map(lambda x: x.reshape(rows * starts, *x.shape[2:]), last_states(seen, starts))
