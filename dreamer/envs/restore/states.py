"""States of environments as JSON and bytes, so that a checkpoint can hold them exactly and nothing in it is executed.

A state is a nest of dicts, lists and tuples of None, bools, integers of any size, floats, strings, bytes, and NumPy
arrays and numbers of any dtype except object. `unpack` rebuilds what `pack` takes apart: the same types, the same order
of keys, the same bits.
"""

import math
import struct
from typing import Any

import numpy as np

from dreamer.envs.errors import NotRestorable

_DTYPES = "biufcSUmM"
"""Kinds of dtypes whose values are fully described by their bytes."""


def pack(state: Any) -> tuple[Any, np.ndarray]:
    """Take a state apart.

    Returns:
        Its structure and all its numbers, ready for JSON; and the bytes of its arrays, uint8 ``[n]`` with n at least 1,
        because some array stores refuse empty arrays.

    Raises:
        NotRestorable: it holds anything else; the message says where.
    """
    data = bytearray()
    structure = _take(state, "", data)
    return structure, np.frombuffer(bytes(data) or b"\0", np.uint8)


def unpack(structure: Any, data: np.ndarray) -> Any:
    """Inverse of `pack`; all arrays are new and writable.

    Raises:
        NotRestorable: the two do not belong together, or did not come from `pack`.
    """
    try:
        return _put(structure, np.ascontiguousarray(data, np.uint8).tobytes())
    except (KeyError, IndexError, TypeError, ValueError, struct.error) as error:
        raise NotRestorable(
            f"The saved state is damaged ({type(error).__name__}: {error}), expected what pack returned."
        ) from error


def _take(value: Any, place: str, data: bytearray) -> Any:
    # Exact types, not isinstance: np.float64 is a subclass of float, IntEnum one of int.
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": struct.pack(">d", value).hex()}
    if kind is list:
        return [_take(item, f"{place}[{i}]", data) for i, item in enumerate(value)]
    if kind is tuple:
        return {"tuple": [_take(item, f"{place}[{i}]", data) for i, item in enumerate(value)]}
    if kind is dict:
        pairs = ((key, item, f"{place}[{key!r}]") for key, item in value.items())
        return {"dict": [[_take(key, where, data), _take(item, where, data)] for key, item, where in pairs]}
    if kind is bytes:
        return {"bytes": _append(value, data)}
    if kind is np.ndarray and value.dtype.kind in _DTYPES:
        # Keep the memory order: sums of products may round differently in the other one.
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        return {"array": [*_append(value.tobytes(order), data), value.dtype.str, list(value.shape), order]}
    if isinstance(value, np.generic) and value.dtype.kind in _DTYPES:
        return {"number": [*_append(value.tobytes(), data), value.dtype.str]}
    what = f" of dtype {value.dtype}" if isinstance(value, np.ndarray | np.generic) else ""
    raise NotRestorable(
        f"state{place} is a {kind.__module__}.{kind.__qualname__}{what}, expected plain data: None, bools, numbers, "
        f"strings, bytes, arrays of these, or dicts, lists and tuples of them."
    )


def _append(chunk: bytes, data: bytearray) -> list[int]:
    """Append bytes; returns their offset and length."""
    data += chunk
    return [len(data) - len(chunk), len(chunk)]


def _put(value: Any, data: bytes) -> Any:
    if isinstance(value, list):
        return [_put(item, data) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        return struct.unpack(">d", bytes.fromhex(content))[0]
    if kind == "tuple":
        return tuple(_put(item, data) for item in content)
    if kind == "dict":
        return {_put(key, data): _put(item, data) for key, item in content}
    start, length, *form = content
    chunk = data[start : start + length]
    if start < 0 or len(chunk) != length:
        raise IndexError(f"{length} bytes at offset {start}, of {len(data)}")
    if kind == "bytes":
        return chunk
    if kind == "number":
        return np.frombuffer(chunk, form[0])[0]
    if kind == "array":
        dtype, shape, order = form
        return np.ndarray(shape, dtype, bytearray(chunk), order=order).copy(order)
    raise KeyError(kind)


__all__ = ["pack", "unpack"]
