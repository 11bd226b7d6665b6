"""Reads sweep files.

They are YAML, read by the safe loader. Every key and value is checked against `dreamer.config` before any trial starts.
"""

import dataclasses
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from dreamer import config as configs
from dreamer.config import ConfigError, documents
from dreamer.config.fields import shorten
from dreamer.config.paths import expand
from dreamer.sweep.plan import Direction, Method, SweepPlan
from dreamer.sweep.values import (
    ARGUMENTS,
    PRESETS,
    Distribution,
    Kind,
    Values,
    check_key,
    convert,
    defaults,
    is_argument,
    suggestion,
    text,
)

MOST_TRIALS = 10_000
"""Trials of a sweep, all of which are listed and checked before the first one starts."""


def read(path: pathlib.Path, logdir: pathlib.Path | None = None) -> SweepPlan:
    """Read a sweep file.

    Args:
        path: the file, or the name of one in ``configs/sweeps``.
        logdir: directory of the sweep; None: ``runs/`` and the name of the file.

    Raises:
        ConfigError: it cannot be read, or does not describe a sweep that can run.
    """
    path = _resolve(expand(path))
    try:
        values = documents.read(path)
    except documents.DocumentError as error:
        raise ConfigError(f"{path} is not a readable sweep file: {error}.") from error
    try:
        return _plan(values, str(path), expand(logdir) if logdir else pathlib.Path("runs") / path.stem)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _resolve(path: pathlib.Path) -> pathlib.Path:
    """The file itself, or the one of that name that comes with the package."""
    packaged = configs.preset_directory() / "sweeps"
    if os.path.lexists(path) or path.suffix or path.name != str(path):
        return path
    known = {found.stem: found for found in sorted(packaged.glob("*.yaml"))}
    if path.name not in known:
        raise ConfigError(
            f"There is no file '{path}', and no sweep of that name comes with Dreamer.{suggestion(path.name, known)} "
            f"Those that do are: {', '.join(known)}."
        )
    return known[path.name]


def _plan(values: Any, source: str, logdir: pathlib.Path) -> SweepPlan:
    if not isinstance(values, dict):
        raise ConfigError(f"it holds {_type_name(values)}, expected a mapping with 'grid' or 'random'.")
    known = [field.name for field in dataclasses.fields(SweepPlan) if field.name not in ("source", "logdir")]
    for key in values:
        if key not in known:
            raise ConfigError(
                f"there is no '{key}' in a sweep file.{suggestion(key, known)} It has: {', '.join(known)}."
            )
    values = {key: value for key, value in values.items() if value is not None}
    given: dict[str, Any] = {"source": source, "logdir": logdir}
    given |= {key: _take(values, key, kind) for key, kind in _SCALARS.items() if key in values}
    for key, allowed in (("search", get_args(Method)), ("direction", get_args(Direction))):
        if key in given and given[key] not in allowed:
            raise ConfigError(f"'{key}' is '{shorten(given[key], str)}', expected one of {', '.join(allowed)}.")
    presets = values.get("presets", [])
    given["presets"] = (presets,) if isinstance(presets, str) else tuple(_take(values, "presets", list, []))
    _require_names(given["presets"])
    given["overrides"] = tuple(_overrides(_take(values, "overrides", dict, {})))
    given["grid"] = {key: _grid(key, found) for key, found in _take(values, "grid", dict, {}).items()}
    given["random"] = {key: _distribution(key, found) for key, found in _take(values, "random", dict, {}).items()}
    given["seeds"] = tuple(_take(values, "seeds", list, [0]))
    if not given["seeds"] or not all(type(seed) is int and 0 <= seed < 2**31 for seed in given["seeds"]):
        raise ConfigError(
            f"'seeds' is {shorten(list(given['seeds']))}, expected whole numbers from 0 on, as in [0, 1, 2]."
        )
    given.setdefault("search", "random" if given["random"] else "grid")
    plan = SweepPlan(**given)
    _check(plan)
    return plan


_SCALARS = {"search": str, "trials": int, "search_seed": int, "score": str, "direction": str, "retries": int}


