"""Craftax (Matthews et al., 2024, arXiv 2402.16801) as native environments: Crafter in JAX, and a larger game.

``Symbolic`` and ``Pixels`` are Craftax: nine floors, 43 actions, 67 achievements. ``Classic`` and ``ClassicPixels`` are
Crafter again: one floor, 17 actions, 22 achievements.
"""

import contextlib
import functools
import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import craftax  # noqa: F401 (shows at once whether it is installed; its games take seconds to import)
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, UInt8

from dreamer.config import EnvConfig
from dreamer.envs.errors import UnknownTask
from dreamer.envs.native.hosted import host
from dreamer.envs.suites.achievements import score
from dreamer.types import Action, Observation, Space, Spaces

_NAMES = {
    "Classic": "Craftax-Classic-Symbolic-v1",
    "ClassicPixels": "Craftax-Classic-Pixels-v1",
    "Pixels": "Craftax-Pixels-v1",
    "Symbolic": "Craftax-Symbolic-v1",
}
"""Craftax's own names of the tasks."""

_MULTIPLE = 16
"""Sides of images are padded to multiples of this, so that they can be halved four times."""


def tasks() -> list[str]:
    """``Symbolic`` and ``Pixels``, ``Classic`` and ``ClassicPixels``."""
    return sorted(_NAMES)


@functools.cache
def build(name: str) -> "Craftax":
    """One of `tasks`, one object per name; raises `UnknownTask`."""
    if name not in _NAMES:
        raise UnknownTask(f"Craftax has no task '{name}'.")
    return Craftax(name)


def make(name: str, config: EnvConfig, render_mode: str | None) -> gymnasium.Env:
    """The task behind Gymnasium's interface; raises `UnknownTask`."""
    return host(build(name), config, render_mode)


class Craftax:
    """A game of Craftax with its default parameters.

    Observation: ``vector``, float32 in [0, 1], of 8268 numbers (``Classic``: 1345); or ``image``, uint8
    ``[144, 112, 3]`` (``ClassicPixels``: ``[64, 64, 3]``), Craftax's own image padded with black at the right and
    bottom.
    Terminated at death and when the game is won, truncated after 100,000 steps (Classic: 10,000). The log of an episode
    says which achievements were unlocked, 0 or 1, as ``achievement_NAME``.

    The very first image takes one or two minutes, while Craftax prepares its textures and caches them in its own
    directory.

    Args:
        name: one of `tasks`.
    """

    def __init__(self, name: str) -> None:
        self._game = "craftax_classic" if name.startswith("Classic") else "craftax"
        self._pixels = name.endswith("Pixels")
        with _quietly():
            make_env = importlib.import_module("craftax.craftax_env").make_craftax_env_from_name
            self._env = make_env(_NAMES[name], auto_reset=False)
            achievements = importlib.import_module(f"craftax.{self._game}.constants").Achievement
        self._params = self._env.default_params
        shape = tuple(self._env.observation_space(self._params).shape)
        if self._pixels:
            # Negated floor division rounds up.
            height, width = (-(-side // _MULTIPLE) * _MULTIPLE for side in shape[:2])
            self._padding = ((0, height - shape[0]), (0, width - shape[1]), (0, 0))
            self.obs_spaces: Spaces = {"image": Space("image", (height, width, 3))}
        else:
            self.obs_spaces = {"vector": Space("vector", shape)}
        self.action_spaces: Spaces = {"action": Space("discrete", (), int(self._env.action_space(self._params).n))}
        ordered = sorted(achievements, key=lambda achievement: achievement.value)
        self.log_names = tuple(f"achievement_{achievement.name.lower()}" for achievement in ordered)

    def reset(self, key: Array) -> tuple[Any, Observation]:
        """See `dreamer.envs.native.NativeEnv.reset`."""
        # Craftax keeps the key in its state, which must hold plain numbers only.
        obs, state = self._env.reset_env(jax.random.key_data(key), self._params)
        # Python numbers in a state are weakly typed, and a step would be compiled again once they no longer are.
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), state), self._encode(obs)

    def step(
        self, state: Any, action: Action, key: Array
    ) -> tuple[Any, Observation, Float32[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """See `dreamer.envs.native.NativeEnv.step`."""
        obs, new, reward, over, _ = self._env.step_env(
            jax.random.key_data(key), state, jnp.asarray(action["action"]), self._params
        )
        new = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), new, state)
        # With the clock set back, an episode ends only by death or victory.
        early = new.replace(timestep=jnp.zeros_like(new.timestep))
        terminated = self._env.is_terminal(early, self._params)
        return new, self._encode(obs), reward.astype(jnp.float32), terminated, over & ~terminated

    def log(self, state: Any) -> Float32[Array, "achievements"]:
        """Whether each achievement was unlocked, in the order of ``log_names``."""
        return state.achievements.astype(jnp.float32)

    def render(self, state: Any) -> UInt8[np.ndarray, "height width 3"]:
        """The agent's view for people, 16 pixels per cell."""
        return np.asarray(self._draw(state)).clip(0, 255).astype(np.uint8)

    @functools.cached_property
    def _draw(self) -> Callable[[Any], Array]:
        with _quietly():
            constants = importlib.import_module(f"craftax.{self._game}.constants")
            renderer = importlib.import_module(f"craftax.{self._game}.renderer")
            return jax.jit(renderer.make_craftax_pixel_renderer(constants.BLOCK_PIXEL_SIZE_IMG))

    def _encode(self, obs: Array) -> Observation:
        if not self._pixels:
            return {"vector": obs.astype(jnp.float32)}
        image = jnp.clip(jnp.round(obs * 255), 0, 255).astype(jnp.uint8)
        return {"image": jnp.pad(image, self._padding)}


@contextlib.contextmanager
def _quietly() -> Any:
    """Craftax prints while it loads; send that to stderr, as stdout is for results."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def summarize(logs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a run logs about all its episodes so far."""
    return {"craftax_score": score(logs)}


__all__ = ["Craftax", "build", "make", "summarize", "tasks"]
