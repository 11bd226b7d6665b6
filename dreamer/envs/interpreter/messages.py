"""What two Pythons send each other: plain data as JSON and bytes, which do not depend on versions as pickles do."""

import json
import struct
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from gymnasium import spaces

from dreamer.envs.errors import EnvError
from dreamer.envs.restore.states import pack, unpack

_SIZE = struct.Struct("<Q")


def send(connection: Connection, message: Any) -> None:
    """Send plain data, as in `dreamer.envs.restore.states`.

    Raises:
        NotRestorable: it is something else.
        OSError: the other process has ended.
    """
    structure, data = pack(message)
    text = json.dumps(structure).encode()
    connection.send_bytes(b"".join((_SIZE.pack(len(text)), text, data.tobytes())))


def receive(connection: Connection) -> Any:
    """The next message; raises `EOFError` or `OSError` if the other process has ended."""
    message = connection.recv_bytes()
    start = _SIZE.size + _SIZE.unpack_from(message)[0]
    return unpack(json.loads(message[_SIZE.size : start]), np.frombuffer(message, np.uint8, offset=start))


def plain(value: Any) -> Any:
    """What an environment says, as plain data: with subclasses and what NumPy takes for an array replaced.

    Raises:
        EnvError: it holds something else; names its type.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return (tuple if isinstance(value, tuple) else list)(plain(item) for item in value)
    if type(value) in (type(None), bool, int, float, str, bytes):
        return value
    array = np.asarray(value)
    if array.dtype == object:
        raise EnvError(
            f"The environment gave a {type(value).__module__}.{type(value).__qualname__}, which cannot be sent from "
            "another Python (env.python), expected numbers, arrays, or dicts, lists and tuples of these: convert it."
        )
    return array


def describe(space: Any) -> Any:
    """A space as plain data: without details if it is of a kind that no agent can use, None for what is no space."""
    if isinstance(space, spaces.Dict):
        return ("Dict", {key: describe(child) for key, child in space.spaces.items()})
    if isinstance(space, spaces.Tuple):
        return ("Tuple", [describe(child) for child in space.spaces])
    if isinstance(space, spaces.Box):
        return ("Box", space.low, space.high, np.dtype(space.dtype).str)
    if isinstance(space, spaces.Discrete):
        return ("Discrete", int(space.n), int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return ("MultiDiscrete", space.nvec, np.dtype(space.dtype).str, space.start)
    if isinstance(space, spaces.MultiBinary):
        return ("MultiBinary", tuple(space.shape))
    return ("Space",) if isinstance(space, spaces.Space) else None


def build(description: Any) -> Any:
    """Inverse of `describe`."""
    if description is None:
        return None
    kind, *arguments = description
    if kind == "Dict":
        return spaces.Dict({key: build(child) for key, child in arguments[0].items()})
    if kind == "Tuple":
        return spaces.Tuple([build(child) for child in arguments[0]])
    if kind == "Box":
        low, high, dtype = arguments
        return spaces.Box(low, high, dtype=np.dtype(dtype).type)
    if kind == "MultiDiscrete":
        nvec, dtype, start = arguments
        return spaces.MultiDiscrete(nvec, dtype=np.dtype(dtype).type, start=start)
    if kind == "Discrete":
        n, start = arguments
        return spaces.Discrete(n, start=start)
    return spaces.MultiBinary(*arguments) if kind == "MultiBinary" else spaces.Space()


__all__ = ["build", "describe", "plain", "receive", "send"]