def _check(plan: SweepPlan) -> None:
    """Refuse a sweep that cannot run, or is probably a mistake."""
    _require_new_keys(plan)
    if not plan.presets and PRESETS not in plan.grid:
        raise ConfigError("'presets' is missing: name those to start from, as in [cartpole].")
    if not plan.grid and not plan.random:
        raise ConfigError("it has nothing to try: give values under 'grid', or ranges under 'random'.")
    if bool(plan.random) != (plan.search != "grid"):
        raise ConfigError(f"'search' is {plan.search}, which needs {'no ' if plan.random else ''}keys under 'random'.")
    if plan.search == "optuna" and plan.grid:
        raise ConfigError("Optuna chooses all values itself: write those under 'grid' as 'choice' under 'random'.")
    if plan.random and plan.trials < 1:
        raise ConfigError(
            f"'trials' is {shorten(plan.trials)}, expected how many settings are drawn from 'random', at least 1."
        )
    if not plan.random and plan.trials:
        raise ConfigError("'trials' counts draws from 'random', and there is none: leave it out.")
    _require_listable(plan)
    for key, number, most in (("retries", plan.retries, 1000), ("search_seed", plan.search_seed, 2**32 - 1)):
        if not 0 <= number <= most:
            raise ConfigError(f"'{key}' is {shorten(number)}, expected at least 0 and at most {most}.")
    words = ("eval", "last", "best")
    if plan.score not in words and "/" not in plan.score:
        raise ConfigError(
            f"'score' is '{shorten(plan.score, str)}', expected eval, last, best, or a metric such as loss/dyn "
            f"(docs/metrics.md)."
            f"{suggestion(plan.score, words)}"
        )
    seen: dict[pathlib.Path, Values] = {}
    settings = [plan.setting(index, values) for index, values in enumerate(plan.points() or _corners(plan))]
    for setting in settings:
        if plan.score == "eval" and not setting.config.run.eval_episodes:
            raise ConfigError("'score' is eval, but run.eval_episodes=0: set it, or score by last or best.")
        for trial in plan.trials_of(setting) if plan.search != "optuna" else ():
            if trial.logdir in seen:
                raise ConfigError(
                    f"two trials would have the logdir {trial.logdir}, with {_format(seen[trial.logdir])} and "
                    f"{_format(setting.values)}: give every value and every seed once, and values that differ in more "
                    "than characters that a directory name cannot have."
                )
            seen[trial.logdir] = setting.values


def _require_listable(plan: SweepPlan) -> None:
    """Refuse a sweep of more trials than can be listed, before it is: a grid of a few long lists has billions."""
    settings = (plan.trials if plan.random else 1) * math.prod(map(len, plan.grid.values()))
    count = settings * len(plan.seeds)
    if count > MOST_TRIALS:
        raise ConfigError(
            f"it has {shorten(count, '{:,}'.format)} trials, expected at most {MOST_TRIALS:,}: list fewer values or "
            "seeds, or draw some of the settings with 'random' and 'trials'."
        )


def _corners(plan: SweepPlan) -> list[Values]:
    """The first and the last value of every distribution, which are checked where draws are not known beforehand."""
    return [{key: kind.values[end] for key, kind in plan.random.items()} for end in (0, -1)]


def _require_new_keys(plan: SweepPlan) -> None:
    for key in plan.grid:
        if key in plan.random:
            raise ConfigError(f"'{key}' is under 'grid' and under 'random': name it once.")


def _require_names(presets: Iterable[Any]) -> None:
    for name in presets:
        if not isinstance(name, str):
            raise ConfigError(f"'presets' has {name!r}, expected names, as in [cartpole].")


def _overrides(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """``key=value`` for every leaf of the mapping, nested or with dots."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and (key not in defaults() or f"{key}." == ARGUMENTS):
            yield from _overrides(value, f"{key}.")
        else:
            check_key(key, "overrides")
            yield f"{key}={text(convert(key, value), yaml_text=is_argument(key))}"


def _grid(key: str, values: Any) -> tuple[Any, ...]:
    if key != PRESETS:
        check_key(key, "grid")
    if not isinstance(values, list):
        raise ConfigError(
            f"'grid' has {key}: {shorten(values)}, expected a list of values, as in [{shorten(values, str)}]."
        )
    if not values:
        raise ConfigError(f"'grid' has no values for {key}: list some, or leave it out.")
    converted = tuple(convert(key, value) for value in values)
    if key == PRESETS:
        _require_names([name for names in converted for name in names])
    return converted


def _distribution(key: str, value: Any) -> Distribution:
    check_key(key, "random")
    kinds = get_args(Kind)
    example = "as in {log_uniform: [1e-5, 1e-3]} or {choice: [16, 32]}"
    if not isinstance(value, dict) or len(value) != 1:
        raise ConfigError(f"'random' has {key}: {shorten(value)}, expected one of {', '.join(kinds)}, {example}.")
    ((kind, values),) = value.items()
    if kind not in kinds:
        hint = suggestion(kind, kinds)
        raise ConfigError(f"'random' has '{kind}' for {key}, expected one of {', '.join(kinds)}, {example}.{hint}")
    if not isinstance(values, list) or not values:
        raise ConfigError(f"'random' has {kind}: {shorten(values)} for {key}, expected a list, {example}.")
    converted = tuple(convert(key, value) for value in values)
    if kind == "choice":
        return Distribution(kind, converted)
    number = int if kind.startswith("int") else float
    default = converted[0] if is_argument(key) else defaults()[key]
    if type(default) is not number or any(type(bound) is not number for bound in converted):
        numbers = "whole numbers" if number is int else "real numbers"
        raise ConfigError(f"'random' has {kind}: {values} for {key}, which is made for {numbers}, {example}.")
    is_log = kind.endswith("log_uniform")
    if len(converted) != 2 or not converted[0] < converted[1] or (is_log and converted[0] <= 0):
        positive = ", both above 0" if is_log else ""
        raise ConfigError(f"'random' has {kind}: {values} for {key}, expected [lowest, highest]{positive}.")
    return Distribution(kind, converted)


def _take(values: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = values.get(key, default)
    if type(value) is not kind:
        names = {dict: "a mapping", list: "a list", int: "a whole number", str: "a word"}
        raise ConfigError(f"'{key}' is {shorten(value)}, expected {names[kind]}.")
    return value


def _type_name(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _format(values: Values) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


__all__ = ["read"]
