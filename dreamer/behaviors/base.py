"""What a behaviour is: how to act from a state of a model, and how that is learned."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float, Float32

from dreamer.config import Config, Registry
from dreamer.types import Action, Batch, Masks, Metrics, Mode, Spaces, State
from dreamer.world_models.base import Distribution, Dynamics, Losses, Seen

Reward = Callable[[State], Distribution]
"""What is rewarded on arriving in a state: `Dynamics.reward`, unless something else is wanted."""


@runtime_checkable
class Behavior(Protocol):
    """Acting, and learning to act. All that changes is in ``nets`` (parameters, with gradients) and ``memory``."""

    def init(self, rngs: nnx.Rngs) -> tuple[Any, Any]:
        """Initial ``nets`` and ``memory``."""

    def act(self, nets: Any, feature: Float[Array, "*batch F"], masks: Masks, key: Array, mode: Mode) -> Action:
        """Actions ``[*batch, ...]`` in states with these features, drawn or most probable, among those allowed."""

    def value(self, nets: Any, model: Dynamics, state: State) -> Float32[Array, "*batch"]:
        """Expected return after states of the model, ``[*batch, ...]``, without the reward of arriving there.

        It is also the value of the states in which the plans of planners end.
        """

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
        """Losses with their weights, the next memory, and metrics.

        Args:
            nets: parameters.
            memory: from the update before.
            model: the world model; its parameters get whatever gradient is not stopped here.
            seen: what the model made of the batch; imagination starts from its states.
            batch: B sequences of T real steps.
            key: random key.
            config: the run's config, whose numbers may be traced.
            reward: what is rewarded in imagination; None: what the model expects of the task.
        """

    def after_update(self, nets: Any, memory: Any, config: Config) -> Any:
        """The memory after the parameters have moved: targets that follow them."""


@runtime_checkable
class ClassProbabilities(Protocol):
    """What a behaviour can also answer if it is to guide a tree search: how probable each class of an action is."""

    def log_probs(self, nets: Any, feature: Float[Array, "*batch F"], masks: Masks) -> dict[str, Array]:
        """Log-probabilities ``[*batch, ..., C]`` by key of discrete actions; very low where a class is forbidden."""


BEHAVIORS = Registry(
    "behavior.kind",
    {
        "actor_critic": "dreamer.behaviors.estimators:actor_critic",
        "dynamics_backprop": "dreamer.behaviors.estimators:dynamics_backprop",
        "none": "dreamer.behaviors.none:none",
    },
)
"""Functions ``(config, action_spaces, feature_size) -> Behavior``."""


def make(config: Config, action_spaces: Spaces, feature_size: int) -> Behavior:
    """The behaviour that ``config.behavior.kind`` names.

    Raises:
        ConfigError: there is no such behaviour, or it cannot act in these spaces.
    """
    return BEHAVIORS.load(config.behavior.kind)(config, action_spaces, feature_size)


__all__ = ["BEHAVIORS", "Behavior", "ClassProbabilities", "Reward", "make"]
