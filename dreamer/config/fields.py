"""What a field of a config is: its default, help, unit and bounds, and how values are checked against it."""

import dataclasses
import keyword
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin


class ConfigError(ValueError):
    """A config that cannot be used; the message says what was wrong, got and expected, and what to do."""


_SHOWN = 200
"""Most characters of a value in a message."""

LARGEST = 10**9
"""Upper bound of numbers that give none themselves and whose unit is not in `LARGEST_OF`."""

LARGEST_OF = {
    "layers": 256,
    "blocks": 2**16,
    "channels": 2**16,
    "pixels": 2**14,
    "units": 2**24,
    "variables": 2**16,
    "classes": 2**16,
    "bins": 2**20,
    "environments": 2**16,
    "members": 10_000,
    "sequences": 10**6,
    "states": 10**6,
    "iterations": 10**6,
    "env steps per agent step": 10**6,
    "env steps": 10**12,
}
"""Upper bounds by unit: far above what was ever trained, and low enough to be refused before anything is built."""

_ORDER = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def option(default: Any, help: str, unit: str = "", **bounds: Any) -> Any:
    """A field of a config.

    Args:
        default: its default.
        help: one line that says what it is.
        unit: unit of the value.
        bounds: smallest and largest value, by the names in `_ORDER`; of every item of a tuple. Without a lower bound,
            integers are at least 1, because they count something, and other numbers at least 0. Without an upper one,
            numbers are at most `LARGEST_OF` their unit, or `LARGEST`.
    """
    if not bounds.keys() & {"at_least", "above"}:
        bounds = {"at_least": 0 if isinstance(default, float) else 1, **bounds}
    if not bounds.keys() & {"at_most", "below"}:
        bounds = {**bounds, "at_most": LARGEST_OF.get(unit, LARGEST)}
    metadata = {"help": help, "unit": unit, "bounds": bounds}
    if dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    if isinstance(default, dict):  # Equal configs still have equal hashes.
        return dataclasses.field(default_factory=dict, metadata=metadata, hash=False)
    return dataclasses.field(default=default, metadata=metadata)


def walk(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every leaf of a config as ``(dotted key, field, value)``, in the order of definition."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from walk(value, f"{prefix}{key_of(field.name)}.")
        else:
            yield f"{prefix}{key_of(field.name)}", field, value


def key_of(name: str) -> str:
    """Key of a field: its name, without the underscore that follows a keyword of Python, as in ``from_``."""
    return name[:-1] if name.endswith("_") and keyword.iskeyword(name[:-1]) else name


def keys_of(values: Any) -> Any:
    """Nested dictionaries, with names of fields replaced by keys."""
    return {key_of(name): keys_of(value) for name, value in values.items()} if isinstance(values, dict) else values


def names_of(values: Any) -> Any:
    """Inverse of `keys_of`."""
    if not isinstance(values, dict):
        return values
    return {f"{key}_" if keyword.iskeyword(str(key)) else key: names_of(value) for key, value in values.items()}


def require(condition: bool, key: str, got: Any, expected: str) -> None:
    """Raise `ConfigError` saying what was got and expected, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{key}={shorten(got, str)} cannot be used: expected {expected}.")


def shorten(value: Any, write: Callable[[Any], str] = repr) -> str:
    """A value as ``write`` writes it, cut so that a message stays one sentence."""
    if type(value) is int and value.bit_length() > 4 * _SHOWN:  # Python refuses to write out thousands of digits.
        return f"a number of {int(value.bit_length() * math.log10(2)) + 1:,} digits"
    try:
        text = write(value)
    except ValueError:  # Such a number inside of a list.
        return f"a {type(value).__name__} with a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def can_be_written(text: str) -> bool:
    """Whether a text has neither halves of characters (lone surrogates) nor zeros."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def has_type(kind: Any, value: Any) -> bool:
    """Whether a value is of the type of its field; an integer is a number, a boolean is not."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(isinstance(name, str) for name in value)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(has_type(get_args(kind)[0], item) for item in value)
    return type(value) in (int, float) if kind is float else type(value) is kind


def in_range(field: Any, value: Any) -> bool:
    """Whether a value of the right type, or every item of a tuple, is finite and within the bounds of its field."""
    if isinstance(value, bool | str | dict):
        return True
    items = value if isinstance(value, tuple) else (value,)
    if any(isinstance(item, str) for item in items):
        return True
    bounds = field.metadata["bounds"].items()
    return all(abs(item) < math.inf and all(_ORDER[word](item, limit) for word, limit in bounds) for item in items)


def describe_field(field: Any) -> str:
    """What a field takes, in words."""
    kind = field.type
    bounds = field.metadata["bounds"].items()
    if kind == tuple[str, ...]:
        return "a list of texts"
    if get_origin(kind) is dict:
        return "values by name"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if kind in (int, float) or get_origin(kind) is tuple:
        name = {int: "an integer,", float: "a finite number,"}.get(kind, "a list of integers, each")
        return f"{name} {' and '.join(f'{word} {limit}' for word, limit in bounds).replace('_', ' ')}"
    return {bool: "true or false", str: "text"}.get(kind, kind.__name__)
