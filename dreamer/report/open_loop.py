"""What the world model predicts without observations: errors of dreams that follow recorded actions.

From a state that was filtered from observations, several dreams follow the recorded actions for K steps. The mean of
infinitely many dreams is what the model expects; its squared error is estimated without bias from a few of them,
``(mean of S dreams - truth)^2 - variance of the dreams / S``. Without the correction, the draws of the latent alone
would make a perfect model look worse than a constant.

Units: vectors in symlog space, images in 0 to 1, classes as one-hot vectors, whatever the units of a model's losses.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from dreamer.behaviors import Behavior
from dreamer.equations.transforms import symlog
from dreamer.types import Action, Batch, Observation, Parts, Space, Spaces, State, Stored
from dreamer.world_models import LatentVariableModel, WorldModel, imagine


class FilteredEpisodes(NamedTuple):
    """What the agent made of each observed step, batch first."""

    stored: Stored
    """States ``[B, T, ...]`` as the model packs them."""
    posterior: Any
    """Parameters of the posterior of their variables ``[B, T, ...]``; ``()`` where there is none."""
    value: Float32[Array, "B T"]
    """The behaviour's value of each state."""
    reward_logits: Float32[Array, "B T bins"]
    """Of the reward on arriving in each state; no bins where the reward is not a distribution over bins."""


class Errors(NamedTuple):
    """Squared errors of three predictions of one observation key, mean over its entries, ``[K, M]``."""

    model: Float32[Array, "K M"]
    """Of what the model expects; an unbiased estimate, so sometimes below 0."""
    repeat: Float32[Array, "K M"]
    """Of the last observation before the dream, repeated."""
    mean: Float32[Array, "K M"]
    """Of the mean over all episodes."""
    spread: Float32[Array, "K M"]
    """Not an error: the variance among the dreams."""


class Dreams(NamedTuple):
    """K steps of dreams from M start states, time first. Means are over the dreams of a start."""

    errors: dict[str, Errors]
    """By observation key."""
    where: dict[str, tuple[Array, Array, Array]]
    """Errors ``(model, repeat, mean)`` of each entry of a key (of images: each pixel, mean over channels) ``[...]``,
    summed over the starts and the steps of ``near``."""
    reward: Float32[Array, "K M"]
    """Expected reward on arriving at each step."""
    reward_spread: Float32[Array, "K M"]
    """Variance of expected rewards among the dreams."""
    reward_probs: Float32[Array, "K M bins"]
    """Probability of each bin; no bins where the reward is not a distribution over bins."""
    cont: Float32[Array, "K M"]
    """Probability of continuing after each step, as the head predicts it: times the discount if so trained."""
    cont_spread: Float32[Array, "K M"]
    """Variance of that among the dreams."""
    kl: Float32[Array, "K M"]
    """KL in nats from the posterior, which sees every observation up to the step, to the prior of the dream; NaN where
    the model has no random variables."""
    prior_entropy: Float32[Array, "K M"]
    """Entropy of the prior of the dream in nats; NaN likewise."""


def filter_states(behavior: Behavior, nets: Parts, batch: Batch, key: Array) -> FilteredEpisodes:
    """Posterior states of recorded sequences ``[B, T]``, which continue from ``batch.stored``."""
    model = nets.world_model
    seen = model.observe(batch, key)
    posterior = seen.posterior if isinstance(model, LatentVariableModel) else ()
    value = behavior.value(nets.behavior, model, seen.states)
    posterior = jax.tree.map(lambda x: x.astype(jnp.float32), posterior)
    reward: Any = model.reward(seen.states)
    # A reward that is not a distribution over bins has an empty last axis instead.
    logits = reward.logits if hasattr(reward, "logits") else jnp.zeros((*value.shape, 0))
    return FilteredEpisodes(
        stored=model.pack(seen.states), posterior=posterior, value=value, reward_logits=logits.astype(jnp.float32)
    )


def encode(space: Space, value: Array | np.ndarray) -> Float32[Array, "..."]:
    """An observation in the units in which it is predicted: symlog, 0 to 1, or one-hot with a last axis of classes."""
    if space.kind == "discrete":
        return jax.nn.one_hot(value, space.classes, dtype=jnp.float32)
    value = jnp.asarray(value).astype(jnp.float32)
    return value / 255 if space.kind == "image" else symlog(value)


