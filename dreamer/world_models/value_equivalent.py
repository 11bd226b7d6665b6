"""A model that is only to be right about rewards, values and policies: what observations look like, it need not know.

Its states are whatever lets it predict these. Nothing is decoded and nothing compared with later observations, so it is
learned through the heads of an algorithm such as `dreamer.algorithms.muzero`.

Source: Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned model".
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32

from dreamer.config import Config
from dreamer.equations.numbers import KINDS
from dreamer.nn.layers import hidden_layers, output_layer
from dreamer.nn.observations import Encoder
from dreamer.nn.vectors import flatten, vector_size
from dreamer.types import Action, Masks, Observation, Spaces
from dreamer.world_models.base import Noise


class ValueEquivalentState(NamedTuple):
    """States of N rows."""

    latent: Float[Array, "*batch D"]
    """Every state's smallest number is 0, and its largest 1."""
    reward: Float[Array, "*batch K"]
    """What the reward of arriving here is predicted from: it also depends on the state before."""


class ValueEquivalentModel(nnx.Module):
    """`dreamer.world_models.Dynamics` that begin with an observation, and have no noise.

    Episodes of this model do not end: after an end, states are learned to be worth nothing. It knows no masks.

    Args:
        config: the run's config.
        obs_spaces: observation spaces.
        action_spaces: action spaces.
        rngs: source of initial parameters.
    """

    def __init__(self, config: Config, obs_spaces: Spaces, action_spaces: Spaces, *, rngs: nnx.Rngs):
        nets = config.nets
        head = KINDS[nets.reward_head]
        self.feature_size = config.muzero.latent
        self.kind = nets.reward_head
        self.rewards = head.outputs(nets.bins)
        self.action_spaces = tuple(sorted(action_spaces.items()))
        self.encoder = Encoder(nets, obs_spaces, rngs=rngs)
        self.first = output_layer(nets, self.encoder.outputs, self.feature_size, rngs=rngs)
        inputs = self.feature_size + vector_size(action_spaces)
        self.dynamics = hidden_layers(nets, inputs, config.muzero.layers, rngs=rngs)
        self.following = output_layer(nets, self.dynamics.outputs, self.feature_size, rngs=rngs)
        self.reward_mlp = hidden_layers(nets, self.dynamics.outputs, nets.reward_layers, rngs=rngs)
        self.reward_head = output_layer(nets, self.reward_mlp.outputs, self.rewards, scale=head.scale, rngs=rngs)

    def represent(self, obs: Observation) -> ValueEquivalentState:
        """The states that observations ``[N, ...]`` show; rewards were received already."""
        latent = _scale(self.first(self.encoder(obs)))
        return ValueEquivalentState(latent, jnp.zeros((len(latent), self.rewards), latent.dtype))

    def noise(self, key: Array, batch: int) -> Noise:
        """None."""
        return ()

    def step(self, state: ValueEquivalentState, action: Action, noise: Noise) -> ValueEquivalentState:
        """One step without an observation."""
        taken = flatten(action, dict(self.action_spaces), self.reward_head.dtype)
        hidden = self.dynamics(jnp.concatenate([state.latent, taken], -1))
        return ValueEquivalentState(_scale(self.following(hidden)), self.reward_head(self.reward_mlp(hidden)))

    def features(self, state: ValueEquivalentState) -> Float[Array, "*batch D"]:
        """The latent."""
        return state.latent

    def reward(self, state: ValueEquivalentState) -> Any:
        """Distribution of the reward received on arriving in a state."""
        return KINDS[self.kind].distribution(state.reward)

    def cont(self, state: ValueEquivalentState) -> Float32[Array, "*batch"]:
        """1: episodes do not end."""
        return jnp.ones(state.latent.shape[:-1], jnp.float32)

    def masks(self, state: ValueEquivalentState) -> Masks:
        """None."""
        return {}


def _scale(latent: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
    """The numbers of each state within [0, 1], the range of actions."""
    low = latent.min(-1, keepdims=True)
    high = latent.max(-1, keepdims=True)
    return (latent - low) / jnp.maximum(high - low, 1e-5)


__all__ = ["ValueEquivalentModel", "ValueEquivalentState"]
