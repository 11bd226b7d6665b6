"""Compiled programs are found again, where the user may write and has not chosen otherwise."""

import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
import time
import jax, jax.numpy as jnp
from dreamer.devices import compile_cache
compile_cache._LEAST_SECONDS = 0
print(compile_cache.keep_compiled_programs())
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
"""


def run(cache: pathlib.Path, **extra: str) -> str:
    environ = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION")}
    environ |= {"XDG_CACHE_HOME": str(cache), **extra}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, env=environ)
    return done.stdout.strip()


def programs(path: pathlib.Path) -> set[str]:
    return {file.name for file in path.rglob("*-cache")}


def test_programs_are_found_by_the_next_process(tmp_path):
    path = pathlib.Path(run(tmp_path))
    assert path.parent == tmp_path / "dreamer"
    first = programs(path)
    assert first
    assert run(tmp_path) == str(path)
    assert programs(path) == first


@pytest.mark.parametrize("why", ["chosen", "not writable"])
def test_left_alone(tmp_path, why):
    cache = tmp_path / "cache"
    if why == "chosen":
        assert run(cache, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own")) == "None"
        assert programs(tmp_path / "own") or not cache.exists()
    else:
        cache.write_text("a file where the directory should be")
        assert run(cache) == "None"
    assert not programs(cache)
