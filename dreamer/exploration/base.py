"""What a bonus is: a reward for steps that promise to teach the world model something, whatever the task."""

from typing import Any, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float, Float32

from dreamer.config import Config, Registry
from dreamer.types import Action, Batch, Metrics, Spaces, State
from dreamer.world_models.base import Losses, WorldModel


@runtime_checkable
class Bonus(Protocol):
    """An intrinsic reward, and how it is learned. All that changes is in ``nets`` (parameters) and ``memory``."""

    def init(self, rngs: nnx.Rngs) -> tuple[Any, Any]:
        """Initial ``nets`` and ``memory``."""

    def loss(
        self, nets: Any, memory: Any, model: WorldModel, states: State, batch: Batch, config: Config
    ) -> tuple[Losses, Any, Metrics]:
        """Losses with their weights, the next memory, and metrics.

        Args:
            nets: parameters.
            memory: from the update before.
            model: the world model, which learns nothing from this.
            states: of the real steps ``[B, T, ...]``, without a gradient.
            batch: the B sequences of T steps that they are from; steps where ``is_first`` follow from nothing.
            config: the run's config, whose numbers may be traced.
        """

    def reward(
        self, nets: Any, memory: Any, feature: Float[Array, "*batch F"], action: Action
    ) -> Float32[Array, "*batch"]:
        """The bonus of actions ``[*batch, ...]`` in states with these features."""


BONUSES = Registry("exploration.kind", {"disagreement": "dreamer.exploration.disagreement:disagreement"})
"""Functions ``(config, action_spaces, model) -> Bonus``; parameters of the model may be shapes."""


def make(config: Config, action_spaces: Spaces, model: WorldModel) -> Bonus:
    """The bonus that ``config.exploration.kind`` names.

    Raises:
        ConfigError: there is no such bonus, or it cannot be computed with this model.
    """
    return BONUSES.load(config.exploration.kind)(config, action_spaces, model)


__all__ = ["BONUSES", "Bonus", "make"]
