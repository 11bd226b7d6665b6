"""Tries out whether environments can be saved and restored, before anything relies on it."""

import collections
import contextlib
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dreamer.envs.adapter import Adapter
from dreamer.envs.errors import NotRestorable
from dreamer.envs.restore.states import pack, unpack
from dreamer.envs.rollouts import random_action
from dreamer.spaces import mask_keys

_TURNS = 15
"""Turns before the state is taken, from there to a forced reset, and after it."""

_SECONDS = 0.3
"""Slow environments take fewer turns."""


class _Answer(NamedTuple):
    """What an environment returned."""

    obs: dict[str, np.ndarray]
    reward: float
    terminated: bool
    truncated: bool
    env_steps: int


def rehearse(make: Callable[[], Adapter]) -> None:
    """Play a new environment with random actions, give its state to another, and play both with the same actions.

    Both are closed afterwards, and the state of global random generators is restored.

    Raises:
        NotRestorable: the answers differ, an environment fails, or one changes an attribute of a class.
    """
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(random.setstate, random.getstate())
        cleanup.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        try:
            one, two = (cleanup.enter_context(contextlib.closing(make())) for _ in range(2))
            shared = _class_attributes(one)
            _compare(one, two)
            for name, value in _class_attributes(one).items():
                if value != shared.get(name):
                    raise NotRestorable(f"{one.name} changes an attribute of a class, {name}: keep it in self.")
        except NotRestorable:
            raise
        except Exception as error:
            raise NotRestorable(
                f"A trial of saving and restoring another environment failed ({type(error).__name__}: {error})."
            ) from error


def _compare(one: Adapter, two: Adapter) -> None:
    """Compare their answers, turn by turn.

    Taking turns exposes hidden state: anything they share changes in between, and each draws other numbers from global
    random generators.
    """
    rng = np.random.default_rng(0)
    last = _reset(one, seed=0)
    for _ in _turns():
        last = _advance(one, last, rng)
    two.set_state(unpack(*pack(one.get_state())))
    again = last
    for forced in (False, True):
        if forced:
            last = _reset(one)
            again = _reset(two)
            _require_equal(one, last, again)
        for _ in _turns():
            state = rng.bit_generator.state
            last = _advance(one, last, rng)
            rng.bit_generator.state = state  # so that both get the same action
            again = _advance(two, again, rng)
            _require_equal(one, last, again)


def _turns() -> Any:
    deadline = time.monotonic() + _SECONDS
    for turn in range(_TURNS):
        if turn and time.monotonic() > deadline:
            return
        yield turn


def _advance(env: Adapter, last: _Answer, rng: np.random.Generator) -> _Answer:
    if last.terminated or last.truncated:
        return _reset(env)
    masks = mask_keys(env.obs_spaces, env.action_spaces)
    obs, reward, terminated, truncated, info = env.step(random_action(rng, env.action_spaces, masks, last.obs))
    return _Answer(obs, reward, terminated, truncated, info["env_steps"])


def _reset(env: Adapter, seed: int | None = None) -> _Answer:
    obs, _ = env.reset(seed=seed)
    return _Answer(obs, reward=0.0, terminated=False, truncated=False, env_steps=0)


def _require_equal(env: Adapter, one: _Answer, two: _Answer) -> None:
    if _bits(tuple(one)) != _bits(tuple(two)):
        raise NotRestorable(
            f"{env.name} behaved differently after its state was restored, so it depends on something that the state "
            f"leaves out, such as global randomness: give it methods get_state and set_state that cover everything."
        )


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


__all__ = ["rehearse"]
