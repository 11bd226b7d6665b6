"""Recurrent state-space model: prior, posterior, one step with an observation and one without.

::

    deter[t] = f(deter[t-1], stoch[t-1], action[t-1])      block GRU, deterministic
    prior      p(stoch[t] | deter[t])                      what is to be expected
    posterior  q(stoch[t] | deter[t], embed[t])            what was seen

`RSSM` is the core with a block GRU and categorical latents. A core with other latents overrides what it says of them,
see `dreamer.world_models.gaussian_rssm`; one with another recurrence overrides that, see `dreamer.world_models.gru`.
`dreamer.world_models.latent` adds encoder, decoder and heads.

Source: Hafner et al. 2025, equation 1, and the official code for the inside of the block GRU.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from dreamer.config import Config, RSSMConfig
from dreamer.devices import batch_axis
from dreamer.devices.phases import phase
from dreamer.equations import distributions
from dreamer.nn.activations import activate, make_norm
from dreamer.nn.layers import BlockLinear, Layer, hidden_layers, map_blocks, output_layer
from dreamer.nn.loops import scan
from dreamer.nn.vectors import flatten, vector_size, within_bounds
from dreamer.types import Action, Spaces
from dreamer.world_models.base import Noise


class Latent(NamedTuple):
    """State of the RSSM: everything it remembers."""

    deter: Float[Array, "*batch D"]
    """Recurrent state ``[..., D]``."""
    stoch: Float[Array, "*batch S C"]
    """One-hot samples of S categorical variables, ``[..., S, C]``."""


class StoredLatent(NamedTuple):
    """A `Latent` as kept in replay."""

    deter: Any
    """``[..., D]`` in the compute dtype."""
    stoch: Any
    """``[..., S]`` as class indices."""


class Observed(NamedTuple):
    """What `RSSM.observe` returns, ``[T, B, ...]``, or `RSSM.observe_step`, ``[B, ...]``."""

    latent: Any
    """Posterior states."""
    posterior: Any
    """Parameters of the posterior; here logits ``[..., S, C]``."""


class RSSM(nnx.Module):
    """Block GRU with categorical latents.

    Args:
        config: the run's config.
        embed: size E of the embedding of an observation.
        action_spaces: spaces of the action keys.
        rngs: source of initial parameters.
    """

    start: nnx.Param | None = None
    """See `learned_start`."""

    def __init__(self, config: Config, embed: int, action_spaces: Spaces, *, rngs: nnx.Rngs):
        sizes = config.rssm
        self.config = sizes
        self.action_spaces = tuple(sorted(action_spaces.items()))
        self.dtype = config.nets.dtype
        self.loops = config.nets.loops
        deter = sizes.deter
        hidden = sizes.hidden
        sample, parameters = self.widths(sizes)
        self.sample_size = sample

        self.activation = config.nets.activation
        self._make_recurrence(config, vector_size(action_spaces), rngs)
        nets = config.nets
        self.prior_mlp = hidden_layers(nets, deter, sizes.prior_layers, units=hidden, rngs=rngs)
        self.prior_logits = output_layer(nets, self.prior_mlp.outputs, parameters, rngs=rngs)
        self.posterior_mlp = hidden_layers(nets, deter + embed, sizes.posterior_layers, units=hidden, rngs=rngs)
        self.posterior_logits = output_layer(nets, self.posterior_mlp.outputs, parameters, rngs=rngs)
        if sizes.initial == "learned":
            self.start = nnx.Param(jnp.zeros(deter, jnp.float32))

    def _make_recurrence(self, config: Config, actions: int, rngs: nnx.Rngs) -> None:
        """Make the layers of `recurrence`, for flat actions of a size."""
        sizes = config.rssm
        deter = sizes.deter
        nets = config.nets
        style = {"activation": nets.activation, "norm": nets.norm, "init": nets.init, "dtype": nets.dtype}

        def layer(inputs: int) -> Layer:
            return Layer(inputs, sizes.hidden, rngs=rngs, **style)

        self.in_deter = layer(deter)
        self.in_stoch = layer(self.sample_size)
        self.in_action = layer(actions)
        self.mix = BlockLinear(deter, deter, sizes.blocks, shared=3 * sizes.hidden, dtype=nets.dtype, rngs=rngs)
        self.mix_norm = make_norm(nets.norm, deter)
        self.gates = BlockLinear(deter, 3 * deter, sizes.blocks, dtype=nets.dtype, rngs=rngs)
        if sizes.longest_memory:
            self.gates.bias[...] = spread_gates(deter // sizes.blocks, sizes.blocks, sizes.longest_memory)

    # What the latent variables are

    @staticmethod
    def widths(sizes: RSSMConfig) -> tuple[int, int]:
        """Size of a flat sample of all variables, and of the parameters of their distribution."""
        flat = sizes.stoch * sizes.classes
        return flat, flat

    def initial(self, batch: int) -> Latent:
        """States at the start of an episode: zeros, ``deter [batch, D]``, ``stoch [batch, S, C]``."""
        c = self.config
        return Latent(jnp.zeros((batch, c.deter), self.dtype), jnp.zeros((batch, c.stoch, c.classes), self.dtype))

    def noise(self, key: Array, batch: int) -> Float32[Array, "batch S"]:
        """The uniform numbers that one step draws the variables with."""
        return batch_axis.draw(jax.random.uniform, key, (batch, self.config.stoch))

    def distribution(self, logits: Float[Array, "*batch S C"]) -> distributions.OneHot:
        """The S categorical variables as one event, with the uniform share mixed in."""
        unimix = self.config.unimix
        log_probs = distributions.unimix_log_probs(logits, unimix)
        return distributions.OneHot(log_probs, event_ndims=1, probs=distributions.unimix_probs(logits, unimix))

    def parts(self, latent: Any) -> tuple[Float[Array, "*batch D"], Float[Array, "*batch SC"]]:
        """The recurrent state and the flat sample."""
        return latent.deter, latent.stoch.reshape(*latent.stoch.shape[:-2], -1)

    def pack(self, latent: Latent) -> StoredLatent:
        """Class indices in place of one-hot vectors. Lossless for samples.

        A zero vector, the latent before an episode, packs to class 0; it is only ever used behind ``is_first``.
        """
        small = jnp.uint8 if self.config.classes <= 256 else jnp.uint16
        return StoredLatent(latent.deter, latent.stoch.argmax(-1).astype(small))

    def unpack(self, stored: StoredLatent) -> Latent:
        """Inverse of `pack`."""
        return Latent(
            jnp.asarray(stored.deter, self.dtype), jax.nn.one_hot(stored.stoch, self.config.classes, dtype=self.dtype)
        )

    def _split(self, flat: Float[Array, "*batch SC"]) -> Any:
        """Parameters of the distribution from the output of a layer."""
        return flat.reshape(*flat.shape[:-1], self.config.stoch, self.config.classes)

    def _state(self, deter: Float[Array, "batch D"], parameters: Any, noise: Noise | None) -> Any:
        """The state whose variables are drawn with the given noise; None: those that are most probable."""
        variables = self.distribution(parameters)
        if noise is None:
            # As in the released code, a mode has no gradient.
            return Latent(deter, jax.nn.one_hot(variables.mode(), self.config.classes, dtype=self.dtype))
        stoch = variables.invert(noise)
        return Latent(deter, stoch.astype(self.dtype))

    # What is the same whatever they are

    def recurrence(self, latent: Any, action: Float[Array, "batch A"]) -> Float[Array, "batch D"]:
        """Next deterministic state from the latent ``[N, ...]`` and the flat action ``[N, A]`` taken in it.

        ``mixed = act(norm(block(deter; shared=inputs)))``, and per block ``deter' = gate(deter, block(mixed))``.
        """
        deter, stoch = self.parts(latent)
        action = within_bounds(action)
        shared = jnp.concatenate([self.in_deter(deter), self.in_stoch(stoch), self.in_action(action)], -1)
        mixed = activate(self.activation)(self.mix_norm(self.mix(deter, shared)))
        return map_blocks(gate, self.config.blocks, deter, self.gates(mixed))

    def prior(self, deter: Float[Array, "*batch D"]) -> Any:
        """Parameters of the expected stochastic state; here logits ``[*batch, S, C]``."""
        return self._split(self.prior_logits(self.prior_mlp(deter)))

    def posterior(self, deter: Float[Array, "batch D"], embed: Float[Array, "batch E"]) -> Any:
        """Parameters of the stochastic state given the observation."""
        return self._split(self.posterior_logits(self.posterior_mlp(jnp.concatenate([deter, embed], -1))))

    def observe_step(
        self,
        latent: Any,
        action: Float[Array, "batch A"],
        embed: Float[Array, "batch E"],
        is_first: Bool[Array, "batch"],
        noise: Noise,
    ) -> Observed:
        """One step with an observation: ``latent``, ``action`` of the step before, ``embed``, ``is_first`` of this one.

        Where ``is_first``, the action is reset to zero first, and both parts of the latent to zero or to what is
        learned.
        """
        keep = ~is_first
        latent = jax.tree.map(lambda x: x * keep.reshape(-1, *[1] * (x.ndim - 1)), latent)
        if self.start is not None:
            learned = self.learned_start(len(is_first))
            latent = jax.tree.map(lambda x, new: x + new * ~keep.reshape(-1, *[1] * (x.ndim - 1)), latent, learned)
        deter = self.recurrence(latent, action * keep[:, None])
        parameters = self.posterior(deter, embed)
        return Observed(self._state(deter, parameters, noise), parameters)

    def learned_start(self, batch: int) -> Any:
        """States before an episode with ``rssm.initial=learned``: tanh of a vector, and the prior's mode there."""
        assert self.start is not None
        deter = jnp.broadcast_to(jnp.tanh(self.start[...])[None].astype(self.dtype), (batch, self.config.deter))
        return self._state(deter, self.prior(deter), None)

    def imagine_step(self, latent: Any, action: Float[Array, "batch A"], noise: Noise) -> Any:
        """One step without an observation: the stochastic state is drawn from the prior."""
        deter = self.recurrence(latent, action)
        return self._state(deter, self.prior(deter), noise)

    @phase("filtering")
    def observe(
        self,
        start: Any,
        prev_action: Float[Array, "T B A"],
        embed: Float[Array, "T B E"],
        is_first: Bool[Array, "T B"],
        key: Array,
    ) -> Observed:
        """Filter sequences, time first: `observe_step` scanned over T from the latent before the first step."""

        def step(model: RSSM, latent: Any, inputs: tuple[Array, Array, Array, Noise]) -> tuple[Any, Observed]:
            observed = model.observe_step(latent, *inputs)
            return observed.latent, observed

        # All random numbers are drawn before the loop: drawing a few at every step is slow on every backend.
        keys = jax.random.split(key, len(embed))
        noise = jax.vmap(lambda key: self.noise(key, embed.shape[1]))(keys)
        return scan(step, self, start, (prev_action, embed, is_first, noise), self.loops)

    def flatten_action(self, action: Action) -> Float[Array, "*batch A"]:
        """One vector per action: keys in sorted order, classes one-hot, continuous values as they are.

        Classes may be given as one-hot vectors of floats, which pass gradients on.
        """
        return flatten(action, dict(self.action_spaces), self.dtype)


