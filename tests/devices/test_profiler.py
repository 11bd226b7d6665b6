"""A recorded run leaves a trace that can be opened and tables of its phases and operations."""

import re

import jax
import jax.numpy as jnp
import pytest

from dreamer.devices.phases import phase
from dreamer.devices.profiler import WARMUP, Profiler


@pytest.fixture(scope="module")
def program():
    """A compiled program with a loop in two phases."""

    def step(x, _):
        with phase("filtering"):
            x = jnp.sin(x) @ x
        with phase("heads"):
            return jnp.cos(x) @ x, None

    def work(x):
        return jax.lax.scan(step, x, None, 8)[0]

    return jax.jit(work).lower(jnp.ones((64, 64))).compile()


def test_as_many_updates_as_requested_are_recorded_once(tmp_path, program):
    said: list[str] = []
    results: list[jax.Array] = []
    profiler = Profiler(tmp_path, 2, wait=lambda: jax.block_until_ready(results), say=said.append, program=program)
    for updates in range(WARMUP + 6):
        results.append(program(jnp.ones((64, 64))))
        profiler.turn(updates)
        assert bool(said) == (updates >= WARMUP + 2)
    profiler.close(WARMUP + 6)
    (message,) = said
    assert "2 updates" in message
    assert "perfetto" in message
    assert len(list(tmp_path.rglob("perfetto_trace.json.gz"))) == 1
    table = (tmp_path / "profile" / "summary.txt").read_text()
    assert "in jit_work" in table
    shares = {name: float(share) for share, name in re.findall(r"(\S+)%  (\w+)$", table, re.MULTILINE)}
    assert set(shares) >= {"filtering", "heads"}
    assert shares["filtering"] + shares["heads"] > 90


def test_a_run_that_ends_early_keeps_its_trace(tmp_path, program):
    said: list[str] = []
    profiler = Profiler(tmp_path, 100, wait=lambda: None, say=said.append, program=program)
    profiler.turn(WARMUP)
    jax.block_until_ready(jax.jit(jnp.sin)(jnp.ones(3)))
    profiler.close(WARMUP + 1)
    assert "1 updates" in said[0]
    assert (tmp_path / "profile" / "summary.txt").exists()


def test_nothing_is_recorded_by_default(tmp_path, program):
    profiler = Profiler(tmp_path, 0, wait=lambda: None, say=print, program=program)
    for updates in range(WARMUP + 3):
        profiler.turn(updates)
    profiler.close(WARMUP + 3)
    assert not list(tmp_path.iterdir())
