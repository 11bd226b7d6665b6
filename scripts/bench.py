"""How fast is it here? ``make bench``, or ``python scripts/bench.py [--cases vector pixels] [--json FILE]``.

Measures, in one run on one machine: the ceiling of float32 matrix products, and for each case compile time, update
time (median after warm-up, random data), acting latency, replay sampling time and peak memory. Every case runs in a
separate process, so that its peak memory is not that of another. The update is also given as a fraction of the ceiling,
from the number of floating-point operations of its matrix products and convolutions.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from scaling import random_stored

from dreamer import config as configs
from dreamer.agent import Agent
from dreamer.algorithms.base import Memory
from dreamer.devices.flops import matmul_ceiling, program_gflop
from dreamer.devices.huge_pages import restart_with_huge_pages
from dreamer.replay import Layout, Replay
from dreamer.types import Batch, Space, Spaces, Step, TrainState

_VECTOR: tuple[Spaces, Spaces] = ({"vector": Space("vector", (24,))}, {"action": Space("continuous", (6,))})
_PIXELS: tuple[Spaces, Spaces] = ({"image": Space("image", (64, 64, 3))}, {"action": Space("discrete", (), 18)})

CASES: dict[str, tuple[str, tuple[Spaces, Spaces], float | None]] = {
    # name: (size, spaces, GFLOP of one update as counted in docs/results/bench.md; None: counted in the program)
    "vector": ("1m", _VECTOR, 29.0),
    "pixels": ("12m", _PIXELS, 1337.0),
    "pixels_50m": ("50m", _PIXELS, None),
    "pixels_200m": ("200m", _PIXELS, None),
}
DEFAULT_CASES = ["vector", "pixels"]
"""The others are for accelerators."""


def seconds(work: Callable[[], object], repeats: int, warmup: int = 2) -> np.ndarray:
    """Wall time of each of ``repeats`` calls, after ``warmup`` that do not count."""
    times = []
    for i in range(warmup + repeats):
        begin = time.perf_counter()
        jax.block_until_ready(work())
        if i >= warmup:
            times.append(time.perf_counter() - begin)
    return np.array(times)


def compile_seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Time to trace and compile a program, first with an empty cache on disk, then with the program in it."""
    times = []
    for _ in range(2):
        jax.clear_caches()
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    empty, cached = times
    return empty, cached