def cells(space: Space, error: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Squared errors per entry: a sum over classes (the Brier score, 0 to 2), a mean over channels of images."""
    if space.kind == "vector":
        return error
    return error.sum(-1) if space.kind == "discrete" else error.mean(-1)


def unbiased_error(samples: Float32[Array, "samples ..."], truth: Float32[Array, "..."]) -> tuple[Array, Array]:
    """Squared error of the expectation of ``samples``, estimated without bias; and their variance."""
    variance = samples.var(0, ddof=1)
    return jnp.square(samples.mean(0) - truth) - variance / len(samples), variance


def dream(
    model: WorldModel,
    spaces: Spaces,
    samples: int,
    start: Stored,
    action: Action,
    target: Observation,
    last: Observation,
    average: dict[str, Float32[Array, "..."]],
    posterior: Any,
    near: Float32[Array, "M K"],
    key: Array,
) -> Dreams:
    """Dream along recorded actions, and compare with what was recorded.

    Args:
        model: parameters.
        spaces: observation spaces.
        samples: dreams S of each start, at least 2.
        start: packed states ``[M, ...]``.
        action: recorded actions ``[M, K, ...]``, the first taken in the start state.
        target: observations that followed, ``[M, K, ...]``.
        last: observations of the start states, ``[M, ...]``.
        average: mean of each key over all episodes, in the units of `encode`.
        posterior: parameters of the posterior at the steps that followed, ``[M, K, ...]``.
        near: 1 for steps that count in ``where``, 0 for others.
        key: random key.
    """
    rows, steps = near.shape
    state = repeat(model.unpack(start), samples)
    last = {name: encode(spaces[name], jnp.asarray(value)) for name, value in last.items()}
    time_first = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (action, dict(target), posterior, near))

    def split(x: Array) -> Array:
        """Inverse of `repeat`: ``[samples, M, ...]``."""
        return x.reshape(samples, rows, *x.shape[1:])

    def compare(name: str, guess: Array, truth: Array, weight: Array) -> tuple[Errors, tuple[Array, ...]]:
        space = spaces[name]
        samples_of_guess = split(jax.nn.softmax(guess, -1) if space.kind == "discrete" else guess)
        error, variance = unbiased_error(samples_of_guess, truth)
        constant = jnp.broadcast_to(average[name][None], truth.shape)
        each = [
            cells(space, x) for x in (error, jnp.square(last[name] - truth), jnp.square(constant - truth), variance)
        ]
        per_row = [x.reshape(rows, -1).mean(-1) for x in each]
        return Errors(*per_row), tuple(jnp.tensordot(weight, x, 1) for x in each[:3])

    def body(state: State, inputs: tuple[Array, Any]) -> tuple[State, Any]:
        key, (action, target, posterior, weight) = inputs
        state = model.step(state, repeat(action, samples), model.noise(key, samples * rows))
        guesses = model.decode(state) or {}
        found = {
            name: compare(name, guess, encode(spaces[name], target[name]), weight) for name, guess in guesses.items()
        }
        reward: Any = model.reward(state)
        cont = split(model.cont(state))
        mean = split(reward.mean())
        # A reward that is not a distribution over bins has an empty last axis instead.
        probs = jax.nn.softmax(reward.logits, -1) if hasattr(reward, "logits") else jnp.zeros((samples * rows, 0))
        kl = entropy = jnp.full(rows, jnp.nan)
        if isinstance(model, LatentVariableModel):
            prior = model.expectation(state)
            kl = split(model.belief(repeat(posterior, samples)).kl_to(prior)).mean(0)
            entropy = split(prior.entropy()).mean(0)
        step = Dreams(
            errors={name: errors for name, (errors, _) in found.items()},
            where={},
            reward=mean.mean(0),
            reward_spread=mean.var(0, ddof=1),
            reward_probs=split(probs).mean(0),
            cont=cont.mean(0),
            cont_spread=cont.var(0, ddof=1),
            kl=kl,
            prior_entropy=entropy,
        )
        return state, (step, {name: where for name, (_, where) in found.items()})

    _, (dreams, where) = jax.lax.scan(body, state, (jax.random.split(key, steps), time_first))
    return dreams._replace(where=jax.tree.map(lambda x: x.sum(0), where))


def imagined_return(
    behavior: Behavior, nets: Parts, start: Stored, discount: float, horizon: int, samples: int, key: Array
) -> Float32[Array, "M"]:
    """Discounted reward over H imagined steps with the policy, mean over the dreams of each start ``[M, ...]``.

    ``sum_{h=1..H} (prod_{j<h} c[j] discount) r[h]``, with predicted rewards r and probabilities c of continuing.

    Args:
        behavior: acts.
        nets: parameters.
        start: packed states.
        discount: factor per step, 1 if the continue head was trained with it.
        horizon: steps H.
        samples: dreams of each start.
        key: random key.
    """
    model = nets.world_model

    def policy(state: State, key: Array) -> tuple[Action, None]:
        return behavior.act(nets.behavior, model.features(state), model.masks(state), key, "sample"), None

    states = imagine(model, repeat(model.unpack(start), samples), policy, horizon, key).states
    reward = model.reward(states).mean()[1:]
    cont = model.cont(states)[1:-1]
    weight = jnp.concatenate([jnp.ones_like(reward[:1]), jnp.cumprod(cont * discount, 0)])
    return (weight * reward).sum(0).reshape(samples, -1).mean(0)


def repeat(tree: Any, samples: int) -> Any:
    """Arrays ``[M, ...]`` repeated as a whole, ``[samples * M, ...]``."""
    return jax.tree.map(lambda x: jnp.tile(x, (samples,) + (1,) * (x.ndim - 1)), tree)


__all__ = [
    "Dreams",
    "Errors",
    "FilteredEpisodes",
    "cells",
    "dream",
    "encode",
    "filter_states",
    "imagined_return",
    "unbiased_error",
]
