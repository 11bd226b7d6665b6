"""Keys and values of a sweep file: the valid keys, and values as the config and the command line hold them."""

import contextlib
import dataclasses
import difflib
import functools
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

from dreamer import config as configs
from dreamer.config import Config, ConfigError
from dreamer.config.fields import shorten

PRESETS = "presets"
"""A grid may try presets too, under this name, which is not a config key."""

ARGUMENTS = "env.kwargs."
"""Beginning of the keys of arguments of the environment."""

_RESERVED = {
    "seed": "List seeds under 'seeds'.",
    "logdir": "Every trial gets a directory within that of the sweep (--logdir).",
    "population.seeds": "Leave it out: every run of a sweep has one agent.",
    "population.sweep": "Leave it out: every run of a sweep has one agent.",
}
"""Keys that a sweep sets itself, or cannot use, and what to do instead."""

Kind = Literal["uniform", "log_uniform", "int_uniform", "int_log_uniform", "choice"]
Values = Mapping[str, Any]


class Distribution(NamedTuple):
    """The distribution from which a search draws the values of one key."""

    kind: Kind
    values: tuple[Any, ...]
    """The bounds, both included; of a choice, all values."""

    def draw(self, rng: np.random.Generator) -> Any:
        """One value; real numbers are rounded to six digits, to be readable."""
        if self.kind == "choice":
            return self.values[rng.integers(len(self.values))]
        low, high = self.values
        if self.kind == "int_uniform":
            return int(rng.integers(low, high, endpoint=True))
        if self.kind == "uniform":
            return min(max(float(f"{rng.uniform(low, high):.6g}"), low), high)
        value = math.exp(rng.uniform(math.log(low), math.log(high)))
        value = round(value) if self.kind == "int_log_uniform" else float(f"{value:.6g}")
        return min(max(value, low), high)


def check_key(key: Any, where: str) -> None:
    """Raise `ConfigError` unless it is a config key that a sweep may set; ``where`` is the part of the file."""
    if key in _RESERVED:
        raise ConfigError(f"'{where}' has {key}, which a sweep sets itself. {_RESERVED[key]}")
    if key not in defaults() and not is_argument(key):
        raise ConfigError(f"'{where}' has '{key}', which is not a config key.{suggestion(str(key), defaults())}")


def is_argument(key: Any) -> bool:
    """Whether a key is that of an argument of the environment, which has any name and any value."""
    return isinstance(key, str) and key.startswith(ARGUMENTS) and key != ARGUMENTS


@functools.cache
def defaults() -> Mapping[str, Any]:
    """The default of every config key."""
    return MappingProxyType(dict(configs.flatten(Config())))


def suggestion(word: Any, known: Iterable[str]) -> str:
    """`` Did you mean 'WORD'?`` with the nearest known word; empty if none is near."""
    known = list(known)
    last = {key.rpartition(".")[2]: key for key in known}
    near = difflib.get_close_matches(str(word), known, n=1) or [
        last[match] for match in difflib.get_close_matches(str(word).rpartition(".")[2], last, n=1)
    ]
    return f" Did you mean '{near[0]}'?" if near else ""


def convert(key: str, value: Any) -> Any:
    """A value of the file in the type of its config field.

    Raises:
        ConfigError: it does not have the type of the key, or is out of its range.
    """
    if isinstance(value, dict):
        raise ConfigError(f"{key} is {shorten(value)}, expected a value: name every key in full, as in optimizer.lr.")
    if isinstance(value, str) and "${" in value:
        raise ConfigError(f"{key} is '{value}': interpolation is not allowed in configs.")
    if key == PRESETS:
        return tuple(value) if isinstance(value, list | tuple) else (value,)
    if is_argument(key):
        return value
    default = defaults()[key]
    if isinstance(default, tuple) and isinstance(value, list):
        value = tuple(value)
    if isinstance(default, float) and isinstance(value, str | int) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)  # YAML reads 4e-4 as text, as it has no decimal point.
    configs.check_value(key, value)
    return value


def text(value: Any, *, yaml_text: bool = False) -> str:
    """A value as it is written in ``key=value``; with ``yaml_text``, texts are quoted where YAML needs it."""
    if isinstance(value, str) and not yaml_text:
        return value
    if isinstance(value, float):
        return repr(value)
    value = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n").removesuffix("\n...")


def replace(config: Config, changes: Mapping[str, Any]) -> Config:
    """A config with other values by dotted key, all at once, as some only fit together."""
    # First nest the dotted keys, so that each section is rebuilt, and thereby checked, once.
    tree: dict[str, Any] = {}
    for key, value in changes.items():
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value

    def rebuild(node: Any, change: Any) -> Any:
        if not isinstance(change, dict):
            return change
        if node is None or isinstance(node, dict):  # Arguments of the environment.
            before = node or {}
            return {**before, **{name: rebuild(before.get(name), inner) for name, inner in change.items()}}
        new: dict[str, Any] = {}
        for name, inner in change.items():
            field = name if hasattr(node, name) else f"{name}_"  # The key load.from is the field from_.
            new[field] = rebuild(getattr(node, field), inner)
        return dataclasses.replace(node, **new)

    return rebuild(config, tree)


__all__ = [
    "ARGUMENTS",
    "PRESETS",
    "Distribution",
    "Kind",
    "Values",
    "check_key",
    "convert",
    "defaults",
    "is_argument",
    "replace",
    "suggestion",
    "text",
]
