"""What replay stores for one step: names, shapes, dtypes and bytes, and checks against them."""

import dataclasses
import math
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np

from dreamer.config import ConfigError, ReplayConfig
from dreamer.types import Batch, Spaces, Step, named_leaves

Spec = tuple[tuple[int, ...], np.dtype]
"""Shape without batch axes, and dtype."""

Specs = dict[str, Spec]
"""Specs by field name, in the order of `Layout.of`."""


class ReplayMemoryError(MemoryError):
    """Replay of the configured capacity does not fit into memory or on disk; the message says what would."""


STORED = "latent/"
"""Prefix of the names of what an algorithm stores with a step, whatever that is; names of files begin with it, too."""

Span = Literal["context", "sequence"]
"""See `dreamer.algorithms.Algorithm.stored_span`."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What replay holds of one step of one environment, and how rows become a batch.

    Attributes:
        specs: shape and dtype of every field by name: ``obs/KEY``, ``action/KEY``, ``reward``, the three flags, and
            ``latent/PATH`` for each array of what is stored.
        structure: what is stored, as a pytree with names in place of arrays.
        span: whether a batch has what was stored with the step before each sequence, or also with each of its steps.
    """

    specs: Specs
    structure: Any
    span: Span = "context"

    @classmethod
    def of(cls, obs_spaces: Spaces, action_spaces: Spaces, stored: Any, span: Span = "context") -> "Layout":
        """The layout for a task and an algorithm; ``stored`` is a pytree of shapes and dtypes without batch axes."""
        flag = ((), np.bool_)
        named = {f"{STORED}{name}": leaf for name, leaf in named_leaves(stored).items()}
        specs = {
            **{f"obs/{key}": (space.shape, space.dtype) for key, space in obs_spaces.items()},
            **{f"action/{key}": (space.shape, space.dtype) for key, space in action_spaces.items()},
            "reward": ((), np.float32),
            "is_first": flag,
            "is_last": flag,
            "is_terminal": flag,
            **{name: (leaf.shape, leaf.dtype) for name, leaf in named.items()},
        }
        structure = jax.tree.unflatten(jax.tree.structure(stored), named)
        return cls({name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in specs.items()}, structure, span)

    @property
    def stored_specs(self) -> Specs:
        """Specs of what is stored."""
        return {name: spec for name, spec in self.specs.items() if is_stored(name)}

    def row(self, step: Step, action: Any, stored: Any) -> dict[str, Any]:
        """The fields of one row: a step, the action chosen after it, and what is stored with it."""
        return {
            **{f"obs/{key}": value for key, value in step.obs.items()},
            **{f"action/{key}": value for key, value in action.items()},
            "reward": step.reward,
            "is_first": step.is_first,
            "is_last": step.is_last,
            "is_terminal": step.is_terminal,
            **self.stored_fields(stored),
        }

    def stored_fields(self, stored: Any) -> dict[str, Any]:
        """The fields of what is stored."""
        return {f"{STORED}{name}": leaf for name, leaf in named_leaves(stored).items()}

    def stored(self, fields: Callable[[str], Any]) -> Any:
        """What is stored, from a function that returns the field of a name: inverse of `stored_fields`."""
        return jax.tree.map(fields, self.structure)

    def batch(self, now: Callable[[str], Any], before: Callable[[str], Any], stored: Callable[[str], Any]) -> Batch:
        """A batch, from functions that return the field of a name.

        Args:
            now: fields at the steps of the sequences.
            before: fields one step earlier.
            stored: fields at the step before each sequence; with a span of "sequence", also at all of its steps.
        """
        return Batch(
            obs={name.removeprefix("obs/"): now(name) for name in self.specs if name.startswith("obs/")},
            prev_action={
                name.removeprefix("action/"): before(name) for name in self.specs if name.startswith("action/")
            },
            reward=now("reward"),
            is_first=now("is_first"),
            is_last=now("is_last"),
            is_terminal=now("is_terminal"),
            stored=self.stored(stored),
        )


