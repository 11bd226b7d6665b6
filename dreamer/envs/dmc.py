"""DeepMind Control: the suite by name, and any other `dm_env.Environment`."""

import ctypes.util
import os
from collections.abc import Callable
from typing import Any

import dm_env
import gymnasium
import numpy as np
from dm_env import specs
from gymnasium import spaces

from dreamer.config import EnvConfig
from dreamer.envs.errors import EnvError, UnknownTask

_CAMERAS = {"quadruped": 2}
"""Cameras of the published pixel results where they are not camera 0."""

_NO_RENDERER = (
    "Without a screen, rendering needs one of Debian's packages libegl1 (then set MUJOCO_GL=egl) or libosmesa6 (then "
    "set MUJOCO_GL=osmesa); install one, or train on env.dmc.obs=proprio"
)


def tasks() -> list[str]:
    """Names of all tasks of the suite, ``DOMAIN_TASK``."""
    return sorted(_names())


def make(name: str, config: EnvConfig, render_mode: str | None) -> gymnasium.Env:
    """Make a task of the suite, for example ``walker_walk``; raises `UnknownTask`."""
    choose_renderer()
    names = _names()
    if name not in names:
        raise UnknownTask(f"DeepMind Control has no task '{name}'.")
    domain, task = names[name]
    from dm_control import suite

    def load(seed: int | None) -> dm_env.Environment:
        return suite.load(domain, task, task_kwargs=None if seed is None else {"random": seed})

    camera = _CAMERAS.get(domain, 0) if config.dmc.camera < 0 else config.dmc.camera
    return DMEnv(load, config.repeat, config.dmc.obs, config.dmc.size, camera, render_mode)


class DMEnv(gymnasium.Env):
    """A `dm_env.Environment` as a Gymnasium environment.

    Observations are its own, as float32 vectors by their names, the camera's view as uint8 ``image [H, W, 3]``, or
    both. It is terminated where the discount of the last step is 0, and truncated where the episode ended with another
    one, which is what a time limit does.

    Args:
        load: makes the environment from a seed, or from fresh entropy for None.
        repeat: times each action is applied, or until the episode ends; only the last step is rendered.
        obs: what is seen.
        size: height and width of the image, in pixels.
        camera: index of the camera.
        render_mode: "rgb_array" to render 240 x 320 frames for people.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(
        self,
        load: Callable[[int | None], dm_env.Environment],
        repeat: int = 1,
        obs: str = "proprio",
        size: tuple[int, ...] = (64, 64),
        camera: int = 0,
        render_mode: str | None = None,
    ) -> None:
        self.action_repeat = repeat
        self.render_mode = render_mode
        self._load = load
        self._env = load(None)
        self._pixels, self._proprio = obs != "proprio", obs != "pixels"
        self._size, self._camera = size, camera
        self._keys = [key for key, spec in self._env.observation_spec().items() if 0 not in spec.shape]
        found: dict[str, gymnasium.Space] = {}
        if self._proprio:
            found = {key: _space(self._env.observation_spec()[key]) for key in self._keys}
        if self._pixels:
            found["image"] = spaces.Box(0, 255, (*size, 3), np.uint8)
        self.observation_space = spaces.Dict(found)
        self.action_space = _space(self._env.action_spec())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        if seed is not None:
            # Some tasks draw from their seed while they are built, so nothing less than building them anew is exact.
            self._env.close()
            self._env = self._load(seed)
        return self._observe(self._env.reset()), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        reward, taken = 0.0, 0
        while True:
            step = self._env.step(action)
            reward += step.reward or 0.0
            taken += 1
            if step.last() or taken == self.action_repeat:
                break
        terminated = step.last() and step.discount == 0
        return self._observe(step), reward, terminated, step.last() and not terminated, {"env_steps": taken}

    def render(self) -> np.ndarray:
        """The scene as RGB, 240 x 320."""
        return self._view((240, 320))

    def close(self) -> None:
        self._env.close()

    def _observe(self, step: dm_env.TimeStep) -> dict[str, Any]:
        obs: dict[str, Any] = {}
        if self._proprio:
            obs = {key: np.asarray(step.observation[key]) for key in self._keys}
        if self._pixels:
            obs["image"] = self._view(self._size)
        return obs

    def _view(self, size: tuple[int, ...]) -> np.ndarray:
        try:
            return self._env.physics.render(*size, camera_id=self._camera)
        except Exception as error:
            # Every rendering backend fails in a way of its own.
            raise EnvError(f"MuJoCo cannot render here ({type(error).__name__}: {error}). {_NO_RENDERER}.") from error


def choose_renderer() -> None:
    """Without a screen, choose the renderer that is installed, unless MUJOCO_GL chose already.

    MuJoCo reads the variable when it is imported, and then would try a window first.
    """
    if os.environ.get("MUJOCO_GL") or os.environ.get("DISPLAY"):
        return
    for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = backend
            return


def _names() -> dict[str, tuple[str, str]]:
    from dm_control import suite  # Takes a second to import.

    return {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}


def _space(spec: specs.Array) -> gymnasium.Space:
    if isinstance(spec, specs.DiscreteArray):
        return spaces.Discrete(int(spec.num_values))
    dtype = np.float32 if np.issubdtype(spec.dtype, np.floating) else spec.dtype
    if isinstance(spec, specs.BoundedArray):
        low, high = (np.broadcast_to(bound, spec.shape).astype(dtype) for bound in (spec.minimum, spec.maximum))
        return spaces.Box(low, high, dtype=dtype)
    return spaces.Box(-np.inf, np.inf, spec.shape, np.float32)
