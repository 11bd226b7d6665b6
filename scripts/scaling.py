"""What do more devices bring? ``python scripts/scaling.py [--size 12m] [--case pixels] [--weak] [key=value ...]``.

Times the update, with its data already in memory, on 1, 2, 4, ... devices of this machine (numbers that divide the
batch), and prints updates per second, the speed relative to one device, and the efficiency: that speed divided by the
number of devices. By default, all devices share one batch of the size in the config (strong scaling); with ``--weak``
the batch grows with the devices, and the speed is counted in sequences. Sets of devices are timed one after another in
one process, each after its compilation and two updates that do not count. The cores of a CPU count as devices.
"""

import argparse
import dataclasses
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from dreamer import algorithms
from dreamer import config as configs
from dreamer.agent import Agent
from dreamer.config import Config
from dreamer.devices.member_axis import show_cores
from dreamer.devices.placement import expectation, placement
from dreamer.types import Batch, Space, Spaces

CASES: dict[str, tuple[Spaces, Spaces]] = {
    "vector": ({"vector": Space("vector", (24,))}, {"action": Space("continuous", (6,))}),
    "pixels": ({"image": Space("image", (64, 64, 3))}, {"action": Space("discrete", (), 18)}),
}


def random_stored(specs: Any, lead: tuple[int, ...], classes: int, rng: np.random.Generator) -> Any:
    """Random numbers in place of what an algorithm stores, ``[*lead, ...]``; indices are below ``classes``."""

    def draw(spec: Any) -> np.ndarray:
        shape = (*lead, *spec.shape)
        if np.issubdtype(spec.dtype, np.integer):
            return rng.integers(0, classes, shape).astype(spec.dtype)
        return rng.normal(size=shape).astype(spec.dtype)

    return jax.tree.map(draw, specs)


def random_batch(config: Config, obs_spaces: Spaces, action_spaces: Spaces) -> Batch:
    """A batch of noise in the shapes of the config."""
    rng = np.random.default_rng(0)
    shape = (config.replay.batch_size, config.replay.batch_length)

    def values(space: Space) -> np.ndarray:
        if space.kind == "image":
            return rng.integers(0, 256, (*shape, *space.shape), dtype=np.uint8)
        if space.kind == "discrete":
            return rng.integers(0, space.classes, (*shape, *space.shape), dtype=np.int32)
        return rng.uniform(-1, 1, (*shape, *space.shape)).astype(np.float32)

    stored = algorithms.make(config, obs_spaces, action_spaces).stored
    return Batch(
        obs={key: values(space) for key, space in obs_spaces.items()},
        prev_action={key: values(space) for key, space in action_spaces.items()},
        reward=rng.normal(size=shape).astype(np.float32),
        is_first=rng.random(shape) < 0.02,
        is_last=rng.random(shape) < 0.02,
        is_terminal=rng.random(shape) < 0.01,
        stored=random_stored(stored, shape[:1], config.rssm.classes, rng),
    )


def measure(config: Config, case: str, updates: int) -> dict:
    """Time updates on the devices that the config names."""
    obs_spaces, action_spaces = CASES[case]
    where = placement(config)
    agent = Agent(config, obs_spaces, action_spaces, where)
    batch = random_batch(config, obs_spaces, action_spaces)
    begin = time.perf_counter()
    jax.block_until_ready(agent.update(batch))
    first = time.perf_counter() - begin
    times = []
    for _ in range(2 + updates):
        begin = time.perf_counter()
        jax.block_until_ready(agent.update(batch))
        times.append(time.perf_counter() - begin)
    return {
        "devices": where.count,
        "sequences": config.replay.batch_size,
        "first_update_s": first,
        "update_ms": float(np.median(times[2:]) * 1e3),
        "expectation": expectation(config, agent.parameter_count, where),
    }


def table(results: list[dict]) -> str:
    """The figures as Markdown; speed is counted in sequences per second, relative to the first row."""
    lines = [
        "| devices | sequences | updates/s | ms per update | speed | efficiency |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    one = results[0]["sequences"] / results[0]["update_ms"]
    for r in results:
        speed = r["sequences"] / r["update_ms"] / one
        efficiency = speed * results[0]["devices"] / r["devices"]
        lines.append(
            f"| {r['devices']} | {r['sequences']} | {1e3 / r['update_ms']:.2f} | {r['update_ms']:.1f} | {speed:.2f} | "
            f"{efficiency:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="12m", help="a preset of configs/size")
    parser.add_argument("--case", choices=CASES, default="pixels")
    parser.add_argument("--updates", type=int, default=20, help="updates timed for each number of devices")
    parser.add_argument("--weak", action="store_true", help="give each device a whole batch")
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures here")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config keys, for example nets.dtype=float32")
    args = parser.parse_args()
    config = configs.load([f"size/{args.size}"], args.overrides)
    rows = config.replay.batch_size
    show_cores(rows)
    available = jax.local_device_count()
    # n & (n - 1) clears the lowest bit of n: 0 for powers of two.
    counts = [n for n in range(1, available + 1) if (n & (n - 1)) == 0 and (args.weak or rows % n == 0)]
    results = []
    for count in counts:
        replay = dataclasses.replace(config.replay, batch_size=rows * (count if args.weak else 1))
        results.append(measure(dataclasses.replace(config, devices=str(count), replay=replay), args.case, args.updates))
    kind = jax.local_devices()[0].device_kind
    print(f"{kind}, jax {jax.__version__}, size {args.size}, {args.case}, {config.nets.dtype}\n")
    print(table(results))
    if results[-1]["expectation"]:
        print(f"\n{results[-1]['expectation']}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
