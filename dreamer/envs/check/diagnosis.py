"""What is wrong with an environment, or surprising, in sentences: judged by its spaces and by recordings."""

import collections
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np

from dreamer.config import ConfigError, NetsConfig, smallest_image
from dreamer.envs.adapter import USED_AS_IT_IS, Adapter
from dreamer.envs.rollouts import RecordedStep, Recording
from dreamer.envs.spaces import Codec
from dreamer.spaces import Space, Spaces, is_mask, mask_keys

_LARGE = 1e3
"""Observations and rewards above this are worth mentioning."""

_LONG = 50
"""Tasks that always take the same number of steps are usually shorter than this; time limits are longer."""

_WIDE = 4096
"""A vector with more entries than this may be an image in disguise."""

_LIMITS = ("_max_episode_steps", "max_episode_steps", "max_steps")
"""Attributes in which Gymnasium and many environments keep time limits."""


class EnvFinding(NamedTuple):
    """One sentence about an environment, its topic, and the numbers in it.

    ``ok``: as it should be. ``note``: good to know. ``warning``: can be trained on, but is probably not intended.
    ``error``: cannot be trained on.
    """

    level: Literal["ok", "note", "warning", "error"]
    topic: str
    text: str
    data: Mapping[str, Any] = MappingProxyType({})


def observation_keys(
    spaces: Spaces, nets: NetsConfig, sources: Mapping[str, str] = MappingProxyType({})
) -> Iterator[EnvFinding]:
    """What the encoder makes of every observation key; ``sources`` says from what images were made, if not as is."""
    for key, space in spaces.items():
        label = f"Observation '{key}'"
        if space.kind == "image":
            yield _image(label, space, nets, sources.get(key, ""))
        elif space.kind == "discrete":
            what = f"int32 {list(space.shape)}, {space.classes} classes"
            how = "embedded cell by cell, then convolutions" if space.is_grid else "one-hot, then MLP"
            yield EnvFinding("ok", "observation", f"{label}: {what}: {how}.", space._asdict())
        else:
            what = f"float32 {list(space.shape)}"
            how = "symlog, then MLP" if nets.symlog else "MLP"
            yield EnvFinding("ok", "observation", f"{label}: {what}: {how}.", space._asdict())
            if space.shape[0] > _WIDE:
                text = f"{label} is a vector of {space.shape[0]} numbers: if it is an image, declare it as Box(0, 255, "
                yield EnvFinding("warning", "observation", f"{text}[height, width, channels], uint8) for convolutions.")


def _image(label: str, space: Space, nets: NetsConfig, source: str) -> EnvFinding:
    height, width, _ = space.shape
    try:
        small = smallest_image(height, width, nets)
    except ConfigError as error:
        return EnvFinding("error", "observation", f"{label}: {error}")
    sizes = f"{height}x{width} -> {small[0]}x{small[1]}"
    what = f"uint8 {list(space.shape)}{f' (from {source})' if source else ''}"
    return EnvFinding("ok", "observation", f"{label}: {what}: convolutions, {sizes}.", space._asdict())


def unseen(keys: Sequence[str]) -> Iterator[EnvFinding]:
    """Which observation keys the agent does not see because the config says so."""
    if keys:
        text = f"The agent does not see {', '.join(map(repr, keys))}, as env.keys and env.ignore say."
        yield EnvFinding("note", "observation", text, {"keys": list(keys)})


def action_keys(codec: Codec) -> Iterator[EnvFinding]:
    """What the actor makes of every action key, and bounds that deserve a look."""
    for leaf in codec.leaves():
        key = leaf.key
        space = leaf.space
        if space.kind == "discrete":
            how = "one categorical distribution" if not space.shape else "independent categorical distributions"
            what = f"int32 {list(space.shape)}, {space.classes} classes"
            yield EnvFinding("ok", "action", f"Action '{key}': {what}: {how}.", space._asdict())
            continue
        unit = np.ones(space.shape)
        low, high = (np.asarray(leaf.decode({key: sign * unit}), np.float64).reshape(-1) for sign in (-1, 1))
        what = f"float32 {list(space.shape)} in [-1, 1] for {_interval(low, high)}"
        yield EnvFinding("ok", "action", f"Action '{key}': {what}: normal distribution, clipped.", space._asdict())
        yield from _bounds(key, low, high)


