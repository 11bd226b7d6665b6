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

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from dreamer.spaces import MASK, Space, Spaces, Step, is_mask, mask_keys

Observation = Mapping[str, Array | np.ndarray]
"""One array per observation key, with the same leading axes for all keys."""

Action = dict[str, Array | np.ndarray]
"""One array per action key: ``int32 [..., *shape]`` class indices or ``float32 [..., *shape]`` in [-1, 1]."""

Metrics = dict[str, Array]
"""Scalars by name. They stay on the device until the logger asks for them."""


@jax.tree_util.register_pytree_node_class
class Scalars(Mapping[str, Any]):
    """`Metrics` in one array, so that a program returns, and a host fetches, one array in place of forty.

    Whoever looks at a number first waits for the program, and fetches all. Integers are exact up to 2**24.

    Args:
        names: of M metrics.
        array: their values, float32 ``[M]``.
    """

    def __init__(self, names: tuple[str, ...], array: Any):
        self._names, self._array = names, array
        self._fetched: dict[str, np.float32] | None = None

    @classmethod
    def of(cls, metrics: Metrics) -> "Scalars":
        """Metrics, packed."""
        return cls(tuple(metrics), jnp.stack([jnp.asarray(value, jnp.float32) for value in metrics.values()]))

    def __getitem__(self, name: str) -> Any:
        if isinstance(self._array, jax.core.Tracer):
            return self._array[self._names.index(name)]
        if self._fetched is None:
            self._fetched = dict(zip(self._names, np.asarray(self._array), strict=True))
        return self._fetched[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def tree_flatten(self) -> tuple[tuple[Any], tuple[str, ...]]:
        """For JAX: the array is the only leaf."""
        return (self._array,), self._names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], leaves: tuple[Any]) -> "Scalars":
        """For JAX."""
        return cls(names, *leaves)


Number = float | Float32[Array, ""] | Int32[Array, ""]
"""A number of the config; an array without axes where members of a population differ in it."""

Masks = Mapping[str, Array]
"""``bool [..., *shape, classes]`` by action key, true for allowed classes; what has no mask has no key."""


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
    last state and never executed; it keeps all fields ``[H+1, N, ...]``. ``extras`` is whatever the policy returned
    along with its actions.
    """

    latent: Latent
    action: Action
    extras: Any = None


class ReturnRange(NamedTuple):
    """Exponential moving averages of the 5th and 95th percentile of imagined returns; scalars, in reward units."""

    low: Float32[Array, ""]
    high: Float32[Array, ""]


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by their path, for example ``world_model.rssm.mix.kernel``."""
    return {_path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _path_name(path: tuple[Any, ...]) -> str:
    parts = [str(getattr(p, "name", getattr(p, "key", getattr(p, "idx", p)))) for p in path]
    # Parameters are objects that hold their array as ``value``.
    return ".".join(part for part in parts if part != "value")


__all__ = [
    "MASK",
    "Action",
    "Batch",
    "Latent",
    "Masks",
    "Metrics",
    "Number",
    "Observation",
    "ReturnRange",
    "Scalars",
    "Space",
    "Spaces",
    "Step",
    "StoredLatent",
    "Trajectory",
    "is_mask",
    "mask_keys",
    "named_leaves",
]
