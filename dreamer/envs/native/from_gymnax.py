"""The environments of gymnax (Lange, 2022) as native environments.

gymnax is used through ``step_env`` and ``is_truncated``: its ``step`` resets at once and stores the final observation
separately, while here a reset is a separate step and every observation is a row.
"""

from typing import Any, NamedTuple

import gymnax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces as gymnax_spaces
from jaxtyping import Array, Bool, Float32

from dreamer.envs.errors import EnvError
from dreamer.types import Action, Observation, Space, Spaces


class _Range(NamedTuple):
    """Bounds of a continuous action, each of its shape."""

    low: np.ndarray
    high: np.ndarray


_NEEDS_DOWNLOAD = {"MNISTBandit-bsuite"}
"""Environments that download data when they are made; a run must not depend on that."""


def names() -> list[str]:
    """Ids of all environments registered in gymnax, except those that need a download."""
    return [name for name in gymnax.registered_envs if name not in _NEEDS_DOWNLOAD]


class Gymnax:
    """A gymnax environment with its default parameters; keys are named like those of Gymnasium's spaces.

    A Box becomes ``vector``, flattened, a Discrete ``discrete``; the entries of a Dict keep their names. The action is
    called ``action``; [-1, 1] stands for the bounds of a continuous one.

    Args:
        name: id in gymnax.

    Raises:
        EnvError: a space is not supported.
    """

    def __init__(self, name: str) -> None:
        env, self._params = gymnax.make(name)
        # Planners may follow gradients through the rules; gymnax stops them unless it is asked not to.
        self._env = env.with_transition_gradients() if env.supports_transition_gradients else env
        space = self._env.observation_space(self._params)
        self._nested = isinstance(space, gymnax_spaces.Dict)
        spaces: dict[str, Any] = space.spaces if self._nested else {"": space}
        self.obs_spaces: Spaces = dict(sorted(_observation(key, spaces[key], name) for key in spaces))
        self._action: _Range | None = None
        space = self._env.action_space(self._params)
        if isinstance(space, gymnax_spaces.Discrete):
            self.action_spaces: Spaces = {"action": Space("discrete", (), int(space.n))}
        elif isinstance(space, gymnax_spaces.Box):
            low, high = (np.broadcast_to(np.asarray(x, np.float32), space.shape) for x in (space.low, space.high))
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise EnvError(f"Environment jax_{name} has actions without bounds, expected a bounded Box.")
            self._action = _Range(low, high)
            self.action_spaces = {"action": Space("continuous", tuple(space.shape))}
        else:
            raise EnvError(f"Environment jax_{name} has actions of {space}, expected Discrete or Box.")

    def reset(self, key: Array) -> tuple[Any, Observation]:
        """See `dreamer.envs.native.NativeEnv.reset`."""
        obs, state = self._env.reset_env(key, self._params)
        return state, self._encode(obs)

    def step(
        self, state: Any, action: Action, key: Array
    ) -> tuple[Any, Observation, Float32[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """See `dreamer.envs.native.NativeEnv.step`."""
        value: Any = action["action"]
        if self._action is not None:
            low, high = self._action
            value = jnp.clip(low + (value + 1) / 2 * (high - low), low, high)
        obs, state, reward, terminated, _ = self._env.step_env(key, state, value, self._params)
        truncated = self._env.is_truncated(state, self._params)
        return (
            state,
            self._encode(obs),
            _scalar(reward, jnp.float32),
            _scalar(terminated, bool),
            _scalar(truncated, bool),
        )

    def _encode(self, obs: Any) -> Observation:
        flat = {}
        for key, space in self.obs_spaces.items():
            value = obs[key] if self._nested else obs
            flat[key] = jnp.asarray(value).astype(space.dtype).reshape(space.shape)
        return flat


def _observation(key: str, space: Any, name: str) -> tuple[str, Space]:
    if isinstance(space, gymnax_spaces.Discrete):
        return key or "discrete", Space("discrete", (), int(space.n))
    if isinstance(space, gymnax_spaces.Box):
        return key or "vector", Space("vector", (int(np.prod(space.shape)),))
    raise EnvError(f"Environment jax_{name} has observations of {space}, expected Box, Discrete, or a Dict of them.")


def _scalar(value: Any, dtype: Any) -> Array:
    return jnp.asarray(value).astype(dtype).reshape(())


__all__ = ["Gymnax", "names"]
