"""Sequences from replay as single transitions, for algorithms that look one step ahead."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from dreamer.agent import guard
from dreamer.algorithms.adam import adam_rate
from dreamer.config import Config
from dreamer.nn.vectors import flatten
from dreamer.types import Batch, Metrics, Parts, Spaces, TrainState


class Transitions(NamedTuple):
    """N transitions ``(obs, action, reward, is_terminal, next_obs)``.

    Observations and actions are arrays ``[N, ...]`` by key, or vectors ``[N, V]`` and ``[N, A]``, see `as_vectors`.
    """

    obs: Any
    action: Any
    """What was done there."""
    reward: Float32[Array, "N"]
    is_terminal: Bool[Array, "N"]
    """Whether the task ended. A time limit does not end it: what would have followed still counts."""
    next_obs: Any
    happened: Bool[Array, "N"]
    """False where the next observation is that of a reset: nothing led to it."""

    def mean(self, values: Float32[Array, "N"]) -> Float32[Array, ""]:
        """Mean over the transitions that happened."""
        return (self.happened * values).sum() / self.happened.sum().clip(1)


class Learned(NamedTuple):
    """What an algorithm that learns from transitions changes in an update."""

    nets: Any
    """Parameters."""
    memory: Any
    """What follows them."""
    moments: Any
    """What the optimizer remembers."""


class StepReport(NamedTuple):
    """What an update says about itself."""

    losses: dict[str, Array]
    gradients: Any
    """By parameter."""
    updates: Any
    """What was added to the parameters."""
    metrics: Metrics

    @property
    def total(self) -> Float32[Array, ""]:
        """Sum of the losses."""
        return sum(self.losses.values(), start=jnp.zeros(()))


Step = Callable[[Learned, Transitions, Array, Array, Config], tuple[Learned, StepReport]]
"""``(before, transitions as vectors, key, number, config) -> (after, report)``: one update, ``number`` from 0."""


def transitions(batch: Batch) -> Transitions:
    """The transitions within B sequences of T steps, ``N = B (T - 1)``."""

    def flat(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

    # Index t of prev_action, reward and is_terminal is what followed from the observation at t - 1.
    before = jax.tree.map(lambda x: x[:, :-1], batch.obs)
    after = jax.tree.map(lambda x: x[:, 1:], batch)
    return Transitions(
        obs=flat(before),
        action=flat(after.prev_action),
        reward=flat(after.reward),
        is_terminal=flat(after.is_terminal),
        next_obs=flat(after.obs),
        happened=~flat(after.is_first),
    )


def accept_step(state: TrainState, after: Learned, report: StepReport, config: Config) -> tuple[TrainState, Metrics]:
    """The state after an update of ``nets.behavior`` by Adam, and its metrics; what is not finite is skipped."""
    proposed = state._replace(
        nets=Parts(behavior=after.nets), memory=Parts(behavior=after.memory), opt_state=after.moments
    )
    accepted, metrics = guard.accept(
        state,
        proposed,
        report.losses | {"total": report.total},
        gradients=Parts(behavior=report.gradients),
        updates=Parts(behavior=report.updates),
    )
    rate = adam_rate(config.optimizer, state.step)
    return accepted, {"optimizer/learning_rate": rate} | report.metrics | metrics


def as_vectors(seen: Transitions, obs_spaces: Spaces, action_spaces: Spaces) -> Transitions:
    """Transitions by key with each observation and each action as one vector, see `dreamer.nn.vectors.flatten`."""
    return seen._replace(
        obs=flatten(seen.obs, obs_spaces),
        action=flatten(seen.action, action_spaces),
        next_obs=flatten(seen.next_obs, obs_spaces),
    )


__all__ = ["Learned", "Step", "StepReport", "Transitions", "accept_step", "as_vectors", "transitions"]
