"""Disagreement: heads that predict one step ahead, alike except for their start, differ where few steps were seen.

Each head predicts the mean of what follows. So they come to agree on a coin, too, once they have seen it often enough:
what is random draws an explorer only as long as it is new.

Source: Sekar et al. 2020, "Planning to explore via self-supervised world models", equations 2 to 4. The official code
of Dreamer (V2) has the deviation in place of the variance, and by default predicts the sample of the latent state; the
paper predicts the embedding of the observation. A latent state may hold noise up to its free nats, here 1. In a small
world that is more than what is left to learn, and an explorer that predicts samples follows the noise.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from dreamer.config import Config, ConfigError
from dreamer.devices import batch_axis
from dreamer.devices.phases import phase
from dreamer.nn.layers import MLP, Linear
from dreamer.nn.members import make_members
from dreamer.nn.vectors import flatten, vector_size, within_bounds
from dreamer.types import Action, Batch, Metrics, Space, Spaces, State
from dreamer.world_models.base import EmbeddingModel, Losses, RecurrentModel, WorldModel


class Head(nnx.Module):
    """Features and action to what is expected of the next state.

    Args:
        config: the run's config.
        inputs: size of features and flat action, side by side.
        outputs: size Z of what is predicted.
        rngs: source of initial parameters.
    """

    def __init__(self, config: Config, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        sizes = config.exploration
        dtype = config.nets.dtype
        self.mlp = MLP(inputs, sizes.units, sizes.layers, dtype=dtype, rngs=rngs)
        self.out = Linear(self.mlp.outputs, outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float32[Array, "*batch Z"]:
        """The prediction."""
        return self.out(self.mlp(x)).astype(jnp.float32)


class DisagreementMemory(NamedTuple):
    """What follows from update to update."""

    typical: Float32[Array, ""]
    """Moving average of the disagreement on replayed steps; 0 before the first update."""


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """How much more an ensemble disagrees than on replayed steps, as a share of that. See `Bonus`.

    Attributes:
        config: the run's config.
        action_spaces: spaces of the action keys, sorted.
        inputs: size of features and flat action.
        outputs: size of what is predicted.
    """

    config: Config
    action_spaces: tuple[tuple[str, Space], ...]
    inputs: int
    outputs: int

    def init(self, rngs: nnx.Rngs) -> tuple[Head, DisagreementMemory]:
        """Heads whose parameters have a leading axis of members."""
        heads = make_members(
            lambda rngs: Head(self.config, self.inputs, self.outputs, rngs=rngs), self.config.exploration.heads, rngs
        )
        return heads, DisagreementMemory(jnp.zeros(()))

    @phase("bonus")
    def loss(
        self, nets: Head, memory: DisagreementMemory, model: WorldModel, states: State, batch: Batch, config: Config
    ) -> tuple[Losses, DisagreementMemory, Metrics]:
        """Squared errors at every step but the first of a sequence, summed over heads, so that each learns alone."""
        if self.config.exploration.target == "embedding":
            assert isinstance(model, EmbeddingModel)  # Seen to by `disagreement`.
            target = model.embed(batch.obs)
        else:
            target = latent(model, states)
        feature, target = jax.lax.stop_gradient((model.features(states), target.astype(jnp.float32)))
        action: Action = jax.tree.map(lambda x: x[:, 1:], batch.prev_action)
        predicted = self._predict(nets, feature[:, :-1], action)
        error = jnp.square(predicted - target[None, :, 1:]).sum((0, -1))
        follows = 1.0 - jnp.asarray(batch.is_first, jnp.float32)[:, 1:]
        disagreement = jax.lax.stop_gradient(spread(predicted))
        total, count = batch_axis.mean(((follows * disagreement).mean(), follows.mean()))
        now = total / jnp.maximum(count, 1e-8)
        moved = memory.typical + config.behavior.return_rate * (now - memory.typical)
        typical = jnp.where(memory.typical > 0, moved, now)
        metrics = {"bonus/disagreement": now, "bonus/typical": typical}
        return {"bonus": (1.0, follows * error)}, DisagreementMemory(typical), metrics

    @phase("bonus")
    def reward(
        self, nets: Head, memory: DisagreementMemory, feature: Float[Array, "*batch F"], action: Action
    ) -> Float32[Array, "*batch"]:
        """Variance over heads, mean over what they predict, relative to what is typical of replayed steps, less 1."""
        # Variances fall by orders of magnitude as heads learn. Returns are never scaled up, see `return_scale`, and
        # the bins of a critic are coarse near 0: without a unit, the entropy would soon be all that counts. And they
        # are coarser still far from 0, where the sum of an average bonus over all steps would hide what one step adds.
        return spread(self._predict(nets, feature, action)) / jnp.maximum(memory.typical, 1e-12) - 1.0

    def _predict(self, nets: Head, feature: Float[Array, "*batch F"], action: Action) -> Float32[Array, "K *batch Z"]:
        flat = within_bounds(flatten(action, dict(self.action_spaces)))
        x = jnp.concatenate([feature, flat.astype(feature.dtype)], -1)
        return jax.vmap(lambda head: head(x))(nets)


def spread(predicted: Float32[Array, "K *batch Z"]) -> Float32[Array, "*batch"]:
    """Variance over K members, mean over what they predict."""
    return predicted.var(0).mean(-1)


def latent(model: WorldModel, states: State) -> Float[Array, "*batch Z"]:
    """Samples of latent states: the features that do not follow from a step alone.

    Of a recurrent model, those behind the recurrent state, with which its features begin.
    """
    features = model.features(states)
    known = model.recurrent(states).shape[-1] if isinstance(model, RecurrentModel) else 0
    return features[..., known:]


def disagreement(config: Config, action_spaces: Spaces, model: WorldModel) -> Disagreement:
    """The bonus of Plan2Explore for a model.

    Raises:
        ConfigError: the model embeds no observations, and embeddings are to be predicted.
    """
    spaces = tuple(sorted(action_spaces.items()))
    if config.exploration.target == "latent":
        outputs = jax.eval_shape(lambda model: latent(model, model.initial(1)), model).shape[-1]
    elif isinstance(model, EmbeddingModel):
        outputs = model.embedding_size
    else:
        raise ConfigError(
            f"exploration.target=embedding cannot be used with world_model.kind={config.world_model.kind}: this model "
            "does not embed observations by themselves. Use exploration.target=latent."
        )
    return Disagreement(config, spaces, model.feature_size + vector_size(action_spaces), outputs)


__all__ = ["Disagreement", "DisagreementMemory", "Head", "disagreement", "latent", "spread"]
