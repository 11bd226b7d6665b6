"""Recordings of random play, by which `dreamer.envs.check` judges environments."""

import collections
import copy
import math
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from dreamer.config import EnvConfig
from dreamer.envs.adapter import adapt
from dreamer.envs.errors import EnvError
from dreamer.spaces import Spaces, mask_keys

_KEPT = 2000
"""Most observations kept in a recording, so that long episodes of images fit into memory."""

_FEW_CLASSES = 8
"""Each class of an action that has at most this many is tried alone."""

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
    ``seeded``: its own random generator was seeded. ``outside``: the first observation of each key that was outside its
    bounds, as a sentence; ``outside_steps``: in how many that was so. ``ignored``: what was not understood, by key, as
    sentences.
    """

    steps: list[RecordedStep]
    error: str = ""
    out_of_time: bool = False
    rewritten: bool = False
    seeded: bool = False
    outside: Mapping[str, str] = MappingProxyType({})
    outside_steps: Mapping[str, int] = MappingProxyType({})
    ignored: Mapping[str, str] = MappingProxyType({})

    @property
    def taken(self) -> int:
        """Number of actions."""
        return sum(not step.is_first for step in self.steps)

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


Chooser = Callable[[np.random.Generator, Mapping[str, np.ndarray]], dict[str, Any]]
"""Chooses an action, given a source of randomness and the observation."""


def record(
    make_env: Callable[[], Any],
    config: EnvConfig,
    *,
    seed: int,
    action_seed: int,
    steps: int,
    episodes: int,
    choose: Chooser | None = None,
    seconds: float | None = None,
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
        choose: chooses the actions; None for random ones.
        seconds: slow environments are played for this long; None for `_SECONDS`.

    Whatever goes wrong is reported in the recording.
    """
    try:
        env = adapt(make_env, config)
    except Exception as failure:
        return Recording([], explain(failure, "Making another environment after the first was closed"))
    watch = Watch(env.env)
    env.env = watch
    masks = mask_keys(env.obs_spaces, env.action_spaces)
    rng = np.random.default_rng(action_seed)
    outside_steps: collections.Counter[str] = collections.Counter()
    recorded: list[RecordedStep] = []
    error = ""
    taken = 0
    ended = 0
    out_of_time = False
    deadline = math.inf
    try:
        while not (_enough(taken, ended, steps, episodes) or out_of_time):
            if not recorded or recorded[-1].is_last:
                outside_steps.update(env.outside)
                obs, _ = env.reset(seed=None if recorded else seed)
                recorded.append(
                    RecordedStep(obs, reward=0.0, is_first=True, is_last=False, is_terminal=False, env_steps=0)
                )
                continue
            action = choose(rng, obs) if choose else random_action(rng, env.action_spaces, masks, obs)
            obs, reward, terminated, truncated, info = env.step(action)
            taken += 1
            # Environments in JAX compile at their first step, so the clock starts after it.
            deadline = time.monotonic() + (_SECONDS if seconds is None else seconds) if taken == 1 else deadline
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
    outside_steps.update(env.outside)
    seeded = getattr(env.unwrapped, "_np_random", None) is not None
    notes = dict(env.take_notes())
    try:
        watch.close()
    except (Exception, SystemExit) as failure:
        notes["close"] = explain(failure, f"Environment {env.name}, when it was closed")
    return Recording(
        recorded,
        error,
        out_of_time=out_of_time,
        rewritten=watch.rewritten,
        seeded=seeded,
        outside={key: note for key, note in notes.items() if key in outside_steps},
        outside_steps=outside_steps,
        ignored={key: note for key, note in notes.items() if key not in outside_steps},
    )


def extreme_choosers(spaces: Spaces) -> dict[str, Chooser]:
    """Choosers of constant and extreme actions by what they do: policies do such things, random play hardly ever.

    The lowest, middle and highest value of every key; if there is one key with few classes, each of them; and random
    corners, if an action is continuous.
    """

    def constant(levels: dict[str, Any]) -> Chooser:
        return lambda rng, obs: levels

    def level(fraction: float) -> dict[str, Any]:
        return {
            key: np.full(space.shape, 2 * fraction - 1, np.float32)
            if space.kind == "continuous"
            else np.full(space.shape, round(fraction * (space.classes - 1)), np.int32)
            for key, space in spaces.items()
        }

    def corner(rng: np.random.Generator, obs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {
            key: rng.choice([-1.0, 1.0], space.shape).astype(np.float32)
            if space.kind == "continuous"
            else rng.integers(space.classes, size=space.shape, dtype=np.int32)
            for key, space in spaces.items()
        }

    one = next(iter(spaces.values()))
    if len(spaces) == 1 and one.kind == "discrete" and one.classes <= _FEW_CLASSES:
        key = next(iter(spaces))
        return {f"class {c} all the time": constant({key: np.full(one.shape, c, np.int32)}) for c in range(one.classes)}
    names = {"the lowest value all the time": 0.0, "the middle value all the time": 0.5}
    names["the highest value all the time"] = 1.0
    choosers = {name: constant(level(fraction)) for name, fraction in names.items()}
    if any(space.kind == "continuous" for space in spaces.values()):
        choosers["the lowest or highest value at random"] = corner
    return choosers


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


def explain(failure: BaseException, where: str) -> str:
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


__all__ = [
    "Chooser",
    "RecordedStep",
    "Recording",
    "Watch",
    "explain",
    "extreme_choosers",
    "random_action",
    "record",
]
