"""Memory through which N environments and their `VectorEnv` exchange commands, actions and answers."""

import math
import mmap
import os
import weakref
from multiprocessing import reduction
from typing import Any

import numpy as np

from dreamer.envs.errors import EnvError
from dreamer.spaces import Spaces

STEP, RESET, MAKE, SKIP = range(4)
"""Commands: step (or reset, if the episode is over), reset, make the environment anew and reset it, do nothing."""

_ALIGNMENT = 64
"""Bytes of a cache line, so that no array begins in the middle of one."""


class Slots:
    """One slot per environment, in one block of memory that processes can share.

    A shared block is a file in memory without a name, so nothing of it stays behind however its users end. It can be
    pickled while a process is being started, and at no other time; the copy there is the same memory.

    Args:
        count: number of environments N.
        obs_spaces, action_spaces: `Space` by key.
        shared: whether worker processes use it too.

    Attributes:
        command: what each environment does next, uint8 ``[N]``.
        seed: what each one is seeded with when it is first reset after it was made, int64 ``[N]``.
        turn: at the first index of each worker, the index it is busy with, or -1; int64 ``[N]``.
        obs, action: arrays ``[N, ...]`` by key.
        reward, is_first, is_last, is_terminal, env_steps: arrays ``[N]`` as in `Step`.

    Raises:
        EnvError: the system has no shared memory of this kind, or too little of it.
    """

    def __init__(self, count: int, obs_spaces: Spaces, action_spaces: Spaces, *, shared: bool) -> None:
        self._layout = (count, obs_spaces, action_spaces)
        size = sum(_padded(count, *spec) for spec in _specs(obs_spaces, action_spaces).values())
        self._fd = _allocate(size) if shared else -1
        if shared:
            weakref.finalize(self, os.close, self._fd)
        self._map(mmap.mmap(self._fd, size))

    def __getstate__(self) -> tuple[Any, tuple[int, Spaces, Spaces]]:
        return reduction.DupFd(self._fd), self._layout

    def __setstate__(self, state: tuple[Any, tuple[int, Spaces, Spaces]]) -> None:
        duplicate, self._layout = state
        fd = duplicate.detach()
        self._map(mmap.mmap(fd, 0))
        os.close(fd)

    def _map(self, memory: mmap.mmap) -> None:
        count, obs_spaces, action_spaces = self._layout
        arrays: dict[str, np.ndarray] = {}
        offset = 0
        for name, (shape, dtype) in _specs(obs_spaces, action_spaces).items():
            arrays[name] = np.ndarray((count, *shape), dtype, memory, offset)
            offset += _padded(count, shape, dtype)
        self.command, self.seed, self.turn = (arrays[name] for name in ("command", "seed", "turn"))
        self.reward, self.env_steps = arrays["reward"], arrays["env_steps"]
        self.is_first, self.is_last, self.is_terminal = (arrays[f"is_{name}"] for name in ("first", "last", "terminal"))
        self.obs = {key: arrays[f"obs/{key}"] for key in obs_spaces}
        self.action = {key: arrays[f"action/{key}"] for key in action_spaces}


def _specs(obs_spaces: Spaces, action_spaces: Spaces) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape without N, and dtype, of every array."""
    specs: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    for names, dtype in (
        ("command", np.dtype(np.uint8)),
        ("seed turn", np.dtype(np.int64)),
        ("reward", np.dtype(np.float32)),
        ("env_steps", np.dtype(np.int32)),
        ("is_first is_last is_terminal", np.dtype(bool)),
    ):
        specs |= dict.fromkeys(names.split(), ((), dtype))
    for role, spaces in (("obs", obs_spaces), ("action", action_spaces)):
        specs |= {f"{role}/{key}": (space.shape, space.dtype) for key, space in spaces.items()}
    return specs


def _padded(count: int, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array ``[count, *shape]``, rounded up."""
    return -(-count * math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


def _allocate(size: int) -> int:
    """File descriptor of new shared memory, all of it claimed: a lack shows here and not as a crash later."""
    if not hasattr(os, "memfd_create"):
        raise EnvError("env.workers=async needs shared memory of Linux, which this system lacks: use env.workers=sync.")
    fd = os.memfd_create("dreamer")
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        os.close(fd)
        raise EnvError(
            f"The environments need {size / 1e6:.1f} MB of shared memory, which cannot be had ({error.strerror}): "
            f"lower env.count or the size of observations, or use env.workers=sync."
        ) from error
    return fd


__all__ = ["MAKE", "RESET", "SKIP", "STEP", "Slots"]
