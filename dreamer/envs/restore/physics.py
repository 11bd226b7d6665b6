"""State of DeepMind Control's environments: MuJoCo's integration state, what changes in the model, and the task.

Some tasks keep part of an episode in the model, such as the place of a target. The model's arrays are compared, by
digest, with those from when it was built, and the ones that changed belong to the state.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from dreamer.envs.errors import NotRestorable
from dreamer.envs.restore import attributes

Digests = dict[str, bytes]
"""Digest of every array and option of a model, by name."""


def digests(env: Any) -> Digests:
    """Digests of a model that was just built; empty for environments that are not of the suite."""
    return {name: _digest(value) for _, name, value in _parts(env)} if not _reason(env) else {}


def get_state(env: Any, built: Digests) -> dict[str, Any]:
    """State of an environment of the suite.

    Args:
        env: a `dm_control.rl.control.Environment`.
        built: its `digests` from before the first reset.

    Raises:
        NotRestorable: it is not of the suite, or its task holds more than plain data.
    """
    if reason := _reason(env):
        raise NotRestorable(reason)
    return {
        "physics": env.physics.get_state(_integration()),
        "model": {name: _value(value) for _, name, value in _parts(env) if _digest(value) != built[name]},
        "task": attributes.get_state_of(env.task),
        "steps": env._step_count,
        "over": env._reset_next_step,
    }


def set_state(env: Any, state: dict[str, Any]) -> None:
    """Give the state to an environment that was just built from the same seed; raises `NotRestorable`."""
    if reason := _reason(env):
        raise NotRestorable(reason)
    import mujoco

    model = state["model"]
    for owner, name, value in list(_parts(env)):
        if name not in model:
            continue
        if isinstance(value, np.ndarray):
            value[...] = model[name]
        else:
            setattr(owner, name.rpartition(".")[2], model[name])
    physics = env.physics
    size = mujoco.mj_stateSize(physics.model.ptr, _integration())
    if state["physics"].shape != (size,):
        raise NotRestorable(f"The saved state of MuJoCo has {state['physics'].size} numbers, expected {size}.")
    physics.set_state(state["physics"], _integration())
    # Computes what follows from positions and velocities. Physics.step begins with the second half of a step, which
    # needs the results of this first half.
    mujoco.mj_step1(physics.model.ptr, physics.data.ptr)
    attributes.set_state_of(env.task, state["task"])
    env._step_count = state["steps"]
    env._reset_next_step = state["over"]


def _integration() -> int:
    import mujoco

    return int(mujoco.mjtState.mjSTATE_INTEGRATION)


def _reason(env: Any) -> str:
    """Why the state of an environment cannot be known; empty if it can."""
    kinds = {type(env): "dm_control.rl.control"}
    if type(env).__module__ == "dm_control.rl.control":
        kinds |= {type(env.physics): "dm_control.suite", type(env.task): "dm_control.suite"}
    for kind, package in kinds.items():
        if not f"{kind.__module__}.".startswith(f"{package}."):
            name = f"{kind.__module__}.{kind.__qualname__}"
            return f"{name} is not of DeepMind Control's suite, and does not give its state."
    return ""


def _parts(env: Any) -> Iterator[tuple[Any, str, Any]]:
    """Owner, name and value of every array of the model, and of its options and statistics."""
    model = env.physics.model.ptr
    for prefix, owner in (("", model), ("opt.", model.opt), ("stat.", model.stat)):
        for name in dir(owner):
            if name.startswith("_"):
                continue
            value = getattr(owner, name)
            if isinstance(value, np.ndarray) or (prefix and isinstance(value, int | float)):
                yield owner, prefix + name, value


def _value(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def _digest(value: Any) -> bytes:
    data: Any = np.ascontiguousarray(value) if isinstance(value, np.ndarray) else repr(value).encode()
    return hashlib.blake2b(data, digest_size=16).digest()


__all__ = ["Digests", "digests", "get_state", "set_state"]