def bytes_per_step(specs: Specs) -> int:
    """Bytes of one step of one environment."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in specs.values())


def replay_rows(config: ReplayConfig, num_envs: int) -> int:
    """Rows of steps, one of each environment, that replay keeps.

    Raises:
        ConfigError: it could not hold what an update needs.
    """
    rows = config.capacity // num_envs
    least = rows_until_ready(config, num_envs)
    if rows < least:
        prefill = f" and replay.prefill={config.prefill}" if config.prefill else ""
        raise ConfigError(
            f"replay.capacity={config.capacity} cannot be used: {num_envs} environments with batches of "
            f"{config.batch_size} x {config.batch_length} steps{prefill} need at least {least * num_envs}."
        )
    return rows


def rows_until_ready(config: ReplayConfig, num_envs: int) -> int:
    """Rows before the first batch: one sequence of T + 1, B * T steps in all, and ``replay.prefill``."""
    steps = max(config.batch_size * config.batch_length, config.prefill)
    return max(config.batch_length + 1, math.ceil(steps / num_envs))


def check_memory(capacity: int, num_envs: int, step_bytes: int, available: int) -> None:
    """Raise `ReplayMemoryError` if the ring does not fit into ``available`` bytes."""
    needed = capacity // num_envs * num_envs * step_bytes
    if needed <= available:
        return
    largest = available // (num_envs * step_bytes) * num_envs
    raise ReplayMemoryError(
        f"replay.capacity={capacity} needs {needed / 1e9:.2f} GB of memory ({step_bytes} bytes per step), "
        f"{available / 1e9:.2f} GB are available, {(needed - available) / 1e9:.2f} GB are missing. "
        f"The largest that fits is replay.capacity={largest}."
    )


def check_disk(directory: pathlib.Path, capacity: int, needed: int) -> None:
    """Raise `ReplayMemoryError` if files of ``needed`` bytes, including those that exist already, do not fit."""
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    # `st_blocks` counts units of 512 bytes that a file really takes; a sparse file takes less than its size.
    existing = sum(file.stat().st_blocks * 512 for file in directory.iterdir()) if nearest == directory else 0
    available = shutil.disk_usage(nearest).free + existing
    if needed > available:
        raise ReplayMemoryError(
            f"replay.capacity={capacity} needs {needed / 1e9:.2f} GB on disk in {directory}, {available / 1e9:.2f} GB "
            f"are available, {(needed - available) / 1e9:.2f} GB are missing. Choose a smaller replay.capacity, about "
            f"{capacity * available // needed}, or another logdir."
        )


def check_fields(given: dict[str, Any], specs: Specs, lead: tuple[int, ...], what: str) -> dict[str, np.ndarray]:
    """The given arrays on the host, in the order of ``specs``, each ``[*lead, *shape]`` of its dtype.

    Raises:
        ValueError: keys, shapes or dtypes differ; the message calls the arrays ``what``.
    """
    if given.keys() != specs.keys():
        raise ValueError(f"The {what} holds {sorted(given)}, expected {sorted(specs)}.")
    values = {}
    for name, (shape, dtype) in specs.items():
        value = np.asarray(given[name])
        if value.shape != lead + shape or value.dtype != dtype:
            raise ValueError(
                f"'{name}' of the {what} is {value.dtype}{list(value.shape)}, expected {dtype}{[*lead, *shape]}."
            )
        values[name] = value
    return values


def describe(specs: Specs) -> dict[str, str]:
    """Specs in words, such as ``float32[4]``."""
    return {name: f"{dtype.name}{list(shape)}" for name, (shape, dtype) in specs.items()}


def specs_of(words: dict[str, str]) -> Specs:
    """Inverse of `describe`."""
    specs = {}
    for name, word in words.items():
        dtype, _, shape = word.rstrip("]").partition("[")
        numbers = tuple(int(number) for number in shape.split(",") if number)
        specs[name] = numbers, np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return specs


def is_stored(name: str) -> bool:
    """Whether a field is part of what an algorithm stores, which updates rewrite."""
    return name.startswith(STORED)


def check_same(saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise `ValueError` naming the first entry in which two layouts differ."""
    for name in [*here, *(name for name in saved if name not in here)]:
        if saved.get(name) != here.get(name):
            got = saved.get(name, "absent")
            expected = here.get(name, "absent")
            raise ValueError(f"The saved replay does not fit: '{name}' is {got} there and {expected} here.")
