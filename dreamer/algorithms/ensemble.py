"""An ensemble that is learned from replay, one batch at a time: what MBPO, PETS and deep Dyna imagine in.

Differs from PETS and MBPO, which train an ensemble to convergence every few hundred steps, on all data seen until then:

* Each update takes one gradient step on a batch from replay.
* Which transitions belong to a member's bootstrap sample, and which are held out, follows from their numbers (see
  `dreamer.world_models.ensemble.bootstrap`), not from a shuffled list.
* Early stopping is a choice between two sets of parameters. One learns at every update. The other imagines, and takes
  over a member's parameters only where they predict held-out transitions better than those that it has.
* Averages over batches, of the held-out errors by which elites are chosen and of the inputs' mean and variance, stand
  for those over all data.

Sources: Chua et al. 2018, "Deep reinforcement learning in a handful of trials using probabilistic dynamics models";
Janner et al. 2019, "When to trust your model: model-based policy optimization".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float32

from dreamer.algorithms.transitions import StepReport, Transitions
from dreamer.config import Config, ConfigError, Registry
from dreamer.nn.layers import Linear
from dreamer.nn.members import PlainMLP
from dreamer.nn.vectors import refuse_images, vector_size
from dreamer.types import Spaces, mask_keys
from dreamer.world_models.ensemble import (
    Ensemble,
    EnsembleDynamics,
    Normalizer,
    Propagation,
    best_members,
    bootstrap,
    ensemble_loss,
    ensemble_optimizer,
    holdout_scores,
    spread,
)

AVERAGED = 20
"""Batches that the averages of held-out errors look back on."""

NORMALIZED = 1000
"""Batches that those of the inputs look back on."""

Ends = Callable[[Float32[Array, "N V"]], Bool[Array, "N"]]
"""Whether the task ends in an observation."""

ENDS = Registry("ensemble.ends", {"never": "dreamer.algorithms.ensemble:never"}, also=["learned"])
"""Functions `Ends`."""


def never(obs: Float32[Array, "N V"]) -> Bool[Array, "N"]:
    """The task does not end."""
    return jnp.zeros(len(obs), bool)


class EndNetwork(nnx.Module):
    """How likely it is that the task ends in an observation."""

    def __init__(self, config: Config, inputs: int, *, rngs: nnx.Rngs):
        dtype = config.nets.dtype
        self.mlp = PlainMLP(inputs, config.ensemble.units, 2, "silu", dtype=dtype, rngs=rngs)
        self.head = Linear(self.mlp.outputs, 1, dtype=dtype, rngs=rngs)

    def __call__(self, obs: Float32[Array, "N V"]) -> Float32[Array, "N"]:
        """The log-odds, from a normalized observation."""
        return self.head(self.mlp(obs))[:, 0].astype(jnp.float32)


class Learning(NamedTuple):
    """What has a gradient."""

    ensemble: Ensemble
    ends: EndNetwork | tuple[()]
    """``()`` where ends are given."""


class LearnedEnsemble(NamedTuple):
    """All that is learned about the dynamics of a task."""

    learning: Learning
    kept: Ensemble
    """The members that imagine."""
    learning_error: Float32[Array, "K"]
    """Held-out error of the members that learn, averaged over batches."""
    kept_error: Float32[Array, "K"]
    """That of the members that imagine."""
    inputs: Normalizer
    """Of observation and action, side by side."""


class EnsembleLearner(NamedTuple):
    """How an ensemble for one task begins, is updated, and is used.

    Attributes:
        config: the run's config.
        obs_size: size V of an observation.
        action_spaces: spaces of the actions.
        given_ends: where the task ends; None: that is learned.
    """

    config: Config
    obs_size: int
    action_spaces: Spaces
    given_ends: Ends | None

    def begin(self, rngs: nnx.Rngs) -> tuple[LearnedEnsemble, optax.OptState]:
        """Parameters and moments before the first update."""
        config = self.config
        inputs = self.obs_size + vector_size(self.action_spaces)
        # The change of the observation, and the reward.
        ensemble = Ensemble(config.ensemble, inputs, self.obs_size + 1, dtype=config.nets.dtype, rngs=rngs)
        ends = EndNetwork(config, self.obs_size, rngs=rngs) if self.given_ends is None else ()
        zeros = jnp.zeros(config.ensemble.members)
        learning = Learning(ensemble, ends)
        model = LearnedEnsemble(
            learning,
            kept=jax.tree.map(jnp.copy, ensemble),
            learning_error=zeros,
            kept_error=jnp.copy(zeros),
            inputs=Normalizer(jnp.zeros(inputs), jnp.ones(inputs)),
        )
        return model, self._optimizer().init(learning)

    def step(
        self, model: LearnedEnsemble, moments: optax.OptState, seen: Transitions, number: Array
    ) -> tuple[LearnedEnsemble, optax.OptState, StepReport]:
        """One update.

        Args:
            model: before it.
            moments: of the optimizer.
            seen: N transitions as vectors.
            number: of the update, from 0.

        Returns:
            Model and moments after it, and a report with gradients and updates of the whole model.
        """
        raw = jnp.concatenate([seen.obs, seen.action], -1)
        target = jnp.concatenate([seen.next_obs - seen.obs, seen.reward[:, None]], -1)
        inputs = follow_inputs(model.inputs, raw, seen.happened, number)
        x = inputs(raw)
        shares = bootstrap(jnp.concatenate([raw, target], -1), model.kept.size, self.config.ensemble.holdout)
        counts = shares.counts * seen.happened[None]

        def loss(learning: Learning) -> tuple[Array, dict[str, Array]]:
            inputs_of_all, targets_of_all = (jnp.broadcast_to(rows, (len(counts), *rows.shape)) for rows in (x, target))
            losses = {"model": ensemble_loss(learning.ensemble, inputs_of_all, targets_of_all, counts)}
            if isinstance(learning.ends, EndNetwork):
                logits = learning.ends(self._normalized(inputs, seen.next_obs))
                is_terminal = seen.is_terminal.astype(jnp.float32)
                losses["ends"] = seen.mean(optax.sigmoid_binary_cross_entropy(logits, is_terminal))
            return sum(losses.values(), start=jnp.zeros(())), losses

        (_, losses), gradient = jax.value_and_grad(loss, has_aux=True)(model.learning)
        added, moments = self._optimizer().update(gradient, moments, model.learning)
        learning = optax.apply_updates(model.learning, added)

        held_out = (shares.is_held_out & seen.happened).astype(jnp.float32)
        rate = jnp.where(held_out.any(), 1 / AVERAGED, 0.0)

        def follow(average: Array, ensemble: Ensemble) -> Array:
            return average + rate * (holdout_scores(ensemble, x, target, held_out) - average)

        learning_error = follow(model.learning_error, learning.ensemble)
        kept_error = follow(model.kept_error, model.kept)
        is_better = learning_error <= kept_error
        after = LearnedEnsemble(
            learning,
            kept=model.kept.replace(is_better, learning.ensemble),
            learning_error=learning_error,
            kept_error=jnp.where(is_better, learning_error, kept_error),
            inputs=inputs,
        )
        unknown = spread(after.kept.of_shared(x))
        report = StepReport(
            losses,
            gradients=jax.tree.map(jnp.zeros_like, model)._replace(learning=gradient),
            updates=jax.tree.map(jnp.subtract, after, model)._replace(learning=added),
            metrics={
                "ensemble/error": after.kept_error.mean(),
                "ensemble/replaced": is_better.mean(dtype=jnp.float32),
                "ensemble/aleatoric": seen.mean(jnp.sqrt(unknown.aleatoric).mean(-1)),
                "ensemble/epistemic": seen.mean(jnp.sqrt(unknown.epistemic).mean(-1)),
            },
        )
        return after, moments, report

    def dynamics(self, model: LearnedEnsemble, propagation: Propagation) -> EnsembleDynamics:
        """The elites as dynamics to imagine in."""

        def learned_ends(obs: Float32[Array, "N V"]) -> Bool[Array, "N"]:
            assert isinstance(model.learning.ends, EndNetwork)
            return model.learning.ends(self._normalized(model.inputs, obs)) > 0

        return EnsembleDynamics(
            ensemble=model.kept.only(best_members(model.kept_error, self.config.ensemble.elites)),
            normalizer=model.inputs,
            action_spaces=self.action_spaces,
            propagation=propagation,
            ends=self.given_ends or learned_ends,
        )

    def _optimizer(self) -> optax.GradientTransformation:
        return ensemble_optimizer(self.config.ensemble.lr, self.config.ensemble.weight_decay)

    def _normalized(self, inputs: Normalizer, obs: Float32[Array, "N V"]) -> Float32[Array, "N V"]:
        return Normalizer(inputs.mean[: self.obs_size], inputs.std[: self.obs_size])(obs)


def follow_inputs(inputs: Normalizer, x: Float32[Array, "N I"], counts: Bool[Array, "N"], number: Array) -> Normalizer:
    """A normalizer after one more batch: averages of the mean and of the variance about it.

    Args:
        inputs: after the batches before.
        x: the batch.
        counts: which of its rows count.
        number: of the batch, from 0; the first one counts alone.
    """

    def average(values: Array) -> Array:
        return (counts[:, None] * values).sum(0) / counts.sum().clip(1)

    rate = 1 / jnp.minimum(number + 1, NORMALIZED)
    mean = inputs.mean + rate * (average(x) - inputs.mean)
    variance = jnp.square(inputs.std)
    variance += rate * (average(jnp.square(x - mean[None])) - variance)
    return Normalizer(mean, jnp.sqrt(jnp.maximum(variance, 1e-12)))


def ensemble_learner(config: Config, obs_spaces: Spaces, action_spaces: Spaces) -> EnsembleLearner:
    """The learner for one task.

    Raises:
        ConfigError: an observation is an image, actions are masked, or there is no such function of ends.
    """
    refuse_images(obs_spaces, f"algorithm={config.algorithm}")
    if masked := mask_keys(obs_spaces, action_spaces):
        raise ConfigError(
            f"algorithm={config.algorithm} cannot be used: an ensemble does not predict which actions are allowed, and "
            f"the observation {next(iter(masked.values()))} is a mask. Use algorithm=dreamer, or leave the mask out "
            "with env.ignore."
        )
    name = config.ensemble.ends
    given: Any = None if name == "learned" else ENDS.load(name)
    return EnsembleLearner(config, vector_size(obs_spaces), action_spaces, given)


__all__ = [
    "ENDS",
    "EndNetwork",
    "EnsembleLearner",
    "LearnedEnsemble",
    "Learning",
    "ensemble_learner",
    "follow_inputs",
    "never",
]
