"""The log arrives in other programs, and no failure there affects training."""

import struct
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from dreamer.logs import sinks
from dreamer.logs.logger import Logger, read_metrics
from dreamer.logs.sinks import DataTable, Entry, Sink
from dreamer.logs.tensorboard_log import TensorBoardClient
from dreamer.logs.wandb_log import WandbClient


class Client:
    """Keeps all lines; every method first calls ``trouble`` with its name."""

    def __init__(self, trouble=lambda place: None):
        self.trouble = trouble
        self.lines = []
        self.finished = False

    def connect(self):
        self.trouble("connect")
        return self

    def log(self, entry):
        self.trouble("log")
        self.lines.append(dict(entry.line))

    def finish(self):
        self.trouble("finish")
        self.finished = True


def raises(where, error):
    def trouble(place):
        if place == where:
            raise error

    return trouble


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("place", ["connect", "log", "finish"])
@pytest.mark.parametrize("error", [OSError("no route to host"), ValueError("no key"), SystemExit(1)])
def test_an_exception_is_reported_once_and_goes_no_further(place, error):
    said: list[str] = []
    client = Client(raises(place, error))
    sink = Sink("The Service", client.connect, said.append)
    for number in range(3):
        sink.log(Entry({"a": number}))
    sink.close()
    (message,) = said
    assert "The Service" in message
    assert f"{type(error).__name__}: {error}" in message
    assert "Training continues without it; metrics.jsonl has everything." in message
    assert len(client.lines) == (3 if place == "finish" else 0)


@pytest.mark.parametrize("place", ["connect", "log", "finish"])
def test_training_does_not_wait_for_a_call_that_hangs(monkeypatch, place):
    end, over = threading.Event(), threading.Event()
    monkeypatch.setattr(sinks, "MOST_WAITING", 5)
    said: list[str] = []

    def hang(where):
        if where == place:
            end.wait(60)
            over.set()

    sink = Sink("The Service", Client(hang).connect, said.append)
    for number in range(4):
        sink.log(Entry({"a": number}))
    sink.close(seconds=0.1)
    assert not over.is_set()
    (message,) = said
    assert "The Service did not finish within 0 seconds. Training continues" in message
    end.set()


def test_a_limited_number_of_lines_waits_for_the_service(monkeypatch):
    end = threading.Event()
    client = Client(lambda where: end.wait(20) if where == "connect" else None)
    monkeypatch.setattr(sinks, "MOST_WAITING", 5)
    said: list[str] = []
    sink = Sink("The Service", client.connect, said.append)
    for number in range(9):
        sink.log(Entry({"a": number}))
    (message,) = said
    assert "5 lines wait for The Service; further ones are not sent" in message
    end.set()
    sink.close()
    assert [line["a"] for line in client.lines] == [0, 1, 2, 3, 4]
    assert client.finished
    assert said[1:] == ["4 line(s) were not sent to The Service; metrics.jsonl has them."]


# -------------------------------------------------------------------------------------------------- Weights & Biases


