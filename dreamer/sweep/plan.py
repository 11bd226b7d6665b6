"""The parts of a sweep: a plan, the settings that it tries, and a trial for each setting and seed."""

import dataclasses
import functools
import itertools
import pathlib
import re
import shlex
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from dreamer import config as configs
from dreamer.config import Config
from dreamer.sweep.values import PRESETS, Distribution, Values, convert, is_argument, replace, text

_LONGEST = 100
"""Characters of a trial's name at most, without number and seed; file systems allow 255."""

Direction = Literal["maximize", "minimize"]
Method = Literal["grid", "random", "optuna"]


class Setting(NamedTuple):
    """One choice of values, which is run with every seed."""

    number: int
    values: Values
    config: Config
    """With the first seed, and without a directory."""
    words: tuple[str, ...]
    """Its arguments of ``python -m dreamer.train``, without seed and directory."""


class Trial(NamedTuple):
    """One run: a setting with a seed."""

    name: str
    setting: Setting
    seed: int
    logdir: pathlib.Path

    @property
    def words(self) -> list[str]:
        """Arguments of ``python -m dreamer.train``; the same ones start it and resume it."""
        return [*self.setting.words, f"seed={self.seed}", f"logdir={self.logdir}"]

    @property
    def config(self) -> Config:
        """The config that these arguments give."""
        return dataclasses.replace(self.setting.config, seed=self.seed, logdir=str(self.logdir))

    def command(self) -> str:
        """The command line, as a person would type it."""
        return shlex.join(["python", "-m", "dreamer.train", *self.words])


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A valid sweep file: see ``docs/sweeps.md`` for its keys."""

    source: str
    logdir: pathlib.Path
    presets: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    grid: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    random: Mapping[str, Distribution] = dataclasses.field(default_factory=dict)
    search: Method = "grid"
    trials: int = 0
    """Number of draws from ``random``; if there is a grid too, each draw is tried at all its points."""
    seeds: tuple[int, ...] = (0,)
    search_seed: int = 0
    score: str = "eval"
    direction: Direction = "maximize"
    retries: int = 2

    def points(self) -> list[Values]:
        """Values of all settings that are known beforehand: none with Optuna, which needs scores first."""
        if self.search == "optuna":
            return []
        grid: list[Values] = [
            dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
        ]
        if not self.random:
            return grid
        drawn: list[Values] = []
        for number in range(self.trials):
            # Each draw has its own generator, so adding trials later leaves these unchanged.
            rng = np.random.default_rng([self.search_seed, number])
            drawn.append({key: kind.draw(rng) for key, kind in self.random.items()})
        return [{**draw, **point} for draw in drawn for point in grid]

    def setting(self, number: int, values: Values) -> Setting:
        """The setting with these values.

        Raises:
            ConfigError: a value has the wrong type, or values do not fit together.
        """
        values = {key: convert(key, value) for key, value in values.items()}
        names = (*self.presets, *values.get(PRESETS, ()))
        leaves = {key: value for key, value in values.items() if key != PRESETS}
        config = replace(_base(names, self.overrides, self.seeds[0]), leaves)
        words = ["--config", *names] if names else []
        words += [
            *self.overrides,
            *(f"{key}={text(value, yaml_text=is_argument(key))}" for key, value in leaves.items()),
        ]
        return Setting(number, values, config, tuple(words))

    def trials_of(self, setting: Setting) -> list[Trial]:
        """The setting with every seed."""
        label = self.label(setting.values)
        if self.search != "grid" or len(label) > _LONGEST:
            label = f"{setting.number:03d}-{label}"
        stem = re.sub(r"[^A-Za-z0-9_.+-]+", "-", label)[:_LONGEST].strip("-")
        names = [f"{stem}-seed_{seed}" for seed in self.seeds]
        return [Trial(name, setting, seed, self.logdir / name) for name, seed in zip(names, self.seeds, strict=True)]

    def label(self, values: Values) -> str:
        """``lr_0.0001-horizon_15``: values with the last word of each key, or with whole keys if that is ambiguous."""
        short = [key.rpartition(".")[2] for key in self.keys]
        labels = dict(zip(self.keys, short if len(set(short)) == len(short) else self.keys, strict=True))
        return "-".join(f"{labels[key]}_{self.show(value)}" for key, value in values.items())

    def show(self, value: Any) -> str:
        """A value in a name or a table: exact if it was written by hand, rounded to three digits if it was drawn."""
        if isinstance(value, tuple):
            return ",".join(map(str, value))
        if isinstance(value, float) and self.search != "grid":
            return f"{value:.3g}"
        return str(value).lower() if isinstance(value, bool) else str(value)

    @property
    def keys(self) -> list[str]:
        """All keys in which settings differ."""
        return [*self.random, *self.grid]


@functools.cache
def _base(presets: tuple[str, ...], overrides: tuple[str, ...], seed: int) -> Config:
    """The config before a setting's values; cached, as reading presets takes a tenth of a second."""
    return configs.load(presets, [*overrides, f"seed={seed}"])


__all__ = ["Direction", "Method", "Setting", "SweepPlan", "Trial"]
