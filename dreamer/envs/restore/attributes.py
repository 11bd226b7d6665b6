"""The state of environments that do not tell it themselves: what is in their attributes, if all of that is plain data.

Better to refuse than to restore wrongly. Where an environment keeps anything whose contents cannot be seen here, such
as a simulator behind a handle, it is not restorable, unless it has methods of its own: ``get_state() -> state`` and
``set_state(state)``, with a state as in `dreamer.envs.restore.states`.
"""

import collections
import enum
import random
import types
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from dreamer.envs.errors import NotRestorable

_DESCRIPTIONS = {"spec", "_cached_spec", "metadata", "_metadata", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"}
"""Attributes by which Gymnasium describes an environment and how it was made, and which nothing changes."""

_NUMBERS = "biufcSUmM"
"""Kinds of dtypes of plain arrays."""

_GENERATORS = {kind.__name__: kind for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937)} | {
    kind.__name__: kind for kind in (np.random.Philox, np.random.SFC64)
}

_SCALARS = (type(None), bool, int, float, str, bytes)


def tells_itself(env: Any) -> bool:
    """Whether an environment has both methods; then they speak for all that it wraps, too."""
    return callable(getattr(env, "get_state", None)) and callable(getattr(env, "set_state", None))


def needs_rehearsal(env: gymnasium.Env) -> bool:
    """Whether a state should be tried before it is trusted.

    So it is where anything but the environment itself, and Gymnasium's own wrappers, says what the state is; and where
    the environment asks for it, by an attribute ``needs_rehearsal``.
    """
    layers = (layer for layer in _layers(env) if not type(layer).__module__.startswith("gymnasium.wrappers"))
    return any(getattr(layer, "needs_rehearsal", not tells_itself(layer)) for layer in layers)


def get_state(env: gymnasium.Env) -> dict[str, Any]:
    """State of an environment and of all that it wraps.

    Raises:
        NotRestorable: names the first attribute that is not plain data.
    """
    writer = _Writer()
    layers = []
    for layer in _layers(env):
        if tells_itself(layer):
            layers.append([_name(type(layer)), True, layer.get_state()])  # type: ignore[attr-defined]
        else:
            layers.append([_name(type(layer)), False, writer.take_all(layer)])
    return {"layers": layers, "objects": writer.objects}


def set_state(env: gymnasium.Env, state: dict[str, Any]) -> None:
    """Give an environment, new or not, the state of another one of the same making.

    Raises:
        NotRestorable: it is of another making; what it was before is lost.
    """
    layers = list(_layers(env))
    got, expected = [_name(type(layer)) for layer in layers], [name for name, *_ in state["layers"]]
    if got != expected:
        raise NotRestorable(f"The environment consists of {got}, expected {expected} as when it was saved.")
    reader = _Reader(state["objects"])
    for layer, (name, itself, own) in zip(layers, state["layers"], strict=True):
        if itself != tells_itself(layer):
            raise NotRestorable(f"{name} got, or lost, the methods get_state and set_state since it was saved.")
        if itself:
            layer.set_state(own)  # type: ignore[attr-defined]
            continue
        reader.put_all(own, layer)


def get_state_of(owner: Any) -> dict[str, Any]:
    """State of an object that is no environment; raises `NotRestorable`."""
    writer = _Writer()
    return {"own": writer.take_all(owner), "objects": writer.objects}


def set_state_of(owner: Any, state: dict[str, Any]) -> None:
    """Give it to an object of the same making; raises `NotRestorable`."""
    _Reader(state["objects"]).put_all(state["own"], owner)


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    """An environment and all that it wraps, from the outside, down to the first that speaks for the rest."""
    yield env
    while isinstance(env, gymnasium.Wrapper) and not tells_itself(env):
        env = env.env
        yield env


def _attributes(owner: Any) -> list[tuple[str, Any]]:
    """Attributes of an object, a layer of an environment for example, that make up its state."""
    hidden = [kind for kind in type(owner).__mro__ if kind.__dict__.get("__slots__")]
    if hidden:
        raise NotRestorable(f"{_name(type(owner))} keeps attributes in __slots__ of {_name(hidden[0])}: remove them.")
    wrapped = {"env"} if isinstance(owner, gymnasium.Wrapper) else set()
    return [(key, value) for key, value in vars(owner).items() if key not in _DESCRIPTIONS | wrapped]


