"""The data that flows through Dreamer, and the one timing convention everything obeys.

Timing
------
::

    t:        0          1          2         obs[t], reward[t], is_first[t], is_last[t], is_terminal[t] arrive together
    obs    o0 r0=0    o1 r1      o2 r2        action[t] is chosen after obs[t]; reward[t+1] is its consequence
    action a0         a1         a2           rssm.step at t uses action[t-1], zeroed where is_first[t]

* ``is_first[t]``     obs[t] comes from a reset: reward[t] is 0 and action[t-1] belongs to another episode.
* ``is_last[t]``      obs[t] is the final observation of its episode, whatever ended it. The action chosen after it is
  never executed: the next step is a reset.
* ``is_terminal[t]``  the episode ended in the sense of the task (implies ``is_last``): the future is worth nothing.
  A time limit sets ``is_last`` alone.

No other file redefines this. `driver` produces it, `replay` stores it, `world_model` and `behavior` consume it.

Shape letters are listed in ``docs/shapes.md``.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Float32

Observation = Mapping[str, Array | np.ndarray]
"""One array per observation key, with the same leading axes for all keys."""

Action = dict[str, Array | np.ndarray]
"""One array per action key: ``int32 [..., *shape]`` class indices or ``float32 [..., *shape]`` in [-1, 1]."""

Metrics = dict[str, Array]
"""Scalars by name. They stay on the device until the logger asks for them."""


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

MASK = "action_mask"
"""Observation key that says which classes of a discrete action are allowed now; see `mask_keys`."""

Masks = Mapping[str, Array]
"""``bool [..., *shape, classes]`` by action key, true for allowed classes; what has no mask has no key."""


def is_mask(key: str) -> bool:
    """Whether an observation key holds an action mask."""
    return key == MASK or key.startswith(f"{MASK}.")


def mask_keys(obs_spaces: Spaces, action_spaces: Spaces) -> dict[str, str]:
    """Observation key of the mask of every action key that has one.

    ``action_mask`` belongs to the only discrete action key, ``action_mask.KEY`` to the action key KEY. A mask holds 1
    for an allowed class and 0 for a forbidden one, with the shape of the action and a last axis of its classes.

    Raises:
        ValueError: a mask belongs to no discrete action key, two belong to the same, or its space is another.
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


class Latent(NamedTuple):
    """State of the RSSM: everything it remembers.

    Shapes: ``deter [..., D]`` recurrent state, ``stoch [..., S, C]`` one-hot samples of S categorical variables.
    """

    deter: Float[Array, "*batch D"]
    stoch: Float[Array, "*batch S C"]


class StoredLatent(NamedTuple):
    """A `Latent` as kept in replay: ``deter [..., D]`` in the compute dtype, ``stoch [..., S]`` as class indices."""

    deter: np.ndarray | Array
    stoch: np.ndarray | Array


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


class Batch(NamedTuple):
    """B sequences of T consecutive steps from replay, as the update sees them.

    Index t of every ``[B, T, ...]`` field belongs to the same step. ``prev_action[:, t]`` is the action chosen at step
    t-1 (for t = 0: at the step just before the sequence) and ``latent`` the stored posterior of that step before the
    sequence, so a sequence continues where the actor really was. Where ``is_first`` is set both are ignored.
    """

    obs: dict[str, Array | np.ndarray]
    prev_action: dict[str, Array | np.ndarray]
    reward: Array | np.ndarray
    is_first: Array | np.ndarray
    is_last: Array | np.ndarray
    is_terminal: Array | np.ndarray
    latent: StoredLatent


class Trajectory(NamedTuple):
    """An imagined rollout: N start states followed for H steps, time first.

    ``latent[0]`` are the start states and ``latent[h+1]`` follows from ``action[h]``. ``action[H]`` is chosen in the
    last state and never executed; it keeps all fields ``[H+1, N, ...]``.
    """

    latent: Latent
    action: Action


class ReturnRange(NamedTuple):
    """Exponential moving averages of the 5th and 95th percentile of imagined returns; scalars, in reward units."""

    low: Float32[Array, ""]
    high: Float32[Array, ""]


__all__ = [
    "MASK",
    "Action",
    "Batch",
    "Latent",
    "Masks",
    "Metrics",
    "Observation",
    "ReturnRange",
    "Space",
    "Spaces",
    "Step",
    "StoredLatent",
    "Trajectory",
    "is_mask",
    "mask_keys",
]
