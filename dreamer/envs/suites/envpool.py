"""EnvPool: environments in C++, stepped by threads, many in one object."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import envpool
import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from dreamer.config import EnvConfig
from dreamer.envs.errors import EnvError, UnknownTask


def tasks() -> list[str]:
    """All ids of EnvPool."""
    return sorted(envpool.list_all_envs())


def make(name: str, config: EnvConfig, render_mode: str | None) -> gymnasium.vector.VectorEnv:
    """Make ``config.count`` environments of an id.

    ``config.kwargs`` are EnvPool's own options. Games of Atari take size, colour, stickiness, no-ops, actions and the
    limit of frames from ``config.game``, and skip ``config.repeat`` frames.

    Raises:
        UnknownTask: there is no such id.
        EnvError: ``config.atari`` asks for what EnvPool does not have.
    """
    if name not in envpool.list_all_envs():
        raise UnknownTask(f"EnvPool has no id '{name}'.")
    known = envpool.make_spec(name).config._fields
    options: dict[str, Any] = {}
    if "repeat_action_probability" in known:
        atari = config.game
        if atari.lives == "reset":
            raise EnvError("EnvPool has nothing for env.atari.lives=reset, expected ignore or terminal.")
        options = {
            "stack_num": 1,
            "img_height": atari.size[0],
            "img_width": atari.size[1],
            "gray_scale": atari.gray,
            "repeat_action_probability": atari.sticky,
            "noop_max": atari.noops,
            "full_action_space": atari.actions == "all",
            "episodic_life": atari.lives == "terminal",
            "use_fire_reset": False,
            "frame_skip": config.repeat,
            "max_episode_steps": atari.max_frames // config.repeat,
        }
    repeat = {**options, **config.kwargs}["frame_skip"] if options else 1
    return EnvPool(name, config.count, {**options, **config.kwargs}, action_repeat=repeat)


class EnvPool(gymnasium.vector.VectorEnv):
    """A pool as one of Gymnasium's vectors, whose `reset` takes seeds, and whose images are ``[H, W, C]``.

    Args:
        name: an id.
        num_envs: number of environments N.
        options: EnvPool's own.
        action_repeat: how many frames each action takes.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 (Gymnasium's own convention)
    takes_seeds = True

    def __init__(self, name: str, num_envs: int, options: dict[str, Any], *, action_repeat: int) -> None:
        with _no_warnings():
            spec = envpool.make_spec(name, num_envs=num_envs, **options)
            space = spec.gymnasium_observation_space
            self.single_action_space = spec.gymnasium_action_space
        self._is_image = isinstance(space, gymnasium.spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3
        if self._is_image:
            low, high = (np.moveaxis(bound, 0, -1) for bound in (space.low, space.high))
            space = gymnasium.spaces.Box(low, high, dtype=np.uint8)
        self.num_envs = num_envs
        self.action_repeat = action_repeat
        self.single_observation_space = space
        self.observation_space = gymnasium.vector.utils.batch_space(space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self._name = name
        self._options = options
        self._pool: Any = None

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        with _no_warnings():
            if self._pool is None or seed is not None:  # Seeds are given when a pool is made, and only then.
                self.close_extras()
                seeds = {} if seed is None else {"seed": seed}
                self._pool = envpool.make_gymnasium(self._name, num_envs=self.num_envs, **{**seeds, **self._options})
            obs, info = self._pool.reset()
        return self._last_channels(obs), info

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self._pool.step(actions)
        # Where a task and its time limit end in the same step, EnvPool calls that truncated.
        if "terminated" in info:
            terminated = terminated | (truncated & info["terminated"].astype(bool))
        return self._last_channels(obs), reward, terminated, truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        """Called by `close`."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _last_channels(self, obs: Any) -> Any:
        return np.moveaxis(obs, 1, -1) if self._is_image else obs


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence Gymnasium about bounds of spaces that lose digits in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
