"""What it costs to save replay and to open it again, by its size: ``python scripts/saving.py --gigabytes 0.1 1 10``.

Fills a replay of 64 x 64 images, saves it, then saves the additions and changes of some training, and opens it again as
a resumed run does, with the files in the system's cache and without (which needs root, to drop the cache). The numbers
are random, so nothing can be compressed on the way.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

from dreamer.config import ReplayConfig
from dreamer.replay import Layout, Replay
from dreamer.types import Space, Step
from dreamer.world_models.rssm import StoredLatent

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENVS = 16
SPACES = {"image": Space("image", (64, 64, 3))}, {"action": Space("discrete", (), 18)}
DETER, STOCH, CLASSES = 2048, 32, 16
"""Sizes of the latent of size 12m, kept in bfloat16."""


def make(directory: pathlib.Path, steps: int) -> Replay:
    """A replay for ``steps`` steps."""
    stored = StoredLatent(jax.ShapeDtypeStruct((DETER,), ml_dtypes.bfloat16), jax.ShapeDtypeStruct((STOCH,), np.uint8))
    config = ReplayConfig(capacity=steps, batch_size=16, batch_length=64)
    return Replay(config, ENVS, Layout.of(*SPACES, stored), np.random.default_rng(0), directory=directory)


def add(replay: Replay, rows: int, rng: np.random.Generator) -> None:
    """Add rows of random numbers."""
    flags = np.zeros(ENVS, bool)
    images = rng.integers(0, 256, (64, ENVS, *SPACES[0]["image"].shape), np.uint8)
    deter = rng.integers(0, 2**14, (64, ENVS, DETER), np.uint16).view(ml_dtypes.bfloat16)
    stoch = rng.integers(0, CLASSES, (64, ENVS, STOCH), np.uint8)
    for row in range(rows):
        which = row % 64
        images[which, :, 0, 0, 0] += 1
        step = Step({"image": images[which]}, flags.astype(np.float32), flags, flags, flags, flags.astype(np.int32))
        replay.add(step, {"action": np.zeros(ENVS, np.int32)}, StoredLatent(deter[which], stoch[which]))


def train(replay: Replay, updates: int, rng: np.random.Generator) -> None:
    """Write latents back, as this many updates do."""
    for _ in range(updates):
        batch, ticket = replay.sample()
        shape = batch.reward.shape
        deter = rng.integers(0, 2**14, (*shape, DETER), np.uint16).view(batch.stored.deter.dtype)
        replay.update_stored(ticket, StoredLatent(deter, rng.integers(0, CLASSES, (*shape, STOCH), np.uint8)))


class Save(NamedTuple):
    """A saved replay, and the seconds that saving took."""

    state: dict[str, Any]
    """Restores the replay from its files."""
    held: float
    """Seconds in the loop."""
    background: float


def save(replay: Replay) -> Save:
    """Save as a checkpoint does."""
    start = time.perf_counter()
    state = replay.commit()
    held = time.perf_counter() - start
    replay.flush()
    replay.confirm()
    return Save(state, held, time.perf_counter() - start - held)


def reopen(directory: pathlib.Path, steps: int, state: dict[str, Any]) -> float:
    """Seconds until a resumed run can sample again."""
    replay = make(directory, steps)
    start = time.perf_counter()
    damage = replay.restore(state)
    if damage:
        raise SystemExit(f"The saved replay was not restored: {damage}")
    return time.perf_counter() - start


def measure(gigabytes: float, directory: pathlib.Path, rows_more: int, updates: int) -> dict[str, Any]:
    """All figures of one size."""
    rng = np.random.default_rng(0)
    size = make(directory, 10**6).disk_bytes / 10**6
    rows = int(gigabytes * 1e9 / size) // ENVS
    steps = (rows + 3 * rows_more) * ENVS
    replay = make(directory, steps)
    start = time.perf_counter()
    add(replay, rows, rng)
    fill_seconds = time.perf_counter() - start
    first = save(replay)
    # There are two copies of the latents: the second save still makes files; the third is like all that follow.
    for _ in range(2):
        add(replay, rows_more, rng)
        train(replay, updates, rng)
        later = save(replay)
    del replay
    warm = reopen(directory, steps, later.state)
    cold = None
    if os.geteuid() == 0:
        os.sync()
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
        cold = reopen(directory, steps, later.state)
    return {
        "gigabytes_on_disk": round(sum(f.stat().st_blocks * 512 for f in directory.iterdir()) / 1e9, 2),
        "steps": rows * ENVS,
        "bytes_per_step": round(size),
        "fill_seconds": round(fill_seconds, 1),
        "first_save_held_seconds": round(first.held, 2),
        "first_save_background_seconds": round(first.background, 2),
        "steps_more": rows_more * ENVS,
        "updates_more": updates,
        "next_save_held_seconds": round(later.held, 2),
        "next_save_background_seconds": round(later.background, 2),
        "restart_seconds_cached": round(warm, 2),
        "restart_seconds_from_disk": None if cold is None else round(cold, 2),
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.1, 1, 10])
    parser.add_argument("--rows-more", type=int, default=300, help="rows of 16 steps between two saves")
    parser.add_argument("--updates-more", type=int, default=150, help="updates between two saves")
    parser.add_argument("--directory", help="directory of the files (default: the directory for temporary files)")
    parser.add_argument("--write", metavar="FILE", help="write the result to this JSON file")
    args = parser.parse_args()
    results = []
    for gigabytes in args.gigabytes:
        directory = pathlib.Path(tempfile.mkdtemp(dir=args.directory))
        try:
            results.append(measure(gigabytes, directory / "replay", args.rows_more, args.updates_more))
        finally:
            shutil.rmtree(directory)
        print(json.dumps(results[-1], indent=1), flush=True)
    if args.write:
        commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()
        command = "python scripts/saving.py " + " ".join(sys.argv[1:])
        pathlib.Path(args.write).write_text(
            json.dumps({"command": command, "commit": commit, "sizes": results}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