def random_values(space: Space, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Random host array of a space with leading axes ``shape``."""
    shape = (*shape, *space.shape)
    if space.kind == "image":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if space.kind == "discrete":
        return rng.integers(0, space.classes, shape, dtype=np.int32)
    return rng.uniform(-1, 1, shape).astype(np.float32)


def measure(name: str, repeats: int, dtype: str) -> dict:
    """All figures of one case."""
    size, (obs_spaces, action_spaces), published = CASES[name]
    envs = 16
    capacity = 16 * 400
    config = configs.load([f"size/{size}"], [f"nets.dtype={dtype}", f"replay.capacity={capacity}"])
    rng = np.random.default_rng(0)
    agent = Agent(config, obs_spaces, action_spaces)
    stored = agent.algorithm.stored
    replay = Replay(config.replay, envs, Layout.of(obs_spaces, action_spaces, stored), rng)
    flags = np.zeros(envs, bool)
    for row in range(capacity // envs):
        step = Step(
            obs={key: random_values(space, (envs,), rng) for key, space in obs_spaces.items()},
            reward=rng.normal(size=envs).astype(np.float32),
            is_first=flags | (row % 50 == 0),
            is_last=flags | (row % 50 == 49),
            is_terminal=flags,
            env_steps=np.ones(envs, np.int32),
        )
        action = {key: random_values(space, (envs,), rng) for key, space in action_spaces.items()}
        replay.add(step, action, random_stored(stored, (envs,), config.rssm.classes, rng))
    batch, _ = replay.sample()
    cold, cached = compile_seconds(lambda: agent.compile_update(batch))
    updates = seconds(lambda: agent.update(replay.sample()[0]), repeats)
    ceiling = matmul_ceiling(dtype)

    def update(state: TrainState, batch: Batch, key: jax.Array) -> Any:
        return agent.algorithm.update(state, batch, key, config)

    counted = program_gflop(update, agent.state, batch, jax.random.key(0))
    gflop = published or counted
    result = {
        "case": name,
        "size": size,
        "dtype": dtype,
        "parameters": agent.parameter_count,
        "device": jax.devices()[0].device_kind,
        "compile_s": cold,
        "compile_cached_s": cached,
        "update_ms": float(np.median(updates) * 1e3),
        "update_ms_range": [float(updates.min() * 1e3), float(updates.max() * 1e3)],
        "updates_timed": repeats,
        "gflop_per_update": gflop,
        "gflop_in_the_program": counted,
        "matmul_ceiling_gflops": ceiling,
        "fraction_of_ceiling": gflop / float(np.median(updates)) / ceiling,
        "sample_ms": float(np.median(seconds(replay.sample, 50)) * 1e3),
    }
    for count in (1, 16):
        obs = {key: random_values(space, (count,), rng) for key, space in obs_spaces.items()}
        state = agent.initial(count)
        first = np.zeros(count, bool)

        def act(obs: dict = obs, state: Memory = state, first: np.ndarray = first) -> object:
            return jax.device_get(agent.policy(state, obs, first)[0])

        result[f"act_{count}_ms"] = float(np.median(seconds(act, 100)) * 1e3)
    result["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return result


def table(results: list[dict]) -> str:
    """The figures as Markdown."""
    rows = {
        "parameters": lambda r: f"{r['parameters']:,}",
        "update, median ms (min to max)": lambda r: (
            f"{r['update_ms']:.0f} ({' to '.join(f'{ms:.0f}' for ms in r['update_ms_range'])})"
        ),
        "updates timed": lambda r: f"{r['updates_timed']}",
        "GFLOP of one update": lambda r: f"{r['gflop_per_update']:,.0f}",
        "GFLOP in the program": lambda r: f"{r['gflop_in_the_program']:,.0f}",
        "matmul ceiling, GFLOP/s": lambda r: f"{r['matmul_ceiling_gflops']:.0f}",
        "update, fraction of the ceiling": lambda r: f"{r['fraction_of_ceiling']:.0%}",
        "compiling the update, s": lambda r: f"{r['compile_s']:.1f}",
        "the same from the cache on disk, s": lambda r: f"{r['compile_cached_s']:.1f}",
        "acting, 1 environment, ms": lambda r: f"{r['act_1_ms']:.2f}",
        "acting, 16 environments, ms": lambda r: f"{r['act_16_ms']:.2f}",
        "sampling a batch, ms": lambda r: f"{r['sample_ms']:.2f}",
        "peak memory, GB": lambda r: f"{r['peak_memory_gb']:.2f}",
    }
    head = "| | " + " | ".join(f"size {r['size']}, {r['case']}, {r['dtype']}" for r in results) + " |"
    lines = [head, "|---" * (len(results) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(show(r) for r in results) + " |" for name, show in rows.items()]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=DEFAULT_CASES)
    parser.add_argument("--repeats", type=int, default=20, help="updates timed per case")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures here")
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.repeats, args.dtype)))
        return
    restart_with_huge_pages()  # As training does; the processes of the cases inherit them.
    results = []
    for case in args.cases:
        print(f"measuring {case} ...", file=sys.stderr, flush=True)
        options = ["--one", case, "--repeats", str(args.repeats), "--dtype", args.dtype]
        with tempfile.TemporaryDirectory() as cache:
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
            command = [sys.executable, __file__, *options]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        results.append(json.loads(output.stdout.splitlines()[-1]))
    print(f"{results[0]['device']}, {platform.machine()}, jax {jax.__version__}, batches of 16 x 64, horizon 15\n")
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
