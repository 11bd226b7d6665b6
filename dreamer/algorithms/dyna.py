"""Dyna: a model-free algorithm that learns from few real transitions and many that a model imagines.

An update is one gradient step of an ensemble on a batch from replay, a rollout of ``k`` steps from every observation of
the batch, and `dyna.updates` updates of the behaviour, each on new draws of real and imagined transitions. Imagined
ones are kept on the device, the newest `dyna.buffer` of them.

`dreamer.algorithms.mbpo` makes this of SAC, and `dreamer.algorithms.dyna_q` of DQN.

Sources: Sutton 1991, "Dyna, an integrated architecture for learning, planning, and reacting"; Janner et al. 2019, "When
to trust your model: model-based policy optimization".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float32, Int32

from dreamer.agent import guard
from dreamer.algorithms.adam import adam_rate
from dreamer.algorithms.base import Algorithm
from dreamer.algorithms.ensemble import ensemble_learner
from dreamer.algorithms.transitions import Learned, Step, StepReport, Transitions, as_vectors, transitions
from dreamer.config import Config, ConfigError
from dreamer.nn.vectors import flatten, vector_size
from dreamer.types import Action, Batch, Metrics, Parts, Spaces, TrainState
from dreamer.world_models.ensemble import EnsembleDynamics, EnsembleState, rollout_length


class ImaginedBuffer(NamedTuple):
    """A ring of imagined transitions."""

    transitions: Transitions
    """C transitions as vectors."""
    next: Int32[Array, ""]
    """Where the next are written."""
    filled: Int32[Array, ""]
    """How many there are."""

    @classmethod
    def empty(cls, capacity: int, obs_size: int, action_size: int) -> "ImaginedBuffer":
        """A ring without transitions."""
        blank = Transitions(
            obs=jnp.zeros((capacity, obs_size)),
            action=jnp.zeros((capacity, action_size)),
            reward=jnp.zeros(capacity),
            is_terminal=jnp.zeros(capacity, bool),
            next_obs=jnp.zeros((capacity, obs_size)),
            happened=jnp.zeros(capacity, bool),
        )
        return cls(blank, next=jnp.zeros((), jnp.int32), filled=jnp.zeros((), jnp.int32))

    def write(self, new: Transitions) -> "ImaginedBuffer":
        """With R more in place of the oldest; its capacity must be a multiple of R."""
        rows = len(new.reward)
        capacity = len(self.transitions.reward)
        written = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, self.next, 0), self.transitions, new
        )
        return ImaginedBuffer(written, (self.next + rows) % capacity, jnp.minimum(self.filled + rows, capacity))

    def draw(self, key: Array, count: int) -> Transitions:
        """Some of the transitions, evenly, with replacement."""
        return take(self.transitions, jax.random.randint(key, (count,), 0, self.filled))


class DynaMoments(NamedTuple):
    """What the optimizers remember."""

    world_model: optax.OptState
    behavior: Any


class ModelFree(NamedTuple):
    """What is to learn from imagined transitions."""

    algorithm: Algorithm
    """For real ones: how it begins and acts. Its networks are ``nets.behavior``."""
    act: Callable[[Any, Float32[Array, "N V"], Array], Action]
    """``(nets.behavior, flat observations, key) -> actions [N, ...]`` as in training."""
    step: Step


def dyna(config: Config, obs_spaces: Spaces, action_spaces: Spaces, behavior: ModelFree) -> Algorithm:
    """The algorithm for one task.

    Args:
        config: the run's config.
        obs_spaces: observation spaces: vectors and classes.
        action_spaces: action spaces.
        behavior: what is to learn.

    Raises:
        ConfigError: an observation is an image or a mask, or the buffer does not fit a batch.
    """
    learner = ensemble_learner(config, obs_spaces, action_spaces)
    drawn = config.replay.batch_size * (config.replay.batch_length - 1)
    # Every elite imagines equally many rows, and the ring holds whole steps of rollouts.
    rows = drawn - drawn % config.ensemble.elites
    if not 0 < rows <= config.dyna.buffer:
        raise ConfigError(
            f"algorithm={config.algorithm} imagines from each of the {drawn} transitions of a batch: expected at least "
            f"ensemble.elites={config.ensemble.elites} of them, and at most dyna.buffer={config.dyna.buffer}. Change "
            "replay.batch_size or dyna.buffer."
        )
    capacity = config.dyna.buffer - config.dyna.buffer % rows
    real = round(config.dyna.real_ratio * drawn)

    def init(key: Array) -> TrainState:
        model_key, behavior_key = jax.random.split(key)
        model, moments = learner.begin(nnx.Rngs(params=model_key))
        fresh = behavior.algorithm.init(behavior_key)
        buffer = ImaginedBuffer.empty(capacity, vector_size(obs_spaces), vector_size(action_spaces))
        return fresh._replace(
            nets=fresh.nets._replace(world_model=model),
            memory=fresh.memory._replace(world_model=buffer),
            opt_state=DynaMoments(moments, fresh.opt_state),
        )

    def branch(
        dynamics: EnsembleDynamics, nets: Any, buffer: ImaginedBuffer, seen: Transitions, key: Array, length: Array
    ) -> tuple[ImaginedBuffer, Array]:
        """The buffer with rollouts from R observations, and the mean reward of their last step."""
        start_key, key = jax.random.split(key)
        starts = take(seen, jnp.arange(rows))

        def step(number: Array, carry: tuple[EnsembleState, Array, ImaginedBuffer, Array]) -> tuple:
            state, goes_on, buffer, _ = carry
            action_key, noise_key = jax.random.split(jax.random.fold_in(key, number))
            action = behavior.act(nets, state.obs, action_key)
            after = dynamics.step(state, action, dynamics.noise(noise_key, rows))
            # What follows the end of a task, or the last observation of an episode, counts as nothing.
            imagined = Transitions(
                state.obs, flatten(action, action_spaces), after.reward, after.is_terminal, after.obs, goes_on
            )
            return after, goes_on & ~after.is_terminal, buffer.write(imagined), imagined.mean(after.reward)

        carry = dynamics.start(starts.obs, start_key), starts.happened, buffer, jnp.zeros(())
        _, _, buffer, reward = jax.lax.fori_loop(0, length, step, carry)
        return buffer, reward

    def update(state: TrainState, batch: Batch, key: Array, config: Config) -> tuple[TrainState, tuple[()], Metrics]:
        branch_key, learn_key = jax.random.split(jax.random.fold_in(key, state.step))
        seen = as_vectors(transitions(batch), obs_spaces, action_spaces)
        moments: DynaMoments = state.opt_state
        model, model_moments, of_model = learner.step(
            state.nets.world_model, moments.world_model, seen, number=state.step
        )
        before = Learned(state.nets.behavior, state.memory.behavior, moments.behavior)
        length = rollout_length(config.dyna.rollout, env_steps(state.step, config))
        dynamics = learner.dynamics(model, config.ensemble.propagation)
        buffer, reward = branch(dynamics, before.nets, state.memory.world_model, seen, branch_key, length)

        def learn(carry: tuple[Learned, StepReport], number: Array) -> tuple[tuple[Learned, StepReport], None]:
            real_key, imagined_key, key = jax.random.split(jax.random.fold_in(learn_key, number), 3)
            of_real = take(seen, jax.random.randint(real_key, (real,), 0, drawn))
            of_imagined = buffer.draw(imagined_key, drawn - real)
            mixed = jax.tree.map(lambda *parts: jnp.concatenate(parts), of_real, of_imagined)
            return behavior.step(carry[0], mixed, key, number, config), None

        # Only the last report stays. It shows whatever was not finite before, as parameters then stay so.
        numbers = state.step * config.dyna.updates + jnp.arange(config.dyna.updates)
        shapes = jax.eval_shape(lambda: behavior.step(before, seen, key, numbers[0], config)[1])
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        (after, of_behavior), _ = jax.lax.scan(learn, (before, blank), numbers)
        proposed = state._replace(
            nets=Parts(world_model=model, behavior=after.nets),
            memory=Parts(world_model=buffer, behavior=after.memory),
            opt_state=DynaMoments(model_moments, after.moments),
        )
        losses = of_model.losses | of_behavior.losses
        metrics = {
            "optimizer/learning_rate": adam_rate(config.optimizer, numbers[0]),
            "dyna/rollout": length.astype(jnp.float32),
            "dyna/reward": reward,
        }
        state, accepted = guard.accept(
            state,
            proposed,
            losses | {"total": sum(losses.values(), start=jnp.zeros(()))},
            gradients=Parts(world_model=of_model.gradients, behavior=of_behavior.gradients),
            updates=Parts(world_model=of_model.updates, behavior=of_behavior.updates),
        )
        return state, (), metrics | of_model.metrics | of_behavior.metrics | accepted

    return behavior.algorithm._replace(init=init, update=update)


def take(seen: Transitions, rows: Int32[Array, "n"]) -> Transitions:
    """Transitions by number."""
    return jax.tree.map(lambda x: x[rows], seen)


def env_steps(update: Int32[Array, ""] | int, config: Config) -> Float32[Array, ""]:
    """About how many env steps there are at an update (from 0): those that fill replay, and those that pay for it."""
    replayed = config.replay.batch_size * config.replay.batch_length
    filled = max(replayed, config.replay.prefill)
    agent_steps = filled + (jnp.asarray(update, jnp.float32) + 1) * (replayed / config.run.train_ratio)
    return agent_steps * config.env.repeat


__all__ = ["DynaMoments", "ImaginedBuffer", "ModelFree", "dyna", "env_steps", "take"]