class Wandb:
    """Replaces the module; ``init`` raises ``refusal``, if there is one, unless it is offline."""

    def __init__(self, refusal: BaseException | None = None):
        self.refusal = refusal
        self.finished = False
        self.starts: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.metrics: list[tuple[str, str]] = []
        self.url = "https://example.org/run"

    def init(self, **options):
        self.starts.append(options)
        if self.refusal is not None and options.get("mode") != "offline":
            raise self.refusal
        return self

    def Settings(self, **settings):
        return settings

    def Image(self, path):
        return "image", path

    def Video(self, path):
        return "video", path

    def Table(self, columns, data):
        return "table", columns, data

    def define_metric(self, name, step_metric):
        self.metrics.append((name, step_metric))

    def log(self, row):
        self.lines.append(row)

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch) -> Any:
    module: Any = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_the_same_lines_go_to_the_service(wandb, tmp_path, capsys):
    log = Logger(tmp_path, "test", 100, wandb={"project": "robots"})
    log.write({"a": 1, "b": float("nan")})
    log.write({"a": 2})
    log.close()
    (options,) = wandb.starts
    assert (options["project"], options["dir"], options["resume"]) == ("robots", str(tmp_path), "allow")
    assert wandb.lines == [{"a": 1}, {"a": 2}]
    assert wandb.finished
    assert wandb.metrics == [("*", "env_steps")]
    assert "Weights & Biases: https://example.org/run" in capsys.readouterr().err
    assert [line["a"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_a_resumed_run_continues_the_same_run_there(wandb, tmp_path):
    for _ in range(2):
        WandbClient(tmp_path, {}, lambda message: None)
    first, second = wandb.starts
    assert first["id"] == second["id"] == (tmp_path / "wandb_id.txt").read_text().strip()
    assert len(first["id"]) == 8
    (tmp_path / "other").mkdir()
    WandbClient(tmp_path / "other", {}, lambda message: None)
    assert wandb.starts[2]["id"] != first["id"]


@pytest.mark.parametrize("refusal", [OSError("no network"), ValueError("No API key configured"), SystemExit(1)])
def test_a_run_is_kept_for_later_if_the_service_is_out_of_reach(wandb, tmp_path, refusal):
    wandb.refusal = refusal
    said: list[str] = []
    WandbClient(tmp_path, {}, said.append).log(Entry({"a": 1}))
    assert [options.get("mode") for options in wandb.starts] == [None, "offline"]
    assert wandb.lines == [{"a": 1}]
    (message,) = said
    assert str(refusal) in message
    assert f"wandb sync {tmp_path}/wandb/offline-run-*" in message


def test_pictures_and_tables_are_sent_as_such(wandb, tmp_path):
    pictures = {"dream": tmp_path / "dream.gif", "plot": tmp_path / "plot.png"}
    table = DataTable(["episode", "score"], [(0, 1.5), (1, 2.5)])
    WandbClient(tmp_path, {}, lambda message: None).log(Entry({"env_steps": 3}, pictures, {"scores": table}))
    assert wandb.lines == [
        {
            "env_steps": 3,
            "dream": ("video", str(tmp_path / "dream.gif")),
            "plot": ("image", str(tmp_path / "plot.png")),
            "scores": ("table", ["episode", "score"], [[0, 1.5], [1, 2.5]]),
        }
    ]


def test_without_the_package(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    log = Logger(tmp_path, "test", 100, wandb={})
    log.write({"a": 1})
    log.close()
    assert capsys.readouterr().err.count("Weights & Biases cannot be used (ModuleNotFoundError") == 1


# ------------------------------------------------------------------------------------------------------ TensorBoard


def events(directory):
    """Events of all files, which are sequences of length (8 bytes), checksum (4), data and checksum (4)."""
    found = []
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return [event for event in found if event.HasField("summary")]


def test_tensorboard_gets_numbers_over_env_steps(tmp_path):
    log = Logger(tmp_path, "test", 100, quiet=True, tensorboard=True)
    log.write({"env_steps": 10, "loss/total": 2.5, "bottleneck": "learner", "bad": float("inf")})
    log.write({"env_steps": 20, "loss/total": 1.5})
    log.close()
    found = [(e.step, v.tag, v.simple_value) for e in events(tmp_path / "tensorboard") for v in e.summary.value]
    assert found == [(10, "loss/total", 2.5), (20, "loss/total", 1.5)]


def test_tensorboard_gets_pictures_as_they_are_and_tables_as_text(tmp_path):
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "dream.gif")
    client = TensorBoardClient(tmp_path / "board")
    table = DataTable(["episode", "score"], [(0, 1.5)])
    client.log(Entry({"env_steps": 7}, {"open_loop/image": tmp_path / "dream.gif"}, {"scores": table}))
    client.finish()
    picture, text = events(tmp_path / "board")
    shown = picture.summary.value[0]
    assert (picture.step, shown.tag, shown.image.width, shown.image.height) == (7, "open_loop/image", 6, 4)
    assert shown.image.encoded_image_string == (tmp_path / "dream.gif").read_bytes()
    assert b"| episode | score |\n| --- | --- |\n| 0 | 1.5 |" in text.summary.value[0].tensor.string_val[0]


def test_every_start_of_a_run_has_a_separate_file(tmp_path, monkeypatch):
    for start in range(2):
        monkeypatch.setattr("dreamer.logs.tensorboard_log.os", SimpleNamespace(getpid=lambda start=start: start))
        client = TensorBoardClient(tmp_path)
        client.log(Entry({"env_steps": start, "a": 1.0}))
        client.finish()
    assert len(list(tmp_path.iterdir())) == 2
    assert [event.step for event in events(tmp_path)] == [0, 1]


def test_a_full_disk_under_tensorboard_is_reported_once(tmp_path, monkeypatch, capsys):
    def full(self, what):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoardClient, "_write", full)
    log = Logger(tmp_path, "test", 100, tensorboard=True)
    for step in range(3):
        log.write({"env_steps": step, "a": 1.0})
    log.close()
    assert capsys.readouterr().err.count("could not be sent to TensorBoard (OSError: [Errno 28] No space left") == 1
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
