"""A run that was interrupted and resumed is, bit for bit, the run that never stopped."""

import gc
import os
import shutil

import pytest

from dreamer import checkpoints
from dreamer import train as training
from dreamer.compare import curves
from dreamer.envs.suites.probes import Action
from dreamer.logs.logger import RESUMED, read_metrics, without_repeats
from dreamer.replay import read_contents
from dreamer.training.directory import LogdirGone
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
    about = ("config", "seconds", "resumes", "replay", "metrics_bytes")
    meta = {key: value for key, value in saved.meta.items() if key not in about}
    # How often it was saved tells of resuming, too.
    rest = {key: value for key, value in saved.replay.items() if key not in ("fields", "generation")}
    fields = saved.replay["fields"] | read_contents(logdir / "replay" / "0", saved.replay)
    own = ("save/seconds", RESUMED)
    lines = [line for line in read_metrics(logdir / "metrics.jsonl") if not any(name in line for name in own)]
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


POPULATION = ("task=jax_action", "run.loop=device", "population=2")


@pytest.mark.parametrize(
    "overrides", [(), ("run.log_every=1000",), POPULATION], ids=["host", "few lines", "population"]
)
def test_episodes_of_a_killed_run_count_once(tmp_path, overrides):
    straight = train(tmp_path / "straight", 60, *overrides)
    killed = tmp_path / "killed"
    train(killed, 20, *overrides)
    saved = shutil.copytree(killed, tmp_path / "saved")
    train(killed, 40, *overrides)
    # A process that is killed after the checkpoint at 20 leaves its lines up to 40, and nothing else.
    for path in killed.rglob("metrics.jsonl"):
        shutil.copy(path, saved / path.relative_to(killed))
    shutil.rmtree(killed)
    saved.rename(killed)
    train(killed, 60, *overrides)
    for one, two in zip(curves.read(straight.logdir), curves.read(killed), strict=True):
        assert one.frames.tolist() == two.frames.tolist()
        assert one.scores.tolist() == two.scores.tolist()
    members = [line for line in lines_of(killed) if "episode/score" in line]
    assert len(members) == len([line for line in lines_of(straight.logdir) if "episode/score" in line]) > 20


def lines_of(logdir):
    return without_repeats(read_metrics(logdir / "metrics.jsonl"))


def test_rows_of_one_object_begin_new_episodes_and_lose_nothing_else(tmp_path, capsys):
    overrides = "task=vec_CartPole-v1", "run.eval_episodes=2"
    first = train(tmp_path, 20, *overrides)
    assert first.evaluation is not None and len(first.evaluation.scores) == 2
    train(tmp_path, 40, *overrides)
    said = capsys.readouterr().err
    assert (
        "New episodes begin, open ones count as truncated, and all else is exact. vec_CartPole-v1 steps 2 rows" in said
    )
    counters = checkpoints.load(tmp_path).meta
    assert counters["env_steps"] == counters["agent_steps"] >= 40


@pytest.mark.parametrize(("keep", "sentence"), [(0, "is gone, with"), (40, "has 40 of the")])
def test_a_resumed_run_says_that_its_history_is_gone(tmp_path, capsys, keep, sentence):
    train(tmp_path, 20)
    path = tmp_path / "metrics.jsonl"
    os.truncate(path, keep)
    if not keep:
        path.unlink()
    train(tmp_path, 24)
    assert f"metrics.jsonl {sentence}" in (said := capsys.readouterr().err)
    train(tmp_path, 28)
    assert "the run had written by then" in said and "the run had written by then" not in capsys.readouterr().err


# Writers of orbax whose files vanish may outlive their event loops, and complain when they are collected: here, not in
# the test that comes next.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fate", ["removed", "replaced"])
@pytest.mark.parametrize(
    "run", [("run.env_steps=2000", "run.save_every=0"), ("run.save_every=1000",)], ids=["on the way", "at the end"]
)
def test_a_log_directory_that_goes_away_ends_the_run_at_its_next_save(tmp_path, capsys, fate, run):
    logdir = tmp_path / "run"
    taken: list[None] = []

    class Taking(Action):
        """The probe, at whose twentieth step the log directory is moved away."""

        def step(self, action):
            taken.append(None)
            if len(taken) == 20:
                logdir.rename(tmp_path / "elsewhere")
                if fate == "replaced":
                    logdir.mkdir()
                    (logdir / ".lock").write_text("1")
            return super().step(action)

    gone, replaced = "is gone (No such file or directory)", "was replaced by another directory"
    with pytest.raises(LogdirGone) as error:
        training.train(Taking, run_config(logdir, "run.eval_episodes=0", "env.rehearse=false", *run))
    # A save that looks between the two steps of a replacement finds nothing there.
    said = [f"logdir={logdir} {what} while the run was writing to it" in str(error.value) for what in (gone, replaced)]
    assert said == [True, False] or (fate == "replaced" and said == [False, True])
    assert len(taken) < 1000
    # A save that was under way may have begun in the new directory, but nothing of it stays.
    left = [path.relative_to(logdir).as_posix() for path in logdir.rglob("*")]
    assert sorted({*left} - {"checkpoints"}) == ([] if fate == "removed" else [".lock"])
    assert "line(s) of metrics could not be written and are lost" in capsys.readouterr().err
    gc.collect()


@pytest.mark.parametrize("loop", [(), ("task=jax_action", "run.loop=device")], ids=["host", "device"])
def test_a_budget_without_an_update_is_said_at_the_start_and_at_the_end(tmp_path, capsys, loop):
    begin, end = "run.env_steps=4 ends this run before its first update", "No update was made"
    train(tmp_path / "short", 4, *loop)
    said = capsys.readouterr().err
    assert said.index(begin) < said.index(end)
    train(tmp_path / "long", 60, *loop)
    said = capsys.readouterr().err
    assert "before its first update" not in said and end not in said
