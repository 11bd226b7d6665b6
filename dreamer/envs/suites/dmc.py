"""DeepMind Control (Tassa et al., 2018): the suite's tasks by name, and any other `dm_env.Environment`."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import dm_env
import gymnasium
import numpy as np
from dm_env import specs
from gymnasium import spaces

from dreamer.config import EnvConfig
from dreamer.envs import rendering
from dreamer.envs.errors import EnvError, NotRestorable, UnknownTask
from dreamer.envs.restore import physics

_CAMERAS = {"quadruped": 2}
"""Cameras of the published pixel results, where they are not camera 0."""

_UNLIMITED = 1e10
"""The bound that MuJoCo gives to an actuator without bounds."""


def tasks() -> list[str]:
    """Names of all tasks of the suite, ``DOMAIN_TASK``."""
    return sorted(_names())


def make(name: str, config: EnvConfig, render_mode: str | None) -> gymnasium.Env:
    """Make a task of the suite, for example ``walker_walk``; raises `UnknownTask`."""
    names = _names()
    if name not in names:
        raise UnknownTask(f"DeepMind Control has no task '{name}'.")
    domain, task = names[name]
    from dm_control import suite

    logging.getLogger("absl").addFilter(_is_relevant)

    def load(seed: int | None) -> dm_env.Environment:
        return suite.load(domain, task, task_kwargs={"random": seed})

    camera = _CAMERAS.get(domain, 0) if config.dmc.camera < 0 else config.dmc.camera
    return DMEnv(load, config.repeat, config.dmc.obs, config.size or config.dmc.size, camera, render_mode)


def _is_relevant(record: logging.LogRecord) -> bool:
    """Drops MuJoCo's warning about an attribute in the suite's own models, about which users can do nothing."""
    return "settotalmass" not in record.getMessage()


class DMEnv(gymnasium.Env):
    """A `dm_env.Environment` as a Gymnasium environment.

    Observations are the environment's own, by name and with floats as float32; or the camera's view as uint8
    ``image [H, W, 3]``; or both. An observation without a name is called ``image`` if it is a uint8 array of three
    axes, otherwise ``vector``. Actions are the environment's own; unbounded ones take [-1, 1]. The episode terminates
    if the discount of the last step is 0; any other discount, as a time limit gives it, means truncated.

    Args:
        load: makes the environment from a seed, or from fresh entropy for None.
        repeat: times each action is applied, or until the episode ends; only the last step is rendered.
        obs: "proprio" for the environment's own observations, "pixels" for the camera's view, or "both".
        size: height and width of the camera's view, in pixels.
        camera: index of the camera, also for the frames for people.
        render_mode: "rgb_array" to render 240 x 320 frames for people.

    Raises:
        EnvError: it has an observation or action for which Gymnasium has no space.
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
        self._seed: int | None = None
        self._open = True
        self._size = size
        self._camera = camera
        self._pixels = obs != "proprio"
        spec: Any = self._env.observation_spec()
        self._bare = "" if isinstance(spec, Mapping) else _bare_name(spec)
        own = {} if obs == "pixels" else self._by_name(spec)
        self._own = {key: _observation_space(key, spec) for key, spec in own.items() if 0 not in spec.shape}
        if self._pixels and "image" in self._own:
            raise EnvError("The environment has its own observation 'image', expected none besides the camera's.")
        image = {"image": spaces.Box(0, 255, (*size, 3), np.uint8)} if self._pixels else {}
        self.observation_space = spaces.Dict({**self._own, **image})
        self.action_space = _action_space(self._env.action_spec())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        if seed is not None:
            # Some tasks draw from their seed while they are built, so only rebuilding them is exact.
            self._build(seed)
        return self._observe(self._env.reset()), {}

    def step(self, action: Any) -> tuple[dict, float, bool, bool, dict]:
        reward = 0.0
        taken = 0
        while True:
            step = self._env.step(action)
            reward += step.reward or 0.0
            taken += 1
            if step.last() or taken == self.action_repeat:
                break
        terminated = bool(step.last() and step.discount == 0)
        return self._observe(step), reward, terminated, step.last() and not terminated, {"env_steps": taken}

    def get_state(self) -> dict[str, Any]:
        """Everything that decides how the episode continues; raises `NotRestorable` for tasks outside the suite."""
        if self._seed is None:
            raise NotRestorable(
                "The environment was never seeded, so the random numbers it was built from are unknown."
            )
        return {"seed": self._seed, "env": physics.get_state(self._env, self._built)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state of the same task; raises `NotRestorable`."""
        self._build(state["seed"])
        physics.set_state(self._env, state["env"])

    def _build(self, seed: int) -> None:
        """Rebuild the environment from a seed."""
        env = self._load(seed)
        self._free()
        self._env = env
        self._seed = seed
        self._built = physics.digests(env)

    def render(self) -> np.ndarray:
        """The scene as RGB, 240 x 320; raises `EnvError` if nothing here can render."""
        return self._view((240, 320))

    def close(self) -> None:
        if self._open:
            self._open = False
            self._free()

    def _free(self) -> None:
        # The suite's environments do not free their rendering contexts themselves.
        if free := getattr(getattr(self._env, "physics", None), "free", None):
            free()
        self._env.close()

    def _observe(self, step: dm_env.TimeStep) -> dict[str, Any]:
        obs: dict[str, Any] = {}
        if self._own:
            own = self._by_name(step.observation)
            obs = {key: np.asarray(own[key], space.dtype) for key, space in self._own.items()}
        if self._pixels:
            obs["image"] = self._view(self._size)
        return obs

    def _by_name(self, values: Any) -> Mapping[str, Any]:
        return {self._bare: values} if self._bare else values

    def _view(self, size: tuple[int, ...]) -> np.ndarray:
        try:
            return self._env.physics.render(*size, camera_id=self._camera)
        except ValueError as error:  # of the arguments
            reason = str(error).partition(". ")[0]
            raise EnvError(
                f"MuJoCo cannot render camera {self._camera} at {size[0]} x {size[1]} pixels: {reason}. Set "
                f"env.dmc.camera or env.dmc.size to supported values."
            ) from error
        except Exception as error:  # every rendering backend fails in its own way
            raise rendering.cannot_render(error) from error


def choose_renderer() -> None:
    """Without a screen, choose a renderer that dm_control can be imported with; see `dreamer.envs.rendering`."""

    def load() -> None:
        import dm_control._render  # noqa: F401 (the only part that depends on the variable)

    rendering.choose(load)


def require_renderer() -> None:
    """Raise `EnvError` if nothing here can render; for environments that render while they are made."""
    choose_renderer()
    from dm_control import mujoco

    try:
        mujoco.Physics.from_xml_string("<mujoco/>").render(8, 8)
    except Exception as error:
        raise rendering.cannot_render(error) from error


def _names() -> dict[str, tuple[str, str]]:
    choose_renderer()
    from dm_control import suite  # takes a second to import

    return {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}


def _bare_name(spec: specs.Array) -> str:
    return "image" if spec.dtype == np.uint8 and len(spec.shape) == 3 else "vector"


def _observation_space(key: str, spec: specs.Array) -> gymnasium.Space:
    if isinstance(spec, specs.DiscreteArray):
        return spaces.Discrete(int(spec.num_values))
    kind = spec.dtype.kind
    if kind not in "biuf":
        raise EnvError(f"Observation '{key}' has the dtype {spec.dtype}, expected numbers: leave it out.")
    if kind == "b":
        return spaces.MultiBinary(spec.shape)
    dtype = np.dtype(np.float32) if kind == "f" else spec.dtype
    ends = (-np.inf, np.inf) if kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    bounds = (getattr(spec, name, end) for name, end in zip(("minimum", "maximum"), ends, strict=True))
    with np.errstate(over="ignore"):  # bounds that float32 cannot hold become infinite, that is, none
        low, high = (np.broadcast_to(bound, spec.shape).astype(dtype) for bound in bounds)
    return spaces.Box(low, high, dtype=dtype.type)


def _action_space(spec: Any) -> gymnasium.Space:
    if isinstance(spec, specs.DiscreteArray):
        return spaces.Discrete(int(spec.num_values))
    if not isinstance(spec, specs.Array):
        raise EnvError(f"The environment has the action spec {spec}, expected a single array: wrap the environment.")
    low, high = (np.broadcast_to(getattr(spec, name, np.inf), spec.shape) for name in ("minimum", "maximum"))
    unlimited = np.maximum(np.abs(low), np.abs(high)) >= _UNLIMITED
    low = np.where(unlimited, -1, low).astype(spec.dtype)
    high = np.where(unlimited, 1, high).astype(spec.dtype)
    return spaces.Box(low, high, dtype=spec.dtype.type)


__all__ = ["DMEnv", "choose_renderer", "make", "require_renderer", "tasks"]
