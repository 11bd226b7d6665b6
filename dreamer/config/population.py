"""Populations: which members a config asks for, and how one program serves them all.

Members differ in their seed, and in numbers that the program can take as arguments (`SWEEPABLE`). All other numbers of
the config are constants of the program when it is compiled.
"""

import copy
import dataclasses
import itertools
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from dreamer import config as configs
from dreamer.config import Config, ConfigError, PopulationConfig, documents
from dreamer.config.fields import shorten
from dreamer.config.paths import expand

MOST_MEMBERS = 10_000
"""Members that a config may ask for; they are listed before anything knows how many fit into memory."""

_IN_NETWORKS = (
    "behavior.actor_unimix",
    "behavior.actor_scale",
    "behavior.min_std",
    "behavior.max_std",
    "behavior.exploration_noise",
)
"""Numbers that the network modules or the policy hold; they are part of the type of what members share."""

SWEEPABLE = (
    *(f"optimizer.{field.name}" for field in dataclasses.fields(configs.OptimizerConfig) if field.type in (int, float)),
    *(f"loss.{field.name}" for field in dataclasses.fields(configs.LossConfig)),
    *(
        f"behavior.{field.name}"
        for field in dataclasses.fields(configs.BehaviorConfig)
        if field.type is float and f"behavior.{field.name}" not in _IN_NETWORKS
    ),
    *("sac.target_entropy", "dqn.epsilon", "dqn.epsilon_updates"),
)
"""Config keys in which members may differ: numbers that only the update reads, and on which no shape depends."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One agent of a population."""

    name: str
    """Its directory within that of the run; empty if it is the only member."""
    config: Config
    """Its own resolved config, as if it were trained alone."""
    numbers: Mapping[str, int | float]
    """Its values of the keys that are swept."""


def members(config: Config) -> tuple[Member, ...]:
    """All members that a config asks for: every combination of the swept values, with every seed.

    Raises:
        ConfigError: an entry of ``population.sweep`` is not a list of values, or names a key that members must share.
    """
    sweep = dict(_parse(entry, config.optimizer.kind) for entry in config.population.sweep)
    count = math.prod(map(len, sweep.values())) * config.population.seeds
    if count > MOST_MEMBERS:
        raise ConfigError(
            f"population.seeds and population.sweep ask for {count:,} members, expected at most {MOST_MEMBERS:,}: "
            "train fewer at a time, for example with fewer seeds."
        )
    seeds = range(config.seed, config.seed + config.population.seeds)
    # Directories are named by the last part of each key, unless two are the same.
    short = [key.rpartition(".")[2] for key in sweep]
    labels = short if len(set(short)) == len(short) else list(sweep)
    alone = dataclasses.replace(config, population=PopulationConfig())
    found = []
    for values, seed in itertools.product(itertools.product(*sweep.values()), seeds):
        parts = [f"{label}_{value!r}" for label, value in zip(labels, values, strict=True)]
        name = "-".join([*parts, f"seed_{seed}"])
        if len(seeds) == 1 and all(len(values) == 1 for values in sweep.values()):
            name = ""
        logdir = str(pathlib.Path(config.logdir) / name) if config.logdir else ""
        numbers = dict(zip(sweep, values, strict=True))
        overrides = [f"{key}={value!r}" for key, value in numbers.items()]
        own = configs.override(dataclasses.replace(alone, seed=seed, logdir=logdir), overrides)
        found.append(Member(name, own, numbers))
    return tuple(found)


def directories(logdir: str | os.PathLike[str]) -> tuple[pathlib.Path, ...]:
    """The directories of the runs in a log directory: those of the members of a population, otherwise itself.

    Raises:
        ConfigError: its ``config.yaml`` is not a config.
    """
    root = expand(logdir)
    if not (root / "config.yaml").exists():
        return (root,)
    return tuple(root / member.name for member in members(configs.load_yaml(root / "config.yaml")))


def with_numbers(config: Config, numbers: Mapping[str, Any]) -> Config:
    """A config with other numbers by dotted key, which may be traced; they are not checked.

    Configs check their values when they are made, which is impossible for an array that has no value yet. The values
    behind it were checked with each member's own config.
    """
    for key, number in numbers.items():
        section, _, name = key.partition(".")
        config = _set_field(config, section, _set_field(getattr(config, section), name, number))
    return config


def _set_field(frozen: Any, name: str, value: Any) -> Any:
    """A copy of a frozen dataclass with another value of one field, without its checks."""
    clone = copy.copy(frozen)
    object.__setattr__(clone, name, value)
    return clone


def _parse(entry: str, kind: str) -> tuple[str, tuple[int | float, ...]]:
    """Key and values of an entry of ``population.sweep``, for an optimizer of this kind."""
    key, _, text = entry.partition("=")
    try:
        values = documents.parse(text)
        # YAML takes 4e-4 for text, because it has no point.
        numbers = tuple(float(value) if isinstance(value, str) else value for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers or any(type(number) not in (int, float) for number in numbers):
        raise ConfigError(
            f"population.sweep has '{shorten(entry, str)}', expected numbers as in 'optimizer.lr=[1e-4, 3e-4]'."
        )
    if len(set(numbers)) < len(numbers):
        raise ConfigError(f"population.sweep has '{entry}', expected values that differ: two members would be one.")
    if key.startswith("optimizer.muon_") and kind != "muon":
        raise ConfigError(
            f"population.sweep has '{entry}', but nothing reads {key} with optimizer.kind={kind}: all members would be "
            f"equal. Set optimizer.kind=muon."
        )
    if kind in ("adam", "keras_adam") and key in (
        "optimizer.lr",
        "optimizer.eps",
        "optimizer.clip",
        "optimizer.clip_min",
    ):
        raise ConfigError(
            f"population.sweep has '{entry}', but nothing reads {key} with optimizer.kind={kind}: all members would be "
            "equal. Train one run for each value of optimizer.model, actor and critic, as python -m dreamer.sweep does."
        )
    if key not in SWEEPABLE:
        why = (
            "is part of the networks"
            if key in (*_IN_NETWORKS, "rssm.unimix", "rssm.free_nats")
            else "shapes the program"
        )
        raise ConfigError(
            f"population.sweep has '{entry}', but {key} {why}, which all members share. Train one population for each "
            f"value, or sweep over some of: {', '.join(SWEEPABLE)}."
        )
    return key, numbers


__all__ = ["SWEEPABLE", "Member", "directories", "members", "with_numbers"]
