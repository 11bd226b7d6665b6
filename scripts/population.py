"""What members of a population cost: ``python scripts/population.py [--members 1 2 4 8 16] [--write]``.

Runs the device loop for populations of several sizes, each in a separate process, and times it from outside, after
compilation: with the updates of the preset's train ratio, and without any, which gives the speed of environments and
policy alone. Rates count all members together. ``--write`` writes the table to ``docs/results/population.md``.
"""

import argparse
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import numpy as np

from dreamer import config as configs
from dreamer.config.population import members
from dreamer.devices.flops import matmul_ceiling, program_gflop
from dreamer.devices.huge_pages import restart_with_huge_pages
from dreamer.devices.member_axis import show_cores
from dreamer.envs.native import native_env
from dreamer.replay import rows_until_ready
from dreamer.training.device_program import DeviceLoop, LoopState, next_batch
from dreamer.training.device_window import WINDOW
from dreamer.types import Batch, TrainState

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/results/population.md"


def measure(preset: str, overrides: list[str], count: int, seconds: float) -> dict:
    """All figures of a population of ``count``; each rate is that of a window of about ``seconds``."""
    config = configs.load([preset], [*overrides, f"population={count}", "logdir=none"])
    loop, state, compiled = start(config)
    state, acting = rate(loop, state, updates_due(config, 0), seconds)
    _, learning = rate(loop, state, updates_due(config, config.run.train_ratio), seconds)
    per_turn = updates_per_turn(config, config.run.train_ratio)
    ceiling = matmul_ceiling(config.nets.dtype)
    gflop = gflop_of_update(config, loop)
    replay, other = loop.required_bytes()
    return {
        "members": count,
        "compile_s": compiled,
        "acting_steps_per_s": count * config.env.count * acting,
        "steps_per_s": count * config.env.count * learning,
        "updates_per_s": count * per_turn * learning,
        "fraction_of_ceiling": count * per_turn * learning * gflop / ceiling,
        "replay_gb": replay / 1e9,
        "networks_gb": other / 1e9,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "device": jax.devices()[0].device_kind,
    }


def start(config: configs.Config) -> tuple[DeviceLoop, LoopState, float]:
    """A population whose replay can be drawn from, and the seconds that its program took to compile."""
    show_cores(len(members(config)))
    loop = DeviceLoop(config, members(config), native_env(config))
    state = loop.begin()
    none = updates_due(config, 0)
    begin = time.perf_counter()
    state, _ = jax.block_until_ready(loop.run(state, none, 0))
    compiled = time.perf_counter() - begin
    ready = rows_until_ready(config.replay, config.env.count)
    state, _ = loop.run(state, none, min(ready, WINDOW))
    return loop, state, compiled


def updates_per_turn(config: configs.Config, ratio: float) -> float:
    """Updates of each member in a turn, in the long run."""
    return config.env.count * ratio / (config.replay.batch_size * config.replay.batch_length)


def updates_due(config: configs.Config, ratio: float) -> np.ndarray:
    """Updates in each turn of a window."""
    return np.diff(np.floor(updates_per_turn(config, ratio) * np.arange(WINDOW + 1))).astype(np.int32)


def gflop_of_update(config: configs.Config, loop: DeviceLoop) -> float:
    """GFLOP of one update of one member."""
    shapes = loop.shapes()
    own = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shapes.members)
    batch = jax.eval_shape(lambda own, cursor: next_batch(config, loop.layout, own, cursor), own, shapes.cursor)

    def update(state: TrainState, batch: Batch, key: jax.Array) -> Any:
        return loop.algorithm.update(state, batch, key, config)

    return program_gflop(update, own.train, batch, jax.random.key(0))


def rate(loop: DeviceLoop, state: LoopState, due: np.ndarray, seconds: float) -> tuple[LoopState, float]:
    """Turns per second of a window; windows grow until one takes ``seconds``, or has the most turns that it may."""
    turns = 4  # The first also warms up.
    while True:
        begin = time.perf_counter()
        state, _ = jax.block_until_ready(loop.run(state, due, turns))
        took = time.perf_counter() - begin
        if took >= seconds or turns == WINDOW:
            return state, turns / took
        turns = min(WINDOW, max(turns + 1, int(1.2 * turns * seconds / took)))


def hardware() -> str:
    """The processor, and the number of cores that may be used."""
    info = pathlib.Path("/proc/cpuinfo").read_text() if pathlib.Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else platform.processor()}"


def commit() -> str:
    """Short name of the commit, with a plus if files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def table(results: list[dict]) -> str:
    """The figures as Markdown."""
    first = results[0]
    lines = [
        "| members | env steps/s | updates/s | as a multiple of one member | of the ceiling "
        "| env steps/s without updates | compilation, s | peak memory, GB |",
        "|---:" * 8 + "|",
    ]
    lines += [
        f"| {r['members']} | {r['steps_per_s']:,.0f} | {r['updates_per_s']:.1f} "
        f"| {r['updates_per_s'] / first['updates_per_s']:.2f} | {r['fraction_of_ceiling']:.0%} "
        f"| {r['acting_steps_per_s']:,.0f} "
        f"| {r['compile_s']:.0f} | {r['peak_memory_gb']:.2f} |"
        for r in results
    ]
    return "\n".join(lines)


def page(results: list[dict], preset: str, command: str) -> str:
    """The page of results."""
    return f"""# Populations on one device

`{command}` at commit {commit()}, on {hardware()}, device {results[0]["device"]}, jax {jax.__version__}, Python
{platform.python_version()}, preset `{preset}`. Each row is one population in a separate process, timed after
compilation, with the updates of the preset's train ratio; rates count all members together. The ceiling is the product
of two 2048 x 2048 matrices in the same process.

{table(results)}

On a CPU, members are divided over the cores, and those on one core take turns; on an accelerator they share every
operation.
See [`../device_loop.md`](../device_loop.md).
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--preset", default="jax/cartpole")
    parser.add_argument("--seconds", type=float, default=20.0, help="time of each measurement, or a little more")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)}")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config, for example nets.units=256")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.preset, args.overrides, args.one, args.seconds)))
        return
    restart_with_huge_pages()  # As training does; the processes of the populations inherit them.
    results = []
    for count in args.members:
        print(f"measuring {count} member(s) ...", file=sys.stderr, flush=True)
        options = ["--one", str(count), "--preset", args.preset, "--seconds", str(args.seconds), *args.overrides]
        output = subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(output.stdout.splitlines()[-1]))
    text = page(results, args.preset, " ".join(["python", "scripts/population.py", *sys.argv[1:]]))
    print(text)
    if args.write:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
