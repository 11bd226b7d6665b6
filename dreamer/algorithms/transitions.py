"""Sequences from replay as single transitions, for algorithms that look one step ahead."""

from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Bool, Float32

from dreamer.types import Batch


class Transitions(NamedTuple):
    """N transitions ``(obs, action, reward, is_terminal, next_obs)``."""

    obs: dict[str, Array]
    """``[N, ...]`` by key."""
    action: dict[str, Array]
    """What was done there, ``[N, ...]`` by key."""
    reward: Float32[Array, "N"]
    is_terminal: Bool[Array, "N"]
    """Whether the task ended. A time limit does not end it: what would have followed still counts."""
    next_obs: dict[str, Array]
    """``[N, ...]`` by key."""
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


__all__ = ["Transitions", "transitions"]
