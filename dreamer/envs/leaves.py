"""Converts and checks one observation or action key; `spaces` decides which class a space gets."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium
import numpy as np

from dreamer.envs.errors import Mismatch
from dreamer.spaces import Space

_TOLERANCE = 1e-5
"""Values may exceed bounds by this much, relative to the larger of 1 and the bound: rounding, not a wrong space."""

Outside = dict[str, str]
"""What is outside its bounds in one observation, as a sentence by key."""


class Codec:
    """Converts the values of one part of a space; see `dreamer.envs.spaces`."""

    key: str
    space: Space
    rows: tuple[int, ...] = ()
    """Leading axes of every value: none, or ``(N,)`` for those of N environments at once."""
    expected: tuple[int, ...] = ()
    """Shape of every value, with these."""
    flat: gymnasium.Space
    """The Gymnasium space of the flat arrays."""

    def leaves(self) -> Iterable["Codec"]:
        """Codecs of the single keys below this one."""
        yield self

    def set_rows(self, rows: tuple[int, ...]) -> None:
        """Convert values with these leading axes from now on."""
        self.expected = rows + self.expected[len(self.rows) :]
        self.rows = rows

    def encode(self, value: Any, out: dict[str, np.ndarray], outside: Outside | None) -> None:
        """Check the observation and put it into ``out`` as new arrays, and keys beyond their bounds into ``outside``.

        Values outside the bounds of a Box are used as they are. None for ``outside`` does not look for any.
        """
        raise NotImplementedError

    def decode(self, flat: dict[str, Any]) -> Any:
        """The part of an action that the environment expects, from the flat arrays in the agent's units."""
        raise NotImplementedError


class Bounded(Codec):
    """A Box, whose values may be outside its bounds."""

    flat: gymnasium.spaces.Box
    _low: np.ndarray
    _high: np.ndarray
    _bounded: bool

    def outside(self, flat: np.ndarray) -> np.ndarray | None:
        """Which of the flat numbers are outside the bounds, in the shape of ``flat``; None: none."""
        if not self._bounded:
            return None
        outside = (flat < self._low) | (flat > self._high)
        return outside if _any(outside) else None

    def explain(self, array: np.ndarray, outside: np.ndarray) -> str:
        """A sentence about the first number of one observation that is outside."""
        flat = outside.reshape(-1)
        where, value = _first_bad(array, flat)
        i = int(np.argmax(flat))
        return (
            f"observation key '{self.key}' holds {value}{where}, outside "
            f"[{self.flat.low.reshape(-1)[i]}, {self.flat.high.reshape(-1)[i]}] as its space declares"
        )


