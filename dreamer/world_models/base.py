"""What a world model is: the functions that acting, imagining, learning and reporting ask of it, and nothing else."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from dreamer.config import Config, Registry
from dreamer.types import Action, Batch, Masks, Metrics, Number, Observation, Spaces, State, Stored

Noise = Any
"""All randomness of one step of a model, a pytree of arrays ``[N, ...]``; drawn beforehand, it can precede a loop."""

Losses = dict[str, tuple[Number, Float32[Array, "*shape"]]]
"""Weight and values of each loss by name; what is minimised is the sum of weighted means."""


@runtime_checkable
class Seen(Protocol):
    """What `WorldModel.observe` returns: the states, and whatever else the loss of the same model needs."""

    @property
    def states(self) -> State:
        """Filtered states ``[B, T, ...]``."""


@runtime_checkable
class Distribution(Protocol):
    """What a prediction of a number must answer."""

    def mean(self) -> Float32[Array, "*batch"]:
        """Expected value."""

    def log_prob(self, value: Float32[Array, "*batch"]) -> Float32[Array, "*batch"]:
        """Log-probability of a value."""


@runtime_checkable
class Dynamics(Protocol):
    """All that `imagine` and a planner need: an ensemble, or the true rules of a task, give no more.

    Shapes: N rows, ``*`` any leading axes. `State` and `Noise` are pytrees that only the model reads.
    """

    def noise(self, key: Array, batch: int) -> Noise:
        """All randomness of one step for ``batch`` rows."""

    def step(self, state: State, action: Action, noise: Noise) -> State:
        """One step without an observation: states ``[N, ...]``, and actions ``[N, ...]`` by key, taken in them.

        Discrete actions are classes, or one-hot vectors of floats ``[N, ..., C]`` from behaviours whose gradient may
        pass through actions.
        """

    def features(self, state: State) -> Float[Array, "*batch F"]:
        """What heads and policies read."""

    def reward(self, state: State) -> Distribution:
        """Distribution of the reward received on arriving in a state."""

    def cont(self, state: State) -> Float32[Array, "*batch"]:
        """Probability that the episode goes on from a state; times the discount, if it is so trained."""

    def masks(self, state: State) -> Masks:
        """Classes of discrete actions that are expected to be allowed in a state; ``{}`` where there are no masks."""


@runtime_checkable
class WorldModel(Dynamics, Protocol):
    """A model that is learned from real sequences. It is a pytree of parameters, such as an `nnx.Module`."""

    feature_size: int
    """Size F of `features`."""

    def initial(self, batch: int) -> State:
        """States at the start of an episode, ``[batch, ...]``."""

    def filter(
        self, state: State, prev_action: Action, obs: Observation, is_first: Bool[Array, "N"], noise: Noise
    ) -> State:
        """One real step: the state after an observation. State and action are ignored where ``is_first``.

        Classes of actions may be -1: none was taken.
        """

    def observe(self, batch: Batch, key: Array) -> Seen:
        """`filter` along the sequences of a batch, which continue from ``batch.stored``."""

    def decode(self, state: State) -> dict[str, Float32[Array, "..."]] | None:
        """Predictions ``[*, ...]`` of every observation key, in the units of `dreamer.nn.observations.Decoder`.

        None: the model does not predict observations. Pictures and reports then say so, and show the rest.
        """

    def pack(self, state: State) -> Stored:
        """What replay keeps of a state; ``()`` where there is nothing to keep."""

    def unpack(self, stored: Stored) -> State:
        """Inverse of `pack`."""

    def loss(self, seen: Any, batch: Batch, config: Config) -> tuple[Losses, Metrics]:
        """Losses of every part of the model, weighted, at each step ``[B, T]`` or of a batch ``[]``; and metrics."""


@runtime_checkable
class LatentVariableModel(Protocol):
    """What a model can also answer whose states hold random variables: how sure it is, and how surprised.

    The distributions have ``kl_to`` and ``entropy``, in nats.
    """

    def expectation(self, state: State) -> Any:
        """Distribution of the variables of a state before its observation is seen."""

    def belief(self, parameters: Any) -> Any:
        """Distribution of the variables once it is seen, from its ``parameters``: field ``posterior`` of `Seen`."""


@runtime_checkable
class RecurrentModel(Protocol):
    """What a model can also answer whose states have a recurrent part: what that part is, and what it learns from."""

    encoder: Any
    """Parameters of what observations pass through."""
    rssm: Any
    """Parameters of the recurrent core."""

    def recurrent(self, state: State) -> Float[Array, "*batch D"]:
        """The recurrent part of a state, which all that is remembered for more than a step must pass through."""


@runtime_checkable
class EmbeddingModel(Protocol):
    """What a model can also answer that embeds each observation before it filters: what the embeddings are."""

    embedding_size: int
    """Size E of an embedding."""

    def embed(self, obs: Observation) -> Float[Array, "B T E"]:
        """Embeddings of observations ``[B, T, ...]``, each by itself."""


WORLD_MODELS = Registry(
    "world_model.kind",
    {
        "rssm": "dreamer.world_models.latent:rssm",
        "gaussian_rssm": "dreamer.world_models.latent:gaussian_rssm",
    },
)
"""Functions ``(config, obs_spaces, action_spaces, rngs) -> WorldModel``."""


def make(config: Config, obs_spaces: Spaces, action_spaces: Spaces, rngs: nnx.Rngs) -> Any:
    """The world model that ``config.world_model.kind`` names, with initial parameters.

    Raises:
        ConfigError: there is no such model, or it cannot do what the spaces ask for.
    """
    return WORLD_MODELS.load(config.world_model.kind)(config, obs_spaces, action_spaces, rngs)


def observed_masks(obs: Observation, keys: Mapping[str, str]) -> Masks:
    """The action masks in an observation; ``keys`` has the observation key of each action key that is masked.

    A mask that forbids everything, as it may after the end of an episode, counts as none.
    """
    masks = {action: jnp.asarray(obs[key]) > 0 for action, key in keys.items()}
    return {action: mask | ~mask.any(-1, keepdims=True) for action, mask in masks.items()}


__all__ = [
    "WORLD_MODELS",
    "Distribution",
    "Dynamics",
    "EmbeddingModel",
    "LatentVariableModel",
    "Losses",
    "Noise",
    "RecurrentModel",
    "Seen",
    "WorldModel",
    "make",
    "observed_masks",
]
