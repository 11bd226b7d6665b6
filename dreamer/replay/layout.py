"""What replay stores for one step: names, shapes, dtypes, bytes, and the checks against them."""

import math
import pathlib
import shutil
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from dreamer.types import Spaces

Spec = tuple[tuple[int, ...], np.dtype]
"""Shape without batch axes, and dtype."""

Specs = dict[str, Spec]
"""Specs by field name, in the order of `by_name`."""


class LatentSpec(NamedTuple):
    """Shapes and dtypes of a `StoredLatent`."""

    deter: Spec
    stoch: Spec

    @classmethod
    def of(cls, deter: int, stoch: int, classes: int, dtype: Any) -> "LatentSpec":
        """How the latent of an RSSM is stored.

        Args:
            deter: width D of the recurrent state, kept as ``[D]`` in ``dtype`` (the compute dtype).
            stoch: number S of categorical variables, kept as indices ``[S]``: uint8 up to 256 classes, else uint16.
            classes: classes C of each variable, at most 65536.
            dtype: anything `numpy.dtype` understands, ``ml_dtypes.bfloat16`` included.
        """
        index = np.uint8 if classes <= 256 else np.uint16
        return cls(deter=((deter,), np.dtype(dtype)), stoch=((stoch,), np.dtype(index)))


class ReplayMemoryError(MemoryError):
    """Replay of the configured capacity does not fit into memory; the message says what would."""


def by_name(
    obs: Any, action: Any, reward: Any, is_first: Any, is_last: Any, is_terminal: Any, deter: Any, stoch: Any
) -> dict[str, Any]:
    """The one place that lists what a row holds; the same names serve values and their specs."""
    return {
        **{f"obs/{key}": value for key, value in obs.items()},
        **{f"action/{key}": value for key, value in action.items()},
        "reward": reward,
        "is_first": is_first,
        "is_last": is_last,
        "is_terminal": is_terminal,
        "latent/deter": deter,
        "latent/stoch": stoch,
    }


def field_specs(obs_spaces: Spaces, action_spaces: Spaces, latent_spec: LatentSpec) -> Specs:
    """Specs of everything stored for one step of one environment."""
    obs = {key: (space.shape, space.dtype) for key, space in obs_spaces.items()}
    action = {key: (space.shape, space.dtype) for key, space in action_spaces.items()}
    reward, flag = ((), np.float32), ((), np.bool_)
    specs = by_name(obs, action, reward, flag, flag, flag, latent_spec.deter, latent_spec.stoch)
    return {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in specs.items()}


def bytes_per_step(specs: Specs) -> int:
    """Bytes of one step of one environment."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in specs.values())


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
    """Raise `ReplayMemoryError` if files of this many bytes do not fit, those counted in that are there already."""
    nearest = next(path for path in (directory, *directory.parents) if path.exists())
    there = sum(file.stat().st_blocks * 512 for file in directory.iterdir()) if nearest == directory else 0
    available = shutil.disk_usage(nearest).free + there
    if needed > available:
        raise ReplayMemoryError(
            f"replay.capacity={capacity} needs {needed / 1e9:.2f} GB on disk in {directory}, {available / 1e9:.2f} GB "
            f"are available, {(needed - available) / 1e9:.2f} GB are missing. Choose a smaller replay.capacity, some "
            f"{capacity * available // needed}, or another logdir."
        )


def checked(given: dict[str, Any], specs: Specs, lead: tuple[int, ...], what: str) -> dict[str, np.ndarray]:
    """The given arrays on the host, in the order of ``specs``, each ``[*lead, *shape]`` of its dtype.

    Raises:
        ValueError: saying what ``what`` holds and what was expected, if keys, shapes or dtypes differ.
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


def told(specs: Specs) -> dict[str, str]:
    """Specs in words, such as ``float32[4]``."""
    return {name: f"{dtype.name}{list(shape)}" for name, (shape, dtype) in specs.items()}


def specs_of(words: dict[str, str]) -> Specs:
    """Inverse of `told`."""
    specs = {}
    for name, word in words.items():
        dtype, _, shape = word.rstrip("]").partition("[")
        numbers = tuple(int(number) for number in shape.split(",") if number)
        specs[name] = numbers, np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    return specs


def is_latent(name: str) -> bool:
    """Whether a field is part of the stored latent, which updates rewrite."""
    return name.startswith("latent/")


def check_same(saved: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise `ValueError` naming the first entry in which two layouts differ."""
    for name in [*here, *(name for name in saved if name not in here)]:
        if saved.get(name) != here.get(name):
            got, expected = saved.get(name, "absent"), here.get(name, "absent")
            raise ValueError(f"The saved replay does not fit: '{name}' is {got} there and {expected} here.")