class Vector(Bounded):
    """Box of any shape and real dtype, as float32 ``[n]``."""

    def __init__(self, key: str, space: gymnasium.spaces.Box) -> None:
        size = math.prod(space.shape)
        self.key = key
        self.space = Space("vector", (size,))
        low = _float32(space.low).reshape(size)
        high = _float32(space.high).reshape(size)
        self.flat = gymnasium.spaces.Box(low, high, dtype=np.float32)
        self._shape = self.expected = space.shape
        self._dtype = np.dtype(space.dtype)
        self._exact = self._dtype.kind != "f"
        slack_low, slack_high = (_TOLERANCE * np.maximum(1.0, np.abs(bound, dtype=np.float64)) for bound in (low, high))
        self._low = _float32(low - slack_low)
        self._high = _float32(high + slack_high)
        self._bounded = bool(np.isfinite(self._low).any() or np.isfinite(self._high).any())

    @property
    def declared(self) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and dtype in the environment."""
        return self._shape, self._dtype

    def encode(self, value: Any, out: dict[str, np.ndarray], outside: Outside | None) -> None:
        array = _array(self.key, value, self.expected, self._dtype)
        flat = array.astype(np.float32) if array.itemsize <= 4 else _float32(array)
        flat = flat.reshape(*self.rows, -1) if self.rows else flat.reshape(-1)  # Of these two, the second is faster.
        if not self._exact:
            infinite = ~np.isfinite(flat)
            if _any(infinite):
                self._refuse_nonfinite(array, infinite)
        if outside is not None and (beyond := self.outside(flat)) is not None:
            outside[self.key] = self.explain(array, beyond)
        out[self.key] = flat

    def _refuse_nonfinite(self, array: np.ndarray, infinite: np.ndarray) -> None:
        index, value = _first_bad(array, infinite)
        if np.isfinite(value):
            raise Mismatch(
                f"observation key '{self.key}' holds {value}{index}, expected a number that float32 can hold "
                f"(up to 3.4e38): rescale it in the environment"
            )
        raise Mismatch(
            f"observation key '{self.key}' holds {value}{index}, expected finite numbers: fix the environment"
        )


class Image(Bounded):
    """Box uint8 ``[H, W, C]`` or ``[H, W]``, as uint8 ``[H, W, C]``; other axes stay as they are."""

    def __init__(self, key: str, space: gymnasium.spaces.Box) -> None:
        shape = (*space.shape, 1) if len(space.shape) == 2 else space.shape
        self.key = key
        self.space = Space("image", shape)
        self.flat = gymnasium.spaces.Box(space.low.reshape(shape), space.high.reshape(shape), dtype=np.uint8)
        self.expected = space.shape
        self._dtype = np.dtype(space.dtype)
        self._low = self.flat.low
        self._high = self.flat.high
        self._bounded = bool((space.low > 0).any() or (space.high < 255).any())

    def encode(self, value: Any, out: dict[str, np.ndarray], outside: Outside | None) -> None:
        array = _array(self.key, value, self.expected, self._dtype)
        image = np.array(array, dtype=np.uint8).reshape(self.rows + self.space.shape)
        if outside is not None and (beyond := self.outside(image)) is not None:
            outside[self.key] = self.explain(array, beyond)
        out[self.key] = image


class Discrete(Codec):
    """Discrete (``dtype`` None), MultiBinary or MultiDiscrete with equal classes, as int32 classes from 0."""

    def __init__(self, key: str, shape: tuple[int, ...], classes: int, start: Any, dtype: Any) -> None:
        self.key = key
        self.space = Space("discrete", tuple(shape), classes)
        self.expected = tuple(shape)
        self.flat = (
            gymnasium.spaces.MultiDiscrete(np.full(shape, classes), dtype=np.int32)
            if shape
            else gymnasium.spaces.Discrete(classes)
        )
        self._start = start
        self._dtype = dtype

    def encode(self, value: Any, out: dict[str, np.ndarray], outside: Outside | None) -> None:
        array = _array(self.key, value, self.expected, np.dtype(np.int64))
        # In int64, so that the subtraction cannot wrap around. Always checked, because the network has no input for a
        # class that does not exist.
        index = np.asarray(array.astype(np.int64) - self._start)
        if not _in_range(index, self.space.classes):
            missing = ((index < 0) | (index >= self.space.classes)).reshape(-1)
            where, got = _first_bad(array, missing)
            start = np.broadcast_to(self._start, array.shape).reshape(-1)[np.argmax(missing)]
            raise Mismatch(
                f"observation key '{self.key}' holds class {got}{where}, expected {start} to "
                f"{start + self.space.classes - 1}: fix the environment or its space"
            )
        out[self.key] = index.astype(np.int32)  # `index` is an array even without axes, and so is this

    def decode(self, flat: dict[str, Any]) -> Any:
        """Class indices, counted from the original space's start and in its dtype."""
        index = _action(self.key, flat, self.expected)
        if index.dtype.kind not in "iu" or not _in_range(index, self.space.classes):
            raise Mismatch(
                f"action key '{self.key}' is {index.tolist()} ({index.dtype}), expected whole numbers from 0 to "
                f"{self.space.classes - 1}: fix the policy"
            )
        if self._dtype is None and not self.rows:
            return int(index) + self._start
        return (index.astype(np.int64) + self._start).astype(self._dtype or np.int64)


