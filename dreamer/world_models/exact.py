"""The rules of a task as a model: any environment in JAX, of which nothing is to be learned."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from dreamer.envs.native.observed import STATE, ObservedState
from dreamer.types import Action, Masks, Observation, mask_keys
from dreamer.world_models.base import Noise, observed_masks


class ExactState(NamedTuple):
    """N environments, and what they answered last."""

    env: Any
    """Their states ``[N, ...]``."""
    obs: Observation
    """``[N, ...]`` by key, without the state."""
    reward: Float32[Array, "N"]
    """Received on arriving here; 0 after the end."""
    is_over: Bool[Array, "N"]
    """Whether the task has ended. A time limit ends no task."""


class Certain(NamedTuple):
    """A prediction that is certain."""

    value: Float32[Array, "*batch"]

    def mean(self) -> Float32[Array, "*batch"]:
        """The value."""
        return self.value

    def log_prob(self, value: Float32[Array, "*batch"]) -> Float32[Array, "*batch"]:
        """0 at the value, and minus infinity elsewhere."""
        return jnp.where(value == self.value, 0.0, -jnp.inf)


class ExactDynamics:
    """`dreamer.world_models.Dynamics` of an environment in JAX.

    Args:
        env: the environment, with its state among its observations.
    """

    def __init__(self, env: ObservedState) -> None:
        self._env = env
        self._masks = mask_keys(env.env.obs_spaces, env.action_spaces)

    def start(self, obs: Observation) -> ExactState:
        """The states of N environments that gave these observations ``[N, ...]``."""
        numbers = jnp.asarray(obs[STATE])
        rows = len(numbers)
        seen = {key: jnp.asarray(value) for key, value in obs.items() if key != STATE}
        return ExactState(jax.vmap(self._env.read)(numbers), seen, jnp.zeros(rows), jnp.zeros(rows, bool))

    def noise(self, key: Array, batch: int) -> Array:
        """A key for each row."""
        return jax.random.key_data(jax.random.split(key, batch))

    def step(self, state: ExactState, action: Action, noise: Noise) -> ExactState:
        """One step of each environment; one that has ended stays as it is."""
        # Environments clip nothing themselves.
        action = {
            name: jnp.clip(action[name], -1, 1) if space.kind == "continuous" else action[name]
            for name, space in self._env.action_spaces.items()
        }
        keys = jax.random.wrap_key_data(noise)
        env, obs, reward, terminated, _ = jax.vmap(self._env.env.step)(state.env, action, keys)

        def stay(old: Array, new: Array) -> Array:
            flag = state.is_over.reshape(-1, *[1] * (jnp.ndim(old) - 1))
            chosen = jnp.where(flag, old, new)
            return chosen if chosen.dtype == old.dtype else chosen.astype(old.dtype)

        # Only what the agent sees: `env.keys` and `env.ignore` may hide some.
        seen = {key: obs[key] for key in state.obs}
        env, seen = jax.tree.map(stay, (state.env, dict(state.obs)), (env, seen))
        return ExactState(env, seen, jnp.where(state.is_over, 0.0, reward), state.is_over | terminated)

    def features(self, state: ExactState) -> Float32[Array, "*batch F"]:
        """All observations as one vector."""
        lead = state.is_over.shape
        values = [jnp.asarray(value, jnp.float32).reshape(*lead, -1) for _, value in sorted(state.obs.items())]
        return jnp.concatenate(values, -1)

    def reward(self, state: ExactState) -> Certain:
        """The reward received on arriving in a state."""
        return Certain(state.reward)

    def cont(self, state: ExactState) -> Float32[Array, "*batch"]:
        """0 after the end, otherwise 1."""
        return 1.0 - state.is_over

    def masks(self, state: ExactState) -> Masks:
        """The classes that the rules allow."""
        return observed_masks(state.obs, self._masks)


__all__ = ["Certain", "ExactDynamics", "ExactState"]
