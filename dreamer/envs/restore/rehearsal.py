"""Try whether environments can be saved and restored, before anybody relies on it."""

import collections
import contextlib
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dreamer.envs.adapter import Adapter
from dreamer.envs.errors import NotRestorable
from dreamer.envs.restore.states import pack, unpack
from dreamer.envs.rollouts import random_action
from dreamer.spaces import mask_keys

_TURNS = 15
"""Turns before the state is taken, then again before a reset, and after it."""

_SECONDS = 0.3
"""Slow environments take fewer turns."""

Answer = tuple[dict[str, np.ndarray], float, bool, bool, int]
"""Observation, reward, terminated, truncated, env steps."""


def rehearse(make: Callable[[], Adapter]) -> None:
    """Play one new environment with random actions, give its state to another one, and play both alike.

    Both are closed afterwards. Global randomness is left as it was.

    Raises:
        NotRestorable: their answers differ, or they fail, or they change an attribute of a class.
    """
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(random.setstate, random.getstate())
        cleanup.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        try:
            one, two = (cleanup.enter_context(contextlib.closing(make())) for _ in range(2))
            shared = _shared(one)
            _compare(one, two)
            for name, value in _shared(one).items():
                if value != shared.get(name):
                    raise NotRestorable(f"{one.name} changes an attribute of a class, {name}: keep it in self.")
        except NotRestorable:
            raise
        except Exception as error:
            raise NotRestorable(
                f"A trial of saving and restoring another environment failed ({type(error).__name__}: {error})."
            ) from error


def _compare(one: Adapter, two: Adapter) -> None:
    """They take turns, so that what they share has changed in between, and each draws other global random numbers."""
    rng = np.random.default_rng(0)
    last = _reset(one, seed=0)
    for _ in _turns():
        last = _advance(one, last, rng)
    two.set_state(unpack(*pack(one.get_state())))
    again = last
    for forced in (False, True):
        if forced:
            last, again = _reset(one), _reset(two)
            _refuse_different(one, last, again)
        for _ in _turns():
            state = rng.bit_generator.state
            last = _advance(one, last, rng)
            rng.bit_generator.state = state
            again = _advance(two, again, rng)
            _refuse_different(one, last, again)


def _turns() -> Any:
    deadline = time.monotonic() + _SECONDS
    for turn in range(_TURNS):
        if turn and time.monotonic() > deadline:
            return
        yield turn


def _advance(env: Adapter, last: Answer, rng: np.random.Generator) -> Answer:
    if last[2] or last[3]:
        return _reset(env)
    masks = mask_keys(env.obs_spaces, env.action_spaces)
    *answer, info = env.step(random_action(rng, env.action_spaces, masks, last[0]))
    return (*answer, info["env_steps"])


def _reset(env: Adapter, seed: int | None = None) -> Answer:
    return env.reset(seed=seed)[0], 0.0, False, False, 0


def _refuse_different(env: Adapter, one: Answer, two: Answer) -> None:
    if _bits(one) != _bits(two):
        raise NotRestorable(
            f"{env.name} went another way after its state was restored, so something that the state leaves out decides "
            f"what it does, such as global randomness: give it methods get_state and set_state that know of everything."
        )


def _bits(value: Any) -> tuple[str, bytes]:
    structure, data = pack(value)
    return repr(structure), data.tobytes()


def _shared(env: Adapter) -> dict[str, str]:
    """Plain attributes of the classes of an environment and its wrappers, as text."""
    found, layer = {}, env.env
    plain = (int, float, str, list, dict, set, np.ndarray, collections.deque)
    while True:
        for kind in type(layer).__mro__:
            for name, value in vars(kind).items():
                if isinstance(value, plain) and not name.startswith("__"):
                    found[f"{kind.__qualname__}.{name}"] = repr(value)
        if layer is layer.unwrapped:
            return found
        layer = layer.env  # type: ignore[attr-defined]


__all__ = ["rehearse"]
