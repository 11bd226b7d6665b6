"""The state of environments that do not give it themselves: their attributes, if all of those are plain data.

It is better to refuse than to restore incorrectly. An environment that holds anything whose contents are not visible
here, such as a simulator behind a handle, is not restorable unless it has methods ``get_state() -> state`` and
``set_state(state)``, with a state as in `dreamer.envs.restore.states`.
"""

import collections
import enum
import random
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from dreamer.envs.errors import NotRestorable

_DESCRIPTIONS = {"spec", "_cached_spec", "metadata", "_metadata", "_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"}
"""Attributes in which Gymnasium describes an environment and how it was made, and which never change."""

_NUMBERS = "biufcSUmM"
"""Kinds of dtypes of plain arrays."""

_GENERATORS = {kind.__name__: kind for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937)} | {
    kind.__name__: kind for kind in (np.random.Philox, np.random.SFC64)
}

MOST_BYTES = 2**24
"""Most bytes of the arrays of one environment: every checkpoint holds those of all environments."""

_SCALARS = (type(None), bool, int, float, str, bytes)


def has_state_methods(env: Any) -> bool:
    """Whether an environment has both methods, which then cover everything it wraps too."""
    return callable(getattr(env, "get_state", None)) and callable(getattr(env, "set_state", None))


def needs_rehearsal(env: gymnasium.Env) -> bool:
    """Whether a state should be tried before it is trusted.

    That is the case for all layers except Gymnasium's own wrappers and the environments of this package, unless those
    ask for it with an attribute ``needs_rehearsal``: elsewhere, methods with these names may mean something else.
    """
    layers = (layer for layer in _layers(env) if not type(layer).__module__.startswith("gymnasium.wrappers"))
    return any(getattr(layer, "needs_rehearsal", not _is_known(layer)) for layer in layers)


def _is_known(layer: Any) -> bool:
    """Whether an environment has state methods that this package wrote."""
    module = getattr(getattr(type(layer), "get_state", None), "__module__", None) or ""
    return has_state_methods(layer) and module.startswith("dreamer.")


def get_state(env: gymnasium.Env) -> dict[str, Any]:
    """State of an environment and of everything it wraps.

    Raises:
        NotRestorable: names the first attribute that is not plain data.
    """
    writer = _Writer()
    layers = []
    for layer in _layers(env):
        if has_state_methods(layer):
            layers.append([_name(type(layer)), True, layer.get_state()])  # type: ignore[attr-defined]
        else:
            layers.append([_name(type(layer)), False, writer.take_all(layer)])
    return {"layers": layers, "objects": writer.objects}


def set_state(env: gymnasium.Env, state: dict[str, Any]) -> None:
    """Give an environment, new or not, the state of another that was built alike.

    Raises:
        NotRestorable: the other was built differently; the state from before is lost.
    """
    layers = list(_layers(env))
    got = [_name(type(layer)) for layer in layers]
    expected = [name for name, *_ in state["layers"]]
    if got != expected:
        raise NotRestorable(f"The environment consists of {got}, expected {expected} as when it was saved.")
    reader = _Reader(state["objects"])
    for layer, (name, has_methods, own) in zip(layers, state["layers"], strict=True):
        if has_methods != has_state_methods(layer):
            raise NotRestorable(f"{name} gained or lost the methods get_state and set_state since it was saved.")
        if has_methods:
            layer.set_state(own)  # type: ignore[attr-defined]
            continue
        reader.put_all(own, layer)


def get_state_of(owner: Any) -> dict[str, Any]:
    """State of an object that is not an environment; raises `NotRestorable`."""
    writer = _Writer()
    return {"own": writer.take_all(owner), "objects": writer.objects}


def set_state_of(owner: Any, state: dict[str, Any]) -> None:
    """Give the state to an object that was built alike; raises `NotRestorable`."""
    _Reader(state["objects"]).put_all(state["own"], owner)


