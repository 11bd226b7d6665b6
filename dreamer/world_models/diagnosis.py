"""What the states of a batch carry: how much their recurrent part varies, and how much of the reward they explain."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from dreamer.equations.distributions import SymexpTwoHot
from dreamer.equations.spread import deviations, effective_rank
from dreamer.equations.unexplained import unexplained_by_group, unexplained_reward, unexplained_share
from dreamer.types import Batch, Metrics, State
from dreamer.world_models.base import RecurrentModel

MOST_STATES = 512
"""States whose effective rank is computed, at most: the time it takes grows with their third power."""


def diagnose_states(model: Any, states: State, batch: Batch) -> Metrics:
    """Metrics ``diagnose/...`` of states that were filtered from a batch, scalars.

    The recurrent state always changes in the first steps after a reset, whatever is seen there, so its spread is that
    among states that are the same number of steps after one. Likewise rewards often come at a known time, so what is
    explained of them is also compared with a guess that knows these steps. States of which the batch does not show the
    reset count as one group.

    Args:
        model: a `WorldModel`; what it does not offer beyond that is left out.
        states: its states, ``[B, T, ...]``.
        batch: B sequences of T steps.
    """
    metrics: Metrics = {}
    rows, steps = batch.reward.shape
    group = steps_since_reset(jnp.asarray(batch.is_first)).reshape(-1)
    if isinstance(model, RecurrentModel):
        recurrent = model.recurrent(states).astype(jnp.float32)
        flat = recurrent.reshape(rows * steps, -1)
        differences, degrees = deviations(flat, group, steps + 1)
        variance = jnp.square(differences).sum(0) / jnp.maximum(degrees, 1)
        every = -(-len(flat) // MOST_STATES)
        metrics |= {
            "diagnose/deter_std": jnp.sqrt(variance).mean(),
            "diagnose/deter_rms": jnp.sqrt(jnp.square(flat).mean()),
            "diagnose/deter_rank": effective_rank(differences[::every]),
        }
    head = model.reward(states)
    if isinstance(head, SymexpTwoHot):
        flat_head = SymexpTwoHot(head.logits.reshape(rows * steps, -1))
        reward = jnp.asarray(batch.reward, jnp.float32).reshape(-1)
        by_step = unexplained_by_group(flat_head, reward, group, steps + 1)
        metrics |= {
            "diagnose/reward_unexplained": unexplained_share(*unexplained_reward(flat_head, reward)),
            "diagnose/reward_unexplained_by_step": unexplained_share(*by_step),
        }
    return metrics


def steps_since_reset(is_first: Bool[Array, "B T"]) -> Int32[Array, "B T"]:
    """Steps since the last reset of each sequence, 0 at the reset itself; T before the first that it holds."""
    steps = is_first.shape[1]
    now = jnp.broadcast_to(jnp.arange(steps), is_first.shape)
    reset = jax.lax.cummax(jnp.where(is_first, now, -1), axis=1)
    return jnp.where(reset < 0, steps, now - reset)


__all__ = ["MOST_STATES", "diagnose_states", "steps_since_reset"]
