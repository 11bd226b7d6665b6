"""Actor and critic, learned inside the world model: imagination, advantages, and their losses.

Source: Hafner et al. 2025, equations 5 to 7; the replay loss of the critic from the released code of April 2024.
"""

import math
from typing import NamedTuple

import distrax
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from dreamer import distributions, returns
from dreamer.config import BehaviorConfig, Config
from dreamer.networks import MLP, Linear
from dreamer.rssm import features
from dreamer.types import Action, Batch, Latent, Masks, Metrics, ReturnRange, Space, Spaces, Trajectory
from dreamer.world_model import WorldModel


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
        hidden, batch, config, masks = self.mlp(feature), feature.shape[:-1], self.config, masks or {}
        parts = {}
        for key, space in self.spaces:
            out, rank = self.heads[key](hidden), len(space.shape)
            if space.kind == "discrete":
                logits = out.reshape(*batch, *space.shape, space.classes)
                mask = masks.get(key)
                log_probs = distributions.unimix_log_probs(logits, config.actor_unimix, mask)
                parts[key] = distributions.Categorical(log_probs, rank, mask)
            else:
                mean, std = (x.reshape(*batch, *space.shape) for x in (out, self.stds[key](hidden)))
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
        return distributions.SymexpTwoHot(self.head(self.mlp(feature)))


class Imagined(NamedTuple):
    """An imagined rollout with everything its losses need, ``[H+1, N, ...]``; no gradient flows into it."""

    feature: Float[Array, "H_plus_1 N F"]
    action: Action
    reward: Float32[Array, "H_plus_1 N"]
    cont: Float32[Array, "H_plus_1 N"]
    value: Float32[Array, "H_plus_1 N"]
    slow_value: Float32[Array, "H_plus_1 N"]
    returns: Float32[Array, "H N"]
    weight: Float32[Array, "H N"]
    masks: Masks


def imagine_trajectory(model: WorldModel, actor: Actor, start: Latent, horizon: int, key: Array) -> Trajectory:
    """Follow the actor for ``horizon`` steps from latents ``[N, ...]``; time first, the start included.

    It chooses among the actions that the model expects to be allowed.
    """

    def policy(latent: Latent, key: Array) -> Action:
        feature = features(latent)
        return actor(feature, model.action_masks(feature)).sample(seed=key)

    return model.rssm.imagine(start, policy, horizon, key)


def evaluate_trajectory(
    model: WorldModel,
    value: Float32[Array, "H_plus_1 N"],
    slow_critic: Critic,
    feature: Float[Array, "H_plus_1 N F"],
    action: Action,
    config: BehaviorConfig,
) -> Imagined:
    """Predict reward, continuation, slow value and masks of every imagined state, and the lambda-returns that follow.

    The reward of leaving state t is predicted from state t+1. A start state from a terminal step has a low
    continuation, so its whole trajectory weighs little.

    Args:
        model: parameters, without gradient.
        value: the critic's prediction in every state, without gradient.
        slow_critic: parameters of the slow critic.
        feature: features of the trajectory's latents.
        action: the trajectory's actions.
        config: behaviour config.
    """
    reward, cont = model.reward(feature).mean(), jax.nn.sigmoid(model.cont_logit(feature))
    slow_value = slow_critic(feature).mean()
    # With cont_discount the head was trained on discounted targets: the discount must not be applied again.
    discount = 1.0 if config.cont_discount else 1 - 1 / config.return_horizon
    target = returns.lambda_return(reward, cont * discount, config.return_lambda, value)
    weight = returns.survival_weights(cont, discount)[:-1]
    masks = model.action_masks(feature)
    return Imagined(feature, action, reward, cont, value, slow_value, target, weight, masks)


def actor_loss(
    actor: Actor, imagined: Imagined, scale: Float32[Array, ""], config: BehaviorConfig
) -> tuple[Float32[Array, "H N"], Metrics]:
    """REINFORCE with the critic as baseline, and an entropy bonus.

    ``-w (log pi(a|s) sg((R - v) / max(1, S)) + eta H[pi(.|s)])`` at every imagined step but the last.

    Args:
        actor: parameters that receive the gradient.
        imagined: rollout of the actor.
        scale: divisor of the advantages, see `returns.return_scale`.
        config: behaviour config.
    """
    action, masks = jax.tree.map(lambda x: x[:-1], (imagined.action, imagined.masks))
    # What was chosen was allowed, even if the mask, computed a second time and in another shape, is rounded differently.
    masks = {key: mask | jax.nn.one_hot(action[key], mask.shape[-1], dtype=bool) for key, mask in masks.items()}
    policy = actor(imagined.feature[:-1], masks)
    advantage = (imagined.returns - imagined.value[:-1]) / scale
    entropy = policy.entropy()
    loss = -imagined.weight * (policy.log_prob(action) * advantage + config.entropy * entropy)
    metrics = {
        "actor/entropy": entropy.mean(),
        "actor/advantage_mean": advantage.mean(),
        "actor/advantage_magnitude": jnp.abs(advantage).mean(),
    }
    return loss, metrics


def predict_values(
    critic: Critic, feature: Float[Array, "H_plus_1 N F"]
) -> tuple[distributions.SymexpTwoHot, Float32[Array, "H_plus_1 N"]]:
    """The critic along a trajectory: its distribution in all states but the last, and the mean in all, for targets.

    The first carries the gradient of `critic_loss`, the second none; evaluating both at once saves a forward pass.
    """
    prediction = critic(feature[:-1])
    last = critic(feature[-1:]).mean()
    return prediction, jax.lax.stop_gradient(jnp.concatenate([prediction.mean(), last]))


def critic_loss(
    prediction: distributions.SymexpTwoHot, imagined: Imagined, config: BehaviorConfig
) -> Float32[Array, "H N"]:
    """Cross-entropy with the imagined returns, and with the slow critic's prediction as a regulariser.

    Args:
        prediction: the critic in all states but the last, see `predict_values`.
        imagined: the rollout.
        config: behaviour config.
    """
    loss = -prediction.log_prob(imagined.returns)
    loss -= config.slow_regularizer * prediction.log_prob(imagined.slow_value[:-1])
    return imagined.weight * loss


def replay_critic_loss(
    critic: Critic,
    slow_critic: Critic,
    feature: Float[Array, "B K F"],
    batch: Batch,
    bootstrap: Float32[Array, "B K"],
    config: BehaviorConfig,
) -> Float32[Array, "B K_minus_1"]:
    """Cross-entropy with lambda-returns over real rewards; its gradient reaches the world model through ``feature``.

    Args:
        critic: parameters that receive the gradient.
        slow_critic: parameters of the regulariser.
        feature: posterior features of the last K steps.
        batch: the sequences; its last K steps are used.
        bootstrap: imagined return from each of these states, the value to fall back on.
        config: behaviour config.
    """
    steps = feature.shape[1]
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
    return {
        "imagined/reward": imagined.reward[1:].mean(),
        "imagined/cont": imagined.cont.mean(),
        "imagined/return": imagined.returns.mean(),
        "imagined/value": imagined.value.mean(),
        "imagined/slow_value": imagined.slow_value.mean(),
        "imagined/weight": imagined.weight.mean(),
        "imagined/return_low": span.low,
        "imagined/return_high": span.high,
        "imagined/return_scale": scale,
    }
