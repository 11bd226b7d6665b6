"""Networks that act and judge: the policy over all action keys, and the critic."""

import math

import distrax
from flax import nnx
from jaxtyping import Array, Float

from dreamer.config import Config
from dreamer.equations import distributions
from dreamer.nn.layers import MLP, Linear
from dreamer.types import Masks, Space, Spaces

PolicyOutputs = dict[str, tuple[Array, ...]]
"""Outputs of the actor's heads by action key, see `Actor.outputs`."""


class Actor(nnx.Module):
    """Policy: latent features to a joint distribution over all action keys."""

    def __init__(self, config: Config, inputs: int, spaces: Spaces, *, rngs: nnx.Rngs):
        self.config = config.behavior
        self.spaces = tuple(sorted(spaces.items()))
        nets = config.nets
        self.mlp = MLP(inputs, nets.units, nets.actor_layers, dtype=nets.dtype, rngs=rngs)

        def head(space: Space) -> Linear:
            # Small initial outputs: the first policy is close to uniform.
            size = math.prod(space.shape) * max(1, space.classes)
            return Linear(self.mlp.outputs, size, scale=0.01, dtype=nets.dtype, rngs=rngs)

        self.heads = nnx.Dict({key: head(space) for key, space in self.spaces})
        self.stds = nnx.Dict({key: head(space) for key, space in self.spaces if space.kind == "continuous"})

    def __call__(self, feature: Float[Array, "*batch F"], masks: Masks | None = None) -> distrax.Joint:
        """Distribution of the action; `sample`, `mode` and `log_prob` take and give dicts by key.

        Args:
            feature: features of the states.
            masks: classes that are allowed there, by action key; at least one of each. The others have probability 0.
        """
        return self.distribution(self.outputs(feature), masks)

    def outputs(self, feature: Float[Array, "*batch F"]) -> PolicyOutputs:
        """What `distribution` is made of, by action key: ``(logits,)``, or ``(mean, std)``, unbounded and flat."""
        hidden = self.mlp(feature)
        heads = {key: (head, self.stds[key]) if key in self.stds else (head,) for key, head in self.heads.items()}
        return {key: tuple(head(hidden) for head in both) for key, both in heads.items()}

    def distribution(self, outputs: PolicyOutputs, masks: Masks | None = None) -> distrax.Joint:
        """Distribution of the action from `outputs`."""
        config = self.config
        parts = {}
        for key, space in self.spaces:
            rank = len(space.shape)
            # Flat outputs get the axes of the space; the last one holds classes, or has size 1.
            shaped = [x.reshape(*x.shape[:-1], *space.shape, -1) for x in outputs[key]]
            if space.kind == "discrete":
                (logits,) = shaped
                mask = (masks or {}).get(key)
                log_probs = distributions.unimix_log_probs(logits, config.actor_unimix, mask)
                parts[key] = distributions.Categorical(log_probs, rank, mask)
            else:
                mean, std = (x[..., 0] for x in shaped)
                parts[key] = distributions.bounded_normal(mean, std, config.min_std, config.max_std, rank)
        return distrax.Joint(parts)


class Critic(nnx.Module):
    """Value function: latent features to a distribution of the return."""

    def __init__(self, config: Config, inputs: int, *, rngs: nnx.Rngs):
        nets = config.nets
        self.mlp = MLP(inputs, nets.units, nets.critic_layers, dtype=nets.dtype, rngs=rngs)
        self.head = Linear(self.mlp.outputs, nets.bins, scale=0.0, dtype=nets.dtype, rngs=rngs)

    def __call__(self, feature: Float[Array, "*batch F"]) -> distributions.SymexpTwoHot:
        """Distribution of the return from each state."""
        return distributions.SymexpTwoHot(self.logits(feature))

    def logits(self, feature: Float[Array, "*batch F"]) -> Float[Array, "*batch K"]:
        """Logits of that distribution over its K bins."""
        return self.head(self.mlp(feature))
