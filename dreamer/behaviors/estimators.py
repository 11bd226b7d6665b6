"""Actor and critic of every Dreamer: what the actor ascends, and which return belongs to which imagined state.

`dreamer.behaviors.actor_critic` is the case of V3, arranged for speed; this is the plain version for all.

The actor ascends, at every imagined step (``behavior.gradient``)::

    reinforce   log pi(a|s) stop(R - v)       for any latents and actions
    dynamics    R                             through actions and latents, which must have gradients
    mix         mix R + (1 - mix) log pi(a|s) stop(R - v)

plus the entropy bonus, all weighted by w. A rollout has states s[0], where it starts, to s[H], and a[t] leads from s[t]
to s[t+1]. With reward r[t] and discount d[t] of arriving in s[t], value v[t] and lambda l, ``behavior.returns`` says::

    v3        R[t] = r[t+1] + d[t+1] ((1 - l) v[t+1] + l R[t+1]),  R[H] = v[H]
              a[t] is judged by R[t] - v[t], and v[t] learns R[t], t = 0 to H - 1;  w[t] = d[0] ... d[t] / discount
    v3_2023   the same, but the real d[0]; and dynamics ascend R - v
    v2        R[t] = r[t] + d[t] ((1 - l) v[t+1] + l R[t+1]),  R[H] = v[H]
              a[t] is judged by R[t+1] - v[t], t = 0 to H - 2, and v[t] learns R[t], t = 0 to H - 1
              w[t] = d[0] ... d[t-1], with the real d[0]
    v1        the same without s[0]: v[t] learns R[t] from t = 1 on, and w[t] = d[1] ... d[t-1] there; a[t] has w[t+1];
              if the end of episodes is learned, rollouts start from all steps of a sequence but the last

The real d[0] is 0 where the replayed step was terminal, and the discount elsewhere; in v3, it is predicted like the
others. So in V1 and V2 the value of a state includes the reward of arriving there, and in V3 it does not.

Sources: Hafner et al. 2020, "Dream to control", equations 7 and 8; Hafner et al. 2021, "Mastering Atari with discrete
world models", equations 5 and 6; Hafner et al. 2023, arXiv 2301.04104v1; and where they differ, the released code.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from dreamer.behaviors.actor_critic import (
    ActorCritic,
    ActorCriticMemory,
    ActorCriticNets,
    Imagined,
    Visit,
    all_losses,
    imagination_metrics,
    last_states,
    next_scale,
    start_shape,
)
from dreamer.behaviors.base import Reward
from dreamer.config import BehaviorConfig, Config, ConfigError
from dreamer.equations import returns
from dreamer.types import Action, Batch, Metrics, Spaces, State, is_off
from dreamer.world_models.base import Dynamics, Losses, Seen
from dreamer.world_models.imagine import imagine


class Judged(NamedTuple):
    """Returns and weights of a rollout, by the action that they judge and by the state whose value learns them."""

    actions: int
    """Actions ``a[0]`` to ``a[actions - 1]`` are judged."""
    action_return: Float32[Array, "actions N"]
    action_weight: Float32[Array, "actions N"]
    first: int
    """The first state whose value learns."""
    state_return: Float32[Array, "states N"]
    """Of states ``s[first]`` and following."""
    state_weight: Float32[Array, "states N"]


def judge(
    kind: str,
    reward: Float32[Array, "H_plus_1 N"],
    discount: Float32[Array, "H_plus_1 N"],
    lambda_: Any,
    value: Float32[Array, "H_plus_1 N"],
    per_step: Any,
) -> Judged:
    """Returns and weights as ``behavior.returns`` names them; see the equations above.

    Args:
        kind: v1, v2, v3_2023 or v3.
        reward: of arriving in each state.
        discount: of arriving in each state: probability of going on from there, times ``per_step``.
        lambda_: mixing of the lambda-return.
        value: of each state.
        per_step: discount of one step, where the probability does not include it; otherwise 1.
    """
    horizon = len(reward) - 1
    if kind in ("v3", "v3_2023"):
        target = returns.lambda_return(reward, discount, lambda_, value)
        weight = jnp.cumprod(discount, 0)[:-1] / per_step
        return Judged(horizon, target, weight, 0, target, weight)

    # The reward and the discount of a state itself come first: `lambda_return` takes them from the state after it.
    def later(x: Array) -> Array:
        return jnp.concatenate([x[:1], x[:-1]])

    target = returns.lambda_return(later(reward), later(discount), lambda_, value)
    first = 1 if kind == "v1" else 0
    # A state's weight holds the discounts of the states before it, the first state's is 1.
    weight = jnp.cumprod(later(discount).at[first].set(1.0)[first:], 0)[: horizon - first]
    action_weight = weight if kind == "v1" else weight[:-1]
    return Judged(horizon - 1, target[1:], action_weight, first, target[first:], weight)


@dataclasses.dataclass(frozen=True)
class Estimators(ActorCritic):
    """See `dreamer.behaviors.base.Behavior`, and `ActorCritic` for acting and values.

    Attributes:
        gradient: reinforce, dynamics or mix.
    """

    gradient: str = "dynamics"

    def value(self, nets: ActorCriticNets, model: Dynamics, state: State) -> Float32[Array, "*batch"]:
        """The critic's expected return; in V1 and V2, what is left of it once a state has been arrived in."""
        value = super().value(nets, model, state)
        behavior = self.config.behavior
        if behavior.returns in ("v1", "v2"):
            return (value - model.reward(state).mean()) / (1 - 1 / behavior.return_horizon)
        return value

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
        """Losses of the actor and of the critic, see the equations above."""
        stop = jax.lax.stop_gradient
        behavior = config.behavior
        _, starts = start_shape(batch, behavior)
        fixed = stop(model)
        through = self.gradient != "reinforce"

        def policy(state: State, key: Array) -> tuple[Action, Any]:
            # The policy reads states without a gradient: what it learns from is where its actions lead.
            outputs = nets.actor.outputs(stop(fixed.features(state)))
            masks = fixed.masks(stop(state))
            action = nets.actor.distribution(outputs, masks, onehot=through).sample(seed=key)
            return action if through else stop(action), (outputs, masks)

        starting = last_states(seen, starts)
        ended = jnp.asarray(batch.is_terminal)[:, -starts:]
        if behavior.returns == "v1" and config.world_model.cont != "none":
            # As in the code of V1, where an episode can only end in the last step of a sequence.
            starting, ended = jax.tree.map(lambda x: x[:, :-1], (starting, ended))
        start = jax.tree.map(lambda x: stop(x).reshape(-1, *x.shape[2:]), starting)
        trajectory = imagine(fixed, start, policy, behavior.horizon, key)
        outputs, masks = trajectory.extras
        visits = self._visits(nets, memory, fixed, trajectory.states, outputs, masks, reward)
        per_step = 1.0 if behavior.cont_discount else 1 - 1 / behavior.return_horizon
        cont = visits.cont
        if behavior.returns != "v3":
            # Whether an episode has ended where a rollout starts is known.
            goes_on = 1.0 - ended.reshape(-1)
            cont = cont.at[0].set(goes_on * (1 - 1 / behavior.return_horizon if behavior.cont_discount else 1.0))
        value = visits.slow_value if behavior.target == "slow" else visits.value
        judged = judge(behavior.returns, visits.reward, cont * per_step, behavior.return_lambda, value, per_step)
        imagined = Imagined(trajectory.action, visits, stop(judged.state_return), stop(judged.state_weight))
        range_, scale = next_scale(memory.return_range, imagined.returns, behavior)
        divisor = scale if behavior.return_norm else jnp.ones_like(scale)

        count = judged.actions
        action, outputs, masks = jax.tree.map(lambda x: x[:count], (trajectory.action, outputs, masks))
        distribution = nets.actor.distribution(outputs, masks, onehot=through)
        advantage = (judged.action_return - value[:count]) / divisor
        ascends_advantage = behavior.returns == "v3_2023"
        objective = {
            "dynamics": lambda: advantage if ascends_advantage else judged.action_return / divisor,
            "reinforce": lambda: self._log_prob(distribution, stop(action)) * stop(advantage),
        }
        if self.gradient == "mix":
            # As in the code of V2, the log-probability is that of an action with its gradient.
            reinforce = self._log_prob(distribution, action) * stop(advantage)
            ascended = behavior.mix * objective["dynamics"]() + (1 - behavior.mix) * reinforce
        else:
            ascended = objective[self.gradient]()
        entropy = distribution.entropy()
        actor_losses = -stop(judged.action_weight) * (ascended + behavior.entropy * entropy)

        learning = slice(judged.first, judged.first + len(imagined.returns))
        prediction = nets.critic.distribution(visits.value_logits[learning])
        critic_losses = -prediction.log_prob(imagined.returns)
        if not is_off(behavior.slow_regularizer):
            critic_losses -= behavior.slow_regularizer * prediction.log_prob(visits.slow_value[learning])
        losses = all_losses(
            nets.critic,
            memory.slow_critic,
            actor_losses,
            imagined.weight * critic_losses,
            imagined,
            feature=model.features(starting),
            batch=batch,
            config=config,
        )
        metrics: Metrics = {
            "actor/entropy": entropy.mean(),
            "actor/advantage_mean": advantage.mean(),
            "actor/advantage_magnitude": jnp.abs(advantage).mean(),
        }
        metrics |= imagination_metrics(imagined, range_, divisor)
        return losses, memory._replace(return_range=range_), metrics

    def _visits(
        self,
        nets: ActorCriticNets,
        memory: ActorCriticMemory,
        model: Any,
        states: State,
        outputs: Any,
        masks: Any,
        reward: Reward | None,
    ) -> Visit:
        """All that is predicted along a trajectory, with the gradient of the states where there is one."""
        stop = jax.lax.stop_gradient
        feature = model.features(states)
        critic, slow_critic = stop((nets.critic, memory.slow_critic))
        return Visit(
            feature=stop(feature),
            policy=outputs,
            masks=masks,
            reward=(reward or model.reward)(states).mean(),
            cont=model.cont(states),
            # The critic learns from the same states, and moves none of them.
            value_logits=nets.critic.logits(stop(feature)),
            value=critic(feature).mean(),
            slow_value=slow_critic(feature).mean(),
        )

    def _log_prob(self, distribution: Any, action: Action) -> Float32[Array, "actions N"]:
        """Log-probability of actions, without a gradient by one-hot vectors: they stand for classes."""
        stop = jax.lax.stop_gradient
        discrete = {key for key, space in self.action_spaces.items() if space.kind == "discrete"}
        return distribution.log_prob({key: stop(x) if key in discrete else x for key, x in action.items()})


