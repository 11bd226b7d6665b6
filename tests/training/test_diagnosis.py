"""Diagnosing while a run trains: when it happens, and that no number of training tells of it."""

import numpy as np
import pytest

from dreamer import checkpoints
from dreamer import train as training
from dreamer.logs.logger import read_metrics
from dreamer.replay import read_contents
from dreamer.training.run import DIAGNOSE_EVERY
from tests.small import run_config, same_tree

CLOCK = ("seconds", "rate/env_steps", "rate/updates", "eta_seconds", "memory_bytes", "bottleneck")
"""Metrics that tell the time."""

LOOPS = {
    "host": ("task=probe_memory",),
    "two devices": ("task=probe_action", "devices=2"),
    "device": ("task=jax_action", "run.loop=device"),
    "algorithm": ("task=probe_action", "algorithm=tests.plugins.toy_algorithm:q_learning"),
    "parts": ("task=probe_action", "world_model.kind=tests.plugins.toy_model:ToyModel"),
}


def train(logdir, name, *overrides):
    return training.train(None, run_config(logdir, "run.eval_episodes=0", *LOOPS[name], *overrides), quiet=True)


def lines_of(logdir):
    lines = [line for line in read_metrics(logdir / "metrics.jsonl") if "save/seconds" not in line]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in lines]


def arrays_of(logdir):
    """All arrays of a checkpoint, replay included."""
    saved = checkpoints.load(logdir, with_replay=True)
    assert saved.replay is not None
    directory = logdir / "replay" / "0"
    return {
        **saved.state,
        **saved.replay["fields"],
        **(read_contents(directory, saved.replay) if directory.exists() else {}),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", LOOPS)
def test_training_is_bit_for_bit_the_same_with_and_without(tmp_path, name):
    for diagnose in ("true", "false"):
        train(tmp_path / diagnose, name, f"logger.diagnose={diagnose}")
    found, plain = (arrays_of(tmp_path / diagnose) for diagnose in ("true", "false"))
    assert found.keys() == plain.keys() and same_tree(found, plain)
    lines = lines_of(tmp_path / "true")
    diagnosed = [number for number, line in enumerate(lines) if any(key.startswith("diagnose/") for key in line)]
    if name != "device":  # Its windows, and so its lines, are as long as the clock says.
        bare = [{key: value for key, value in line.items() if not key.startswith("diagnose/")} for line in lines]
        assert bare == lines_of(tmp_path / "false")
    if name == "algorithm":  # It has no diagnosis.
        assert not diagnosed
        return
    ticks = [number for number, line in enumerate(lines) if "rate/env_steps" in read_keys(tmp_path / "true", number)]
    learning = [number for number in ticks if lines[number]["updates"]]
    assert diagnosed == learning[::DIAGNOSE_EVERY] and diagnosed
    names = {key for key in lines[diagnosed[0]] if key.startswith("diagnose/")}
    assert {"diagnose/reward_unexplained", "diagnose/reward_unexplained_by_step"} <= names
    assert ("diagnose/deter_std" in names) == (name != "parts") == ("diagnose/gradient/reward/rssm" in names)
    for number in diagnosed:
        assert all(np.isfinite(lines[number][key]) for key in names)


def read_keys(logdir, number):
    """Names of all metrics of a line that is not about a save."""
    lines = [line for line in read_metrics(logdir / "metrics.jsonl") if "save/seconds" not in line]
    return lines[number].keys()


@pytest.mark.slow
def test_a_diagnosed_run_resumes_exactly(tmp_path):
    train(tmp_path / "straight", "host", "logger.diagnose=true")
    for env_steps in (5, 37, 60):
        train(tmp_path / "twice", "host", "logger.diagnose=true", f"run.env_steps={env_steps}")
    one, two = (arrays_of(tmp_path / name) for name in ("straight", "twice"))
    assert one.keys() == two.keys() and same_tree(one, two)


@pytest.mark.slow
def test_only_the_first_member_of_a_population_is_diagnosed(tmp_path):
    train(tmp_path / "run", "device", "population=2", "logger.diagnose=true")
    with_diagnosis = {
        path.parent.name: any("diagnose/deter_std" in line for line in read_metrics(path))
        for path in (tmp_path / "run").glob("**/metrics.jsonl")
    }
    assert with_diagnosis == {"run": False, "seed_0": True, "seed_1": False}
