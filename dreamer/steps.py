"""What environments take and answer, in NumPy alone; `dreamer.types` has the timing convention and all other types.

A file of its own because worker processes need nothing else: importing JAX would cost each of them a second and 100 MB.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np


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

    @property
    def dtype(self) -> np.dtype:
        """Dtype of host arrays of this space."""
        return np.dtype({"image": np.uint8, "discrete": np.int32}.get(self.kind, np.float32))


Spaces = dict[str, Space]
"""Spaces by key, sorted by key."""


class Step(NamedTuple):
    """What N parallel environments answer at one instant; host arrays with a leading axis N.

    ``obs`` maps each key to ``[N, ...]``; the other fields have shape ``[N]``: ``reward`` float32, the flags bool.
    ``env_steps`` (int32) counts the simulator steps behind this answer: 0 for a reset, otherwise the number of times
    the action was really applied (at most ``env.repeat``). ``log`` holds, by index of the environment, the numbers that
    an environment has to report about the episode that ends here.
    """

    obs: dict[str, np.ndarray]
    reward: np.ndarray
    is_first: np.ndarray
    is_last: np.ndarray
    is_terminal: np.ndarray
    env_steps: np.ndarray
    log: Mapping[int, Mapping[str, float]] = MappingProxyType({})


__all__ = ["Space", "Spaces", "Step"]
