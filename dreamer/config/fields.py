"""What a field of a config is: its default, help, unit and bounds, and how values are checked against it."""

import dataclasses
import keyword
import math
import operator
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin


class ConfigError(ValueError):
    """A config that cannot be used; the message says what was wrong, got and expected, and what to do."""


_ORDER = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def option(default: Any, help: str, unit: str = "", **bounds: Any) -> Any:
    """A field of a config.

    Args:
        default: its default.
        help: one line that says what it is.
        unit: unit of the value.
        bounds: smallest and largest value, by the names in `_ORDER`; of every item of a tuple. Without a lower bound,
            integers are at least 1, because they count something, and other numbers at least 0.
    """
    if not bounds.keys() & {"at_least", "above"}:
        bounds = {"at_least": 0 if isinstance(default, float) else 1, **bounds}
    metadata = {"help": help, "unit": unit, "bounds": bounds}
    if dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=type(default), metadata=metadata)
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
        raise ConfigError(f"{key}={got} cannot be used: expected {expected}.")


def has_type(kind: Any, value: Any) -> bool:
    """Whether a value is of the type of its field; an integer is a number, a boolean is not."""
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(has_type(get_args(kind)[0], item) for item in value)
    return type(value) in (int, float) if kind is float else type(value) is kind


def in_range(field: Any, value: Any) -> bool:
    """Whether a value of the right type, or every item of a tuple, is finite and within the bounds of its field."""
    if isinstance(value, bool | str):
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
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if kind in (int, float) or get_origin(kind) is tuple:
        name = {int: "an integer,", float: "a finite number,"}.get(kind, "a list of integers, each")
        return f"{name} {' and '.join(f'{word} {limit}' for word, limit in bounds).replace('_', ' ')}"
    return {bool: "true or false", str: "text"}.get(kind, kind.__name__)
