"""What a planner asks of an ensemble: rollouts of several particles each, whose rewards are averaged.

Source: Chua et al. 2018, "Deep reinforcement learning in a handful of trials using probabilistic dynamics models"
(PETS), section 5.
"""

from typing import NamedTuple

import distrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from dreamer.types import Action, Masks
from dreamer.world_models.ensemble import EnsembleDynamics, EnsembleNoise, EnsembleState


class ParticleState(NamedTuple):
    """N rows of P particles."""

    each: EnsembleState
    """``[N, P, ...]``."""
    counts: Bool[Array, "N P"]
    """Whether a reward on arriving here counts: the task had not ended before."""


class Particles(NamedTuple):
    """Rollouts inside an ensemble, as `dreamer.world_models.base.Dynamics`; every row is P particles.

    The particles of each row are dealt to the members in equal shares: once and for all, and with ``ts1`` again at each
    step. A reward is the mean over particles, of which those whose task has ended earn nothing; so the sum of rewards
    is the mean return, and `cont` is always 1.
    """

    model: EnsembleDynamics
    particles: int
    """P, a multiple of the number of members."""

    def start(self, obs: Float32[Array, "N V"]) -> ParticleState:
        """All particles at the observations."""
        lead = len(obs), self.particles
        each = EnsembleState(
            obs=jnp.broadcast_to(obs[:, None], (*lead, obs.shape[1])),
            member=jnp.broadcast_to(self._shares(), lead),
            reward=jnp.zeros(lead),
            is_terminal=jnp.zeros(lead, bool),
        )
        return ParticleState(each, jnp.ones(lead, bool))

    def noise(self, key: Array, batch: int) -> EnsembleNoise:
        """All randomness of one step, ``[batch, P, ...]``."""
        normal_key, member_key = jax.random.split(key)
        normal = self.model.noise(normal_key, batch * self.particles).normal
        member = jnp.broadcast_to(self._shares(), (batch, self.particles))
        return EnsembleNoise(
            normal.reshape(batch, self.particles, -1),
            jax.random.permutation(member_key, member, axis=1, independent=True),
        )

    def step(self, state: ParticleState, action: Action, noise: EnsembleNoise) -> ParticleState:
        """One step of all particles of a row with the action of the row."""
        each, noise = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (state.each, noise))
        repeated: Action = {key: jnp.repeat(jnp.asarray(x), self.particles, axis=0) for key, x in action.items()}
        after = self.model.step(each, repeated, noise)
        after = jax.tree.map(lambda x: x.reshape(-1, self.particles, *x.shape[1:]), after)
        return ParticleState(after, state.counts & ~state.each.is_terminal)

    def features(self, state: ParticleState) -> Float32[Array, "*batch V"]:
        """The mean observation."""
        return state.each.obs.mean(-2)

    def reward(self, state: ParticleState) -> distrax.Distribution:
        """The mean reward."""
        return distrax.Deterministic((state.counts * state.each.reward).mean(-1))

    def cont(self, state: ParticleState) -> Float32[Array, "*batch"]:
        """1: rewards count ends already."""
        return jnp.ones(state.counts.shape[:-1])

    def masks(self, state: ParticleState) -> Masks:
        """None are predicted."""
        return {}

    def _shares(self) -> Array:
        """The member of each particle of a row."""
        return jnp.arange(self.particles) // (self.particles // self.model.ensemble.size)


__all__ = ["ParticleState", "Particles"]
