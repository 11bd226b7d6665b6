"""Crafter: survival in a small open world with 22 achievements (Hafner 2022, arXiv 2109.06780)."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import crafter
import gymnasium
import numpy as np
from crafter import constants, engine
from gymnasium import spaces

from dreamer.config import EnvConfig
from dreamer.envs.errors import UnknownTask
from dreamer.envs.suites.achievements import score


def tasks() -> list[str]:
    """``reward``, and ``noreward`` for agents that explore without reward."""
    return ["noreward", "reward"]


def make(name: str, config: EnvConfig, render_mode: str | None) -> gymnasium.Env:
    """Make one of `tasks`; raises `UnknownTask`."""
    if name not in tasks():
        raise UnknownTask(f"Crafter has no task '{name}'.")
    return Crafter(reward=name == "reward", render_mode=render_mode)


class Crafter(gymnasium.Env):
    """Crafter as a Gymnasium environment, with episodes decided by the seed, and rendering without side effects.

    Observation: uint8 ``[64, 64, 3]``. 17 discrete actions. Terminated at death, truncated after 10,000 steps. The last
    step of an episode has ``info["log"]``: how often each achievement was unlocked, as ``achievement_NAME``.

    Args:
        reward: whether achievements and changes of health are rewarded; if not, every reward is 0.
        render_mode: "rgb_array" to render 360 x 360 frames for people.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (Gymnasium's own convention)

    def __init__(self, *, reward: bool = True, render_mode: str | None = None) -> None:
        self.observation_space = spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = spaces.Discrete(len(constants.actions))
        self.render_mode = render_mode
        self._reward = reward
        self._env: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if seed is not None or self._env is None:
            self._env = crafter.Env(reward=self._reward, seed=self.np_random_seed)
        obs = self._env.reset()
        _order_chunks(self._env._world)
        return obs, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, over, info = self._env.step(action)
        terminated = info["discount"] == 0
        log = {f"achievement_{name}": count for name, count in info["achievements"].items()}
        return obs, float(reward), terminated, bool(over) and not terminated, {"log": log} if over else {}

    def render(self) -> np.ndarray:
        """The agent's view as RGB, 360 x 360."""
        random = self._env._world.random
        before = random.get_state()  # at night, rendering draws random numbers from the world
        frame = self._env.render((360, 360))
        random.set_state(before)
        return frame


class _Ordered(dict):
    """A set that keeps the order of insertion."""

    def add(self, item: Any) -> None:
        self[item] = None

    def remove(self, item: Any) -> None:
        del self[item]


def _order_chunks(world: engine.World) -> None:
    """Keep the creatures of each chunk in a fixed order.

    Crafter picks the creature that vanishes from a set, whose order depends on addresses in memory: the same seed would
    give another episode in the next process.
    """
    chunks = collections.defaultdict(_Ordered, {key: _Ordered() for key in world.chunks})
    for creature in world.objects:
        chunks[world.chunk_key(creature.pos)].add(creature)
    world._chunks = chunks


def summarize(logs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a run logs about all its episodes so far."""
    return {"crafter_score": score(logs)}


__all__ = ["Crafter", "make", "summarize", "tasks"]
