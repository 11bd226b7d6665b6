"""Pictures of a run: drawn in parallel to training, replaced atomically, and never a reason to stop."""

import json
import threading
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreamer import train as training
from dreamer.logs import watcher as watch
from dreamer.logs.logger import Logger, read_metrics
from dreamer.logs.plots import plot_training, series
from dreamer.logs.watcher import Prediction, Watcher, context_of
from dreamer.types import Batch, Space
from dreamer.world_models.rssm import StoredLatent
from tests.small import run_config

SPACES = {"image": Space("image", (8, 8, 3)), "vector": Space("vector", (2,))}
COUNTERS = {"env_steps": 5}


def prediction(steps=8, error=0.5):
    shape = (2, steps)
    zeros = np.zeros(shape, np.float32)
    at = np.broadcast_to(np.arange(steps), shape)
    first, last, terminal = at == 0, at == steps - 1, np.zeros(shape, bool)
    images = np.random.default_rng(0).integers(0, 256, (*shape, 8, 8, 3), np.uint8)
    obs: dict[str, Any] = {"image": images, "vector": np.zeros((*shape, 2), np.float32)}
    latent = StoredLatent(np.zeros((2, 3), np.float32), np.zeros((2, 1), np.uint8))
    batch = Batch(obs, {}, zeros, first, last, terminal, latent)
    guess: dict[str, Any] = {
        "image": np.full((*shape, 8, 8, 3), 0.5, np.float32),
        "vector": np.ones((*shape, 2), np.float32),
    }
    metrics: dict[str, Any] = {"report/open_loop/image": np.float32(error)}
    return Prediction(batch, context_of(steps), guess, metrics)


@pytest.fixture
def log(tmp_path):
    log = Logger(tmp_path, "test", 100)
    yield log
    log.close()


def watcher(tmp_path, every=1e-9):
    return Watcher(tmp_path, SPACES, "title", every)


def test_a_set_is_drawn_and_logged(tmp_path, log):
    log.write({"env_steps": 1, "episode/score": 2.0})
    watching = watcher(tmp_path)
    assert watching.due
    watching.start(prediction())
    assert not watching.due
    watching.collect(log, lambda: COUNTERS, wait=True)
    assert watching.due
    line = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert line.pop("pictures/seconds") > 0
    assert line == {"env_steps": 5, "report/open_loop/image": 0.5}
    pictures = tmp_path / "pictures"
    assert {path.name for path in pictures.iterdir()} == {"image.gif", "vector.png", "training.png"}
    with Image.open(pictures / "image.gif") as film:
        assert getattr(film, "n_frames", 1) == 8
    assert not (tmp_path / "pictures-new").exists()
    watching.close()


def test_the_loop_does_not_wait_for_a_drawing(tmp_path, log, monkeypatch):
    original = watch.plot_training
    go, over = threading.Event(), threading.Event()

    def draw(*args):
        go.wait(60)
        over.set()
        return original(*args)

    monkeypatch.setattr(watch, "plot_training", draw)
    watching = watcher(tmp_path)
    watching.start(prediction())
    watching.collect(log, lambda: COUNTERS)
    assert not over.is_set()
    assert not watching.due
    with pytest.raises(RuntimeError, match="still being drawn"):
        watching.start(prediction())
    go.set()
    watching.collect(log, lambda: COUNTERS, wait=True)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    watching.close()


