"""Tries out whether environments can be saved and restored, before anything relies on it."""

import collections
import contextlib
import itertools
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dreamer.envs.adapter import Adapter
from dreamer.envs.errors import NotRestorable, SameEnvironment, not_restorable
from dreamer.envs.restore.states import pack, unpack
from dreamer.envs.rollouts import random_action
from dreamer.spaces import mask_keys

_TURNS = 15
"""Turns before the state is taken, from there to a forced reset, and after it."""

_SECONDS = 0.3
"""Slow environments take fewer turns."""

_FAILED = "A trial of saving and restoring another environment failed ({})."


class _Answer(NamedTuple):
    """What an environment returned."""

    obs: dict[str, np.ndarray]
    reward: float
    terminated: bool
    truncated: bool
    env_steps: int


def rehearse(first: Adapter, make: Callable[[], Adapter]) -> None:
    """Play a new environment with random actions, close it, and have another continue from a state in the middle.

    There is never more than one of them: many simulators, and all robots, exist once. Both are closed afterwards, and
    the state of global random generators is restored.

    Args:
        first: an environment that was not reset yet.
        make: makes another one.

    Raises:
        NotRestorable: the answers differ, an environment fails, or one changes an attribute of a class.
        SameEnvironment: ``make`` returned the first one again.
    """
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(random.setstate, random.getstate())
        cleanup.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        with not_restorable(_FAILED):
            with contextlib.closing(first):
                part = _play(first)
            second = make()
        with contextlib.closing(second):
            require_another(second, first)
            with not_restorable(_FAILED):
                _play_again(second, part)


def require_another(env: Adapter, before: Adapter) -> None:
    """Raise `SameEnvironment` if two environments are one and the same object, behind whatever wrappers."""
    if env.unwrapped is before.unwrapped:
        raise SameEnvironment(
            f"make_env returned the same environment twice ({env.name}), expected a new one from every call: make it "
            f"inside the function."
        )


class _Part(NamedTuple):
    """What an environment did from the moment at which its state was taken."""

    state: tuple[Any, np.ndarray]
    """The state, packed."""
    actions: list[dict[str, Any] | None]
    """What was done since then; None is a reset."""
    answers: list[tuple[str, bytes]]
    """What the environment answered."""


def _play(env: Adapter) -> _Part:
    """Play, take the state, go on, and reset once in the middle of an episode."""
    shared = _class_attributes(env)
    rng = np.random.default_rng(0)
    last = _reset(env, seed=0)
    for _ in _turns():
        last = _advance(env, _choose(env, last, rng))
    part = _Part(pack(env.get_state()), [], [])
    for forced in (False, True):
        choices = itertools.chain([None] if forced else [], (_choose(env, last, rng) for _ in _turns()))
        for action in choices:
            last = _advance(env, action)
            part.actions.append(action)
            part.answers.append(_bits(tuple(last)))
    for name, value in _class_attributes(env).items():
        if value != shared.get(name):
            raise NotRestorable(f"{env.name} changes an attribute of a class, {name}: keep it in self.")
    return part


def _play_again(env: Adapter, part: _Part) -> None:
    """Continue from the state with the same actions.

    By now, anything that the two share has been changed by the first, and global random generators give other numbers:
    hidden state shows.
    """
    env.set_state(unpack(*part.state))
    for action, expected in zip(part.actions, part.answers, strict=True):
        last = _advance(env, action)
        if _bits(tuple(last)) != expected:
            raise NotRestorable(
                f"{env.name} behaved differently after its state was restored, so it depends on something that the "
                f"state leaves out, such as global randomness: give it methods get_state and set_state that cover "
                f"everything."
            )


def _turns() -> Any:
    deadline = time.monotonic() + _SECONDS
    for turn in range(_TURNS):
        if turn and time.monotonic() > deadline:
            return
        yield turn


def _choose(env: Adapter, last: _Answer, rng: np.random.Generator) -> dict[str, Any] | None:
    """A random action, or None if the episode is over."""
    if last.terminated or last.truncated:
        return None
    masks = mask_keys(env.obs_spaces, env.action_spaces)
    return random_action(rng, env.action_spaces, masks, last.obs)


def _advance(env: Adapter, action: dict[str, Any] | None) -> _Answer:
    """Step, or reset if there is no action."""
    if action is None:
        return _reset(env)
    obs, reward, terminated, truncated, info = env.step(action)
    return _Answer(obs, reward, terminated, truncated, info["env_steps"])


def _reset(env: Adapter, seed: int | None = None) -> _Answer:
    obs, _ = env.reset(seed=seed)
    return _Answer(obs, reward=0.0, terminated=False, truncated=False, env_steps=0)


def _bits(value: Any) -> tuple[str, bytes]:
    structure, data = pack(value)
    return repr(structure), data.tobytes()


def _class_attributes(env: Adapter) -> dict[str, str]:
    """Plain attributes of the classes of an environment and its wrappers, as text."""
    found = {}
    layer = env.env
    plain = (int, float, str, list, dict, set, np.ndarray, collections.deque)
    while True:
        for kind in type(layer).__mro__:
            for name, value in vars(kind).items():
                if isinstance(value, plain) and not name.startswith("__"):
                    found[f"{kind.__qualname__}.{name}"] = repr(value)
        if layer is layer.unwrapped:
            return found
        layer = layer.env  # type: ignore[attr-defined]


__all__ = ["rehearse", "require_another"]
