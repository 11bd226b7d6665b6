"""Actor and critic, learned inside the world model: imagination, advantages, and their losses.

Source: Hafner et al. 2025, equations 5 to 7; the replay loss of the critic from the released code of April 2024.
"""

import math
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from dreamer.config import BehaviorConfig, Config
from dreamer.equations import distributions, returns
from dreamer.nn.layers import MLP, Linear, prepare
from dreamer.nn.reuse import before_loop, known
from dreamer.types import Action, Batch, Latent, Masks, Metrics, ReturnRange, Space, Spaces, Trajectory
from dreamer.world_models.latent import WorldModel
from dreamer.world_models.rssm import features

PolicyOutputs = dict[str, tuple[Array, ...]]
"""Outputs of the actor's heads by action key, see `Actor.outputs`."""


class Actor(nnx.Module):
    """Policy: latent features to a joint distribution over all action keys."""

    def __init__(self, config: Config, inputs: int, spaces: Spaces, *, rngs: nnx.Rngs):
        self.config = config.behavior
        self.spaces = tuple(sorted(spaces.items()))
        nets = config.nets
        self.mlp = MLP(inputs, nets.units, nets.actor_layers, dtype=nets.dtype, rngs=rngs)

        def head(space: Space) -> Linear:
            # Small initial outputs: the first policy is close to uniform.
            size = math.prod(space.shape) * max(1, space.classes)
            return Linear(self.mlp.outputs, size, scale=0.01, dtype=nets.dtype, rngs=rngs)

        self.heads = nnx.Dict({key: head(space) for key, space in self.spaces})
        self.stds = nnx.Dict({key: head(space) for key, space in self.spaces if space.kind == "continuous"})

    def __call__(self, feature: Float[Array, "*batch F"], masks: Masks | None = None) -> distrax.Joint:
        """Distribution of the action; `sample`, `mode` and `log_prob` take and give dicts by key.

        Args:
            feature: features of the states.
            masks: classes that are allowed there, by action key; at least one of each. The others have probability 0.
        """
        return self.distribution(self.outputs(feature), masks)

    def outputs(self, feature: Float[Array, "*batch F"]) -> PolicyOutputs:
        """What `distribution` is made of, by action key: ``(logits,)``, or ``(mean, std)``, unbounded and flat."""
        hidden = self.mlp(feature)
        heads = {key: (head, self.stds[key]) if key in self.stds else (head,) for key, head in self.heads.items()}
        return {key: tuple(head(hidden) for head in both) for key, both in heads.items()}

    def distribution(self, outputs: PolicyOutputs, masks: Masks | None = None) -> distrax.Joint:
        """Distribution of the action from `outputs`."""
        config, masks, parts = self.config, masks or {}, {}
        for key, space in self.spaces:
            out, rank = [x.reshape(*x.shape[:-1], *space.shape, -1) for x in outputs[key]], len(space.shape)
            if space.kind == "discrete":
                mask = masks.get(key)
                log_probs = distributions.unimix_log_probs(out[0], config.actor_unimix, mask)
                parts[key] = distributions.Categorical(log_probs, rank, mask)
            else:
                mean, std = (x[..., 0] for x in out)
                parts[key] = distributions.bounded_normal(mean, std, config.min_std, config.max_std, rank)
        return distrax.Joint(parts)


class Critic(nnx.Module):
    """Value function: latent features to a distribution of the return."""

    def __init__(self, config: Config, inputs: int, *, rngs: nnx.Rngs):
        nets = config.nets
        self.mlp = MLP(inputs, nets.units, nets.critic_layers, dtype=nets.dtype, rngs=rngs)
        self.head = Linear(self.mlp.outputs, nets.bins, scale=0.0, dtype=nets.dtype, rngs=rngs)

    def __call__(self, feature: Float[Array, "*batch F"]) -> distributions.SymexpTwoHot:
        """Distribution of the return from each state."""
        return distributions.SymexpTwoHot(self.logits(feature))

    def logits(self, feature: Float[Array, "*batch F"]) -> Float[Array, "*batch K"]:
        """Logits of that distribution over its K bins."""
        return self.head(self.mlp(feature))


class Visit(NamedTuple):
    """All that is predicted in an imagined state, ``[N, ...]``, or along a trajectory, ``[H+1, N, ...]``.

    Only ``policy`` and ``value_logits`` have a gradient, that of actor and critic, which the losses ask `known` for.
    """

    feature: Float[Array, "*time N F"]
    policy: PolicyOutputs
    masks: Masks
    reward: Float32[Array, "*time N"]
    cont: Float32[Array, "*time N"]
    value_logits: Float[Array, "*time N K"]
    value: Float32[Array, "*time N"]
    slow_value: Float32[Array, "*time N"]