class Entries(Codec):
    """MultiDiscrete with unequal classes: one scalar key per entry, of those that ``keeps`` says yes to; None: all."""

    def __init__(
        self, key: str, nvec: np.ndarray, start: np.ndarray, dtype: Any, keeps: Callable[[str], bool] | None = None
    ) -> None:
        self.key = key
        self.expected = nvec.shape
        self._dtype = dtype
        names = {index: ".".join([key, *map(str, index)]) for index in np.ndindex(*nvec.shape)}
        self._entries = [
            (index, Discrete(name, (), int(nvec[index]), int(start[index]), None))
            for index, name in names.items()
            if keeps is None or keeps(name)
        ]

    def leaves(self) -> Iterable[Codec]:
        """One scalar codec per entry."""
        return (entry for _, entry in self._entries)

    def set_rows(self, rows: tuple[int, ...]) -> None:
        super().set_rows(rows)
        for _, entry in self._entries:
            entry.set_rows(rows)

    def encode(self, value: Any, out: dict[str, np.ndarray], outside: Outside | None) -> None:
        array = _array(self.key, value, self.expected, np.dtype(np.int64))
        leading = (slice(None),) * len(self.rows)
        for index, entry in self._entries:
            entry.encode(array[leading + index], out, outside)

    def decode(self, flat: dict[str, Any]) -> np.ndarray:
        """All entries together, in the shape of the original space."""
        entries = np.array([entry.decode(flat) for _, entry in self._entries], dtype=self._dtype)
        return entries.T.reshape(self.expected)  # Rows first; without rows, `T` changes nothing.


class Continuous(Codec):
    """Bounded Box of floats; the agent's [-1, 1] stands for [low, high]."""

    def __init__(self, key: str, space: gymnasium.spaces.Box) -> None:
        self.key = key
        self.space = Space("continuous", space.shape)
        self.expected = space.shape
        self.flat = gymnasium.spaces.Box(-1.0, 1.0, space.shape, np.float32)
        self._dtype = space.dtype
        self._low = space.low
        self._high = space.high
        # Bounds are halved before they are added, so that the largest ones do not overflow.
        self._center = self._low.astype(np.float64) / 2 + self._high.astype(np.float64) / 2
        self._half = self._high.astype(np.float64) / 2 - self._low.astype(np.float64) / 2

    def decode(self, flat: dict[str, Any]) -> np.ndarray:
        """Clipped to [-1, 1], scaled to [low, high]."""
        action = _action(self.key, flat, self.expected)
        if not np.isfinite(action).all():
            raise Mismatch(f"action key '{self.key}' is {action.tolist()}, expected finite numbers: fix the policy")
        scaled = self._center + self._half * action
        # Clipping after scaling clips the action to [-1, 1], and removes what rounding added in the line above.
        return np.asarray(np.minimum(np.maximum(scaled, self._low), self._high).astype(self._dtype))


def _array(key: str, value: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The value as an array of the declared shape, with a dtype of the declared kind but any width."""
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise Mismatch(f"observation key '{key}' is not an array ({error}), expected shape {list(shape)}") from error
    if array.shape != shape:
        raise Mismatch(
            f"observation key '{key}' has shape {list(array.shape)}, expected {list(shape)} as in its space: "
            f"fix the environment or its space"
        )
    if array.dtype != dtype and not np.can_cast(array.dtype, dtype, "same_kind"):
        raise Mismatch(
            f"observation key '{key}' has dtype {array.dtype}, expected {dtype} as in its space: "
            f"fix the environment or its space"
        )
    return array


def _action(key: str, flat: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    if key not in flat:
        raise Mismatch(f"the action lacks the key '{key}' and has {sorted(flat)}, expected one array per action key")
    action = np.asarray(flat[key])
    if action.shape != shape:
        raise Mismatch(f"action key '{key}' has shape {list(action.shape)}, expected {list(shape)}: fix the policy")
    return action


def _in_range(index: np.ndarray, classes: int) -> bool:
    if not index.ndim:
        return 0 <= int(index) < classes
    return index.size == 0 or (int(index.min()) >= 0 and int(index.max()) < classes)


def _any(mask: np.ndarray) -> bool:
    return b"\x01" in mask.tobytes()  # takes a third of the time of mask.any() on short arrays, no longer on images


def _float32(array: np.ndarray) -> np.ndarray:
    # Numbers that do not fit become infinite or 0; the infinite ones are refused as such.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return array.astype(np.float32)


def _first_bad(array: np.ndarray, bad: np.ndarray) -> tuple[str, Any]:
    """The index (as text, empty for a scalar) and value of the first bad entry; ``bad`` is flat."""
    index = np.unravel_index(int(np.argmax(bad)), array.shape)
    return (f" at index {[int(i) for i in index]}" if index else ""), array[index]


__all__ = ["Bounded", "Codec", "Continuous", "Discrete", "Entries", "Image", "Outside", "Vector"]
