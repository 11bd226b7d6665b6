"""What holds in every test: JAX on the CPU with eight devices, no silent broadcasting, and fixed randomness."""

import os
import pathlib

# Read when JAX is first used, so they come before its import. The devices share the machine's cores: a program on one
# of them runs as it would alone, and tests that spread work over several need no special machine.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("WANDB_MODE", "disabled")

from typing import Any

import jax
import numpy as np
import pytest
from xdist.scheduler import LoadScopeScheduling

jax.config.update("jax_platforms", "cpu")
# Nearly all of the suite's time is compilation; programs that several tests, or runs of the suite, share compile once.
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.config.update("jax_numpy_rank_promotion", "raise")


SHARING = {
    "agent/test_golden.py",
    "agent/test_masks.py",
    "devices/test_hosts.py",
    "devices/test_placement.py",
    "evaluate/test_evaluate.py",
    "training/test_device.py",
    "training/test_train.py",
}
"""Files whose tests share what takes long to make."""


class Scheduling(LoadScopeScheduling):
    """One process runs all tests of a file in `SHARING`, these first; any other test goes to whoever is free."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return path if "/".join(pathlib.Path(path).parts[-2:]) in SHARING else nodeid


def pytest_xdist_make_scheduler(config: Any, log: Any) -> LoadScopeScheduling:
    """Hook of pytest-xdist."""
    return Scheduling(config, log)


@pytest.fixture
def rng() -> np.random.Generator:
    """Host randomness, the same in every run and every test."""
    return np.random.default_rng(0)


@pytest.fixture
def key() -> jax.Array:
    """Device randomness, the same in every run and every test."""
    return jax.random.key(0)
