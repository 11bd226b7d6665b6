"""No behaviour: a planner acts, and nothing is learned but the model, as in PlaNet."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from dreamer.behaviors.base import Reward
from dreamer.behaviors.estimators import check_discount
from dreamer.behaviors.noise import even_log_probs, random_action
from dreamer.config import Config, ConfigError
from dreamer.types import Action, Batch, Masks, Metrics, Mode, Spaces, State
from dreamer.world_models.base import Dynamics, Losses, Seen


@dataclasses.dataclass(frozen=True)
class NoBehavior:
    """See `dreamer.behaviors.base.Behavior`: uniformly random actions, which planners may begin with, and values of 0.

    Attributes:
        action_spaces: spaces of the action keys.
    """

    action_spaces: Spaces

    def init(self, rngs: nnx.Rngs) -> tuple[Any, Any]:
        """Nothing to learn and nothing to remember."""
        return (), ()

    def act(self, nets: Any, feature: Float[Array, "*batch F"], masks: Masks, key: Array, mode: Mode) -> Action:
        """Uniformly random actions among those allowed, whatever the mode."""
        return random_action(self.action_spaces, feature.shape[:-1], masks, key)

    def log_probs(self, nets: Any, feature: Float[Array, "*batch F"], masks: Masks) -> dict[str, Array]:
        """Equal for all classes that are allowed."""
        return even_log_probs(self.action_spaces, feature.shape[:-1], masks)

    def value(self, nets: Any, model: Dynamics, state: State) -> Float32[Array, "*batch"]:
        """Zeros: plans are judged by their rewards alone."""
        return jnp.zeros(model.features(state).shape[:-1], jnp.float32)

    def loss(
        self,
        nets: Any,
        memory: Any,
        model: Dynamics,
        seen: Seen,
        batch: Batch,
        key: Array,
        config: Config,
        reward: Reward | None = None,
    ) -> tuple[Losses, Any, Metrics]:
        """No losses."""
        return {}, memory, {}

    def after_update(self, nets: Any, memory: Any, config: Config) -> Any:
        """Nothing follows."""
        return memory


def none(config: Config, action_spaces: Spaces, feature_size: int) -> NoBehavior:
    """No behaviour.

    Raises:
        ConfigError: no planner acts, either; or there would be no discount.
    """
    check_discount(config)
    if config.planner.kind == "none":
        raise ConfigError(
            "behavior.kind=none cannot be used with planner.kind=none: nothing would choose actions. Use "
            "planner.kind=cem, or behavior.kind=actor_critic."
        )
    return NoBehavior(dict(sorted(action_spaces.items())))


__all__ = ["NoBehavior", "none"]