def _bounds(key: str, low: np.ndarray, high: np.ndarray) -> Iterator[EnvFinding]:
    half = high / 2 - low / 2
    center = high / 2 + low / 2
    if (half == 0).any():
        text = f"has {int((half == 0).sum())} entries with equal bounds, which therefore do nothing: leave them out."
        yield EnvFinding("warning", "action", f"Action '{key}' {text}")
    elif half.max() > _LARGE:
        text = f"has bounds up to {_number(float(half.max()))}, which sensible actions hardly reach: declare the range "
        yield EnvFinding("warning", "action", f"Action '{key}' {text}that matters, because [-1, 1] is scaled to it.")
    elif half.min() < 1 / _LARGE:
        text = f"has bounds only {_number(2 * float(half.min()))} apart: check their unit."
        yield EnvFinding("note", "action", f"Action '{key}' {text}")
    if (np.abs(center) > 1e-6 * half).any():
        entry = int(np.argmax(np.abs(center) > 1e-6 * half))
        text = f"has asymmetric bounds: the first policy is centred on {_number(float(center[entry]))} in entry {entry}"
        yield EnvFinding("note", "action", f"Action '{key}' {text}: check that this action is harmless.")


def masks(observations: Spaces, actions: Spaces) -> Iterator[EnvFinding]:
    """Which observation keys restrict the actions."""
    for action, mask in mask_keys(observations, actions).items():
        text = f"Observation '{mask}' is the mask of action '{action}': the policy only chooses classes that are 1."
        yield EnvFinding("note", "mask", text)


def reproducibility(first: Recording, again: Recording) -> EnvFinding:
    """Whether two instances with the same seed and actions agree."""
    difference = first_difference(first, again)
    if difference is None:
        steps = len(again.steps)
        return EnvFinding(
            "ok", "seed", f"Two instances with the same seed and actions agree in all {steps} steps compared."
        )
    time, field = difference
    generators = "draw all random numbers from self.np_random, not from global generators or the clock"
    fix = generators if first.seeded else f"call super().reset(seed=seed) in reset, and {generators}"
    text = f"Two instances with the same seed and actions first differ in {field}, {time} steps in: {fix}."
    return EnvFinding("warning", "seed", text, {"step": time, "field": field})


def seed_effect(first: Recording, reseeded: Recording) -> EnvFinding:
    """Whether another seed gives other episodes."""
    if first_difference(first, reseeded) is not None:
        return EnvFinding("ok", "seed", "Another seed gives other episodes.")
    starts = [step for step in first.steps if step.is_first and step.obs]
    if all(_equal(start.obs, starts[0].obs) for start in starts):
        return EnvFinding("note", "seed", "Another seed changes nothing: every episode begins and answers the same.")
    text = (
        "The seed is ignored: episodes differ, but not between seeds, so parallel environments would all play the same"
    )
    return EnvFinding("warning", "seed", f"{text}: call super().reset(seed=seed) and draw from self.np_random.")


def action_effect(first: Recording, other: Recording, spaces: Spaces) -> EnvFinding:
    """Whether other actions give other answers under the same seed."""
    if all(space.kind == "discrete" and space.classes == 1 for space in spaces.values()):
        return EnvFinding("warning", "action", "There is nothing to choose: every action has only one class.")
    if first_difference(first, other) is not None:
        return EnvFinding("ok", "action", "Other actions have other consequences.")
    text = f"Actions are ignored: other actions gave equal observations and rewards in all {len(other.steps)} steps"
    return EnvFinding("warning", "action", f"{text}: check that step uses its argument.")


def first_difference(one: Recording, two: Recording) -> tuple[int, str] | None:
    """Index of the first step in which two recordings differ, and the field that differs; None if they agree."""
    for time, (a, b) in enumerate(zip(one.steps, two.steps, strict=False)):
        if a.obs and b.obs:
            for key in a.obs:
                if not np.array_equal(a.obs[key], b.obs[key]):
                    return time, f"observation '{key}'"
        for field in RecordedStep._fields[1:]:  # all except the observation
            if getattr(a, field) != getattr(b, field):
                return time, f"the field {field}"
    return None


def observations(first: Recording, spaces: Spaces) -> Iterator[EnvFinding]:
    """Values of observations that deserve a look."""
    if first.rewritten:
        text = (
            "The environment overwrites observations that it returned before; Dreamer copies them, other code may not"
        )
        yield EnvFinding("note", "observation", f"{text}: return a copy.")
    seen = [step.obs for step in first.steps if step.obs]
    for key, space in spaces.items():
        if is_mask(key) or len(seen) < 2:
            continue
        label = f"Observation '{key}'"
        largest = max(float(np.abs(obs[key].astype(np.float32)).max()) for obs in seen)
        if all(np.array_equal(obs[key], seen[0][key]) for obs in seen):
            text = f"{label} is the same in all {len(seen)} steps: uninformative, at least under random actions."
            yield EnvFinding("note", "observation", text)
        elif space.kind == "image" and largest <= 1:
            text = f"{label} holds no pixel above 1, as if floats in [0, 1] had been cast: scale it to 0..255."
            yield EnvFinding("warning", "observation", text)
        if space.kind == "vector" and largest > _LARGE:
            text = (
                f"{label} reaches {_number(largest)}: nets.symlog handles that; scale it if small differences matter."
            )
            yield EnvFinding("note", "observation", text)


