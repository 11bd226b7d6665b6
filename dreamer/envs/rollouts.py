"""Random play, recorded: what `dreamer.envs.check` judges environments by."""

import copy
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from dreamer.config import EnvConfig
from dreamer.envs.adapter import adapt
from dreamer.envs.errors import EnvError
from dreamer.spaces import Spaces, mask_keys

_KEPT = 2000
"""Observations of a recording that are kept, so that long episodes of images fit into memory."""

_SECONDS = 20.0
"""Slow environments are recorded for this long."""


class Moment(NamedTuple):
    """What the environment answered at one instant; the fields are those of `dreamer.spaces.Step`, without axis N.

    ``obs`` is empty in late moments of a long recording.
    """

    obs: Mapping[str, np.ndarray]
    reward: float
    is_first: bool
    is_last: bool
    is_terminal: bool
    env_steps: int


class Recording(NamedTuple):
    """Episodes one after another; the last one may be unfinished.

    ``error`` is the sentence that ended the recording, empty if nothing was wrong. ``out_of_time``: the environment is
    so slow that fewer steps were played than wanted. ``rewritten``: it wrote into an observation after returning it.
    ``seeded``: its own random generator was seeded.
    """

    moments: list[Moment]
    error: str
    out_of_time: bool
    rewritten: bool
    seeded: bool

    def episodes(self) -> list[list[Moment]]:
        """The finished episodes, each from its reset to its last moment."""
        found: list[list[Moment]] = []
        episode: list[Moment] = []
        for moment in self.moments:
            episode = [moment] if moment.is_first else [*episode, moment]
            if moment.is_last:
                found.append(episode)
        return found


class Watch(gymnasium.Wrapper):
    """Notices when an observation changes after it was returned; sits below the adapter, which copies them."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.rewritten = False
        self._given: Any = None
        self._copy: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self._watched(self.env.reset(seed=seed, options=options))

    def step(self, action: Any) -> Any:
        return self._watched(self.env.step(action))

    def _watched(self, result: Any) -> Any:
        self.rewritten = self.rewritten or not _same(self._given, self._copy)
        if isinstance(result, tuple) and result:
            self._given, self._copy = result[0], copy.deepcopy(result[0])
        return result


def record(
    make_env: Callable[[], Any], config: EnvConfig, *, seed: int, action_seed: int, steps: int, episodes: int
) -> Recording:
    """Play a fresh environment with random actions, until ``steps`` actions or as many as `_enough` asks for.

    The same seeds give the same actions, as long as the environment gives the same masks.

    Args:
        make_env: makes the environment.
        config: action repeat and checks.
        seed: seed of the environment, given at the first reset.
        action_seed: seed of the actions.
        steps: most actions.
        episodes: finished episodes that are wanted.

    Whatever goes wrong is told in the recording.
    """
    try:
        env = adapt(make_env, config)
    except Exception as failure:
        return Recording([], explain(failure, "Making a second environment beside the first"), False, False, False)
    env.env = watch = Watch(env.env)
    masks = mask_keys(env.obs_spaces, env.action_spaces)
    rng = np.random.default_rng(action_seed)
    moments: list[Moment] = []
    error, taken, ended, out_of_time, deadline = "", 0, 0, False, math.inf
    try:
        while not (_enough(taken, ended, steps, episodes) or out_of_time):
            if not moments or moments[-1].is_last:
                obs, _ = env.reset(seed=None if moments else seed)
                moments.append(Moment(obs, 0.0, True, False, False, 0))
                continue
            obs, reward, terminated, truncated, info = env.step(random_action(rng, env.action_spaces, masks, obs))
            taken += 1
            # What is written in JAX is compiled at its first step, which says nothing about the others.
            deadline = time.monotonic() + _SECONDS if taken == 1 else deadline
            out_of_time = time.monotonic() >= deadline
            ended += terminated or truncated
            kept = obs if taken < _KEPT else {}
            moments.append(Moment(kept, reward, False, terminated or truncated, terminated, info["env_steps"]))
    except Exception as failure:
        error = explain(failure, env.where())
    seeded = getattr(env.unwrapped, "_np_random", None) is not None
    try:
        env.close()
    except Exception as failure:
        error = error or explain(failure, "Closing the environment")
    return Recording(moments, error, out_of_time, watch.rewritten, seeded)


def random_action(
    rng: np.random.Generator,
    spaces: Spaces,
    masks: Mapping[str, str],
    obs: Mapping[str, np.ndarray],
    batch: tuple[int, ...] = (),
) -> dict[str, Any]:
    """Uniform actions ``[*batch, *shape]`` by key, among those that the masks in ``obs`` allow.

    Args:
        rng: source of randomness.
        spaces: the action spaces.
        masks: observation key of the mask of every action key that has one; see `dreamer.spaces.mask_keys`.
        obs: the observation, ``[*batch, ...]`` by key.
        batch: leading axes.
    """
    action: dict[str, Any] = {}
    for key, space in spaces.items():
        shape = (*batch, *space.shape)
        if space.kind == "continuous":
            action[key] = rng.uniform(-1, 1, shape).astype(np.float32)
        elif key in masks:
            # The largest of independent draws is equally likely to be any allowed one.
            draws = rng.random((*shape, space.classes)) * obs[masks[key]].reshape(*shape, space.classes)
            action[key] = draws.argmax(-1).astype(np.int32)
        else:
            action[key] = rng.integers(space.classes, size=shape, dtype=np.int32)
    return action


def explain(failure: Exception, where: str) -> str:
    """One sentence about what an environment raised ``where``, with the place in its code."""
    if isinstance(failure, EnvError):
        return str(failure)
    trace, place = failure.__traceback__, ""
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{where}: {type(failure).__name__}: {failure} ({place}): fix the environment."


def _enough(taken: int, ended: int, steps: int, episodes: int) -> bool:
    # A few hundred steps and a few whole episodes; of long episodes, one.
    return taken >= steps or (taken >= 300 and ended >= episodes) or (taken >= _KEPT and ended >= 1)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return all(_same(one[key], two[key]) for key in one)
    if isinstance(one, tuple | list):
        return all(map(_same, one, two))
    return not isinstance(one, np.ndarray) or one.tobytes() == two.tobytes()


__all__ = ["Moment", "Recording", "Watch", "explain", "random_action", "record"]
