"""The DM Control suite of MuJoCo Playground (Zakka et al., 2025, arXiv 2502.08844) as native environments.

The tasks are those of DeepMind Control, simulated in float32 by MJX, which is MuJoCo in JAX. Unlike in the suite
``dmc``, some time steps and contacts are simplified, and the observation is one vector. Actions are not repeated.
"""

import functools
import warnings
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import mujoco
from jaxtyping import Array, Bool, Float32, Int32

from dreamer.config import EnvConfig
from dreamer.envs.errors import EnvError, UnknownTask
from dreamer.envs.native.hosted import host
from dreamer.types import Action, Observation, Space, Spaces

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # From libraries that it imports and that are not used here.
    from mujoco_playground import dm_control_suite


class PlaygroundState(NamedTuple):
    """The simulation, and for how long it has run."""

    inner: Any
    """``mujoco_playground.State``."""
    time: Int32[Array, ""]
    """Steps since the reset."""


def tasks() -> list[str]:
    """Names of all tasks that can be made, as Playground spells them."""
    return sorted(name for name in dm_control_suite.ALL_ENVS if not _is_outdated(name))


def _is_outdated(name: str) -> bool:
    """Whether a task calls a function that the installed MuJoCo no longer has."""
    return name.startswith("Reacher") and not hasattr(mujoco.MjSpec, "find_body")


@functools.cache
def build(name: str) -> "Playground":
    """One of `tasks`, one object per name.

    Raises:
        UnknownTask: there is no task of this name.
        EnvError: Playground cannot make it with the installed MuJoCo.
    """
    if name not in dm_control_suite.ALL_ENVS:
        raise UnknownTask(f"MuJoCo Playground has no task '{name}' in its DM Control suite.")
    if _is_outdated(name):
        raise EnvError(
            f"Task 'playground_{name}' cannot be made with MuJoCo {mujoco.__version__}, expected one that has "
            "mujoco.MjSpec.find_body, which Playground calls for this task: use dmc_reacher_easy or dmc_reacher_hard."
        )
    return Playground(name)


def make(name: str, config: EnvConfig, render_mode: str | None) -> gymnasium.Env:
    """The task behind Gymnasium's interface; raises what `build` raises."""
    return host(build(name), config, render_mode)


class Playground:
    """A task of the suite with its default settings.

    Observation ``vector``; continuous ``action``. Truncated after the number of steps that Playground sets, 1000. No
    task terminates: Playground calls an episode done only if the simulation produced NaN or infinity. Such a step is
    answered like a failure on the host: truncated, with the previous observation and no reward.

    Args:
        name: one of `tasks`.
    """

    def __init__(self, name: str) -> None:
        # The default, Warp, needs an NVIDIA GPU; the version in JAX runs wherever the learner does.
        self._env = dm_control_suite.load(name, config_overrides={"impl": "jax"})
        self._limit = int(dm_control_suite.get_default_config(name).episode_length)
        self.obs_spaces: Spaces = {"vector": Space("vector", (int(self._env.observation_size),))}
        # All actuators of the suite have the range [-1, 1].
        self.action_spaces: Spaces = {"action": Space("continuous", (int(self._env.action_size),))}

    def reset(self, key: Array) -> tuple[PlaygroundState, Observation]:
        """See `dreamer.envs.native.NativeEnv.reset`."""
        # Playground keeps the key in its state, which must hold plain numbers only.
        inner = self._env.reset(jax.random.key_data(key))
        # Python numbers in a state are weakly typed, and a step would be compiled again once they no longer are.
        inner = jax.tree.map(lambda x: jnp.asarray(x, jnp.asarray(x).dtype), inner)
        return PlaygroundState(inner, jnp.zeros((), jnp.int32)), {"vector": inner.obs}

    def step(
        self, state: PlaygroundState, action: Action, key: Array
    ) -> tuple[PlaygroundState, Observation, Float32[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """See `dreamer.envs.native.NativeEnv.step`."""
        before = state.inner
        # Playground writes into the dictionaries it is given, so it gets copies.
        copied = before.replace(metrics=dict(before.metrics), info=dict(before.info))
        inner = self._env.step(copied, jnp.asarray(action["action"]))
        finite = jnp.isfinite(inner.obs).all() & jnp.isfinite(inner.reward) & (inner.done == 0)
        # Keep the last finite observation. The broken physics needs no repair: the reset replaces it.
        inner = inner.replace(obs=jnp.where(finite, inner.obs, before.obs))
        inner = jax.tree.map(lambda x, old: jnp.asarray(x, old.dtype), inner, before)
        reward = jnp.where(finite, inner.reward, 0.0)
        time = state.time + 1
        truncated = (time >= self._limit) | ~finite
        return PlaygroundState(inner, time), {"vector": inner.obs}, reward, jnp.zeros((), bool), truncated


__all__ = ["Playground", "PlaygroundState", "build", "make", "tasks"]
