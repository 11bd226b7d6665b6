"""A world model as an explorer sees it: the same states and steps, with other rewards."""

from collections.abc import Callable
from typing import NamedTuple

import distrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from dreamer.types import Action, Batch, Masks, Number, State
from dreamer.world_models.base import Dynamics, Noise


class CuriousState(NamedTuple):
    """A state of the model, and the bonus of the step that led to it.

    A bonus belongs to a state and an action, and a behaviour asks for the reward of the state in which it arrives. So
    the state brings it along.
    """

    state: State
    bonus: Float32[Array, "*batch"]


class CuriousSeen(NamedTuple):
    """Real steps as an explorer sees them, see `dreamer.world_models.base.Seen`."""

    states: CuriousState
    """``[B, T, ...]``."""


class Curious(NamedTuple):
    """A `dreamer.world_models.Dynamics` that rewards ``intrinsic * bonus + extrinsic * reward of the task``."""

    model: Dynamics
    bonus: Callable[[Array, Action], Array]
    """``(features [*, F], action [*, ...]) -> bonus [*]``; a pytree, such as `jax.tree_util.Partial`."""
    intrinsic: Number
    extrinsic: Number
    further: Number = 1.0
    """Factor on the model's ``cont``, where that holds the discount of the task, and the explorer has another."""

    def noise(self, key: Array, batch: int) -> Noise:
        """That of the model."""
        return self.model.noise(key, batch)

    def step(self, state: CuriousState, action: Action, noise: Noise) -> CuriousState:
        """The model's step, and its bonus."""
        bonus = self.bonus(self.model.features(state.state), action)
        return CuriousState(self.model.step(state.state, action, noise), bonus)

    def features(self, state: CuriousState) -> Float[Array, "*batch F"]:
        """Those of the model."""
        return self.model.features(state.state)

    def reward(self, state: CuriousState) -> distrax.Deterministic:
        """Both rewards received on arriving in a state, weighted."""
        return distrax.Deterministic(self.weigh(state.bonus, self.model.reward(state.state).mean()))

    def cont(self, state: CuriousState) -> Float32[Array, "*batch"]:
        """That of the model, with the explorer's discount in place of the task's."""
        return self.further * self.model.cont(state.state)

    def masks(self, state: CuriousState) -> Masks:
        """Those of the model."""
        return self.model.masks(state.state)

    def weigh(self, bonus: Float32[Array, "*batch"], reward: Float32[Array, "*batch"]) -> Float32[Array, "*batch"]:
        """``intrinsic * bonus + extrinsic * reward``."""
        return self.intrinsic * bonus + self.extrinsic * reward

    def relive(self, states: State, batch: Batch) -> tuple[CuriousSeen, Batch]:
        """Real steps with the rewards that an explorer would have had for them.

        Args:
            states: of the steps ``[B, T, ...]``.
            batch: the sequences that they are from.
        """
        action = jax.tree.map(lambda x: x[:, 1:], batch.prev_action)
        bonus = self.bonus(self.model.features(states)[:, :-1], action)
        # What led to the first step of a sequence is not known, and a reset follows from nothing.
        bonus = jnp.where(batch.is_first, 0.0, jnp.pad(bonus, ((0, 0), (1, 0))))
        reward = self.weigh(bonus, jnp.asarray(batch.reward))
        return CuriousSeen(CuriousState(states, bonus)), batch._replace(reward=reward)


__all__ = ["Curious", "CuriousSeen", "CuriousState"]
