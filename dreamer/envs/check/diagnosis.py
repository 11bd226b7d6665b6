"""What is wrong with an environment, or surprising, in sentences: judged from its spaces and from recordings."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np

from dreamer.config import ConfigError, NetsConfig, halvings
from dreamer.envs.adapter import Adapter
from dreamer.envs.rollouts import Moment, Recording
from dreamer.envs.spaces import action_codec
from dreamer.spaces import Space, Spaces, is_mask, mask_keys

_LARGE = 1e3
"""Observations and rewards above this are worth a word."""

_LONG = 50
"""Tasks that take the same number of steps every time are usually shorter than this; clocks are set to more."""

_WIDE = 4096
"""A vector with more entries than this may be an image in disguise."""

_LIMITS = ("_max_episode_steps", "max_episode_steps", "max_steps")
"""Attributes that time limits are kept in, by Gymnasium and by many environments."""


class Finding(NamedTuple):
    """One sentence about an environment, what it is about, and the numbers in it.

    ``ok``: as it should be. ``note``: good to know. ``warning``: can be trained on, and probably not meant so.
    ``error``: cannot be trained on.
    """

    level: Literal["ok", "note", "warning", "error"]
    topic: str
    text: str
    data: Mapping[str, Any] = MappingProxyType({})


def observation_keys(spaces: Spaces, nets: NetsConfig) -> Iterator[Finding]:
    """What the encoder makes of every observation key."""
    for key, space in spaces.items():
        label = f"Observation '{key}'"
        if space.kind == "image":
            yield _image(label, space, nets)
        elif space.kind == "discrete":
            what = f"int32 {list(space.shape)}, {space.classes} classes"
            yield Finding("ok", "observation", f"{label}: {what}: one-hot, then MLP.", space._asdict())
        else:
            what = f"float32 {list(space.shape)}"
            yield Finding("ok", "observation", f"{label}: {what}: symlog, then MLP.", space._asdict())
            if space.shape[0] > _WIDE:
                text = f"{label} is a vector of {space.shape[0]} numbers: if it is an image, declare it as Box(0, 255, "
                yield Finding("note", "observation", f"{text}[height, width, channels], uint8) to have it convolved.")


def _image(label: str, space: Space, nets: NetsConfig) -> Finding:
    height, width, _ = space.shape
    try:
        factor = 2 ** halvings(height, width, len(nets.mults))
    except ConfigError as error:
        mend = "for example with gymnasium.wrappers.ResizeObservation(env, (64, 64))"
        return Finding("error", "observation", f"{label}: {str(error).rstrip('.')}, {mend}.")
    sizes = f"{height}x{width} -> {height // factor}x{width // factor}"
    what = f"uint8 {list(space.shape)}"
    return Finding("ok", "observation", f"{label}: {what}: convolutions, {sizes}.", space._asdict())


def action_keys(env: Adapter) -> Iterator[Finding]:
    """What the actor makes of every action key, and bounds that deserve a look."""
    for leaf in action_codec(env.env.action_space, env.name).leaves():
        key, space = leaf.key, leaf.space
        if space.kind == "discrete":
            how = "one categorical distribution" if not space.shape else "independent categorical distributions"
            what = f"int32 {list(space.shape)}, {space.classes} classes"
            yield Finding("ok", "action", f"Action '{key}': {what}: {how}.", space._asdict())
            continue
        unit = np.ones(space.shape)
        low, high = (np.asarray(leaf.decode({key: sign * unit}), np.float64).reshape(-1) for sign in (-1, 1))
        what = f"float32 {list(space.shape)} in [-1, 1] for {_interval(low, high)}"
        yield Finding("ok", "action", f"Action '{key}': {what}: normal distribution, clipped.", space._asdict())
        yield from _bounds(key, low, high)


def _bounds(key: str, low: np.ndarray, high: np.ndarray) -> Iterator[Finding]:
    half, center = high / 2 - low / 2, high / 2 + low / 2
    if (half == 0).any():
        text = f"has {int((half == 0).sum())} entries whose bounds are equal, so that they do nothing: leave them out."
        yield Finding("warning", "action", f"Action '{key}' {text}")
    elif half.max() > _LARGE:
        text = f"has bounds up to {_number(float(half.max()))}, which sensible actions hardly reach: declare the range "
        yield Finding("warning", "action", f"Action '{key}' {text}that matters, because [-1, 1] is scaled to it.")
    elif half.min() < 1 / _LARGE:
        text = f"has bounds only {_number(2 * float(half.min()))} apart: check their unit."
        yield Finding("note", "action", f"Action '{key}' {text}")
    if (np.abs(center) > 1e-6 * half).any():
        off = int(np.argmax(np.abs(center) > 1e-6 * half))
        text = f"has asymmetric bounds: the first policy is centred on {_number(float(center[off]))} in entry {off}"
        yield Finding("note", "action", f"Action '{key}' {text}, so make sure that this is a harmless action.")


def masks(observations: Spaces, actions: Spaces) -> Iterator[Finding]:
    """Which observation keys restrict the actions."""
    for action, mask in mask_keys(observations, actions).items():
        text = f"Observation '{mask}' is the mask of action '{action}': the policy keeps to the classes that are 1."
        yield Finding("note", "mask", text)


def reproducible(first: Recording, again: Recording) -> Finding:
    """Whether two instances with the same seed and actions agree."""
    found = first_difference(first, again)
    if found is None:
        steps = len(again.moments)
        return Finding(
            "ok", "seed", f"Two instances with the same seed and actions agree in all {steps} steps compared."
        )
    time, field = found
    generators = "draw everything random from self.np_random, not from global generators or the clock"
    mend = generators if first.seeded else f"call super().reset(seed=seed) in reset, and {generators}"
    text = f"Two instances with the same seed and actions differ first in {field}, {time} steps in: {mend}."
    return Finding("warning", "seed", text, {"step": time, "field": field})


def seeded(first: Recording, reseeded: Recording) -> Finding:
    """Whether another seed gives other episodes."""
    if first_difference(first, reseeded) is not None:
        return Finding("ok", "seed", "Another seed gives other episodes.")
    starts = [moment for moment in first.moments if moment.is_first and moment.obs]
    if all(_equal(start.obs, starts[0].obs) for start in starts):
        return Finding("note", "seed", "Another seed changes nothing: every episode begins and answers the same.")
    text = (
        "The seed is ignored: episodes differ, but not between seeds, so parallel environments would all play the same"
    )
    return Finding("warning", "seed", f"{text}: call super().reset(seed=seed) and draw from self.np_random.")


def actions_matter(first: Recording, other: Recording, spaces: Spaces) -> Finding:
    """Whether other actions give other answers under the same seed."""
    if all(space.kind == "discrete" and space.classes == 1 for space in spaces.values()):
        return Finding("warning", "action", "There is nothing to choose: every action has one class only.")
    if first_difference(first, other) is not None:
        return Finding("ok", "action", "Other actions have other consequences.")
    text = f"Actions are ignored: other actions gave equal observations and rewards in all {len(other.moments)} steps"
    return Finding("warning", "action", f"{text}: check that step uses its argument.")


def first_difference(one: Recording, two: Recording) -> tuple[int, str] | None:
    """Index of the first moment in which two recordings differ, and in which field; None if they agree."""
    for time, (a, b) in enumerate(zip(one.moments, two.moments, strict=False)):
        if a.obs and b.obs:
            for key in a.obs:
                if not np.array_equal(a.obs[key], b.obs[key]):
                    return time, f"observation '{key}'"
        for field in Moment._fields[1:]:
            if getattr(a, field) != getattr(b, field):
                return time, f"the field {field}"
    return None


def observations(first: Recording, spaces: Spaces) -> Iterator[Finding]:
    """Values of observations that deserve a look."""
    if first.rewritten:
        text = (
            "The environment writes into observations that it returned before; Dreamer copies them, other code may not"
        )
        yield Finding("note", "observation", f"{text}: return a copy.")
    seen = [moment.obs for moment in first.moments if moment.obs]
    for key, space in spaces.items():
        if is_mask(key) or len(seen) < 2:
            continue
        label = f"Observation '{key}'"
        largest = max(float(np.abs(obs[key].astype(np.float32)).max()) for obs in seen)
        if all(np.array_equal(obs[key], seen[0][key]) for obs in seen):
            text = f"{label} is the same in all {len(seen)} steps: it tells nothing, at least under random actions."
            yield Finding("note", "observation", text)
        elif space.kind == "image" and largest <= 1:
            text = f"{label} holds no pixel above 1, as if floats in [0, 1] had been cast: scale it to 0..255."
            yield Finding("warning", "observation", text)
        if space.kind == "vector" and largest > _LARGE:
            text = f"{label} reaches {_number(largest)}: symlog copes with that; scale it if small differences matter."
            yield Finding("note", "observation", text)


def endings(first: Recording, limit: int | None) -> Iterator[Finding]:
    """How episodes end; ``limit`` is the time limit in env steps, None if unknown."""
    episodes = first.episodes()
    if not episodes:
        steps = sum(moment.env_steps for moment in first.moments)
        if limit is not None and limit > steps:
            yield Finding("ok", "ending", f"No episode ended in {steps} env steps; the time limit is {limit}.")
        else:
            allowed = ", all that it had time for" if first.out_of_time else ""
            text = f"No episode ended in {steps} env steps of random actions{allowed}: if nothing else ends them"
            mend = "wrap the environment in gymnasium.wrappers.TimeLimit(env, 1000)"
            yield Finding("note" if first.out_of_time else "warning", "ending", f"{text}, {mend}.")
        return
    lengths = [sum(moment.env_steps for moment in episode) for episode in episodes]
    terminal = sum(episode[-1].is_terminal for episode in episodes)
    text = f"Episodes: {len(episodes)} of {_range(min(lengths), max(lengths))} env steps; {terminal} ended terminated, "
    data = {"episodes": len(lengths), "terminated": terminal, "shortest": min(lengths), "longest": max(lengths)}
    yield Finding("ok", "ending", f"{text}{len(episodes) - terminal} truncated.", data)
    length = lengths[0]
    alike = set(lengths) == {length} and terminal == len(lengths)
    if alike and (length == limit or (len(lengths) > 2 and length > 1)):
        text = f"All {len(lengths)} episodes ended terminated after exactly {length} env steps"
        mend = "if a clock ends them, return truncated=True instead, because termination says that nothing follows"
        clock = ", the time limit" if length == limit else ""
        yield Finding("warning" if clock or length >= _LONG else "note", "ending", f"{text}{clock}: {mend}.")


def rewards(first: Recording) -> Iterator[Finding]:
    """Size and frequency of rewards under random actions."""
    steps = [moment for moment in first.moments if not moment.is_first]
    values = np.array([moment.reward for moment in steps])
    if not len(values):
        return
    if not values.any():
        text = f"All {len(values)} rewards are 0 under random actions: the reward is sparse, exploration is needed"
        yield Finding("warning", "reward", f"{text}, and progress may begin late or never.")
        return
    low, high, mean, std = (float(x) for x in (values.min(), values.max(), values.mean(), values.std()))
    data = {"min": low, "max": high, "mean": mean, "std": std, "nonzero": float((values != 0).mean())}
    text = f"Rewards of {_range(low, high)}, mean {_number(mean)}, std {_number(std)}, {data['nonzero']:.0%} not zero."
    yield Finding("ok", "reward", text, data)
    if max(-low, high) > _LARGE:
        text = f"Rewards reach {_number(max(-low, high))}: any size can be learned; scale them if small ones matter."
        yield Finding("note", "reward", text)
    late = all(moment.is_last for moment in steps if moment.reward)
    if late and not all(moment.is_last for moment in steps):
        text = "Reward comes only with the last step of an episode: it must be traced back over the whole episode"
        yield Finding("note", "reward", f"{text}, so keep behavior.return_horizon above its length.")


def time_limit(env: gymnasium.Env) -> int | None:
    """Env steps after which an environment, or one of its wrappers, says that it ends episodes; None if none does."""
    if env.spec is not None and env.spec.max_episode_steps:
        return env.spec.max_episode_steps
    while True:
        for name in _LIMITS:
            if isinstance(value := getattr(env, name, None), int) and value > 0:
                return value
        if not isinstance(env, gymnasium.Wrapper | Adapter):
            return None
        env = env.env


def _equal(one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[key], two[key]) for key in one)


def _interval(low: np.ndarray, high: np.ndarray) -> str:
    if (low == low[:1]).all() and (high == high[:1]).all():
        return f"[{_number(float(low[0]))}, {_number(float(high[0]))}]"
    return f"[{', '.join(map(_number, low))}] to [{', '.join(map(_number, high))}]"


def _range(low: float | int, high: float | int) -> str:
    return _number(low) if low == high else f"{_number(low)} to {_number(high)}"


def _number(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"


__all__ = [
    "Finding",
    "action_keys",
    "actions_matter",
    "endings",
    "first_difference",
    "masks",
    "observation_keys",
    "observations",
    "reproducible",
    "rewards",
    "seeded",
    "time_limit",
]
