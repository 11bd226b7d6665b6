"""Flat keys for any Gymnasium space, and the conversion of values to and from them.

Names
-----
Nested keys are joined with '.', and entries of a Tuple are named by their index: ``Dict(a=Tuple(x, y))`` has the keys
``a.0`` and ``a.1``. An observation space that is neither Dict nor Tuple is named after its kind: ``image``, ``vector``
or ``discrete``; such an action space is called ``action``.

Kinds
-----
=====================================  ==========================================================================
Box uint8 ``[H, W, C]`` or ``[H, W]``  observation: ``image`` ``[H, W, C]``, with C = 1 where it was missing; for other
                                       layouts see `dreamer.envs.images`
Box of whole numbers, in env.classes   observation: ``discrete``, same shape
any other Box                          observation: ``vector`` ``[n]`` float32, flattened in C order
Box of floats, bounded                 action: ``continuous``, same shape; [-1, 1] stands for [low, high]
Discrete                               ``discrete`` ``[]``, counted from 0 whatever its start
MultiDiscrete, all classes equal       ``discrete``, same shape
MultiDiscrete, unequal                 one scalar ``discrete`` key per entry, ``key.0``, ``key.1``, ... (``key.0.1``)
MultiBinary                            ``discrete``, same shape, 2 classes
Box(0, 1) of bools or integers         if it is an action mask (see `dreamer.spaces.mask_keys`): as MultiBinary
=====================================  ==========================================================================

A `Codec` belongs to one key or one container. ``encode`` turns an observation into flat arrays and checks it,
``decode`` turns flat action arrays into what the environment expects. Both raise `Mismatch`.
"""

from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np

from dreamer.envs.errors import EnvError, Mismatch, OtherSpaces
from dreamer.envs.leaves import Codec, Continuous, Discrete, Entries, Outside, Vector
from dreamer.envs.views import ObservationView
from dreamer.spaces import Space, Spaces, is_mask

SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, Dict and Tuple"


class Unseen(Codec):
    """A key that the agent does not see: nothing is looked at, and nothing is put out."""

    def __init__(self, key: str) -> None:
        self.key = key

    def leaves(self) -> Iterable[Codec]:
        return ()

    def encode(self, value: Any, out: dict[str, np.ndarray], outside: Outside | None) -> None:
        pass


class Container(Codec):
    """A Dict (children by name) or a Tuple (children by position).

    Children without leaves, which the agent does not see, need not be in the values.
    """

    def __init__(self, key: str, names: list[Any], children: list[Codec], *, is_dict: bool) -> None:
        self.key = key
        self.names = names
        self.children = children
        self.is_dict = is_dict
        self._pairs = [(name, child) for name, child in zip(names, children, strict=True) if any(child.leaves())]
        self._expected = {name for name, _ in self._pairs}
        self._unseen = set(names) - self._expected

    def leaves(self) -> Iterable[Codec]:
        for child in self.children:
            yield from child.leaves()

    def set_rows(self, rows: tuple[int, ...]) -> None:
        for child in self.children:
            child.set_rows(rows)

    def encode(self, value: Any, out: dict[str, np.ndarray], outside: Outside | None) -> None:
        if self.is_dict:
            if not isinstance(value, dict) or (
                value.keys() != self._expected and value.keys() - self._unseen != self._expected
            ):
                raise Mismatch(f"{self._label()} {_describe_keys(value, self._expected, self._unseen)}")
        elif not isinstance(value, (tuple, list)) or len(value) != len(self.names):
            got = f"{len(value)} entries" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
            raise Mismatch(f"{self._label()} is {got}, expected a tuple of {len(self.names)} as in the space")
        for name, child in self._pairs:
            child.encode(value[name], out, outside)

    def decode(self, flat: dict[str, Any]) -> Any:
        if self.is_dict:
            return {name: child.decode(flat) for name, child in self._pairs}
        return tuple(child.decode(flat) for child in self.children)

    def _label(self) -> str:
        return f"the observation under '{self.key}'" if self.key else "the observation"


def observation_codec(space: gymnasium.Space, env: str, view: ObservationView) -> Codec:
    """Codec of what the agent sees of an observation space.

    Args:
        space: the space.
        env: what errors call the environment.
        view: which keys the agent sees, and how images look.

    Raises:
        EnvError: what it should see is not supported, or nothing.
    """
    codec = _build(space, "", env, view)
    view.require_sense()
    _check_keys(codec, env, "observation")
    return codec


def action_codec(space: gymnasium.Space, env: str) -> Codec:
    """Codec of an action space; ``env`` names the environment in errors. Raises `EnvError` if unsupported."""
    codec = _build(space, "", env, None)
    _check_keys(codec, env, "action")
    return codec


def refuse_other_spaces(observations: Spaces, actions: Spaces, *, trained: tuple[Spaces, Spaces]) -> None:
    """Raise `OtherSpaces` unless an environment has the spaces that an agent was ``trained`` on; names the keys."""
    differences = []
    for role, found, expected in (("observation", observations, trained[0]), ("action", actions, trained[1])):
        for key in sorted(found.keys() | expected.keys()):
            if found.get(key) != expected.get(key):
                got, wanted = _outline(found.get(key)), _outline(expected.get(key))
                differences.append(f"{role} '{key}' is {got}, and was {wanted} when the agent was trained")
    if differences:
        raise OtherSpaces(
            f"The environment has changed: {'; '.join(differences)}. Use the environment of the run, or train a new "
            "agent in another logdir."
        )


def _outline(space: Space | None) -> str:
    if space is None:
        return "missing"
    classes = f" of {space.classes} classes" if space.classes else ""
    return f"{space.kind} {list(space.shape)}{classes}"


