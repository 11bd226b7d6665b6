"""MiniGrid and BabyAI (Chevalier-Boisvert et al., 2023): small, partially observed worlds of rooms, with a mission."""

import contextlib
import io
import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any, cast

import gymnasium
import minigrid  # importing it registers the tasks
import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.core.mission import MissionSpace
from minigrid.envs.babyai.core.roomgrid_level import BabyAIMissionSpace
from PIL import Image

from dreamer.config import EnvConfig
from dreamer.envs.errors import EnvError, UnknownTask

_MOST_MISSIONS = 1000
"""With more classes, the mission would be the largest part of the observation; known tasks have up to 324."""

_WORDS = (
    "",  # padding after the end of the mission
    *("red", "green", "blue", "purple", "yellow", "grey", "box", "ball", "key", "door", "object", "a", "the"),
    *("in", "front", "of", "you", "behind", "on", "your", "left", "right"),
    *("open", "go", "to", "pick", "up", "put", "next", "and", "then", "after"),
)
"""Vocabulary of BabyAI's grammar."""

_LONGEST = 72
"""Words in BabyAI's longest sentence: two times two instructions to put one object next to another."""


def tasks() -> list[str]:
    """Registered ids of MiniGrid and BabyAI. Those of the WFC family need ``pip install 'minigrid[wfc]'``."""
    return sorted(name for name in gymnasium.registry if name.startswith(("MiniGrid-", "BabyAI-")))


def make(name: str, config: EnvConfig, render_mode: str | None) -> gymnasium.Env:
    """Make a task by its id; raises `UnknownTask`, or `EnvError` if a package is missing."""
    if name not in tasks():
        raise UnknownTask(f"minigrid {minigrid.__version__} has no task '{name}'.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about newer versions of the task
            env = gymnasium.make(name, disable_env_checker=True, render_mode=render_mode, **config.kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise EnvError(f"Task 'minigrid_{name}' needs a package that is not installed: {error}.") from error
    return MiniGrid(env, config.minigrid.obs, config.size or config.minigrid.size)


class MiniGrid(gymnasium.ObservationWrapper):
    """MiniGrid with numeric observations.

    Observation, by ``obs``:

    * ``symbolic``: ``object``, ``color`` and ``state``, classes ``[V, V]`` of the V x V cells in view (V = 7) by column
      and row, with the agent in the middle of the last row;
    * ``image``: uint8 ``image [H, W, 3]``, a drawing of the same view, with cells out of sight dark.

    Also ``direction``, the class of the agent's orientation (right, down, left, up), and the ``mission``, unless the
    task has only one: its class among all missions of the task in alphabetical order or, in BabyAI, which has too many
    missions to list, classes ``[72]`` of its words from a fixed vocabulary, padded with 0.

    Reward, end and time limit are MiniGrid's own: success and death terminate, ``max_steps`` truncates.

    Args:
        env: a `minigrid.minigrid_env.MiniGridEnv`, which may be wrapped.
        obs: "symbolic" or "image".
        size: height and width of the image, in pixels.

    Raises:
        EnvError: the task has too many missions.
    """

    def __init__(self, env: gymnasium.Env, obs: str = "symbolic", size: tuple[int, ...] = (64, 64)) -> None:
        super().__init__(env)
        self._grid = cast(Any, env.unwrapped)
        self._symbolic = obs == "symbolic"
        self._size = size
        view: int = self._grid.agent_view_size
        # Drawn at least as large as needed: shrinking keeps every line of the drawing, enlarging would invent some.
        self._tile = math.ceil(max(size) / view)
        found: dict[str, gymnasium.Space] = {"direction": spaces.Discrete(4)}
        if self._symbolic:
            for key, classes in (("object", OBJECT_TO_IDX), ("color", COLOR_TO_IDX), ("state", STATE_TO_IDX)):
                found[key] = spaces.MultiDiscrete(np.full((view, view), len(classes)))
        else:
            found["image"] = spaces.Box(0, 255, (*size, 3), np.uint8)
        self._encode_mission: Callable[[str], Any] | None = None
        if mission := _mission(self._grid.observation_space["mission"]):
            found["mission"], self._encode_mission = mission
        self.observation_space = spaces.Dict(found)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        with contextlib.redirect_stdout(io.StringIO()):  # BabyAI prints every level that it rejects
            return super().reset(seed=seed, options=options)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Convert MiniGrid's own observation to numbers."""
        found: dict[str, Any] = {"direction": int(observation["direction"])}
        if self._symbolic:
            found |= dict(zip(("object", "color", "state"), np.moveaxis(observation["image"], -1, 0), strict=True))
        else:
            found["image"] = self._view()
        if self._encode_mission:
            found["mission"] = self._encode_mission(observation["mission"])
        return found

    def _view(self) -> np.ndarray:
        """The agent's view, uint8 ``[H, W, 3]``."""
        image = self._grid.get_pov_render(self._tile)
        if image.shape[:2] == tuple(self._size):
            return image
        height, width = self._size
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _mission(space: MissionSpace) -> tuple[gymnasium.Space, Callable[[str], Any]] | None:
    """Space of the mission and the function that encodes it; None if the mission is always the same."""
    if isinstance(space, BabyAIMissionSpace):  # it cannot list its missions
        return spaces.MultiDiscrete(np.full(_LONGEST, len(_WORDS))), _encode_words
    words = space.ordered_placeholders or []
    if (count := math.prod(map(len, words))) > _MOST_MISSIONS:
        raise EnvError(
            f"A MiniGrid task has {count} possible missions, expected at most {_MOST_MISSIONS}: wrap the task so that "
            f"it describes its mission in numbers, and name your own function as package.module:function."
        )
    missions = sorted({space.mission_func(*choice) for choice in itertools.product(*words)})
    classes = {mission: index for index, mission in enumerate(missions)}
    return (spaces.Discrete(len(missions)), classes.__getitem__) if len(missions) > 1 else None


def _encode_words(mission: str) -> np.ndarray:
    words = mission.replace(",", "").split()
    unknown = sorted(set(words) - set(_WORDS))
    if unknown or len(words) > _LONGEST:
        raise EnvError(
            f"BabyAI gave the mission '{mission}' of {len(words)} words, expected at most {_LONGEST} of its grammar"
            f"{f', not {unknown}' if unknown else ''}: use the version of minigrid in constraints.txt."
        )
    encoded = np.zeros(_LONGEST, np.int64)
    encoded[: len(words)] = [_WORDS.index(word) for word in words]
    return encoded


__all__ = ["MiniGrid", "make", "tasks"]
