"""What environments take and return, in NumPy alone; `dreamer.types` has the timing convention and all other types.

Separate, because worker processes need nothing else: importing JAX would cost each of them a second and 100 MB.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

MANY = 2**16
"""Entries of a one-hot vector from which on a grid of classes is embedded instead."""


class Space(NamedTuple):
    """What one observation or action key holds, without batch axes.

    ``kind`` and the host arrays that belong to it:

    * ``image``: uint8 ``[H, W, C]``; observations only.
    * ``vector``: float32 ``[n]``, any range; observations only.
    * ``discrete``: int32 ``shape`` of class indices in ``[0, classes)``; observations and actions.
    * ``continuous``: float32 ``shape``, nominally in [-1, 1]; actions only. The environment adapter clips and scales.
    """

    kind: Literal["image", "vector", "discrete", "continuous"]
    shape: tuple[int, ...]
    classes: int = 0
    """Number of classes of a discrete space; otherwise 0."""

    @property
    def dtype(self) -> np.dtype:
        """Dtype of host arrays of this space."""
        return np.dtype({"image": np.uint8, "discrete": np.int32}.get(self.kind, np.float32))

    @property
    def is_grid(self) -> bool:
        """Whether it is a grid of so many cells and classes that networks embed them: one-hot would be too large."""
        return len(self.shape) == 2 and self.classes > 2 and self.shape[0] * self.shape[1] * self.classes >= MANY


Spaces = dict[str, Space]
"""Spaces by key, sorted by key."""


MASK = "action_mask"
"""Observation key that says which classes of a discrete action are allowed now; see `mask_keys`."""


def is_mask(key: str) -> bool:
    """Whether an observation key holds an action mask."""
    return key == MASK or key.startswith(f"{MASK}.")


def mask_keys(obs_spaces: Spaces, action_spaces: Spaces) -> dict[str, str]:
    """Observation key of the mask of every action key that has one.

    ``action_mask`` belongs to the only discrete action key, ``action_mask.KEY`` to the action key KEY. A mask holds 1
    for an allowed class and 0 for a forbidden one, with the shape of the action and a last axis of its classes.

    Raises:
        ValueError: a mask belongs to no discrete action key, two belong to the same, or its space is wrong.
    """
    found: dict[str, str] = {}
    discrete = [key for key, space in action_spaces.items() if space.kind == "discrete"]
    for mask, space in obs_spaces.items():
        if not is_mask(mask):
            continue
        key = discrete[0] if mask == MASK and len(discrete) == 1 else mask.removeprefix(f"{MASK}.")
        if key not in discrete or key in found:
            raise ValueError(
                f"observation key '{mask}' is an action mask that belongs to no discrete action key, or to one that "
                f"has a mask already, expected {MASK}.KEY with KEY among {discrete}, or {MASK} if there is only one: "
                f"rename it"
            )
        expected = Space("discrete", (*action_spaces[key].shape, action_spaces[key].classes), 2)
        if space != expected:
            raise ValueError(
                f"observation key '{mask}' is of the kind {space.kind}, shape {list(space.shape)}, expected "
                f"0 or 1 in the shape {list(expected.shape)} for the classes of action key '{key}': declare it as "
                f"MultiBinary, or as Box(0, 1) of bools or integers"
            )
        found[key] = mask
    return found


class Step(NamedTuple):
    """What N parallel environments return at one instant; host arrays with a leading axis N."""

    obs: dict[str, np.ndarray]
    """``[N, ...]`` by observation key."""
    reward: np.ndarray
    """float32 ``[N]``."""
    is_first: np.ndarray
    """bool ``[N]``."""
    is_last: np.ndarray
    """bool ``[N]``."""
    is_terminal: np.ndarray
    """bool ``[N]``."""
    env_steps: np.ndarray
    """Simulator steps behind this step, int32 ``[N]``: 0 for a reset, otherwise the number of times that the action was
    really applied, at most ``env.repeat``."""
    log: Mapping[int, Mapping[str, float]] = MappingProxyType({})
    """Numbers that an environment reports about the episode that ends here, by index of the environment."""


__all__ = ["MASK", "Space", "Spaces", "Step", "is_mask", "mask_keys"]


def portable(dtype: np.dtype) -> np.dtype:
    """The dtype itself, or an unsigned integer of its width if `numpy.save` would lose track of it (bfloat16)."""
    return dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")
