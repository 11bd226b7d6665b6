"""A run that was interrupted and resumed is, bit for bit, the run that never stopped."""

import pytest

from dreamer import checkpoints
from dreamer import train as training
from dreamer.logs.logger import read_metrics
from dreamer.replay import read_contents
from tests.small import run_config, same_tree

pytestmark = pytest.mark.slow

CLOCK = ("seconds", "rate/env_steps", "rate/updates", "eta_seconds", "memory_bytes", "bottleneck")
"""Metrics that tell the time."""


def train(logdir, env_steps, *overrides):
    config = run_config(logdir, "run.eval_episodes=0", *overrides, f"run.env_steps={env_steps}")
    return training.train(None, config)


def kept(logdir):
    """All that a checkpoint and the metrics hold, without times and without what tells of resuming."""
    saved = checkpoints.load(logdir, with_replay=True)
    assert saved.replay is not None
    meta = {key: value for key, value in saved.meta.items() if key not in ("config", "seconds", "resumes", "replay")}
    # How often it was saved tells of resuming, too.
    rest = {key: value for key, value in saved.replay.items() if key not in ("fields", "generation")}
    fields = saved.replay["fields"] | read_contents(logdir / "replay" / "0", saved.replay)
    lines = [line for line in read_metrics(logdir / "metrics.jsonl") if "save/seconds" not in line]
    lines = [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]
    return saved.state, fields, meta, rest, lines


@pytest.mark.parametrize(
    "overrides",
    [
        ("task=gym_CartPole-v1",),
        ("task=gym_CartPole-v1", "env.workers=async", "env.per_worker=2", "env.count=3"),
        ("task=probe_memory", "nets.dtype=bfloat16"),
        ("task=jax_catch",),
        ("task=dmc_reacher_easy", "env.repeat=2"),
    ],
    ids=lambda overrides: "-".join(overrides[:2]),
)
def test_interrupted_and_resumed_is_straight(tmp_path, overrides, capsys):
    train(tmp_path / "straight", 90, *overrides)
    # Once before anything was learned, and once in the middle of learning and of an episode.
    for env_steps in (5, 47, 90):
        train(tmp_path / "twice", env_steps, *overrides)
    said = capsys.readouterr().err
    assert said.count("Resumed exactly") == 2, said
    (state, fields, *values), (state_, fields_, *values_) = kept(tmp_path / "straight"), kept(tmp_path / "twice")
    assert same_tree(state, state_)
    assert fields.keys() == fields_.keys() and same_tree(fields, fields_)
    assert "driver/arrays" in fields and any(name.startswith("pending/") for name in fields)
    assert values == values_
    assert values[0]["learner"]["updates"] > 5 and len(values[2]) > 20