class Imagined(NamedTuple):
    """An imagined rollout with everything its losses need."""

    action: Action
    visits: Visit
    returns: Float32[Array, "H N"]
    weight: Float32[Array, "H N"]


def imagine_trajectory(
    model: WorldModel, actor: Actor, critic: Critic, slow_critic: Critic, start: Latent, horizon: int, key: Array
) -> Trajectory:
    """Follow the actor for ``horizon`` steps from latents ``[N, ...]``, choosing what the model expects to be allowed.

    Args:
        model: parameters.
        actor: parameters.
        critic: parameters.
        slow_critic: parameters.
        start: latents to start from.
        horizon: steps H.
        key: random key.

    Returns:
        Time first, the start included; its extras are the `Visit` of every state.
    """
    stop = jax.lax.stop_gradient
    model, slow_critic, start = stop((model, slow_critic, start))
    actor, critic = before_loop((actor, critic))

    def visit(feature: Array, outputs: PolicyOutputs, masks: Masks) -> Visit:
        value_logits = critic.logits(feature)
        return Visit(
            feature=feature,
            policy=outputs,
            masks=masks,
            reward=model.reward(feature).mean(),
            cont=jax.nn.sigmoid(model.cont_logit(feature)),
            value_logits=value_logits,
            value=distributions.SymexpTwoHot(stop(value_logits)).mean(),
            slow_value=slow_critic(feature).mean(),
        )

    def policy(latent: Latent, key: Array) -> tuple[Action, Any]:
        feature = stop(features(latent))
        seen = actor.outputs(feature), model.action_masks(feature)
        extras = visit(feature, *seen) if in_loop else seen
        return actor.distribution(stop(seen[0]), seen[1]).sample(seed=key), extras

    # What the actor does not need is computed where it is fastest: on a CPU while a latent is in its cache, elsewhere
    # in a few operations for all steps.
    in_loop = jax.default_backend() == "cpu"
    if in_loop:
        return model.rssm.imagine(start, policy, horizon, key)
    model, actor = prepare((model, actor))
    trajectory = model.rssm.imagine(start, policy, horizon, key)
    return trajectory._replace(extras=visit(stop(features(trajectory.latent)), *trajectory.extras))


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


def actor_loss(
    actor: Actor, imagined: Imagined, scale: Float32[Array, ""], config: BehaviorConfig
) -> tuple[Float32[Array, "H N"], Metrics]:
    """REINFORCE with the critic as baseline, and an entropy bonus.

    ``-w (log pi(a|s) sg((R - v) / max(1, S)) + eta H[pi(.|s)])`` at every imagined step but the last.

    Args:
        actor: parameters that receive the gradient; those that were followed.
        imagined: rollout of the actor.
        scale: divisor of the advantages, see `returns.return_scale`.
        config: behaviour config.
    """
    action, visits = jax.tree.map(lambda x: x[:-1], (imagined.action, imagined.visits))
    policy = actor.distribution(known(Actor.outputs, actor, visits.feature, visits.policy), visits.masks)
    advantage = (imagined.returns - visits.value) / scale
    entropy = policy.entropy()
    loss = -imagined.weight * (policy.log_prob(action) * advantage + config.entropy * entropy)
    metrics = {
        "actor/entropy": entropy.mean(),
        "actor/advantage_mean": advantage.mean(),
        "actor/advantage_magnitude": jnp.abs(advantage).mean(),
    }
    return loss, metrics


def critic_loss(critic: Critic, imagined: Imagined, config: BehaviorConfig) -> Float32[Array, "H N"]:
    """Cross-entropy with the imagined returns, and with the slow critic's prediction as a regulariser.

    Args:
        critic: parameters that receive the gradient; those that predicted the values.
        imagined: rollout of the actor.
        config: behaviour config.
    """
    visits = jax.tree.map(lambda x: x[:-1], imagined.visits)
    prediction = distributions.SymexpTwoHot(known(Critic.logits, critic, visits.feature, visits.value_logits))
    loss = -prediction.log_prob(imagined.returns)
    loss -= config.slow_regularizer * prediction.log_prob(visits.slow_value)
    return imagined.weight * loss


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


def imagination_metrics(imagined: Imagined, span: ReturnRange, scale: Float32[Array, ""]) -> Metrics:
    """Summary of a rollout for the log."""
    visits = imagined.visits
    return {
        "imagined/reward": visits.reward[1:].mean(),
        "imagined/cont": visits.cont.mean(),
        "imagined/return": imagined.returns.mean(),
        "imagined/value": visits.value.mean(),
        "imagined/slow_value": visits.slow_value.mean(),
        "imagined/weight": imagined.weight.mean(),
        "imagined/return_low": span.low,
        "imagined/return_high": span.high,
        "imagined/return_scale": scale,
    }