def gate(previous: Float[Array, "*batch k"], gates: Float[Array, "*batch 3*k"]) -> Float[Array, "*batch k"]:
    """``u tanh(sigmoid(r) c) + (1 - u) previous`` with ``r, c, u'`` in ``gates`` and ``u = sigmoid(u' - 1)``."""
    reset, candidate, update = jnp.split(gates, 3, -1)
    candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
    update = jax.nn.sigmoid(update - 1)
    return update * candidate + (1 - update) * previous


def spread_gates(units: int, blocks: int, longest: float) -> Float32[Array, "gates"]:
    """Biases of the gates with which the units of a block remember for 1 / sigmoid(-1) = 3.7 to ``longest`` steps.

    A unit with update u keeps a share 1 - u of itself at each step, so it remembers for 1 / u of them; these times
    are evenly spaced in their logarithms. Reset and candidate have no bias.

    Args:
        units: of each block.
        blocks: number of blocks.
        longest: steps, at least those 3.7.

    Source: Tallec and Ollivier 2018, "Can recurrent neural networks warp time?", for gates with one bias per unit.
    """
    steps = jnp.geomspace(1 + math.e, longest, units)
    update = 1 - jnp.log(steps - 1)
    return jnp.tile(jnp.concatenate([jnp.zeros(2 * units), update]), blocks).astype(jnp.float32)
