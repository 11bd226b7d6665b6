"""PETS: an ensemble is learned, and every action is planned in it; there is no policy and no value.

``planner.kind`` searches for the sequence of actions whose return, the mean over `pets.particles` rollouts, is highest.
With ``ensemble.propagation=tsinf``, each particle asks one member all along; with ``ts1``, another at each step.

Differs from the paper, which trains the ensemble for a few epochs at the end of each episode: an update follows each
env step, or as many as ``run.train_ratio`` says, see `dreamer.algorithms.ensemble`. Rewards are learned with the
dynamics; the paper is given them.

Source: Chua et al. 2018, "Deep reinforcement learning in a handful of trials using probabilistic dynamics models".
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from dreamer.agent import guard
from dreamer.algorithms.base import Algorithm
from dreamer.algorithms.ensemble import ensemble_learner
from dreamer.algorithms.mpc import plan_on
from dreamer.algorithms.transitions import as_vectors, transitions
from dreamer.config import Config, ConfigError
from dreamer.nn.vectors import flatten
from dreamer.types import Batch, Metrics, Observation, Parts, Spaces, TrainState
from dreamer.world_models.particles import Particles, ParticleState


def pets(config: Config, obs_spaces: Spaces, action_spaces: Spaces) -> Algorithm:
    """The algorithm for one task.

    Args:
        config: the run's config.
        obs_spaces: observation spaces: vectors and classes.
        action_spaces: action spaces.

    Raises:
        ConfigError: an observation is an image or a mask, there is no planner or it cannot act in this task, or
            particles cannot be dealt evenly.
    """
    learner = ensemble_learner(config, obs_spaces, action_spaces)
    particles = config.pets.particles
    elites = config.ensemble.elites
    if particles % elites:
        raise ConfigError(
            f"pets.particles={particles} cannot be used: expected a multiple of ensemble.elites={elites}, to which "
            "particles are dealt evenly."
        )

    def model_of(nets: Parts) -> Particles:
        return Particles(learner.dynamics(nets.world_model, config.ensemble.propagation), particles)

    def start(model: Particles, obs: Observation) -> ParticleState:
        return model.start(flatten(obs, obs_spaces))

    def init(key: Array) -> TrainState:
        model, moments = learner.begin(nnx.Rngs(params=key))
        zero = jnp.zeros((), jnp.int32)
        return TrainState(zero, Parts(world_model=model), Parts(), jnp.copy(zero), moments)

    def update(state: TrainState, batch: Batch, key: Array, config: Config) -> tuple[TrainState, tuple[()], Metrics]:
        """One step of the ensemble; nothing is drawn."""
        seen = as_vectors(transitions(batch), obs_spaces, action_spaces)
        model, moments, report = learner.step(state.nets.world_model, state.opt_state, seen, number=state.step)
        proposed = state._replace(nets=Parts(world_model=model), opt_state=moments)
        state, accepted = guard.accept(
            state,
            proposed,
            report.losses | {"total": report.total},
            gradients=Parts(world_model=report.gradients),
            updates=Parts(world_model=report.updates),
        )
        rate = jnp.asarray(config.ensemble.lr, jnp.float32)
        return state, (), {"optimizer/learning_rate": rate} | report.metrics | accepted

    return plan_on(model_of, start, config, obs_spaces, action_spaces)._replace(init=init, update=update)


__all__ = ["pets"]
