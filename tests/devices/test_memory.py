"""The memory of a run is known before it begins, and does not grow while it trains."""

import ctypes
import gc
import platform
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from dreamer import train as training
from dreamer.checkpoints import exists
from dreamer.config import ConfigError
from dreamer.devices.memory import (
    HostMemory,
    MemoryPlan,
    compile_program,
    give_back,
    lower_program,
    tree_bytes,
    working_bytes,
)
from dreamer.envs.suites.probes import Action
from dreamer.replay import Layout, Replay, ReplayMemoryError
from tests.small import ACTION_SPACES, OBS_SPACES, latent_spec, run_config, small_batch, small_config


def test_a_program_takes_memory_for_its_results_and_its_temporary_arrays():
    def program(donated, kept):
        # The sort needs the whole product at once; the first result takes the place of the donated argument.
        return donated + 1, jnp.sort(kept @ kept, axis=0)[:10]

    square = jax.ShapeDtypeStruct((500, 500), jnp.float32)
    donating = jax.jit(program, donate_argnums=0).lower(square, square).compile()
    product = 500 * 500 * 4
    ten_rows = 10 * 500 * 4
    assert product + ten_rows <= working_bytes(donating) <= 2 * product + ten_rows + 4096
    twice = jax.jit(program).lower(square, square).compile()
    assert working_bytes(twice) == working_bytes(donating) + product


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep freed memory in other ways")
def test_freed_memory_goes_back_to_the_system():
    libc = ctypes.CDLL(None)
    process = psutil.Process()
    libc.malloc.restype = ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    give_back()  # Otherwise the pieces would come from what earlier tests freed.
    before = process.memory_info().rss
    # Pieces too small to be mapped one by one, and a last one that keeps the C library from shrinking the heap.
    pieces = [libc.malloc(50_000) for _ in range(4_000)]
    last = libc.malloc(50_000)
    for piece in pieces:
        ctypes.memset(piece, 1, 50_000)
    for piece in pieces:
        libc.free(piece)
    kept = process.memory_info().rss - before
    give_back()
    assert kept > 150e6 > 3 * (process.memory_info().rss - before)
    libc.free(last)


def test_a_compiled_program_computes_the_same():
    double = compile_program(jax.jit(lambda x: 2 * x), jnp.zeros(3))
    np.testing.assert_array_equal(double(jnp.arange(3.0)), [0, 2, 4])


def test_a_program_is_traced_in_the_thread_that_asks_and_compiled_in_any():
    """JAX's options within a ``with`` hold in one thread; elsewhere in the tests, such a sum is refused."""
    threads = []

    def program(x, y):
        threads.append(threading.get_ident())
        return x + y

    with ThreadPoolExecutor(1) as pool:
        with jax.numpy_rank_promotion("allow"):
            finish = lower_program(jax.jit(program), jnp.zeros((2, 3)), jnp.zeros(3))
        total = pool.submit(finish).result()
    assert threads == [threading.get_ident()]
    np.testing.assert_array_equal(total(jnp.ones((2, 3)), jnp.ones(3)), np.full((2, 3), 2))


def test_nothing_is_collected_while_a_program_is_traced():
    seen = []

    def program(x, fail):
        seen.append(gc.isenabled())
        if fail:
            raise ValueError("no")
        return x

    jitted = jax.jit(program, static_argnames="fail")
    compile_program(jitted, jnp.zeros(3), fail=False)
    assert gc.isenabled()
    with pytest.raises(ValueError, match="no"):
        compile_program(jitted, jnp.zeros(3), fail=True)
    assert gc.isenabled()
    assert seen == [False, False]


def test_bytes_of_shapes_are_those_of_arrays():
    tree = {"a": np.zeros((3, 5), np.float32), "b": (np.zeros(7, np.uint8), np.zeros((), np.int64))}
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    assert tree_bytes(tree) == tree_bytes(shapes) == 60 + 7 + 8


