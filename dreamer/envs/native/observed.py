"""A native environment that also shows its state, so that a planner can begin where the environment is."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from dreamer.envs.errors import EnvError
from dreamer.envs.native import NativeEnv, State
from dreamer.types import Action, Observation, Space, Spaces

STATE = "simulator_state"
"""Observation key of the state."""


class ObservedState:
    """The same environment with the observation `STATE`: all numbers of its state as one vector, without loss.

    Numbers of four bytes other than float32 are written as two of 16 bits, which float32 holds exactly.

    Args:
        env: the environment.

    Raises:
        EnvError: it has such an observation already, or its state has numbers of eight bytes.
    """

    def __init__(self, env: NativeEnv) -> None:
        self.env = env
        if STATE in env.obs_spaces:
            raise EnvError(f"The environment has an observation '{STATE}' itself, expected none: rename it.")
        shapes, _ = jax.eval_shape(env.reset, jax.random.key(0))
        self._shapes, self._tree = jax.tree.flatten(shapes)
        size = sum(_size(leaf) for leaf in self._shapes)
        self.obs_spaces: Spaces = dict(sorted({**env.obs_spaces, STATE: Space("vector", (size,))}.items()))
        self.action_spaces = env.action_spaces

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)  # What an environment may offer more: pictures and logs.

    def reset(self, key: Array) -> tuple[State, Observation]:
        """See `dreamer.envs.native.NativeEnv.reset`."""
        state, obs = self.env.reset(key)
        return state, {**obs, STATE: self.write(state)}

    def step(
        self, state: State, action: Action, key: Array
    ) -> tuple[State, Observation, Float32[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """See `dreamer.envs.native.NativeEnv.step`."""
        state, obs, reward, terminated, truncated = self.env.step(state, action, key)
        return state, {**obs, STATE: self.write(state)}, reward, terminated, truncated

    def write(self, state: State) -> Float32[Array, "S"]:
        """The numbers of a state."""
        likes = zip(jax.tree.leaves(state), self._shapes, strict=True)
        return jnp.concatenate([_write(jnp.asarray(leaf, like.dtype)) for leaf, like in likes])

    def read(self, numbers: Float32[Array, "S"]) -> State:
        """Inverse of `write`."""
        leaves = []
        for like in self._shapes:
            own, numbers = jnp.split(numbers, [_size(like)])
            leaves.append(_read(own, like))
        return jax.tree.unflatten(self._tree, leaves)


_observed: Any = functools.cache(ObservedState)


def observe_state(env: NativeEnv) -> ObservedState:
    """The environment with its state among its observations; one object per environment."""
    return _observed(env)


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _is_split(dtype: Any) -> bool:
    """Whether numbers of this type take two of float32."""
    return dtype != jnp.float32 and jnp.dtype(dtype).itemsize == 4


def _data(like: Any) -> Any:
    """Shape and dtype of a leaf, or of the data of a key."""
    return jax.eval_shape(jax.random.key_data, like) if _is_key(like) else like


def _size(like: Any) -> int:
    data = _data(like)
    if jnp.dtype(data.dtype).itemsize > 4:
        raise EnvError(f"The state of the environment has numbers of type {data.dtype}, expected at most 32 bits.")
    return math.prod(data.shape) * (2 if _is_split(data.dtype) else 1)


def _write(leaf: Array) -> Float32[Array, "n"]:
    data = (jax.random.key_data(leaf) if _is_key(leaf) else leaf).ravel()
    if not _is_split(data.dtype):
        return data.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(data, jnp.uint32)
    return jnp.concatenate([bits >> 16, bits & 0xFFFF]).astype(jnp.float32)


def _read(numbers: Float32[Array, "n"], like: Any) -> Array:
    data = _data(like)
    if _is_split(data.dtype):
        high, low = jnp.split(numbers.astype(jnp.uint32), 2)
        numbers = jax.lax.bitcast_convert_type((high << 16) | low, data.dtype)
    leaf = numbers.astype(data.dtype).reshape(data.shape)
    return jax.random.wrap_key_data(leaf) if _is_key(like) else leaf  # a key of the default kind


__all__ = ["STATE", "ObservedState", "observe_state"]
