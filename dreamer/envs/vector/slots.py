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
"""Commands: step (or reset, if the episode is over); reset; make the environment and reset it; do nothing."""

_ALIGNMENT = 64
"""Bytes in a cache line; every array starts at a multiple."""


class Slots:
    """One slot per environment, in one block of memory that processes can share.

    A shared block is an unnamed file in memory, so nothing remains of it however its users end. It can be pickled only
    while a process is being started; the copy there is the same memory.

    Args:
        count: number of environments N.
        obs_spaces, action_spaces: `Space` by key.
        shared: whether worker processes use it too.

    Attributes:
        command: what each environment does next, uint8 ``[N]``.
        seed: seed of the first reset after each environment is made, int64 ``[N]``.
        turn: at each worker's first index, the index of the environment it is busy with, or -1; int64 ``[N]``.
        obs, action: arrays ``[N, ...]`` by key.
        reward, is_first, is_last, is_terminal, env_steps: arrays ``[N]`` as in `Step`.

    Raises:
        EnvError: the system has no shared memory of this kind, or too little of it.
    """

    def __init__(self, count: int, obs_spaces: Spaces, action_spaces: Spaces, *, shared: bool) -> None:
        self._layout = (count, obs_spaces, action_spaces)
        size = sum(_padded_size(count, *spec) for spec in _specs(obs_spaces, action_spaces).values())
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
            offset += _padded_size(count, shape, dtype)
        self.command = arrays["command"]
        self.seed = arrays["seed"]
        self.turn = arrays["turn"]
        self.reward = arrays["reward"]
        self.env_steps = arrays["env_steps"]
        self.is_first = arrays["is_first"]
        self.is_last = arrays["is_last"]
        self.is_terminal = arrays["is_terminal"]
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


def _padded_size(count: int, shape: tuple[int, ...], dtype: np.dtype) -> int:
    """Bytes of an array ``[count, *shape]``, rounded up to a multiple of the alignment."""
    # Negated floor division rounds up.
    return -(-count * math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT


def _allocate(size: int) -> int:
    """File descriptor of new shared memory, fully allocated: a shortfall fails here instead of crashing later."""
    if not hasattr(os, "memfd_create"):
        raise EnvError(
            "env.workers=async needs Linux's shared memory (memfd), which this system lacks: use env.workers=sync."
        )
    fd = os.memfd_create("dreamer")
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        os.close(fd)
        raise EnvError(
            f"The environments need {size / 1e6:.1f} MB of shared memory, which is not available ({error.strerror}): "
            f"lower env.count or the size of observations, or use env.workers=sync."
        ) from error
    return fd


__all__ = ["MAKE", "RESET", "SKIP", "STEP", "Slots"]
