"""Deep Q network: learn what each action is worth from replayed transitions, and take the best; no world model.

Targets are those of double Q learning: the newest network chooses the next action, a slow copy says what it is worth.
Differs from the paper: the copy follows at every update, by `behavior.slow_rate`, and the optimizer is Adam.

Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning"; van Hasselt et al. 2016,
"Deep reinforcement learning with double Q-learning".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float32, Int

from dreamer.algorithms.adam import adam
from dreamer.algorithms.base import Algorithm
from dreamer.algorithms.transitions import Learned, StepReport, Transitions, accept_step, as_vectors, transitions
from dreamer.config import Config, ConfigError, NetsConfig
from dreamer.equations.targets import conservative
from dreamer.nn.layers import Linear
from dreamer.nn.members import PlainMLP, make_members, map_members
from dreamer.nn.vectors import flatten, refuse_images, vector_size
from dreamer.types import Action, Batch, Metrics, Mode, Number, Observation, Parts, Space, Spaces, TrainState, mask_keys
from dreamer.world_models.base import observed_masks

_FORBIDDEN = -1e9
"""Value of an action that a mask forbids."""


class ActionValues(nnx.Module):
    """Value of every action in a state, Q(s, .)."""

    def __init__(self, config: NetsConfig, inputs: int, classes: int, *, rngs: nnx.Rngs):
        self.mlp = PlainMLP(inputs, config.units, config.critic_layers, "relu", dtype=config.dtype, rngs=rngs)
        self.head = Linear(self.mlp.outputs, classes, dtype=config.dtype, rngs=rngs)

    def __call__(self, obs: Float32[Array, "*batch V"]) -> Float32[Array, "*batch C"]:
        """Expected discounted sum of rewards after each action."""
        return self.head(self.mlp(obs)).astype(jnp.float32)


class DQNNets(NamedTuple):
    """What the policy reads."""

    critics: ActionValues
    """K of them, parameters ``[K, ...]``."""
    epsilon: Float32[Array, ""]
    """Share of random actions. It has no gradient: each update sets it. It is here because a policy sees nothing of the
    training state but networks, and the share is a function of the updates done."""


class DQNMemory(NamedTuple):
    """What follows from update to update."""

    slow_critics: ActionValues
    """K of them; ``load.from`` finds by this name that they are copies of ``critics``."""


def dqn(config: Config, obs_spaces: Spaces, action_spaces: Spaces) -> Algorithm:
    """The algorithm for one task.

    Args:
        config: the run's config.
        obs_spaces: observation spaces: vectors and classes.
        action_spaces: one discrete action of one number.

    Raises:
        ConfigError: an observation is an image, or the action is another.
    """
    refuse_images(obs_spaces, f"algorithm={config.algorithm}")
    name, space = only_action(config, action_spaces, continuous="sac")
    masked = mask_keys(obs_spaces, action_spaces)

    def allowed(obs: Observation) -> Bool[Array, "N C"] | None:
        return observed_masks(obs, masked).get(name)

    def init(key: Array) -> TrainState:
        rngs = nnx.Rngs(params=key)
        critics = make_members(
            lambda rngs: ActionValues(config.nets, vector_size(obs_spaces), space.classes, rngs=rngs),
            config.q.critics,
            rngs,
        )
        nets = DQNNets(critics, epsilon=jnp.ones(()))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            nets=Parts(behavior=nets),
            memory=Parts(behavior=DQNMemory(jax.tree.map(jnp.copy, critics))),
            skipped_in_row=jnp.zeros((), jnp.int32),
            opt_state=adam(config.optimizer).init(nets),
        )

    def policy(
        nets: Parts, memory: tuple[()], obs: Observation, is_first: Array, key: Array, mode: Mode
    ) -> tuple[Action, tuple[()], tuple[()]]:
        x = flatten(obs, obs_spaces)
        if mode == "sample":
            action = explore(nets.behavior, x, allowed(obs), key, config)
        else:
            action = best_action(nets.behavior.critics, x, allowed(obs), config)
        return {name: action.astype(jnp.int32)}, memory, ()

    def update(state: TrainState, batch: Batch, key: Array, config: Config) -> tuple[TrainState, tuple[()], Metrics]:
        by_key = transitions(batch)
        seen = as_vectors(by_key, obs_spaces, action_spaces)
        before = Learned(state.nets.behavior, state.memory.behavior, state.opt_state)
        after, report = dqn_step(before, seen, key, state.step, config, allowed(by_key.next_obs))
        state, metrics = accept_step(state, after, report, config)
        return state, (), metrics

    return Algorithm(init, initial=lambda batch: (), policy=policy, update=update)


def only_action(config: Config, action_spaces: Spaces, continuous: str) -> tuple[str, Space]:
    """Key and space of the only action.

    Raises:
        ConfigError: there are others, or it is not discrete: then the algorithm named ``continuous`` is one to use.
    """
    name, space = next(iter(action_spaces.items()))
    if len(action_spaces) > 1 or space.kind != "discrete" or space.shape:
        found = ", ".join(f"{key} ({space.kind}, shape {list(space.shape)})" for key, space in action_spaces.items())
        raise ConfigError(
            f"algorithm={config.algorithm} cannot be used: the actions are {found}, expected one discrete action of "
            f"one number. Use algorithm={continuous} for continuous actions, or algorithm=dreamer for any."
        )
    return name, space


def best_action(
    critics: ActionValues, obs: Float32[Array, "N V"], allowed: Bool[Array, "N C"] | None, config: Config
) -> Int[Array, "N"]:
    """The allowed action of the highest value; None: all are."""
    values = map_members(lambda critic: critic(obs), critics)
    value = conservative(values, config.q.target, config.q.quantile, config.q.beta)
    return (value if allowed is None else jnp.where(allowed, value, _FORBIDDEN)).argmax(-1)


def explore(
    nets: DQNNets, obs: Float32[Array, "N V"], allowed: Bool[Array, "N C"] | None, key: Array, config: Config
) -> Int[Array, "N"]:
    """The best action, or with probability epsilon any that is allowed."""
    action = best_action(nets.critics, obs, allowed, config)
    explore_key, action_key = jax.random.split(key)
    classes = nets.critics.head.bias[...].shape[-1]
    logits = jnp.zeros((len(obs), classes)) if allowed is None else jnp.where(allowed, 0.0, _FORBIDDEN)
    explores = jax.random.uniform(explore_key, action.shape) < nets.epsilon
    return jnp.where(explores, jax.random.categorical(action_key, logits), action)


def dqn_step(
    before: Learned,
    seen: Transitions,
    key: Array,
    number: Int[Array, ""],
    config: Config,
    allowed: Bool[Array, "N C"] | None = None,
) -> tuple[Learned, StepReport]:
    """One step of all critics; nothing is drawn. See `dreamer.algorithms.transitions.Step`.

    Actions are one-hot vectors. ``allowed`` are those that may follow a transition; None: all.
    """
    nets: DQNNets = before.nets
    slow_critics: ActionValues = before.memory.slow_critics

    def values(critics: ActionValues, obs: Array, action: Array) -> Float32[Array, "K N"]:
        return map_members(lambda critic: jnp.take_along_axis(critic(obs), action[:, None], -1)[:, 0], critics)

    next_action = best_action(nets.critics, seen.next_obs, allowed, config)
    next_values = values(slow_critics, seen.next_obs, next_action)
    future = conservative(next_values, config.q.target, config.q.quantile, config.q.beta)
    discount = (1 - seen.is_terminal) * (1 - 1 / config.behavior.return_horizon)
    target = seen.reward + discount * future

    def loss(nets: DQNNets) -> tuple[Array, Array]:
        predicted = values(nets.critics, seen.obs, seen.action.argmax(-1))
        # An error counts squared up to 1 and linearly from there on.
        return seen.mean(optax.huber_loss(predicted, target[None]).sum(0)), predicted

    (total, predicted), gradient = jax.value_and_grad(loss, has_aux=True)(nets)
    step, moments = adam(config.optimizer).update(gradient, before.moments)
    moved = optax.apply_updates(nets, step)._replace(epsilon=exploration(number + 1, config))
    followed = optax.incremental_update(moved.critics, slow_critics, config.behavior.slow_rate)
    metrics = {"q/value": predicted.mean(), "q/spread": predicted.std(0).mean(), "dqn/epsilon": nets.epsilon}
    return Learned(moved, DQNMemory(followed), moments), StepReport({"critic": total}, gradient, step, metrics)


def exploration(step: Int[Array, ""] | int, config: Config) -> Number:
    """Share of random actions at an update: falls linearly from 1, then stays."""
    fallen = jnp.clip(step / config.dqn.epsilon_updates, 0, 1)
    return 1 - fallen * (1 - config.dqn.epsilon)


__all__ = [
    "ActionValues",
    "DQNMemory",
    "DQNNets",
    "best_action",
    "dqn",
    "dqn_step",
    "exploration",
    "explore",
    "only_action",
]
