"""Returns: the lambda-return, the n-step return, the weights of imagined states, and the running range of returns."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from dreamer.devices import backend
from dreamer.types import Number


class ReturnRange(NamedTuple):
    """Exponential moving averages of percentiles of imagined returns, in units of reward."""

    low: Float32[Array, ""]
    """Of the 5th percentile."""
    high: Float32[Array, ""]
    """Of the 95th percentile."""


def lambda_return(
    reward: Float32[Array, "H_plus_1 *batch"],
    discount: Float32[Array, "H_plus_1 *batch"],
    lambda_: Float32[Array, "H_plus_1 *batch"] | Number,
    value: Float32[Array, "H_plus_1 *batch"],
) -> Float32[Array, "H *batch"]:
    """Exponentially weighted average of all n-step returns, time first.

    ``R[t] = r[t+1] + d[t+1] ((1 - l[t+1]) v[t+1] + l[t+1] R[t+1])`` with ``R[H] = v[H]``.

    All arguments are aligned with states: entry t belongs to the state at time t, and the reward of leaving state t
    is ``reward[t+1]``. The first entry of ``reward``, ``discount`` and ``lambda_`` is therefore never used.

    Args:
        reward: reward received on arriving in each state.
        discount: discount times the probability of continuing from each state.
        lambda_: mixing per state, 0 where the recursion must not look past a state (an episode's last one).
        value: bootstrap value of each state.

    Source: Sutton and Barto, "Reinforcement Learning", 2nd edition, section 12.2, with per-step discounts.
    """
    lambda_ = jnp.broadcast_to(jnp.asarray(lambda_, reward.dtype), reward.shape)
    immediate = reward[1:] + discount[1:] * (1 - lambda_[1:]) * value[1:]
    factor = discount[1:] * lambda_[1:]

    if backend.on_cpu():

        def backward(following: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
            immediate, factor = now
            current = immediate + factor * following
            return current, current

        _, returns = jax.lax.scan(backward, value[-1], (immediate, factor), reverse=True)
        return returns

    # The same recursion for accelerators, where each step of a loop would take less time than its launch. A step is a
    # linear function of the return after it, R -> immediate + factor R. Composing these functions in pairs, pairs of
    # pairs, and so on gives all returns as functions of the last value.
    sums, factors = jax.lax.associative_scan(_compose, (immediate, factor), reverse=True)
    return sums + factors * value[-1:]


def _compose(later: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[Array, Array]:
    """``x -> a + b x`` applied after ``later``, another such function, each as (a, b)."""
    later_sum, later_factor = later
    now_sum, now_factor = now
    return now_sum + now_factor * later_sum, now_factor * later_factor


def n_step_return(
    reward: Float32[Array, "T *batch"],
    discount: Float32[Array, "T *batch"],
    is_last: Bool[Array, "T *batch"],
    value: Float32[Array, "T *batch"],
    steps: int,
) -> Float32[Array, "T *batch"]:
    """Rewards of the next n steps and the value of the state after them, time first.

    ``R[n, t] = r[t+1] + d[t+1] R[n-1, t+1]`` with ``R[0, t] = v[t]``. A state from which nothing is known, the last of
    an episode or of the sequence, keeps its value, so that sums end there.

    All arguments are aligned with states, as in `lambda_return`: ``reward[t]`` is received on arriving in state t.

    Args:
        reward: reward received on arriving in each state.
        discount: discount of each state, 0 where the task ends.
        is_last: whether the next state, if there is one, belongs to another episode.
        value: bootstrap value of each state.
        steps: n.

    Source: Sutton and Barto, "Reinforcement Learning", 2nd edition, section 7.1.
    """

    def look_further(_: Array, target: Array) -> Array:
        longer = reward[1:] + discount[1:] * target[1:]
        return jnp.concatenate([jnp.where(is_last[:-1], value[:-1], longer), value[-1:]])

    return jax.lax.fori_loop(0, steps, look_further, value)


def survival_weights(cont: Float32[Array, "time *batch"], discount: Number) -> Float32[Array, "time *batch"]:
    """Probability, with discount, that each imagined state is reached: ``cumprod(cont * discount) / discount``.

    ``cont[0]`` belongs to the start state, so starts whose episode has ended weigh nothing.

    Args:
        cont: probability of continuing from each state; it includes the discount if ``discount`` is 1.
        discount: factor per step, 1 if it is part of ``cont``.
    """
    return jnp.cumprod(cont * discount, 0) / discount


def update_return_range(previous: ReturnRange, returns: Float32[Array, "*shape"], rate: Number) -> ReturnRange:
    """Move both percentiles towards those of all ``returns`` by ``rate``. They start at 0, without debiasing."""
    low, high = jnp.percentile(returns, jnp.array([5.0, 95.0]))
    return ReturnRange(previous.low + rate * (low - previous.low), previous.high + rate * (high - previous.high))


def return_scale(range_: ReturnRange, limit: Number) -> Float32[Array, ""]:
    """Divisor of advantages, ``max(limit, high - low)``: large returns are scaled down, small ones never up."""
    return jnp.maximum(limit, range_.high - range_.low)