def _layers(env: gymnasium.Env) -> Iterator[gymnasium.Env]:
    """An environment and what it wraps, from the outside down to the first layer that has its own methods."""
    yield env
    while isinstance(env, gymnasium.Wrapper) and not has_state_methods(env):
        env = env.env
        yield env


def _attributes(owner: Any) -> list[tuple[str, Any]]:
    """Attributes that make up the state of an object, for example of one layer of an environment."""
    hidden = [kind for kind in type(owner).__mro__ if kind.__dict__.get("__slots__")]
    if hidden:
        raise NotRestorable(f"{_name(type(owner))} keeps attributes in __slots__ of {_name(hidden[0])}: remove them.")
    wrapped = {"env"} if isinstance(owner, gymnasium.Wrapper) else set()
    return [(key, value) for key, value in vars(owner).items() if key not in _DESCRIPTIONS | wrapped]


class _Location(NamedTuple):
    """Where a value is, for messages: an object and the path from it."""

    owner: Any
    path: str

    def __str__(self) -> str:
        return f"Attribute '{self.path}' of {_name(type(self.owner))}"

    def extend(self, suffix: str) -> "_Location":
        """The location of an item of the value here."""
        return _Location(self.owner, self.path + suffix)


class _Writer:
    """Lists objects, each once however many references it has: attributes that share an object must keep sharing it.

    A value is a scalar as it is, or a tuple with the index of an object in the list.
    """

    def __init__(self) -> None:
        self.objects: list[Any] = []
        # By id: the object and its reference. Holding the object keeps its id from being reused.
        self._references: dict[int, tuple[Any, tuple[int]]] = {}
        # Path of the first array over each block of memory, by the block's id.
        self._blocks: dict[int, str] = {}
        self._bytes = 0

    def take_all(self, owner: Any) -> dict[str, Any]:
        """All attributes of an object."""
        return {key: self.take(value, _Location(owner, key)) for key, value in _attributes(owner)}

    def take(self, value: Any, place: _Location) -> Any:
        """A value; lists the objects in it."""
        if type(value) in _SCALARS or (isinstance(value, np.generic) and value.dtype.kind in _NUMBERS):
            return value
        if id(value) not in self._references:
            index = len(self.objects)
            # Registered before its contents are described, because it may contain itself.
            self._references[id(value)] = value, (index,)
            self.objects.append(None)
            self.objects[index] = self._describe(value, place)
        _, reference = self._references[id(value)]
        return reference

    def _describe(self, value: Any, place: _Location) -> list[Any]:
        kind = type(value)
        if kind in (list, tuple):
            return [kind.__name__, [self.take(item, place.extend(f"[{i}]")) for i, item in enumerate(value)]]
        if kind is collections.deque:
            items = [self.take(item, place.extend(f"[{i}]")) for i, item in enumerate(value)]
            return ["deque", value.maxlen, items]
        if kind in (dict, collections.OrderedDict):
            items = [
                [self.take(key, place), self.take(item, place.extend(f"[{key!r}]"))] for key, item in value.items()
            ]
            return [kind.__name__, items]
        if kind is np.ndarray and value.dtype.kind in _NUMBERS:
            self._refuse_shared(value, place)
            self._bytes += value.nbytes
            if self._bytes > MOST_BYTES:
                raise NotRestorable(
                    f"{place} takes {value.nbytes / 1e6:.0f} MB, and the arrays of one environment may take "
                    f"{MOST_BYTES / 1e6:.0f} MB, because every checkpoint would hold them: keep what never changes in "
                    f"an attribute of the class, or give the environment the methods get_state and set_state."
                )
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
            f"{place} is a {_name(kind)}, which is not plain data: give the environment the methods get_state and "
            f"set_state."
        )

    def _refuse_shared(self, array: np.ndarray, place: _Location) -> None:
        """Refuse arrays over the same memory, which would no longer share it once they are restored."""
        root: Any = array
        while getattr(root, "base", None) is not None:
            root = root.base
        other = self._blocks.setdefault(id(root), place.path)
        if other != place.path or (root is not array and not isinstance(root, np.ndarray)):
            partner = f" with '{other}'" if other != place.path else ""
            raise NotRestorable(
                f"{place} shares memory{partner}: copy it, or give the environment the methods get_state and set_state."
            )

    def _bit_generator(self, bits: Any, place: _Location) -> dict[str, Any]:
        seeds = getattr(bits, "seed_seq", None)
        name = type(bits).__name__
        if (
            _GENERATORS.get(name) is not type(bits)
            or type(seeds) is not np.random.SeedSequence
            or id(bits) in self._references  # shared between generators
        ):
            raise NotRestorable(
                f"{place} draws from a {_name(type(bits))} that cannot be recreated: use "
                f"numpy.random.default_rng(seed)."
            )
        self._references[id(bits)] = bits, (0,)
        keys = ("entropy", "spawn_key", "pool_size", "n_children_spawned")
        entropy = {key: getattr(seeds, key) for key in keys}
        return {"seeds": entropy, "state": bits.state}

    def _space(self, space: Any, place: _Location) -> list[Any]:
        """Random state of a space and of the spaces in it, whose nesting is the same in environments built alike."""
        return [self.take(space._np_random, place), [self._space(part, place) for part in _parts(space)]]