Place = tuple[Any, str]
"""An object, and where in it, for messages."""


class _Writer:
    """Lists objects, each once however often it is referred to: what two attributes share, they must go on sharing.

    A value is a scalar as it is, or a tuple with the number of an object.
    """

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self._known: dict[int, tuple[Any, tuple[int]]] = {}  # The object itself, lest its id is given to another one.
        self._memory: dict[int, str] = {}

    def take_all(self, owner: Any) -> dict[str, Any]:
        """All attributes of an object."""
        return {key: self.take(value, (owner, key)) for key, value in _attributes(owner)}

    def take(self, value: Any, place: Place) -> Any:
        """A value, whose objects are listed."""
        if type(value) in _SCALARS or (isinstance(value, np.generic) and value.dtype.kind in _NUMBERS):
            return value
        if id(value) not in self._known:
            reference = (len(self.objects),)
            self._known[id(value)] = value, reference
            self.objects.append(None)
            self.objects[reference[0]] = self._describe(value, place)
        return self._known[id(value)][1]

    def _describe(self, value: Any, place: Place) -> list[Any]:
        layer, path = place
        kind = type(value)
        if kind in (list, tuple):
            return [kind.__name__, [self.take(item, (layer, f"{path}[{i}]")) for i, item in enumerate(value)]]
        if kind is collections.deque:
            items = [self.take(item, (layer, f"{path}[{i}]")) for i, item in enumerate(value)]
            return ["deque", value.maxlen, items]
        if kind in (dict, collections.OrderedDict):
            items = [
                [self.take(key, place), self.take(item, (layer, f"{path}[{key!r}]"))] for key, item in value.items()
            ]
            return [kind.__name__, items]
        if kind is np.ndarray and value.dtype.kind in _NUMBERS:
            self._refuse_shared(value, place)
            return ["array", value]
        if kind is np.random.Generator:
            return ["generator", self._bit_generator(value.bit_generator, place)]
        if kind is np.random.RandomState and value is not np.random.mtrand._rand:
            return ["random_state", value.get_state(legacy=False)]
        if kind is random.Random:
            return ["random", value.getstate()]
        if isinstance(value, gymnasium.Space) and kind.__module__.startswith("gymnasium.spaces."):
            return ["space", _name(kind), *self._space(value, place)]
        if name := _fixture(value):
            return ["fixture", name]
        raise NotRestorable(
            f"Attribute '{path}' of {_name(type(layer))} is a {_name(kind)}, which is not plain data: give the "
            f"environment the methods get_state and set_state."
        )

    def _refuse_shared(self, array: np.ndarray, place: Place) -> None:
        """Two arrays over the same memory would be two separate ones afterwards."""
        root: Any = array
        while getattr(root, "base", None) is not None:
            root = root.base
        other = self._memory.setdefault(id(root), place[1])
        if other != place[1] or (root is not array and not isinstance(root, np.ndarray)):
            with_whom = f" with '{other}'" if other != place[1] else ""
            raise NotRestorable(
                f"Attribute '{place[1]}' of {_name(type(place[0]))} shares memory{with_whom}: copy it, or give the "
                f"environment the methods get_state and set_state."
            )

    def _bit_generator(self, bits: Any, place: Place) -> dict[str, Any]:
        seeds = getattr(bits, "seed_seq", None)
        name = type(bits).__name__
        if (
            _GENERATORS.get(name) is not type(bits)
            or type(seeds) is not np.random.SeedSequence
            or id(bits) in self._known
        ):
            raise NotRestorable(
                f"Attribute '{place[1]}' of {_name(type(place[0]))} draws from a {_name(type(bits))} that cannot be "
                f"made again: use numpy.random.default_rng(seed)."
            )
        self._known[id(bits)] = bits, (0,)
        keys = ("entropy", "spawn_key", "pool_size", "n_children_spawned")
        entropy = {key: getattr(seeds, key) for key in keys}
        return {"seeds": entropy, "state": bits.state}

    def _space(self, space: Any, place: Place) -> list[Any]:
        """Random state of a space, and of those in it; where they are is the same in every environment of its kind."""
        return [self.take(space._np_random, place), [self._space(part, place) for part in _parts(space)]]


