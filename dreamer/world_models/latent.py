"""World model of latent states: encoder, recurrent core, decoder, reward and continue heads, and their losses.

What the latent is learned from beside rewards is a choice: reconstructions of the decoder (`dreamer.nn.observations`),
a comparison with embeddings (`dreamer.world_models.representation`), both, or neither.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32

from dreamer.config import Config, ConfigError, LossConfig
from dreamer.devices import batch_axis
from dreamer.devices.phases import phase
from dreamer.equations import distributions
from dreamer.equations.curvature import curvature
from dreamer.equations.kl import kl_balance
from dreamer.equations.numbers import KINDS
from dreamer.equations.unexplained import unexplained_reward
from dreamer.nn.fork import fork
from dreamer.nn.layers import hidden_layers, output_layer
from dreamer.nn.observations import Decoder, Encoder
from dreamer.nn.vectors import vector_size
from dreamer.types import Action, Batch, Masks, Metrics, Observation, Spaces, State, Stored, is_off, mask_keys
from dreamer.world_models.base import Losses, Noise
from dreamer.world_models.gaussian_rssm import GaussianRSSM
from dreamer.world_models.gru import GRURSSM, GaussianGRURSSM
from dreamer.world_models.representation import make_representation
from dreamer.world_models.rssm import RSSM

KNOWN_SHARE = 0.05
"""Rewards count as being explained once what is left is below this share of what the best constant guess leaves."""

KNOWN_NATS = 0.01
"""What may be left on top of that, in nats of the mean cross-entropy: all of it where rewards are always the same."""


class Filtered(NamedTuple):
    """What `LatentWorldModel.observe` returns, batch first."""

    states: State
    """Posterior states ``[B, T, ...]``."""
    posterior: Any
    """Parameters of the posterior ``[B, T, ...]``."""
    embed: Any = None
    """Embeddings of the observations ``[B, T, E]``, if states are compared with them; None otherwise."""


class LatentWorldModel(nnx.Module):
    """A `dreamer.world_models.WorldModel` whose states are those of a recurrent core.

    Args:
        config: the run's config.
        obs_spaces: observation spaces.
        action_spaces: action spaces.
        core: makes the core from config, size of an embedding, and action spaces; `RSSM` or a subclass of it.
        rngs: source of initial parameters.

    Raises:
        ValueError: an observation key is an action mask that does not fit, see `dreamer.spaces.mask_keys`.
        ConfigError: there are action masks, and no decoder that would predict them; or see `NextStep`.
    """

    representation: Any = None
    """Parameters of what latents are compared with embeddings by, if they are."""
    cont_kind = "probability"
    """See ``world_model.cont``."""

    def __init__(
        self,
        config: Config,
        obs_spaces: Spaces,
        action_spaces: Spaces,
        *,
        core: Callable[..., RSSM] = RSSM,
        rngs: nnx.Rngs,
    ):
        self.mask_keys = tuple(mask_keys(obs_spaces, action_spaces).items())
        if self.mask_keys and not config.world_model.decoder:
            raise ConfigError(
                "world_model.decoder=false cannot be used: the observation has action masks, which the decoder "
                "predicts in imagination. Use world_model.decoder=true."
            )
        nets = config.nets
        self.encoder = Encoder(nets, obs_spaces, rngs=rngs)
        self.embedding_size = self.encoder.outputs
        self.rssm = core(config, self.encoder.outputs, action_spaces, rngs=rngs)
        recurrent = config.rssm.deter
        sample = self.rssm.sample_size
        self.decoder = (
            Decoder(nets, obs_spaces, recurrent, sample, config.rssm.blocks, rngs=rngs)
            if config.world_model.decoder
            else None
        )
        self.feature_size = recurrent + sample
        head = KINDS[nets.reward_head]
        self.reward_kind = nets.reward_head
        self.reward_mlp = hidden_layers(nets, self.feature_size, nets.reward_layers, rngs=rngs)
        self.reward_head = output_layer(
            nets, self.reward_mlp.outputs, head.outputs(nets.bins), scale=head.scale, rngs=rngs
        )
        self.cont_kind = config.world_model.cont
        if self.cont_kind != "none":
            self.cont_mlp = hidden_layers(nets, self.feature_size, nets.cont_layers, rngs=rngs)
            self.cont_head = output_layer(nets, self.cont_mlp.outputs, 1, rngs=rngs)
        self.representation = make_representation(
            config, self.feature_size, vector_size(action_spaces), self.encoder.outputs, rngs=rngs
        )

    # Steps

    def initial(self, batch: int) -> State:
        """States at the start of an episode, ``[batch, ...]``."""
        return self.rssm.initial(batch)

    def noise(self, key: Array, batch: int) -> Noise:
        """All randomness of one step for ``batch`` rows."""
        return self.rssm.noise(key, batch)

    def filter(
        self, state: State, prev_action: Action, obs: Observation, is_first: Bool[Array, "N"], noise: Noise
    ) -> State:
        """One real step: the state after an observation. State and action are ignored where ``is_first``."""
        action = self.rssm.flatten_action(prev_action)
        return self.rssm.observe_step(state, action, self.encoder(obs), is_first, noise).latent

    @phase("encoder")
    def embed(self, obs: Observation) -> Float[Array, "B T E"]:
        """Embeddings of observations ``[B, T, ...]``, each by itself."""
        rows, steps = jax.tree.leaves(obs)[0].shape[:2]
        flat = self.encoder(jax.tree.map(lambda x: jnp.reshape(x, (rows * steps, *x.shape[2:])), obs))
        return flat.reshape(rows, steps, -1)

    def observe(self, batch: Batch, key: Array) -> Filtered:
        """Embed and filter the sequences of a batch, which continue from ``batch.stored``."""
        embed = self.embed(batch.obs)
        actions = self.rssm.flatten_action({k: jnp.swapaxes(v, 0, 1) for k, v in batch.prev_action.items()})
        start = self.rssm.unpack(batch.stored)
        is_first = jnp.swapaxes(batch.is_first, 0, 1)
        observed = self.rssm.observe(start, actions, embed.swapaxes(0, 1), is_first, key)
        states, posterior = jax.tree.map(lambda x: x.swapaxes(0, 1), observed)
        return Filtered(states, posterior, None if self.representation is None else embed)

    def step(self, state: State, action: Action, noise: Noise) -> State:
        """One step without an observation."""
        return self.rssm.imagine_step(state, self.rssm.flatten_action(action), noise)

    # What a state says

    def features(self, state: State) -> Float[Array, "*batch F"]:
        """Input of every head: recurrent state and flat sample, side by side."""
        return jnp.concatenate(self.rssm.parts(state), -1)

    def recurrent(self, state: State) -> Float[Array, "*batch D"]:
        """The recurrent state, without the sample."""
        return self.rssm.parts(state)[0]

    def reward(self, state: State) -> Any:
        """Distribution of the reward received on arriving in a state."""
        return self.reward_of(self.features(state))

    def cont(self, state: State) -> Float32[Array, "*batch"]:
        """Probability that the episode goes on from a state (times the discount, if so trained).

        Rounded to 0 or 1 with ``world_model.cont=mode``, and 1 with ``none``.
        """
        if self.cont_kind == "none":
            return jnp.ones(self.recurrent(state).shape[:-1], jnp.float32)
        logit = self.cont_logit(self.features(state))
        return (logit > 0).astype(jnp.float32) if self.cont_kind == "mode" else jax.nn.sigmoid(logit)

    def masks(self, state: State) -> Masks:
        """The action masks that the decoder expects in a state.

        A class is allowed if that is more probable than not, and so is the class that is most probably allowed: there
        is always one.
        """
        return self.masks_of(self.features(state))

    def decode(self, state: State) -> dict[str, Float32[Array, "..."]] | None:
        """Predictions of observation keys, see `Decoder`; None without one."""
        return None if self.decoder is None else self.decoder(*self.rssm.parts(state))

    def expectation(self, state: State) -> Any:
        """Distribution of the variables of a state before its observation is seen: the prior."""
        return self.belief(self.rssm.prior(self.rssm.parts(state)[0]))

    def belief(self, parameters: Any) -> Any:
        """The distribution that has these parameters, for example ``observe(...).posterior``."""
        return self.rssm.distribution(parameters)

    # The same of features, for those who have them

    def reward_of(self, feature: Float[Array, "*batch F"]) -> Any:
        """See `reward`."""
        return KINDS[self.reward_kind].distribution(self.reward_head(self.reward_mlp(feature)))

    def cont_logit(self, feature: Float[Array, "*batch F"]) -> Float32[Array, "*batch"]:
        """Logit of `cont`."""
        return self.cont_head(self.cont_mlp(feature)).astype(jnp.float32)[..., 0]

    def masks_of(self, feature: Float[Array, "*batch F"]) -> Masks:
        """See `masks`."""
        if self.decoder is None or not self.mask_keys:
            return {}
        logits = self.decoder.vectors(feature, [key for _, key in self.mask_keys])
        masks = {}
        for action, key in self.mask_keys:
            log_odds = logits[key][..., 1] - logits[key][..., 0]
            masks[action] = (log_odds > 0) | (log_odds == log_odds.max(-1, keepdims=True))
        return masks

    # Replay and learning

    def pack(self, state: State) -> Stored:
        """What replay keeps of a state."""
        return self.rssm.pack(state)

    def unpack(self, stored: Stored) -> State:
        """Inverse of `pack`."""
        return self.rssm.unpack(stored)

    def loss(self, seen: Filtered, batch: Batch, config: Config) -> tuple[Losses, Metrics]:
        """Losses of every part of the model, with their weights, at every step ``[B, T]`` unless it is said otherwise.

        ``obs/KEY`` reconstruction, ``reward``, ``cont`` prediction, ``dyn`` and ``rep`` KL. Source: Hafner et al. 2025,
        equations 2 to 4. Not theirs are the losses of `dreamer.world_models.representation` and ``straighten``, see
        `curvature`. With ``loss.reward_lift``, which is not theirs either, the gradient of ``reward`` is not that of
        its value where it reaches the states.

        Args:
            seen: what `observe` made of the batch.
            batch: B sequences of T steps.
            config: the run's config, whose numbers may be traced.
        """
        weights = config.loss
        losses: Losses = {}
        rewards = jnp.asarray(batch.reward, jnp.float32)
        if config.world_model.reward_squash == "tanh":
            rewards = jnp.tanh(rewards)
        states, heard = self._forked(seen.states, rewards, weights)
        with phase("reconstruction"):
            if self.decoder is not None:
                values = self.decoder.losses(*self.rssm.parts(states), batch.obs)
                losses = {name: (weights.reconstruction, value) for name, value in values.items()}
        with phase("heads"):
            feature = self.features(states)
            reward = -self.reward_of(feature if heard is states else self.features(heard)).log_prob(rewards)
            # Differs from the paper: as in the official code, the discount is part of the target, not of the return.
            discount = 1 - 1 / config.behavior.return_horizon if config.behavior.cont_discount else 1.0
            goes_on = (1.0 - jnp.asarray(batch.is_terminal)) * discount
            losses["reward"] = weights.reward, reward
            if self.cont_kind != "none":
                cont = distributions.binary_cross_entropy(self.cont_logit(feature), goes_on)
                losses["cont"] = weights.cont, cont
        with phase("prior"):
            prior = self.rssm.prior(self.rssm.parts(states)[0])
            sizes = self.rssm.config
            dyn, rep = kl_balance(self.belief, seen.posterior, prior, sizes.free_nats, over=sizes.free_nats_over)
        losses |= {"dyn": (weights.dyn, dyn), "rep": (weights.rep, rep)}
        with phase("representation"):
            is_first = jnp.asarray(batch.is_first)
            if self.representation is not None:
                prev_action = self.rssm.flatten_action(batch.prev_action)
                losses |= self.representation.loss(feature, seen.embed, prev_action, is_first, weights)
            if not is_off(weights.straighten):
                losses["straighten"] = (weights.straighten, curvature(self.recurrent(states), is_first))
        metrics = {
            "model/prior_entropy": self.belief(prior).entropy().mean(),
            "model/posterior_entropy": self.belief(seen.posterior).entropy().mean(),
        }
        return losses, metrics

    @phase("heads")
    def _forked(self, states: State, reward: Float32[Array, "B T"], weights: LossConfig) -> tuple[State, State]:
        """The states ``[B, T, ...]`` for all other losses, and for the reward's, whose gradient there is lifted.

        The power is ``reward_lift`` as long as more is left of rewards ``[B, T]`` than `KNOWN_SHARE` and `KNOWN_NATS`
        say, and falls to 0 in proportion to what is left below that. See `dreamer.nn.fork`.
        """
        lift = weights.reward_lift
        if is_off(lift):
            return states, states
        # Only what a state could still say is to be heard. A reward that never varies, or is known, has a gradient
        # that is next to nothing and all noise: the power has to fall, as no factor could keep up with the ratio.
        guess = self.reward(jax.lax.stop_gradient(states))
        excess, blind_excess = unexplained_reward(guess, reward)
        left = batch_axis.mean(excess) / (KNOWN_SHARE * blind_excess + KNOWN_NATS)
        return fork(states, lift * jax.lax.stop_gradient(jnp.clip(left, 0, 1)))


def rssm(config: Config, obs_spaces: Spaces, action_spaces: Spaces, rngs: nnx.Rngs) -> LatentWorldModel:
    """World model with categorical latents; with the block GRU, that of DreamerV3."""
    core = RSSM if config.rssm.cell == "block_gru" else GRURSSM
    return LatentWorldModel(config, obs_spaces, action_spaces, core=core, rngs=rngs)


def gaussian_rssm(config: Config, obs_spaces: Spaces, action_spaces: Spaces, rngs: nnx.Rngs) -> LatentWorldModel:
    """World model with Gaussian latents."""
    core = GaussianRSSM if config.rssm.cell == "block_gru" else GaussianGRURSSM
    return LatentWorldModel(config, obs_spaces, action_spaces, core=core, rngs=rngs)


__all__ = ["Filtered", "LatentWorldModel", "gaussian_rssm", "rssm"]
