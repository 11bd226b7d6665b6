"""Recurrent state-space model: prior, posterior, one step, `observe` over data and `imagine` over a policy.

::

    deter[t] = f(deter[t-1], stoch[t-1], action[t-1])      block GRU, deterministic
    prior      p(stoch[t] | deter[t])                      what is to be expected
    posterior  q(stoch[t] | deter[t], embed[t])            what was seen

Source: Hafner et al. 2025, equation 1, and the official code for the inside of the block GRU.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from dreamer.config import RSSMConfig
from dreamer.devices import batch_axis
from dreamer.equations import distributions
from dreamer.nn import late_kernels, lean_scan
from dreamer.nn.layers import MLP, BlockLinear, Layer, Linear, RMSNorm, map_blocks
from dreamer.types import Action, Latent, Spaces, StoredLatent, Trajectory


class Observed(NamedTuple):
    """What `RSSM.observe` returns: posterior latents and logits, ``[T, B, ...]``."""

    latent: Latent
    logits: Float[Array, "T B S C"]


class RSSM(nnx.Module):
    """Block GRU with categorical latents.

    Args:
        config: sizes.
        embed: size E of the embedding of an observation.
        action_spaces: spaces of the action keys.
        dtype: dtype of the computation and of latents.
        rngs: source of initial parameters.
    """

    def __init__(self, config: RSSMConfig, embed: int, action_spaces: Spaces, *, dtype: str, rngs: nnx.Rngs):
        self.config = config
        self.action_spaces = tuple(sorted(action_spaces.items()))
        self.dtype = dtype
        deter, hidden, flat = config.deter, config.hidden, config.stoch * config.classes

        def layer(inputs: int) -> Layer:
            return Layer(inputs, hidden, dtype=dtype, rngs=rngs)

        self.in_deter, self.in_stoch, self.in_action = layer(deter), layer(flat), layer(action_size(action_spaces))
        self.mix = BlockLinear(deter, deter, config.blocks, shared=3 * hidden, dtype=dtype, rngs=rngs)
        self.mix_norm = RMSNorm(deter)
        self.gates = BlockLinear(deter, 3 * deter, config.blocks, dtype=dtype, rngs=rngs)
        self.prior_mlp = MLP(deter, hidden, config.prior_layers, dtype=dtype, rngs=rngs)
        self.prior_logits = Linear(self.prior_mlp.outputs, flat, dtype=dtype, rngs=rngs)
        self.posterior_mlp = MLP(deter + embed, hidden, config.posterior_layers, dtype=dtype, rngs=rngs)
        self.posterior_logits = Linear(self.posterior_mlp.outputs, flat, dtype=dtype, rngs=rngs)

    def initial(self, batch: int) -> Latent:
        """Latents at the start of an episode: zeros, ``deter [batch, D]``, ``stoch [batch, S, C]``."""
        c = self.config
        return Latent(jnp.zeros((batch, c.deter), self.dtype), jnp.zeros((batch, c.stoch, c.classes), self.dtype))

    def recurrence(self, latent: Latent, action: Float[Array, "batch A"]) -> Float[Array, "batch D"]:
        """Next deterministic state from the latent ``[N, ...]`` and the flat action ``[N, A]`` taken in it.

        ``mixed = silu(norm(block(deter; shared=inputs)))``, and per block ``deter' = gate(deter, block(mixed))``.
        """
        deter, stoch = latent.deter, latent.stoch.reshape(latent.stoch.shape[0], -1)
        # Actions beyond [-1, 1] are possible, since the environment clips and not the policy.
        action = action / jax.lax.stop_gradient(jnp.maximum(1, jnp.abs(action)))
        shared = jnp.concatenate([self.in_deter(deter), self.in_stoch(stoch), self.in_action(action)], -1)
        mixed = jax.nn.silu(self.mix_norm(self.mix(deter, shared)))
        return map_blocks(gate, self.config.blocks, deter, self.gates(mixed))

    def prior(self, deter: Float[Array, "*batch D"]) -> Float[Array, "*batch S C"]:
        """Logits of the expected stochastic state."""
        return self._split(self.prior_logits(self.prior_mlp(deter)))

    def posterior(self, deter: Float[Array, "batch D"], embed: Float[Array, "batch E"]) -> Float[Array, "batch S C"]:
        """Logits of the stochastic state given the observation."""
        return self._split(self.posterior_logits(self.posterior_mlp(jnp.concatenate([deter, embed], -1))))

    def distribution(self, logits: Float[Array, "*batch S C"]) -> distributions.OneHot:
        """The S categorical variables as one event, with the uniform share mixed in."""
        unimix = self.config.unimix
        log_probs = distributions.unimix_log_probs(logits, unimix)
        return distributions.OneHot(log_probs, event_ndims=1, probs=distributions.unimix_probs(logits, unimix))

    def observe_step(
        self,
        latent: Latent,
        action: Float[Array, "batch A"],
        embed: Float[Array, "batch E"],
        is_first: Bool[Array, "batch"],
        key: Array,
    ) -> Observed:
        """One step with an observation: ``latent``, ``action`` of the step before, ``embed``, ``is_first`` of this one.

        Where ``is_first``, both parts of the latent and the action are reset to zero first.
        """
        return self._observe_step(latent, action, embed, is_first, self._uniform(key, len(embed)))

    def _observe_step(self, latent: Latent, action: Array, embed: Array, is_first: Array, uniform: Array) -> Observed:
        keep = ~is_first
        latent = Latent(latent.deter * keep[:, None], latent.stoch * keep[:, None, None])
        deter = self.recurrence(latent, action * keep[:, None])
        logits = self.posterior(deter, embed)
        return Observed(Latent(deter, self._sample(logits, uniform)), logits)

    def imagine_step(self, latent: Latent, action: Float[Array, "batch A"], key: Array) -> Latent:
        """One step without an observation: the stochastic state is drawn from the prior."""
        return self._imagine_step(latent, action, self._uniform(key, len(action)))

    def _imagine_step(self, latent: Latent, action: Array, uniform: Array) -> Latent:
        deter = self.recurrence(latent, action)
        return Latent(deter, self._sample(self.prior(deter), uniform))

    def observe(
        self,
        start: Latent,
        prev_action: Float[Array, "T B A"],
        embed: Float[Array, "T B E"],
        is_first: Bool[Array, "T B"],
        key: Array,
    ) -> Observed:
        """Filter sequences, time first: `observe_step` scanned over T from the latent before the first step."""

        def step(model: RSSM, latent: Latent, inputs: tuple[Array, Array, Array, Array]) -> tuple[Latent, Observed]:
            observed = model._observe_step(latent, *inputs)
            return observed.latent, observed

        # All random numbers are drawn before the loop: drawing a few at every step is slow on every backend.
        uniform = self._uniforms(jax.random.split(key, len(embed)), embed.shape[1])
        scan = late_kernels.scan if jax.default_backend() == "cpu" else lean_scan.scan
        return scan(step, self, start, (prev_action, embed, is_first, uniform))

    def imagine(
        self, start: Latent, policy: Callable[[Latent, Array], tuple[Action, Any]], horizon: int, key: Array
    ) -> Trajectory:
        """Roll out a policy inside the model, `imagine_step` scanned over the horizon.

        Args:
            start: latents ``[N, ...]`` to start from.
            policy: ``(latent, key) -> (action, extras)`` for latents ``[N, ...]``; it is called once in every state.
                Extras are any arrays that are wanted along the trajectory, or None. What is computed from a latent is
                best computed here, while the latent is in the cache. To replay recorded actions, ignore the latent.
            horizon: steps H to take.
            key: random key.

        Returns:
            ``[H+1, N, ...]`` latents, the start included, actions, of which the last is chosen but not taken, and
            extras. Gradients flow through latents and extras if what they come from has any.
        """

        def body(latent: Latent, inputs: tuple[Array, Array]) -> tuple[Latent, tuple[Latent, Action, Any]]:
            policy_key, uniform = inputs
            action, extras = policy(latent, policy_key)
            following = self._imagine_step(latent, self.flatten_action(action), uniform)
            return following, (following, action, extras)

        step_key, last_key = jax.random.split(key)
        policy_keys, model_keys = jax.vmap(jax.random.split)(jax.random.split(step_key, horizon)).T
        uniform = self._uniforms(model_keys, len(start.deter))
        last, (latents, *chosen) = jax.lax.scan(body, start, (policy_keys, uniform))
        latents = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, latents)
        final = list(policy(last, last_key))
        action, extras = jax.tree.map(lambda rest, final: jnp.concatenate([rest, final[None]]), chosen, final)
        return Trajectory(latents, action, extras)

    def flatten_action(self, action: Action) -> Float[Array, "*batch A"]:
        """One vector per action: keys in sorted order, classes one-hot, continuous values as they are."""
        parts = []
        for key, space in self.action_spaces:
            value = action[key]
            batch = value.shape[: value.ndim - len(space.shape)]
            if space.kind == "discrete":
                value = jax.nn.one_hot(value, space.classes, dtype=self.dtype)
            parts.append(jnp.reshape(value, (*batch, -1)).astype(self.dtype))
        return jnp.concatenate(parts, -1)

    def pack(self, latent: Latent) -> StoredLatent:
        """Latent to its form in replay: class indices in place of one-hot vectors. Lossless for samples.

        A zero vector, the latent before an episode, packs to class 0; it is only ever used behind ``is_first``.
        """
        small = jnp.uint8 if self.config.classes <= 256 else jnp.uint16
        return StoredLatent(latent.deter, latent.stoch.argmax(-1).astype(small))

    def unpack(self, stored: StoredLatent) -> Latent:
        """Inverse of `pack`."""
        return Latent(
            jnp.asarray(stored.deter, self.dtype), jax.nn.one_hot(stored.stoch, self.config.classes, dtype=self.dtype)
        )

    def _split(self, logits: Float[Array, "*batch SC"]) -> Float[Array, "*batch S C"]:
        return logits.reshape(*logits.shape[:-1], self.config.stoch, self.config.classes)

    def _sample(
        self, logits: Float[Array, "batch S C"], uniform: Float32[Array, "batch S"]
    ) -> Float[Array, "batch S C"]:
        return self.distribution(logits).invert(uniform).astype(self.dtype)

    def _uniform(self, key: Array, batch: int) -> Float32[Array, "batch S"]:
        return batch_axis.draw(jax.random.uniform, key, (batch, self.config.stoch))

    def _uniforms(self, keys: Array, batch: int) -> Float32[Array, "T batch S"]:
        return jax.vmap(lambda key: self._uniform(key, batch))(keys)


def gate(previous: Float[Array, "*batch k"], gates: Float[Array, "*batch 3*k"]) -> Float[Array, "*batch k"]:
    """``u tanh(sigmoid(r) c) + (1 - u) previous`` with ``r, c, u'`` in ``gates`` and ``u = sigmoid(u' - 1)``."""
    reset, candidate, update = jnp.split(gates, 3, -1)
    candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
    update = jax.nn.sigmoid(update - 1)
    return update * candidate + (1 - update) * previous


def kl_losses(
    model: RSSM, posterior: Float[Array, "*batch S C"], prior: Float[Array, "*batch S C"]
) -> tuple[Float32[Array, "*batch"], Float32[Array, "*batch"]]:
    """KL from posterior to prior, once to train the prior (``dyn``) and once to train the posterior (``rep``).

    ``dyn = max(free, KL(sg(q) || p))`` and ``rep = max(free, KL(q || sg(p)))``, in nats, summed over the S variables
    before the maximum is taken at every step. Source: Hafner et al. 2025, equation 4.
    """
    stop = jax.lax.stop_gradient
    q, p = model.distribution(posterior), model.distribution(prior)
    q_fixed, p_fixed = model.distribution(stop(posterior)), model.distribution(stop(prior))
    free = model.config.free_nats
    return jnp.maximum(q_fixed.kl_to(p), free), jnp.maximum(q.kl_to(p_fixed), free)


def features(latent: Latent) -> Float[Array, "*batch F"]:
    """Input of every head: ``concat(deter, flat stoch)``, F = D + S C."""
    return jnp.concatenate([latent.deter, latent.stoch.reshape(*latent.stoch.shape[:-2], -1)], -1)


def action_size(spaces: Spaces) -> int:
    """Size A of a flat action: one-hot classes and continuous values of all keys."""
    return sum(max(1, space.classes) * math.prod(space.shape) for space in spaces.values())
