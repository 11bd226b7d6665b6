"""Networks that act and judge: the policy over all action keys, and the critic."""

import math
from typing import Any

import distrax
from flax import nnx
from jaxtyping import Array, Float

from dreamer.config import Config
from dreamer.equations import bounded, distributions
from dreamer.equations.numbers import KINDS
from dreamer.nn.layers import Linear, hidden_layers, output_layer
from dreamer.types import Masks, Space, Spaces

PolicyOutputs = dict[str, tuple[Array, ...]]
"""Outputs of the actor's heads by action key, see `Actor.outputs`."""


class Actor(nnx.Module):
    """Policy: latent features to a joint distribution over all action keys."""

    def __init__(self, config: Config, inputs: int, spaces: Spaces, *, rngs: nnx.Rngs):
        self.config = config.behavior
        self.spaces = tuple(sorted(spaces.items()))
        nets = config.nets
        self.mlp = hidden_layers(nets, inputs, nets.actor_layers, rngs=rngs)

        def head(space: Space) -> Linear:
            # Small initial outputs in V3: the first policy is close to uniform.
            size = math.prod(space.shape) * max(1, space.classes)
            return output_layer(nets, self.mlp.outputs, size, scale=self.config.actor_scale, rngs=rngs)

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

    def distribution(
        self, outputs: PolicyOutputs, masks: Masks | None = None, *, onehot: bool = False
    ) -> distrax.Joint:
        """Distribution of the action from `outputs`.

        Args:
            outputs: see `outputs`.
            masks: see above.
            onehot: discrete actions are one-hot vectors of floats, which pass gradients on to the probabilities.
        """
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
                discrete = distributions.OneHot if onehot else distributions.Categorical
                parts[key] = discrete(log_probs, rank, mask)
            else:
                mean, std = (x[..., 0] for x in shaped)
                if config.actor == "tanh_normal":
                    parts[key] = bounded.tanh_normal(mean, std, rank)
                elif config.actor == "truncated_normal":
                    parts[key] = bounded.truncated_normal(mean, std, config.min_std, rank)
                else:
                    parts[key] = distributions.bounded_normal(mean, std, config.min_std, config.max_std, rank)
        return distrax.Joint(parts)


class Critic(nnx.Module):
    """Value function: latent features to a distribution of the return."""

    kind = "symexp_twohot"
    """See ``nets.critic_head``."""

    def __init__(self, config: Config, inputs: int, *, rngs: nnx.Rngs):
        nets = config.nets
        head = KINDS[nets.critic_head]
        self.kind = nets.critic_head
        self.mlp = hidden_layers(nets, inputs, nets.critic_layers, rngs=rngs)
        self.head = output_layer(nets, self.mlp.outputs, head.outputs(nets.bins), scale=head.scale, rngs=rngs)

    def __call__(self, feature: Float[Array, "*batch F"]) -> Any:
        """Distribution of the return from each state."""
        return self.distribution(self.logits(feature))

    def logits(self, feature: Float[Array, "*batch F"]) -> Float[Array, "*batch K"]:
        """What that distribution is made of: logits of its K bins, or its mean with K = 1."""
        return self.head(self.mlp(feature))

    def distribution(self, logits: Float[Array, "*batch K"]) -> Any:
        """The distribution of `dreamer.equations.numbers` that these logits stand for."""
        return KINDS[self.kind].distribution(logits)
