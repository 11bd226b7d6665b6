"""A native environment behind Gymnasium's interface, one step at a time.

It runs on the CPU even if there is an accelerator: one step of one environment is too little work for that.
"""

import contextlib
import functools
from collections.abc import Callable, Hashable
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from dreamer.config import EnvConfig
from dreamer.envs.errors import NotRestorable
from dreamer.envs.native import NativeEnv
from dreamer.envs.native.observed import observe_state
from dreamer.types import Space


def host(env: NativeEnv, config: EnvConfig, render_mode: str | None) -> gymnasium.Env:
    """A native environment behind Gymnasium's interface, with its state among its observations if that is wanted."""
    return HostedEnv(observe_state(env) if config.observe_state else env, render_mode)


class HostedEnv(gymnasium.Env):
    """A native environment as a Gymnasium environment with Dict spaces of the same flat keys.

    Args:
        env: the environment. Its functions are compiled once for all instances that host it.
        render_mode: ``rgb_array`` for frames; only environments with a function ``render(state)`` have them.
    """

    def __init__(self, env: NativeEnv, render_mode: str | None = None) -> None:
        assert isinstance(env, Hashable)
        modes = ["rgb_array"] if hasattr(env, "render") else []
        self.metadata = {"render_modes": modes, "render_fps": 15}
        self.render_mode = render_mode if render_mode in modes else None
        self.observation_space = spaces.Dict({key: _space(space) for key, space in env.obs_spaces.items()})
        self.action_space = spaces.Dict({key: _space(space) for key, space in env.action_spaces.items()})
        self._native = env
        self._reset, self._step = _compile(env)
        self._key: jax.Array | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        if seed is not None or self._key is None:
            with _on_cpu():
                self._key = jax.random.key(int(self.np_random.integers(2**31)))
        with _on_cpu():
            self._state, obs, self._key = self._reset(self._key)
        return _on_host(obs), {}

    def step(self, action: dict[str, Any]) -> tuple[dict, float, bool, bool, dict]:
        arrays = {key: np.asarray(action[key], space.dtype) for key, space in self._native.action_spaces.items()}
        with _on_cpu():
            (self._state, obs, *outcome), self._key = self._step(self._state, arrays, self._key)
        obs, (reward, terminated, truncated) = jax.device_get((obs, outcome))
        log = self._log() if terminated or truncated else {}
        return _on_host(obs), float(reward), bool(terminated), bool(truncated), {"log": log} if log else {}

    def get_state(self) -> dict[str, Any]:
        """Leaves of the environment's state, and the state of all randomness."""
        assert self._key is not None
        leaves = [_to_numpy(leaf) for leaf in jax.tree.leaves(self._state)]
        return {"leaves": leaves, "key": _to_numpy(self._key), "random": self.np_random.bit_generator.state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same environment; raises `NotRestorable` if leaves differ."""
        with _on_cpu():
            key = jax.random.key(0)
            like, _, _ = jax.eval_shape(self._reset, key)
            likes, tree = jax.tree.flatten(like)
            self._key = _from_numpy(key, state["key"])
            leaves = [_from_numpy(like, leaf) for like, leaf in zip(likes, state["leaves"], strict=True)]
            self._state = jax.tree.unflatten(tree, leaves)
        self.np_random.bit_generator.state = state["random"]

    def _log(self) -> dict[str, float]:
        """What the environment reports about the episode; empty if it reports nothing."""
        native: Any = self._native
        names = getattr(native, "log_names", ())
        return dict(zip(names, np.asarray(native.log(self._state)).tolist(), strict=True)) if names else {}

    def render(self) -> np.ndarray:
        """The environment's picture of its state."""
        native: Any = self._native
        return np.asarray(native.render(self._state))


@functools.cache
def _cpu() -> jax.Device | None:
    """The CPU; None if JAX is configured not to use it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _on_cpu() -> contextlib.AbstractContextManager[Any]:
    return jax.default_device(_cpu())


@functools.cache
def _compile(env: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Compiled reset and step; both split their key in two, use one half and return the other for the next call."""

    def reset(key: jax.Array) -> tuple[Any, Any, jax.Array]:
        following, now = jax.random.split(key)
        state, obs = env.reset(now)
        return jax.tree.map(_to_strong, state), obs, following

    def step(state: Any, action: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        following, now = jax.random.split(key)
        stepped, *answer = env.step(state, action, now)
        return (jax.tree.map(_to_strong, stepped), *answer), following

    return jax.jit(reset), jax.jit(step)


def _to_strong(leaf: Any) -> jax.Array:
    """A strongly typed leaf: Python numbers in a state are weakly typed, but saving would lose that."""
    leaf = jnp.asarray(leaf)
    return leaf if _is_key(leaf) else jax.lax.convert_element_type(leaf, leaf.dtype)


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _to_numpy(leaf: jax.Array) -> np.ndarray:
    """A leaf in NumPy's own dtypes: keys as their data, bfloat16 and the like as their bits."""
    array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
    return array.view(f"u{array.itemsize}") if array.dtype.kind == "V" else array


def _from_numpy(like: Any, saved: np.ndarray) -> jax.Array:
    """Inverse of `_to_numpy`, for a leaf of this shape and dtype."""
    if _is_key(like):
        leaf = jax.random.wrap_key_data(jnp.asarray(saved))  # raises unless it is a key of the default kind
    else:
        leaf = jnp.asarray(saved.view(like.dtype) if like.dtype.kind == "V" else saved)
    if (leaf.shape, leaf.dtype) != (like.shape, like.dtype):
        raise NotRestorable(f"A leaf of the state is {leaf.dtype}{leaf.shape}, expected {like.dtype}{like.shape}.")
    return leaf


def _space(space: Space) -> gymnasium.Space:
    """The Gymnasium space that `dreamer.envs.adapter` turns back into the given one."""
    if space.kind == "image":
        return spaces.Box(0, 255, space.shape, np.uint8)
    if space.kind == "vector":
        return spaces.Box(-np.inf, np.inf, space.shape, np.float32)
    if space.kind == "continuous":
        return spaces.Box(-1.0, 1.0, space.shape, np.float32)
    return spaces.MultiDiscrete(np.full(space.shape, space.classes)) if space.shape else spaces.Discrete(space.classes)


def _on_host(obs: Any) -> dict[str, np.ndarray]:
    return {key: np.asarray(value) for key, value in jax.device_get(obs).items()}


__all__ = ["HostedEnv", "host"]