class _Reader:
    """Makes the objects of a `_Writer` again."""

    def __init__(self, objects: list[Any]) -> None:
        self._objects = objects
        self._made: dict[int, Any] = {}

    def put_all(self, own: dict[str, Any], owner: Any) -> None:
        """Set the attributes of an object."""
        more = sorted(key for key, _ in _attributes(owner) if key not in own)
        if more:
            raise NotRestorable(f"{_name(type(owner))} has an attribute '{more[0]}' that the saved one has not.")
        found = vars(owner)
        found.update({key: self.put(value, (owner, key), found.get(key)) for key, value in own.items()})

    def put(self, value: Any, place: Place, present: Any) -> Any:
        """The value of an attribute whose value is ``present`` in the environment that is restored."""
        if not isinstance(value, tuple):
            return value
        (index,) = value
        kind, *content = self._objects[index]
        if kind in ("space", "fixture"):
            return self._keep(kind, content, place, present)
        if index not in self._made:
            self._make(index, kind, content, place)
        return self._made[index]

    def _make(self, index: int, kind: str, content: list[Any], place: Place) -> None:
        def values(items: list[Any]) -> Iterator[Any]:
            return (self.put(item, place, None) for item in items)

        if kind == "tuple":
            self._made[index] = tuple(values(content[0]))
        elif kind in ("list", "deque"):
            # Known before it is filled: it may contain itself.
            new: Any = [] if kind == "list" else collections.deque(maxlen=content[0])
            self._made[index] = new
            new.extend(values(content[-1]))
        elif kind in ("dict", "OrderedDict"):
            table: dict = {} if kind == "dict" else collections.OrderedDict()
            self._made[index] = table
            table.update((self.put(key, place, None), self.put(item, place, None)) for key, item in content[0])
        elif kind == "array":
            self._made[index] = content[0]
        elif kind == "generator":
            state = content[0]["state"]
            entropy = np.random.SeedSequence(**content[0]["seeds"])
            bits = _GENERATORS[state["bit_generator"]](entropy)
            bits.state = state
            self._made[index] = np.random.Generator(bits)
        elif kind == "random_state":
            self._made[index] = np.random.RandomState()
            self._made[index].set_state(content[0])
        elif kind == "random":
            self._made[index] = random.Random()
            self._made[index].setstate(content[0])
        else:
            raise NotRestorable(f"The saved state has an object of an unknown kind '{kind}'.")

    def _keep(self, kind: str, content: list[Any], place: Place, present: Any) -> Any:
        """What the environment has already, if it is what the saved one had."""
        got = _fixture(present) if kind == "fixture" else _name(type(present))
        if got != content[0]:
            layer, path = place
            raise NotRestorable(
                f"Attribute '{path}' of {_name(type(layer))} is {got or 'something else'} at first, and was "
                f"{content[0]} when it was saved: give the environment the methods get_state and set_state."
            )
        if kind == "space":
            self._seed(present, content[1:], place)
        return present

    def _seed(self, space: Any, state: list[Any], place: Place) -> None:
        space._np_random = self.put(state[0], place, None)
        for part, own in zip(_parts(space), state[1], strict=True):
            self._seed(part, own, place)


def _parts(space: Any) -> list[Any]:
    """Spaces in a space."""
    inner = getattr(space, "spaces", ())
    named = [getattr(space, name, None) for name in ("feature_space", "node_space", "edge_space")]
    return [*(inner.values() if isinstance(inner, dict) else inner), *(part for part in named if part is not None)]


def _fixture(value: Any) -> str:
    """Name of something that has no state of its own and is there in every environment; empty for all else."""
    if isinstance(value, enum.Enum):
        return f"{_name(type(value))}.{value.name}"
    if isinstance(value, types.BuiltinFunctionType) and not isinstance(value.__self__, types.ModuleType):
        return ""  # a method of some object
    if isinstance(value, type | np.ufunc | types.BuiltinFunctionType):
        return _name(value)
    if isinstance(value, types.ModuleType | np.dtype):
        return str(value.name if isinstance(value, np.dtype) else value.__name__)
    if isinstance(value, EnvSpec):
        return value.id
    if isinstance(value, types.FunctionType):
        held = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *vars(value).values())
        return "" if value.__closure__ or not all(type(item) in _SCALARS for item in held) else _name(value)
    return ""


def _name(value: Any) -> str:
    module = getattr(value, "__module__", None) or ""
    return f"{module}.{getattr(value, '__qualname__', getattr(value, '__name__', value))}".lstrip(".")


__all__ = ["get_state", "needs_rehearsal", "set_state", "tells_itself"]
