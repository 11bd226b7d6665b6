"""Rollouts inside a model, whatever model it is: after a policy, or after given actions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dreamer.devices.phases import phase
from dreamer.types import Action, State, Trajectory
from dreamer.world_models.base import Dynamics, Noise

Policy = Callable[[State, Array], tuple[Action, Any]]
"""``(states [N, ...], key) -> (actions [N, ...], extras)``."""


@phase("imagination")
def imagine(model: Dynamics, start: State, policy: Policy, horizon: int, key: Array) -> Trajectory:
    """Follow a policy inside a model: `Dynamics.step` scanned over the horizon.

    Args:
        model: parameters.
        start: states ``[N, ...]`` to start from.
        policy: called once in every state. Extras are any arrays that are wanted along the trajectory, or None. What is
            computed from a state is best computed here, while the state is in the cache.
        horizon: steps H to take.
        key: random key.

    Returns:
        ``[H+1, N, ...]`` states, the start included, actions, of which the last is chosen but not taken, and extras.
        Gradients flow through states and extras if what they come from has any.
    """

    def body(state: State, inputs: tuple[Array, Noise]) -> tuple[State, tuple[State, Action, Any]]:
        policy_key, noise = inputs
        action, extras = policy(state, policy_key)
        following = model.step(state, action, noise)
        return following, (following, action, extras)

    step_key, last_key = jax.random.split(key)
    policy_keys, model_keys = jax.vmap(jax.random.split)(jax.random.split(step_key, horizon)).T
    # All random numbers are drawn before the loop: drawing a few at every step is slow on every backend.
    noise = draw_noise(model, model_keys, row_count(start))
    last, (states, *chosen) = jax.lax.scan(body, start, (policy_keys, noise))
    states = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, states)
    final = list(policy(last, last_key))
    action, extras = jax.tree.map(lambda rest, final: jnp.concatenate([rest, final[None]]), chosen, final)
    return Trajectory(states, action, extras)


def follow(model: Dynamics, start: State, action: Action, key: Array) -> State:
    """Take given actions inside a model.

    Args:
        model: parameters.
        start: states ``[N, ...]`` to start from.
        action: actions ``[H, N, ...]`` by key; the first is taken in the start states.
        key: random key.

    Returns:
        The states after each action, ``[H, N, ...]``.
    """

    def body(state: State, inputs: tuple[Action, Noise]) -> tuple[State, State]:
        following = model.step(state, *inputs)
        return following, following

    keys = jax.random.split(key, row_count(action))
    return jax.lax.scan(body, start, (action, draw_noise(model, keys, row_count(start))))[1]


def draw_noise(model: Dynamics, keys: Array, batch: int) -> Noise:
    """The noise of H steps of N rows, ``[H, N, ...]``, one step for each key ``[H]``."""
    return jax.vmap(lambda key: model.noise(key, batch))(keys)


def row_count(tree: Any) -> int:
    """Length of the first axis of the arrays of a tree."""
    return len(jax.tree.leaves(tree)[0])


__all__ = ["Policy", "draw_noise", "follow", "imagine", "row_count"]
