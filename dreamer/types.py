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

No other file redefines this. `envs.driver` produces it, `replay` stores it, `world_models` and `behaviors` consume it.

Shape letters are listed in ``docs/shapes.md``.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from dreamer.spaces import MASK, Space, Spaces, Step, is_mask, mask_keys

Observation = Mapping[str, Array | np.ndarray]
"""One array per observation key, with the same leading axes for all keys."""

Action = dict[str, Array | np.ndarray]
"""One array per action key: ``int32 [..., *shape]`` class indices or ``float32 [..., *shape]`` in [-1, 1]."""

Metrics = dict[str, Array]
"""Scalars by name. They stay on the device until the logger asks for them."""


@jax.tree_util.register_pytree_node_class
class Scalars(Mapping[str, Any]):
    """`Metrics` in one array, so that a program returns, and a host fetches, one array instead of forty.

    The first look at a number waits for the program and fetches all of them. Integers are exact up to 2**24.

    Args:
        names: of M metrics.
        array: their values, float32 ``[M]``.
    """

    def __init__(self, names: tuple[str, ...], array: Any):
        self._names = names
        self._array = array
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
"""``bool [..., *shape, classes]`` by action key, true for allowed classes; an action without a mask has no key."""

State = Any
"""What a world model, or a policy, remembers from step to step: a pytree of arrays ``[N, ...]`` that only it reads."""

Stored = Any
"""What replay keeps of a `State` with each step: a pytree of arrays that only the algorithm reads; ``()``: nothing."""

Mode = Literal["sample", "mode"]
"""How to act: ``sample`` as in training, drawn and with whatever noise explores; ``mode`` as well as one can."""


class Batch(NamedTuple):
    """B sequences of T consecutive steps from replay, as the update sees them.

    Index t of every ``[B, T, ...]`` field belongs to the same step. ``prev_action[:, t]`` is the action chosen at step
    t-1 (for t = 0: at the step just before the sequence), so a sequence continues where the actor really was. Where
    ``is_first`` is set, ``prev_action`` and ``stored`` are ignored.
    """

    obs: dict[str, Array | np.ndarray]
    """``[B, T, ...]`` by observation key."""
    prev_action: dict[str, Array | np.ndarray]
    """``[B, T, ...]`` by action key."""
    reward: Array | np.ndarray
    """float32 ``[B, T]``."""
    is_first: Array | np.ndarray
    """bool ``[B, T]``."""
    is_last: Array | np.ndarray
    """bool ``[B, T]``."""
    is_terminal: Array | np.ndarray
    """bool ``[B, T]``."""
    stored: Stored
    """What was stored with the step before each sequence, ``[B, ...]``; or, if the algorithm asks for whole sequences,
    with that step and every step of the sequence, ``[B, 1 + T, ...]``."""


class Trajectory(NamedTuple):
    """An imagined rollout: N start states followed for H steps, time first.

    ``states[0]`` are the start states and ``states[h+1]`` follows from ``action[h]``. ``action[H]`` is chosen in the
    last state and never executed; it keeps all fields ``[H+1, N, ...]``. ``extras`` is whatever the policy returned
    along with its actions.
    """

    states: State
    """``[H+1, N, ...]``."""
    action: Action
    """``[H+1, N, ...]`` by action key."""
    extras: Any = None
    """``[H+1, N, ...]``."""


class Parts(NamedTuple):
    """One pytree for each part of an agent: of its parameters, or of what these parts remember from update to update.

    An agent leaves out what it does not have. The optimizer may treat each part as a group.
    """

    world_model: Any = ()
    behavior: Any = ()
    bonus: Any = ()


class TrainState(NamedTuple):
    """Everything that changes during training."""

    step: Int32[Array, ""]
    """Updates done."""
    nets: Parts
    """Parameters, which have gradients."""
    memory: Parts
    """Everything else that is learned or counted, such as a slow critic or the range of returns."""
    skipped_in_row: Int32[Array, ""]
    """How many updates in a row were skipped up to now, see `dreamer.agent.guard`; 0 after one that was done."""
    opt_state: Any
    """What the optimizer remembers: moments, with the shapes of ``nets``, and a counter."""


def is_off(weight: Number) -> bool:
    """Whether a weight is 0 in all members of a population, so that what it weighs need not be computed."""
    return isinstance(weight, (int, float)) and weight == 0


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by their path, for example ``world_model.rssm.mix.kernel``."""
    paths_and_leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {_path_name(path): leaf for path, leaf in paths_and_leaves}


def _path_name(path: tuple[Any, ...]) -> str:
    # JAX has different entries for attributes, keys of dictionaries, and indices of sequences.
    parts = [str(getattr(p, "name", getattr(p, "key", getattr(p, "idx", p)))) for p in path]
    # Parameters are objects that hold their array as ``value``.
    return ".".join(part for part in parts if part != "value")


__all__ = [
    "MASK",
    "Action",
    "Batch",
    "Masks",
    "Metrics",
    "Mode",
    "Number",
    "Observation",
    "Parts",
    "Scalars",
    "Space",
    "Spaces",
    "State",
    "Step",
    "Stored",
    "TrainState",
    "Trajectory",
    "is_mask",
    "is_off",
    "mask_keys",
    "named_leaves",
]
