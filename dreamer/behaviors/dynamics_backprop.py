"""An actor that ascends imagined returns through the model: gradients pass from rewards and values back to actions.

The first Dreamer's way of learning a policy, for continuous actions and latents with a gradient (reparameterised, or
straight-through). The critic, its targets and what replay teaches it are those of `dreamer.behaviors.actor_critic`.

Source: Hafner et al. 2020, "Dream to control", equations 7 and 8.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dreamer.behaviors.actor_critic import (
    ActorCritic,
    ActorCriticMemory,
    ActorCriticNets,
    Imagined,
    Visit,
    all_losses,
    critic_loss,
    imagination_metrics,
    last_states,
    next_scale,
    start_shape,
    start_states,
)
from dreamer.behaviors.base import Reward
from dreamer.config import Config, ConfigError
from dreamer.equations import returns
from dreamer.types import Action, Batch, Metrics, Spaces, State
from dreamer.world_models.base import Losses, Seen, WorldModel
from dreamer.world_models.imagine import imagine


@dataclasses.dataclass(frozen=True)
class DynamicsBackprop(ActorCritic):
    """See `dreamer.behaviors.base.Behavior`, and `ActorCritic` for acting, values and targets."""

    def loss(
        self,
        nets: ActorCriticNets,
        memory: ActorCriticMemory,
        model: WorldModel,
        seen: Seen,
        batch: Batch,
        key: Array,
        config: Config,
        reward: Reward | None = None,
    ) -> tuple[Losses, ActorCriticMemory, Metrics]:
        """``-w (R + eta H[pi])`` at every imagined step, with the gradient of R through states and actions."""
        stop = jax.lax.stop_gradient
        behavior = config.behavior
        _, starts = start_shape(batch, behavior)
        fixed = stop(model)
        critic = stop(nets.critic)

        def policy(state: State, key: Array) -> tuple[Action, Any]:
            # The policy reads states without a gradient: what it learns from is where its actions lead.
            outputs = nets.actor.outputs(stop(fixed.features(state)))
            action = nets.actor.distribution(outputs).sample(seed=key)
            return action, outputs

        start = stop(start_states(seen, batch, behavior))
        trajectory = imagine(fixed, start, policy, behavior.horizon, key)
        states = trajectory.states
        feature = fixed.features(states)
        # The critic learns from the same states, and moves none of them.
        value_logits = nets.critic.logits(stop(feature))
        visits = Visit(
            feature=stop(feature),
            policy=trajectory.extras,
            masks={},
            reward=(reward or fixed.reward)(states).mean(),
            cont=fixed.cont(states),
            value_logits=value_logits,
            value=critic(feature).mean(),
            slow_value=stop(memory.slow_critic)(stop(feature)).mean(),
        )
        # With cont_discount the head was trained on discounted targets: the discount must not be applied again.
        discount = 1.0 if behavior.cont_discount else 1 - 1 / behavior.return_horizon
        target = returns.lambda_return(visits.reward, visits.cont * discount, behavior.return_lambda, visits.value)
        weight = stop(returns.survival_weights(visits.cont, discount)[:-1])
        imagined = Imagined(trajectory.action, visits, stop(target), weight)
        range_, scale = next_scale(memory.return_range, imagined.returns, behavior)
        entropy = nets.actor.distribution(jax.tree.map(lambda x: x[:-1], trajectory.extras)).entropy()
        actor_losses = -weight * (target / scale + behavior.entropy * entropy)
        critic_losses = critic_loss(nets.critic, imagined, behavior, "plain")
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
        advantage = (imagined.returns - stop(visits.value[:-1])) / scale
        metrics: Metrics = {
            "actor/entropy": entropy.mean(),
            "actor/advantage_mean": advantage.mean(),
            "actor/advantage_magnitude": jnp.abs(advantage).mean(),
        }
        metrics |= imagination_metrics(imagined, range_, scale)
        return losses, memory._replace(return_range=range_), metrics


def dynamics_backprop(config: Config, action_spaces: Spaces, feature_size: int) -> DynamicsBackprop:
    """The behaviour of the first Dreamer.

    Raises:
        ConfigError: an action is discrete, and so has no gradient.
    """
    discrete = sorted(key for key, space in action_spaces.items() if space.kind == "discrete")
    if discrete:
        raise ConfigError(
            f"behavior.kind=dynamics_backprop cannot be used: the actions {', '.join(discrete)} are discrete, and the "
            "gradient of returns passes through continuous ones only. Use behavior.kind=actor_critic."
        )
    return DynamicsBackprop(config, dict(sorted(action_spaces.items())), feature_size)


__all__ = ["DynamicsBackprop", "dynamics_backprop"]