def test_a_failure_to_draw_is_reported_and_the_next_set_is_tried(tmp_path, log, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    said: list[str] = []
    monkeypatch.setattr(log, "say", said.append)
    watching = watcher(tmp_path)
    with monkeypatch.context() as disk:
        disk.setattr(watch.dream_pictures, "write", full)
        watching.start(prediction())
        watching.collect(log, lambda: COUNTERS, wait=True)
    (message,) = said
    assert "could not be drawn ([Errno 28] No space left on device). Training continues" in message
    watching.start(prediction())
    watching.collect(log, lambda: COUNTERS, wait=True)
    assert (tmp_path / "pictures" / "image.gif").exists()
    watching.close()


def test_one_set_in_three_is_sent(tmp_path, log, monkeypatch):
    sent: list[bool] = []
    monkeypatch.setattr(log, "write", lambda line, pictures: sent.append(pictures is not None))
    monkeypatch.setattr(watch, "SENT_EVERY", 3)
    watching = watcher(tmp_path)
    for number in range(7):
        watching.start(prediction(steps=2))
        while len(sent) <= number:
            watching.collect(log, lambda: COUNTERS)
            time.sleep(0.01)
    assert sent == [True, False, False, True, False, False, True]
    watching.close()


def test_nothing_is_drawn_if_disabled_or_early(tmp_path):
    watching = watcher(tmp_path, every=0.0)
    assert not watching.enabled
    assert not watching.due
    watching.close()
    later = watcher(tmp_path, every=1000.0)
    assert later.enabled
    assert not later.due
    later.close()


def test_curves_hold_the_numbers(tmp_path):
    lines: list[dict[str, Any]] = [
        {"env_steps": 1, "a": 2.0},
        {"env_steps": 3, "a": None},
        {"b": 1.0},
        {"env_steps": 4, "a": 5.0},
    ]
    steps, values = series(lines, "a")
    assert steps.tolist() == [1, 4]
    assert values.tolist() == [2, 5]
    no_steps, _ = series(lines, "nothing")
    assert no_steps.shape == (0,)
    assert plot_training(tmp_path, tmp_path / "x.png", "title") is None
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plot_training(tmp_path, tmp_path / "x.png", "title") == tmp_path / "x.png"
    assert plot_training(tmp_path, tmp_path / "no" / "x.png", "title") is None


def test_a_loop_draws_when_it_is_time_and_once_more_at_its_end(tmp_path, log):
    def sets():
        return [line["env_steps"] for line in read_metrics(log.logdir / "metrics.jsonl")]

    predicted: list[int] = []

    def predict():
        predicted.append(len(predicted))
        return prediction(steps=2)

    log.write({"env_steps": 0})
    quiet, late, often = (watcher(tmp_path, every) for every in (0.0, 1000.0, 1e-9))
    for watching in (quiet, late):
        watching.turn(predict, log, lambda: COUNTERS)
    quiet.finish(predict, log, lambda: COUNTERS)
    assert predicted == []
    assert sets() == [0]
    late.finish(predict, log, lambda: COUNTERS)
    assert predicted == [0]
    assert sets() == [0, 5]
    often.turn(predict, log, lambda: COUNTERS)
    often.finish(predict, log, lambda: {"env_steps": 6})
    assert predicted == [0, 1, 2]
    assert sets() in ([0, 5, 5, 6], [0, 5, 6, 6])
    for watching in (quiet, late, often):
        watching.close()


@pytest.mark.slow
@pytest.mark.parametrize(("task", "loop"), [("probe_memory", "host"), ("jax_catch", "device")])
def test_a_run_draws_while_it_trains_and_at_its_end(tmp_path, task, loop):
    same = (f"task={task}", f"run.loop={loop}", "run.eval_episodes=0")
    quiet = training.train(None, run_config(tmp_path / "quiet", *same), quiet=True)
    pictures = "logger={pictures_every: 1e-6, tensorboard: true}"
    result = training.train(None, run_config(tmp_path, *same, pictures), quiet=True)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "pictures/seconds" in line]
    last = lines[-1]
    assert last["env_steps"] > 50
    key = next(iter(result.agent.obs_spaces))
    assert last[f"report/open_loop/{key}"] > 0
    assert last[f"report/repeat_last/{key}"] > 0
    suffix = "gif" if result.agent.obs_spaces[key].kind == "image" else "png"
    assert (tmp_path / "pictures" / f"{key}.{suffix}").stat().st_size > 500
    assert (tmp_path / "pictures" / "training.png").exists()
    assert list((tmp_path / "tensorboard").iterdir())
    # Drawing does not change what is learned.
    assert [x.tobytes() for x in map(np.asarray, result.agent._leaves)] == [
        x.tobytes() for x in map(np.asarray, quiet.agent._leaves)
    ]