def actor_critic(config: Config, action_spaces: Spaces, feature_size: int) -> ActorCritic:
    """Actor and critic as the config describes them: that of V3, if it can, arranged for speed.

    Raises:
        ConfigError: parts of the config exclude one another.
    """
    behavior = config.behavior
    gradient = behavior.gradient
    if gradient == "auto":
        continuous = all(space.kind == "continuous" for space in action_spaces.values())
        gradient = "dynamics" if continuous else "reinforce"
    return _make(config, action_spaces, feature_size, gradient)


def dynamics_backprop(config: Config, action_spaces: Spaces, feature_size: int) -> ActorCritic:
    """`actor_critic` with ``behavior.gradient=dynamics``."""
    return _make(config, action_spaces, feature_size, "dynamics")


def _make(config: Config, action_spaces: Spaces, feature_size: int, gradient: str) -> ActorCritic:
    behavior = config.behavior
    _check(config, behavior)
    spaces = dict(sorted(action_spaces.items()))
    recent = behavior.returns == "v3" and behavior.target == "fast" and behavior.return_norm
    if gradient == "reinforce" and recent:
        return ActorCritic(config, spaces, feature_size)
    return Estimators(config, spaces, feature_size, gradient)


def _check(config: Config, behavior: BehaviorConfig) -> None:
    if behavior.returns in ("v1", "v2") and config.loss.replay_critic:
        raise ConfigError(
            f"behavior.returns={behavior.returns} cannot be used with loss.replay_critic={config.loss.replay_critic}: "
            "values then include the reward of their state, and the critic's loss on replayed rewards is for values "
            "that do not. Use loss.replay_critic=0, as in all Dreamers before V3 of 2024."
        )
    if behavior.returns in ("v1", "v2") and behavior.horizon < 2:
        raise ConfigError(
            f"behavior.horizon={behavior.horizon} cannot be used with behavior.returns={behavior.returns}: the first "
            "action is judged by what follows the state after it. Use 2 or more."
        )
    if behavior.returns == "v1" and config.world_model.cont != "none" and behavior.starts == 1:
        raise ConfigError(
            "behavior.starts=1 cannot be used with behavior.returns=v1 where the end of episodes is learned "
            f"(world_model.cont={config.world_model.cont}): nothing starts from the last state of a sequence, so there "
            "would be no start. Use 0 for all states, or 2 or more."
        )
    if config.optimizer.order == "model_first" and config.loss.replay_critic and behavior.replay_gradient:
        raise ConfigError(
            "behavior.replay_gradient=true cannot be used with optimizer.order=model_first: the model has moved before "
            "the critic learns, so no gradient of the critic's loss on replayed rewards reaches it. Use "
            "behavior.replay_gradient=false, loss.replay_critic=0, or optimizer.order=together."
        )
    check_discount(config)


def check_discount(config: Config) -> None:
    """Raise `ConfigError` if the continue head is to give the discount, and cannot."""
    behavior = config.behavior
    if config.world_model.cont != "probability" and behavior.cont_discount:
        why = "there is none" if config.world_model.cont == "none" else "its mode, 0 or 1, has lost it"
        raise ConfigError(
            f"world_model.cont={config.world_model.cont} cannot be used with behavior.cont_discount=true: the discount "
            f"is then part of what the continue head predicts, and {why}. Use behavior.cont_discount=false."
        )


__all__ = ["Estimators", "Judged", "actor_critic", "check_discount", "dynamics_backprop", "judge"]
