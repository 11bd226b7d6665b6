"""The same command in two processes gives the same bits, on a CPU."""

import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dreamer import checkpoints
from tests.small import OVERRIDES

ROOT = pathlib.Path(__file__).resolve().parents[2]


def digest(logdir):
    """A hash of everything in a checkpoint: training state, acting networks, and replay."""
    saved = checkpoints.load(logdir, with_replay=True)
    assert saved.replay is not None
    found = hashlib.sha256()
    for name, value in sorted({**saved.state, **saved.replay["fields"]}.items()):
        array = np.ascontiguousarray(value)
        found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest(), int(saved.state["step"])


@pytest.mark.slow
def test_two_processes_with_the_same_seed_give_the_same_bits(tmp_path):
    run = "run={env_steps: 60, train_ratio: 4, eval_episodes: 0}"
    found = []
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        words = ["--config", "gym", *OVERRIDES, "task=probe_action", run, f"seed={seed}", f"logdir={tmp_path / name}"]
        subprocess.run(
            [sys.executable, "-m", "dreamer.train", *words], cwd=ROOT, env=os.environ, check=True, timeout=600
        )
        found.append(digest(tmp_path / name))
    assert found[0] == found[1] and found[0][1] > 10
    assert found[0][0] != found[2][0]