def outside(played: Mapping[str, Recording]) -> Iterator[EnvFinding]:
    """Which keys left their bounds, and with which actions first; ``played`` has recordings by what was done."""
    steps: collections.Counter[str] = collections.Counter()
    found: dict[str, tuple[str, str]] = {}
    for name, recording in played.items():
        steps.update(recording.outside_steps)
        for key, sentence in recording.outside.items():
            found.setdefault(key, (name, sentence.removesuffix(f" {USED_AS_IT_IS}")))
    for key, (name, sentence) in found.items():
        total = sum(len(recording.steps) for recording in played.values())
        text = (
            f"{steps[key]} of {total} observations were outside their bounds, the first with {name}: {sentence} "
            f"Training counts them and uses them as they are: nothing has to be done."
        )
        yield EnvFinding("note", "bounds", text, {"key": key, "steps": steps[key]})


def ignored(played: Mapping[str, Recording]) -> Iterator[EnvFinding]:
    """What environments answered that is not understood, or raised when they were closed; by what was played."""
    sentences = {key: text for recording in played.values() for key, text in recording.ignored.items()}
    for key, sentence in sentences.items():
        topic = "close" if key == "close" else "info"
        yield EnvFinding("warning", topic, sentence.replace(", and this is not said again", ""), {"key": key})


def endings(first: Recording, limit: int | None) -> Iterator[EnvFinding]:
    """How episodes end; ``limit`` is the time limit in env steps, None if unknown."""
    episodes = first.episodes()
    if not episodes:
        steps = sum(step.env_steps for step in first.steps)
        if limit is not None and limit > steps:
            yield EnvFinding("ok", "ending", f"No episode ended in {steps} env steps; the time limit is {limit}.")
        else:
            allowed = ", as many as there was time for" if first.out_of_time else ""
            text = f"No episode ended in {steps} env steps of random actions{allowed}: if nothing else ends them"
            fix = "wrap the environment in gymnasium.wrappers.TimeLimit(env, 1000)"
            yield EnvFinding("note" if first.out_of_time else "warning", "ending", f"{text}, {fix}.")
        return
    lengths = [sum(step.env_steps for step in episode) for episode in episodes]
    terminal = sum(episode[-1].is_terminal for episode in episodes)
    text = f"Episodes: {len(episodes)} of {_range(min(lengths), max(lengths))} env steps; {terminal} ended terminated, "
    data = {"episodes": len(lengths), "terminated": terminal, "shortest": min(lengths), "longest": max(lengths)}
    yield EnvFinding("ok", "ending", f"{text}{len(episodes) - terminal} truncated.", data)
    length = lengths[0]
    alike = set(lengths) == {length} and terminal == len(lengths)
    if alike and (length == limit or (len(lengths) > 2 and length > 1)):
        text = f"All {len(lengths)} episodes ended terminated after exactly {length} env steps"
        fix = "if a clock ends them, return truncated=True instead, because termination says that nothing follows"
        clock = ", the time limit" if length == limit else ""
        yield EnvFinding("warning" if clock or length >= _LONG else "note", "ending", f"{text}{clock}: {fix}.")


def rewards(first: Recording) -> Iterator[EnvFinding]:
    """Size and frequency of rewards under random actions."""
    steps = [step for step in first.steps if not step.is_first]
    values = np.array([step.reward for step in steps])
    if not len(values):
        return
    if not values.any():
        text = (
            f"All {len(values)} rewards are 0 under random actions: the reward is sparse, so the agent has to explore"
        )
        yield EnvFinding("warning", "reward", f"{text}, and progress may start late or never.")
        return
    low, high, mean, std = (float(x) for x in (values.min(), values.max(), values.mean(), values.std()))
    data = {"min": low, "max": high, "mean": mean, "std": std, "nonzero": float((values != 0).mean())}
    text = f"Rewards of {_range(low, high)}, mean {_number(mean)}, std {_number(std)}, {data['nonzero']:.0%} not zero."
    yield EnvFinding("ok", "reward", text, data)
    if max(-low, high) > _LARGE:
        text = (
            f"Rewards reach {_number(max(-low, high))}: the agent copes with any size; scale them if small ones matter."
        )
        yield EnvFinding("note", "reward", text)
    late = all(step.is_last for step in steps if step.reward)
    if late and not all(step.is_last for step in steps):
        text = "Reward comes only with the last step of an episode: credit must travel back over the whole episode"
        yield EnvFinding("note", "reward", f"{text}, so keep behavior.return_horizon above its length.")


def time_limit(env: gymnasium.Env) -> int | None:
    """Env steps after which an environment or one of its wrappers declares that episodes end; None if none does."""
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
    "EnvFinding",
    "action_effect",
    "action_keys",
    "endings",
    "first_difference",
    "ignored",
    "masks",
    "observation_keys",
    "observations",
    "reproducibility",
    "rewards",
    "seed_effect",
    "time_limit",
    "unseen",
]
