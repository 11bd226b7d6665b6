"""Sequences from replay as single transitions, for algorithms that look one step ahead."""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float32

from dreamer.nn.vectors import flatten
from dreamer.types import Batch, Spaces


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


def as_vectors(seen: Transitions, obs_spaces: Spaces, action_spaces: Spaces) -> Transitions:
    """Transitions by key with each observation and each action as one vector, see `dreamer.nn.vectors.flatten`."""
    return seen._replace(
        obs=flatten(seen.obs, obs_spaces),
        action=flatten(seen.action, action_spaces),
        next_obs=flatten(seen.next_obs, obs_spaces),
    )


__all__ = ["Transitions", "as_vectors", "transitions"]