def _build(space: gymnasium.Space, key: str, env: str, view: ObservationView | None) -> Codec:
    """Codec of a space; ``view`` is None for actions."""
    is_action = view is None
    if isinstance(space, gymnasium.spaces.Dict):
        names = list(space.spaces)
        children = _children(key, names, space.spaces.values(), env, view)
        return Container(key, names, children, is_dict=True)
    if isinstance(space, gymnasium.spaces.Tuple):
        indices = list(range(len(space.spaces)))
        children = _children(key, indices, space.spaces, env, view)
        return Container(key, indices, children, is_dict=False)
    name = key or _bare_name(space, view)
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return _multi_discrete(space, name, view)
    if view is not None and not view.keeps(name):
        return Unseen(name)
    if isinstance(space, gymnasium.spaces.Discrete):
        return Discrete(name, (), int(space.n), int(space.start), None)
    if isinstance(space, gymnasium.spaces.MultiBinary):
        return Discrete(name, space.shape, 2, 0, space.dtype)
    if isinstance(space, gymnasium.spaces.Box):
        return _box_action(space, key, env) if view is None else _box_observation(space, name, key, env, view)
    raise _unsupported_error(
        env,
        _place(key, is_action=is_action),
        f"the space {type(space).__name__}",
        f"{SUPPORTED}, nested in any way",
        "convert it with gymnasium.wrappers.TransformObservation or TransformAction"
        + ("" if is_action or not key else f", or leave it out with env.ignore={key}"),
    )


def _children(
    key: str, names: list[Any], spaces: Iterable[gymnasium.Space], env: str, view: ObservationView | None
) -> list[Codec]:
    """Codecs of the spaces in a container."""
    return [
        _build(space, f"{key}.{name}" if key else str(name), env, view)
        for name, space in zip(names, spaces, strict=True)
    ]


def _multi_discrete(space: gymnasium.spaces.MultiDiscrete, key: str, view: ObservationView | None) -> Codec:
    start = np.zeros_like(space.nvec) if getattr(space, "start", None) is None else space.start
    if space.nvec.size and (space.nvec == space.nvec.flat[0]).all():
        if view is not None and not view.keeps(key):
            return Unseen(key)
        return Discrete(key, space.shape, int(space.nvec.flat[0]), start, space.dtype)
    return Entries(key, space.nvec, start, space.dtype, None if view is None else view.keeps)


def _bare_name(space: gymnasium.Space, view: ObservationView | None) -> str:
    """Key of a space that is not in a Dict or Tuple."""
    if view is None:
        return "action"
    if isinstance(space, gymnasium.spaces.Box):
        return "image" if view.is_image(space) else "vector"
    return "discrete"


def _box_observation(space: gymnasium.spaces.Box, name: str, key: str, env: str, view: ObservationView) -> Codec:
    kind = np.dtype(space.dtype).kind
    place = _place(key, is_action=False)
    if kind not in "biuf":
        raise _unsupported_error(
            env, place, f"a Box of {space.dtype}", "bools, integers or floats", "convert its dtype"
        )
    if is_mask(key) and kind != "f" and (space.low == 0).all() and (space.high == 1).all():
        return Discrete(key, space.shape, 2, 0, space.dtype)
    if 0 in space.shape:
        raise _unsupported_error(env, place, f"an empty Box {space.shape}", "at least one number", "leave it out")
    return view.classes(name, space) or view.image(name, space) or Vector(name, space)


def _box_action(space: gymnasium.spaces.Box, key: str, env: str) -> Codec:
    place = _place(key, is_action=True)
    if np.dtype(space.dtype).kind != "f":
        raise _unsupported_error(
            env,
            place,
            f"a Box of {space.dtype}",
            "a Box of floats",
            "use Discrete or MultiDiscrete for whole numbers",
        )
    if 0 in space.shape:
        raise _unsupported_error(env, place, f"an empty Box {space.shape}", "at least one number", "leave it out")
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise _unsupported_error(
            env,
            place,
            f"a Box without bounds, from {space.low.min()} to {space.high.max()}",
            "finite bounds, because actions in [-1, 1] are scaled to them",
            "declare them, for example Box(-1, 1, shape)",
        )
    return Continuous(key or "action", space)


def _check_keys(codec: Codec, env: str, role: str) -> None:
    keys = [leaf.key for leaf in codec.leaves()]
    if not keys:
        raise EnvError(f"Environment {env} has an empty {role} space; expected at least one key: add one to the space.")
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise EnvError(
            f"Environment {env} has two {role} keys that are both called '{twice[0]}' once nested keys are joined with "
            f"'.'; expected distinct names: rename one of them."
        )


def _place(key: str, *, is_action: bool) -> str:
    """Which space it is, for messages."""
    role = "action" if is_action else "observation"
    return f"{role} key '{key}'" if key else f"the {role} space"


def _unsupported_error(env: str, place: str, got: str, expected: str, fix: str) -> EnvError:
    return EnvError(f"Environment {env}: {place} has {got}; expected {expected}: {fix}.")


def _describe_keys(value: Any, expected: set[Any], unseen: set[Any]) -> str:
    if not isinstance(value, dict):
        return f"is a {type(value).__name__}, expected a dict with the keys {sorted(map(str, expected))}"
    missing = sorted(str(key) for key in expected - value.keys())
    extra = sorted(str(key) for key in value.keys() - expected - unseen)
    parts = [
        f"lacks the key {missing}" if missing else "",
        f"has the key {extra} that the space lacks" if extra else "",
    ]
    return " and ".join(part for part in parts if part) + f"; expected exactly {sorted(map(str, expected))}"


__all__ = ["Codec", "action_codec", "observation_codec"]
