"""Recordings of random play, by which `dreamer.envs.check` judges environments."""

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
"""Most observations kept in a recording, so that long episodes of images fit into memory."""

_SECONDS = 20.0
"""Slow environments are recorded for this long."""


class RecordedStep(NamedTuple):
    """What the environment answered at one instant; the fields are those of `dreamer.spaces.Step`, without axis N.

    ``obs`` is empty in late steps of a long recording.
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
    so slow that fewer steps were played than asked for. ``rewritten``: it wrote into an observation after returning it.
    ``seeded``: its own random generator was seeded.
    """

    steps: list[RecordedStep]
    error: str = ""
    out_of_time: bool = False
    rewritten: bool = False
    seeded: bool = False

    def episodes(self) -> list[list[RecordedStep]]:
        """The finished episodes, each from its reset to its last step."""
        episodes: list[list[RecordedStep]] = []
        episode: list[RecordedStep] = []
        for step in self.steps:
            episode = [step] if step.is_first else [*episode, step]
            if step.is_last:
                episodes.append(episode)
        return episodes


class Watch(gymnasium.Wrapper):
    """Notices when an observation changes after it was returned; sits below the adapter, which copies them."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.rewritten = False
        self._given: Any = None
        self._copy: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self._watch(self.env.reset(seed=seed, options=options))

    def step(self, action: Any) -> Any:
        return self._watch(self.env.step(action))

    def _watch(self, result: Any) -> Any:
        self.rewritten = self.rewritten or not _same(self._given, self._copy)
        if isinstance(result, tuple) and result:
            self._given = result[0]
            self._copy = copy.deepcopy(self._given)
        return result


def record(
    make_env: Callable[[], Any], config: EnvConfig, *, seed: int, action_seed: int, steps: int, episodes: int
) -> Recording:
    """Play a fresh environment with random actions, until ``steps`` actions are taken or `_enough` says so.

    The same seeds give the same actions, as long as the environment gives the same masks.

    Args:
        make_env: makes the environment.
        config: action repeat and checks.
        seed: seed of the environment, given at the first reset.
        action_seed: seed of the actions.
        steps: most actions.
        episodes: finished episodes that are asked for.

    Whatever goes wrong is reported in the recording.
    """
    try:
        env = adapt(make_env, config)
    except Exception as failure:
        return Recording([], explain(failure, "Making a second environment next to the first"))
    watch = Watch(env.env)
    env.env = watch
    masks = mask_keys(env.obs_spaces, env.action_spaces)
    rng = np.random.default_rng(action_seed)
    recorded: list[RecordedStep] = []
    error = ""
    taken = 0
    ended = 0
    out_of_time = False
    deadline = math.inf
    try:
        while not (_enough(taken, ended, steps, episodes) or out_of_time):
            if not recorded or recorded[-1].is_last:
                obs, _ = env.reset(seed=None if recorded else seed)
                recorded.append(
                    RecordedStep(obs, reward=0.0, is_first=True, is_last=False, is_terminal=False, env_steps=0)
                )
                continue
            obs, reward, terminated, truncated, info = env.step(random_action(rng, env.action_spaces, masks, obs))
            taken += 1
            # Environments in JAX compile at their first step, so the clock starts after it.
            deadline = time.monotonic() + _SECONDS if taken == 1 else deadline
            out_of_time = time.monotonic() >= deadline
            ended += terminated or truncated
            recorded.append(
                RecordedStep(
                    obs if taken < _KEPT else {},
                    reward,
                    is_first=False,
                    is_last=terminated or truncated,
                    is_terminal=terminated,
                    env_steps=info["env_steps"],
                )
            )
    except Exception as failure:
        error = explain(failure, env.where())
    seeded = getattr(env.unwrapped, "_np_random", None) is not None
    try:
        env.close()
    except Exception as failure:
        error = error or explain(failure, "Closing the environment")
    return Recording(recorded, error, out_of_time=out_of_time, rewritten=watch.rewritten, seeded=seeded)


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
            # One draw per class, those of forbidden classes set to 0: each allowed class is equally likely to have the
            # largest.
            draws = rng.random((*shape, space.classes)) * obs[masks[key]].reshape(*shape, space.classes)
            action[key] = draws.argmax(-1).astype(np.int32)
        else:
            action[key] = rng.integers(space.classes, size=shape, dtype=np.int32)
    return action


def explain(failure: Exception, where: str) -> str:
    """One sentence about what an environment raised ``where``, with the place in its code."""
    if isinstance(failure, EnvError):
        return str(failure)
    trace = failure.__traceback__
    place = ""
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"{where}: {type(failure).__name__}: {failure} ({place}): fix the environment."


def _enough(taken: int, ended: int, steps: int, episodes: int) -> bool:
    # A few hundred steps and a few whole episodes; one is enough if episodes are long.
    return taken >= steps or (taken >= 300 and ended >= episodes) or (taken >= _KEPT and ended >= 1)


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, dict):
        return all(_same(one[key], two[key]) for key in one)
    if isinstance(one, tuple | list):
        return all(map(_same, one, two))
    return not isinstance(one, np.ndarray) or one.tobytes() == two.tobytes()


__all__ = ["RecordedStep", "Recording", "Watch", "explain", "random_action", "record"]