@pytest.mark.parametrize(
    ("replay", "claim", "remedy"),
    [(2 * 10**9, " and 2.00 GB for a full replay", ", or replay.capacity,"), (0, "", "batch_length, or")],
)
def test_a_plan_that_does_not_fit_says_what_is_missing(replay, claim, remedy):
    MemoryPlan(10**9, replay, 10**9 + replay).check(16, 64)
    with pytest.raises(
        ConfigError, match=rf"batches of 16 x 64 needs 1\.00 GB .*state{claim}; .* 0\.25 GB are missing.*{remedy}"
    ):
        MemoryPlan(10**9, replay, 750 * 10**6 + replay).check(16, 64)


def test_a_blank_batch_has_the_shapes_of_a_sampled_one(rng):
    config = small_config().replay
    latent = latent_spec(16, 3, 4, np.float32)
    replay = Replay(config, 2, Layout.of(OBS_SPACES, ACTION_SPACES, latent), rng)

    def described(batch):
        return jax.tree.map(lambda x: (x.shape, x.dtype), batch)

    assert described(replay.blank_batch()) == described(small_batch())
    assert not any(x.any() for x in jax.tree.leaves(replay.blank_batch()))


def test_replay_claims_memory_step_by_step(rng):
    replay = Replay(small_config().replay, 2, Layout.of({}, {}, latent_spec(16, 3, 4)), rng)
    assert replay.unclaimed_bytes == replay.memory_bytes > 0
    replay._total = 50
    assert replay.unclaimed_bytes == replay.memory_bytes * 3 // 4
    replay._total = 5000
    assert replay.unclaimed_bytes == 0


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["host", "device"])
def test_a_run_without_memory_for_its_update_does_not_start(tmp_path, monkeypatch, loop):
    module = "dreamer.training.host" if loop == "host" else "dreamer.training.device"
    config = run_config(tmp_path, "task=jax_action", f"run.loop={loop}", "run.eval_episodes=0")
    with monkeypatch.context() as scarce:
        first = [10**9] if loop == "device" else []  # The device loop also checks before it makes its first arrays.
        scarce.setattr(f"{module}.available_bytes", lambda: first.pop() if first else 1000)
        with pytest.raises(ConfigError, match=r"batches of 2 x 4 needs .* 0\.00 GB are available"):
            training.train(None, config, quiet=True)
    assert not exists(tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert not training.train(None, config, quiet=True).interrupted


@pytest.mark.slow
def test_replay_has_to_fit_into_what_a_container_allows(tmp_path, monkeypatch):
    monkeypatch.setattr("dreamer.training.host.host_memory", lambda: HostMemory(2000, 1000, limited=True))
    with pytest.raises(ReplayMemoryError, match=r"replay.capacity=400 needs .* 0\.00 GB are available"):
        training.train(None, run_config(tmp_path, "run.eval_episodes=0"), quiet=True)
    assert not exists(tmp_path)


class Watching(Action):
    """The probe, which notes at every step how many arrays, files and threads the process holds."""

    notes: tuple[list[int], list[int], list[int]]

    def step(self, action):
        process = psutil.Process()
        held = len(jax.live_arrays()), process.num_fds(), process.num_threads()
        for note, number in zip(self.notes, held, strict=True):
            note.append(number)
        return super().step(action)


@pytest.mark.slow
def test_a_run_holds_no_more_arrays_files_and_threads_as_it_goes_on(tmp_path):
    Watching.notes = [], [], []
    gc.collect()
    training.train(Watching, run_config(tmp_path, "run.env_steps=240", "run.eval_episodes=0"), quiet=True)
    for note in Watching.notes:
        third = len(note) // 3
        growth = max(note[2 * third :]) - max(note[third : 2 * third])
        assert third > 30
        # Some arrays come and go with the computation of the moment.
        assert growth < third / 10
