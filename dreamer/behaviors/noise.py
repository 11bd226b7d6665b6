"""Actions at random: uniformly, and by adding noise to those of a policy or a planner."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dreamer.devices import batch_axis
from dreamer.equations.distributions import unimix_log_probs
from dreamer.types import Action, Masks, Spaces


def random_action(spaces: Spaces, batch: tuple[int, ...], masks: Masks, key: Array) -> Action:
    """Uniformly random actions ``[*batch, ...]`` by key: in [-1, 1], or classes among those that masks allow."""
    action: Action = {}
    for (name, space), own in zip(spaces.items(), jax.random.split(key, len(spaces)), strict=True):
        shape = (*batch, *space.shape)
        if space.kind == "discrete":
            # The largest of equally distributed numbers is as often one as another.
            draws = batch_axis.draw(jax.random.uniform, own, (*shape, space.classes))
            allowed = masks.get(name)
            action[name] = (draws if allowed is None else jnp.where(allowed, draws, -1.0)).argmax(-1).astype(jnp.int32)
        else:
            action[name] = 2 * batch_axis.draw(jax.random.uniform, own, shape) - 1
    return action


def even_log_probs(spaces: Spaces, batch: tuple[int, ...], masks: Masks) -> dict[str, Array]:
    """Log-probabilities ``[*batch, ..., C]`` of the classes that `random_action` draws."""
    log_probs = {}
    for name, space in spaces.items():
        if space.kind == "discrete":
            equal = jnp.zeros((*batch, *space.shape, space.classes))
            log_probs[name] = unimix_log_probs(equal, 0.0, masks.get(name))
    return log_probs


def add_noise(action: Action, noise: float, spaces: Spaces, masks: Masks, key: Array) -> Action:
    """Actions ``[N, ...]`` for exploration.

    Continuous ones get normal noise of this standard deviation, and are clipped to [-1, 1]. Discrete ones are, with
    this probability, uniformly random instead, each element by itself.
    """
    random_key, choice_key = jax.random.split(key)
    rows = len(next(iter(action.values())))
    uniform = random_action(spaces, (rows,), masks, random_key)
    noisy: Action = {}
    for (name, space), own in zip(spaces.items(), jax.random.split(choice_key, len(spaces)), strict=True):
        shape = action[name].shape
        if space.kind == "discrete":
            replaced = batch_axis.draw(jax.random.uniform, own, shape) < noise
            noisy[name] = jnp.where(replaced, uniform[name], action[name])
        else:
            draws = batch_axis.draw(jax.random.normal, own, shape)
            noisy[name] = jnp.clip(action[name] + noise * draws, -1, 1)
    return noisy


__all__ = ["add_noise", "even_log_probs", "random_action"]
