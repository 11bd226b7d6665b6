"""Soft actor-critic: learn from replayed transitions alone, for returns and for the entropy of the policy.

Critics predict the return plus the entropy that follows; the actor ascends the lower of them; a temperature weighs the
entropy, and is learned so that the policy keeps as much of it as is asked for. There is no world model.

Source: Haarnoja et al. 2018, "Soft actor-critic algorithms and applications", with a learned temperature.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float32, Int

from dreamer.algorithms.adam import adam
from dreamer.algorithms.base import Algorithm
from dreamer.algorithms.transitions import Learned, StepReport, Transitions, accept_step, as_vectors, transitions
from dreamer.config import Config, ConfigError, NetsConfig
from dreamer.equations.squashed import SquashedNormal
from dreamer.equations.targets import conservative
from dreamer.nn.layers import Linear
from dreamer.nn.members import PlainMLP, make_members, map_members
from dreamer.nn.vectors import flatten, refuse_images, unflatten, vector_size
from dreamer.types import Action, Batch, Metrics, Mode, Observation, Parts, Spaces, TrainState


class SquashedActor(nnx.Module):
    """Policy: an observation to a normal distribution that tanh squashes into [-1, 1]."""

    def __init__(self, config: NetsConfig, inputs: int, actions: int, *, rngs: nnx.Rngs):
        self.mlp = PlainMLP(inputs, config.units, config.actor_layers, "relu", dtype=config.dtype, rngs=rngs)
        # Small initial outputs: the first policy is close to tanh of a standard normal, and that to uniform.
        self.mean = Linear(self.mlp.outputs, actions, scale=0.01, dtype=config.dtype, rngs=rngs)
        self.log_std = Linear(self.mlp.outputs, actions, scale=0.01, dtype=config.dtype, rngs=rngs)

    def __call__(self, obs: Float32[Array, "*batch V"]) -> SquashedNormal:
        """Distribution of the flat action."""
        hidden = self.mlp(obs)
        mean, log_std = (head(hidden).astype(jnp.float32) for head in (self.mean, self.log_std))
        return SquashedNormal(mean, jnp.exp(jnp.clip(log_std, -20, 2)))


class ActionValue(nnx.Module):
    """Value of an action in a state, Q(s, a)."""

    def __init__(self, config: NetsConfig, inputs: int, *, rngs: nnx.Rngs):
        self.mlp = PlainMLP(inputs, config.units, config.critic_layers, "relu", dtype=config.dtype, rngs=rngs)
        self.head = Linear(self.mlp.outputs, 1, dtype=config.dtype, rngs=rngs)

    def __call__(self, obs: Float32[Array, "*batch V"], action: Float32[Array, "*batch A"]) -> Float32[Array, "*batch"]:
        """Expected discounted sum of rewards and of entropies weighted by the temperature."""
        return self.head(self.mlp(jnp.concatenate([obs, action], -1)))[..., 0].astype(jnp.float32)


class SACNets(NamedTuple):
    """What SAC learns. The optimizer keeps what it remembers under the same names."""

    actor: SquashedActor
    critics: ActionValue
    """K of them, parameters ``[K, ...]``."""
    log_temperature: Float32[Array, ""]


class SACMemory(NamedTuple):
    """What follows from update to update."""

    slow_critics: ActionValue
    """K of them; ``load.from`` finds by this name that they are copies of ``critics``."""


def sac(config: Config, obs_spaces: Spaces, action_spaces: Spaces) -> Algorithm:
    """The algorithm for one task.

    Args:
        config: the run's config.
        obs_spaces: observation spaces: vectors and classes.
        action_spaces: action spaces, all continuous.

    Raises:
        ConfigError: an observation is an image, or an action is discrete.
    """
    refuse_images(obs_spaces, f"algorithm={config.algorithm}")
    discrete = sorted(key for key, space in action_spaces.items() if space.kind == "discrete")
    if discrete:
        raise ConfigError(
            f"algorithm=sac cannot be used: the actions {', '.join(discrete)} are discrete, expected continuous ones. "
            "Use algorithm=dqn, or algorithm=dreamer."
        )

    def init(key: Array) -> TrainState:
        obs_size = vector_size(obs_spaces)
        action_size = vector_size(action_spaces)
        rngs = nnx.Rngs(params=key)
        nets = SACNets(
            actor=SquashedActor(config.nets, obs_size, action_size, rngs=rngs),
            critics=make_members(
                lambda rngs: ActionValue(config.nets, obs_size + action_size, rngs=rngs), config.q.critics, rngs
            ),
            log_temperature=jnp.zeros(()),
        )
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            nets=Parts(behavior=nets),
            memory=Parts(behavior=SACMemory(jax.tree.map(jnp.copy, nets.critics))),
            skipped_in_row=jnp.zeros((), jnp.int32),
            opt_state=SACNets(*map(adam(config.optimizer).init, nets)),
        )

    def policy(
        nets: Parts, memory: tuple[()], obs: Observation, is_first: Array, key: Array, mode: Mode
    ) -> tuple[Action, tuple[()], tuple[()]]:
        distribution = nets.behavior.actor(flatten(obs, obs_spaces))
        action = distribution.mode() if mode == "mode" else distribution.sample_and_log_prob(key)[0]
        return unflatten(action, action_spaces), memory, ()

    def update(state: TrainState, batch: Batch, key: Array, config: Config) -> tuple[TrainState, tuple[()], Metrics]:
        before = Learned(state.nets.behavior, state.memory.behavior, state.opt_state)
        seen = as_vectors(transitions(batch), obs_spaces, action_spaces)
        after, report = sac_step(before, seen, key, state.step, config)
        state, metrics = accept_step(state, after, report, config)
        return state, (), metrics

    return Algorithm(init, initial=lambda batch: (), policy=policy, update=update)


def sac_step(
    before: Learned, seen: Transitions, key: Array, number: Int[Array, ""], config: Config
) -> tuple[Learned, StepReport]:
    """One step of the critics, one of the actor against the new critics, one of the temperature.

    See `dreamer.algorithms.transitions.Step`.
    """
    next_key, action_key = jax.random.split(jax.random.fold_in(key, number))
    nets: SACNets = before.nets
    slow_critics: ActionValue = before.memory.slow_critics
    temperature = jnp.exp(nets.log_temperature)

    def values(critics: ActionValue, obs: Array, action: Array) -> Float32[Array, "K N"]:
        return map_members(lambda critic: critic(obs, action), critics)

    def value(critics: ActionValue, obs: Array, action: Array) -> Float32[Array, "N"]:
        return conservative(values(critics, obs, action), config.q.target, config.q.quantile, config.q.beta)

    next_action, next_log_prob = nets.actor(seen.next_obs).sample_and_log_prob(next_key)
    future = value(slow_critics, seen.next_obs, next_action) - temperature * next_log_prob
    discount = (1 - seen.is_terminal) * (1 - 1 / config.behavior.return_horizon)
    target = seen.reward + discount * future

    def critic_loss(critics: ActionValue) -> tuple[Array, Array]:
        predicted = values(critics, seen.obs, seen.action)
        return seen.mean(jnp.square(predicted - target[None]).sum(0)), predicted

    def actor_loss(actor: SquashedActor, critics: ActionValue) -> tuple[Array, Array]:
        action, log_prob = actor(seen.obs).sample_and_log_prob(action_key)
        return seen.mean(temperature * log_prob - value(critics, seen.obs, action)), log_prob

    def temperature_loss(log_temperature: Array, log_prob: Array) -> Array:
        wanted = config.sac.target_entropy * seen.action.shape[-1]
        return -seen.mean(log_temperature * (log_prob + wanted))

    optimizer = adam(config.optimizer)
    moments: SACNets = before.moments

    (of_critics, predicted), critic_gradient = jax.value_and_grad(critic_loss, has_aux=True)(nets.critics)
    critic_step, critic_moments = optimizer.update(critic_gradient, moments.critics)
    critics = optax.apply_updates(nets.critics, critic_step)

    (of_actor, log_prob), actor_gradient = jax.value_and_grad(actor_loss, has_aux=True)(nets.actor, critics)
    of_temperature, gradient = jax.value_and_grad(temperature_loss)(nets.log_temperature, log_prob)
    actor_step, actor_moments = optimizer.update(actor_gradient, moments.actor)
    temperature_step, temperature_moments = optimizer.update(gradient, moments.log_temperature)

    updates = SACNets(actor_step, critic_step, temperature_step)
    followed = optax.incremental_update(critics, slow_critics, config.behavior.slow_rate)
    after = Learned(
        nets=optax.apply_updates(nets, updates),
        memory=SACMemory(followed),
        moments=SACNets(actor_moments, critic_moments, temperature_moments),
    )
    report = StepReport(
        losses={"critic": of_critics, "actor": of_actor, "temperature": of_temperature},
        gradients=SACNets(actor_gradient, critic_gradient, gradient),
        updates=updates,
        metrics={
            "q/value": predicted.mean(),
            "q/spread": predicted.std(0).mean(),
            "sac/entropy": -seen.mean(log_prob),
            "sac/temperature": temperature,
        },
    )
    return after, report


__all__ = ["ActionValue", "SACMemory", "SACNets", "SquashedActor", "sac", "sac_step"]