class _Reader:
    """Recreates the objects of a `_Writer`."""

    def __init__(self, objects: list[Any]) -> None:
        self._objects = objects
        self._made: dict[int, Any] = {}

    def put_all(self, own: dict[str, Any], owner: Any) -> None:
        """Set the attributes of an object."""
        extra = sorted(key for key, _ in _attributes(owner) if key not in own)
        if extra:
            raise NotRestorable(f"{_name(type(owner))} has an attribute '{extra[0]}' that the saved one lacks.")
        present = vars(owner)
        present.update({key: self.put(value, _Location(owner, key), present.get(key)) for key, value in own.items()})

    def put(self, value: Any, place: _Location, present: Any) -> Any:
        """The restored value of an attribute; ``present`` is its value until now."""
        if not isinstance(value, tuple):
            return value
        (index,) = value
        kind, *content = self._objects[index]
        if kind in ("space", "fixture"):
            return self._keep(kind, content, place, present)
        if index not in self._made:
            self._make(index, kind, content, place)
        return self._made[index]

    def _make(self, index: int, kind: str, content: list[Any], place: _Location) -> None:
        def values(items: list[Any]) -> Iterator[Any]:
            return (self.put(item, place, None) for item in items)

        if kind == "tuple":
            self._made[index] = tuple(values(content[0]))
        elif kind in ("list", "deque"):
            # Registered before it is filled, because it may contain itself.
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

    def _keep(self, kind: str, content: list[Any], place: _Location, present: Any) -> Any:
        """The value until now, if it is what the saved environment had."""
        got = _fixture(present) if kind == "fixture" else _name(type(present))
        if got != content[0]:
            raise NotRestorable(
                f"{place} starts as {got or 'something else'}, but was {content[0]} when it was saved: give the "
                f"environment the methods get_state and set_state."
            )
        if kind == "space":
            self._seed(present, content[1:], place)
        return present

    def _seed(self, space: Any, state: list[Any], place: _Location) -> None:
        generator, parts = state
        space._np_random = self.put(generator, place, None)
        for part, own in zip(_parts(space), parts, strict=True):
            self._seed(part, own, place)


def _parts(space: Any) -> list[Any]:
    """Spaces in a space."""
    inner = getattr(space, "spaces", ())
    named = [getattr(space, name, None) for name in ("feature_space", "node_space", "edge_space")]
    return [*(inner.values() if isinstance(inner, dict) else inner), *(part for part in named if part is not None)]


def _fixture(value: Any) -> str:
    """Name of an object that has no state and exists in every process; empty for anything else."""
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


__all__ = ["get_state", "get_state_of", "has_state_methods", "needs_rehearsal", "set_state", "set_state_of"]
