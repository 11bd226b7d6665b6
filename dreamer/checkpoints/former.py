"""Checkpoints of format version 3, read as the current version: a map of names, and one array that is now several.

Version 3 had one algorithm. Actor, critic, slow critic and range of returns were fields of the training state, and the
policy remembered its last action as one vector. Everything else is the same, so a run that was saved then continues bit
for bit.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import ml_dtypes
import numpy as np

from dreamer.types import Spaces

VERSION = 3

_STATE = (
    (r"^(nets|acting|opt_state\.\d+\.\w+)\.(actor|critic)\.", r"\1.behavior.\2."),
    (r"^(slow_critic|return_range)\.", r"memory.behavior.\1."),
    (r"\.from_deter\.", ".from_recurrent."),
    (r"\.from_stoch\.", ".from_sample."),
)
"""Patterns of names in the training state, and what replaces them."""

_MEMBER = ((r"^memory\.latent\.", "memory.state."), (r"^latents\.", "stored."))
"""The same for everything else that a member of a population carries."""

_PREV_ACTION = "memory.prev_action"

T = TypeVar("T")


def state_name(name: str) -> str:
    """The current name of an array of the training state."""
    return _replace(name, _STATE)


def state_arrays(arrays: Mapping[str, T]) -> dict[str, T]:
    """Arrays of the training state, or values in their place, by their current names."""
    return {state_name(name): array for name, array in arrays.items()}


def member_arrays(fields: Mapping[str, np.ndarray], action_spaces: Spaces) -> dict[str, np.ndarray]:
    """Everything else that a member of a population carries, by its current names."""
    found = {_replace(name, _MEMBER): array for name, array in fields.items()}
    if _PREV_ACTION in found:
        actions = split_action(found.pop(_PREV_ACTION), action_spaces)
        found |= {f"{_PREV_ACTION}.{key}": action for key, action in actions.items()}
    return found


def policy_memory(leaves: Sequence[np.ndarray], action_spaces: Spaces) -> list[np.ndarray]:
    """The arrays of a policy's memory: those of its state, and the last action, by key in sorted order."""
    *state, action = leaves
    return [*state, *split_action(action, action_spaces).values()]


def split_action(flat: np.ndarray, action_spaces: Spaces) -> dict[str, np.ndarray]:
    """Actions by key from one vector ``[N, A]``: keys in sorted order, classes one-hot, continuous values as they are.

    bfloat16 comes as its bits. The vector of zeros before an episode becomes class 0, which nothing uses.
    """
    values = flat.view(ml_dtypes.bfloat16).astype(np.float32) if flat.dtype == np.uint16 else flat
    actions = {}
    start = 0
    for key, space in sorted(action_spaces.items()):
        # A discrete action takes one number for each class, a continuous one a single number.
        size = max(1, space.classes) * math.prod(space.shape)
        part = values[:, start : start + size]
        start += size
        if space.kind == "discrete":
            actions[key] = part.reshape(-1, *space.shape, space.classes).argmax(-1).astype(space.dtype)
        else:
            actions[key] = part.reshape(-1, *space.shape).astype(space.dtype)
    return actions


def _replace(name: str, patterns: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


__all__ = ["VERSION", "member_arrays", "policy_memory", "split_action", "state_arrays", "state_name"]
