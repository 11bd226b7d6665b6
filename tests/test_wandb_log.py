"""Weights & Biases is told everything, and nothing that goes wrong there is felt by training."""

import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from dreamer import wandb_log
from dreamer.logger import Logger, read_metrics
from dreamer.wandb_log import WandbLog


class Client:
    """Stands for the module; ``trouble`` is called in each place with its name."""

    def __init__(self, trouble=lambda place: None):
        self.trouble, self.options, self.lines, self.finished = trouble, {}, [], False

    def init(self, **options):
        self.trouble("init")
        self.options = options
        return SimpleNamespace(log=self.log, finish=self.finish)

    def log(self, line):
        self.trouble("log")
        self.lines.append(line)

    def finish(self):
        self.trouble("finish")
        self.finished = True


@pytest.fixture
def install(monkeypatch):
    def install(trouble=lambda place: None) -> Any:
        client: Any = Client(trouble)
        monkeypatch.setitem(sys.modules, "wandb", client)
        return client

    return install


def test_the_same_lines_go_to_the_service(install, tmp_path):
    client = install()
    log = Logger(tmp_path, "test", 100, quiet=True, wandb={"project": "dreamer"})
    log.write({"a": 1, "b": float("nan")})
    log.write({"a": 2})
    log.close()
    assert client.options == {"dir": str(tmp_path), "project": "dreamer"} and client.finished
    assert client.lines == [{"a": 1}, {"a": 2}]


def raises(where, error):
    def trouble(place):
        if place == where:
            raise error

    return trouble


@pytest.mark.parametrize("place", ["init", "log", "finish"])
@pytest.mark.parametrize("error", [OSError("no route to host"), ValueError("no key"), SystemExit(1)])
def test_what_raises_is_told_once_and_goes_no_further(install, tmp_path, capsys, place, error):
    client = install(raises(place, error))
    log = Logger(tmp_path, "test", 100, wandb={})
    for number in range(3):
        log.write({"a": number})
    log.close()
    said = capsys.readouterr().err
    assert said.count("Training goes on without") == 1 and f"{type(error).__name__}: {error}" in said
    assert len(client.lines) == (3 if place == "finish" else 0)
    assert [line["a"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2]


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    said: list[str] = []
    log = WandbLog({}, said.append)
    log.close()
    assert len(said) == 1 and "cannot be used (ModuleNotFoundError" in said[0]
    log.log({"a": 1})


@pytest.mark.parametrize("place", ["init", "log", "finish"])
def test_what_hangs_is_not_waited_for(install, monkeypatch, place):
    end = threading.Event()
    install(lambda where: end.wait(20) if where == place else None)
    monkeypatch.setattr(wandb_log, "MOST_WAITING", 5)
    said: list[str] = []
    log = WandbLog({}, said.append)
    begin = time.monotonic()
    for number in range(4):
        log.log({"a": number})
    log.close(seconds=0.1)
    assert time.monotonic() - begin < 1
    assert len(said) == 1 and "Weights & Biases did not finish within 0 seconds. Training goes on" in said[0]
    end.set()


def test_only_so_many_lines_wait(install, monkeypatch):
    end = threading.Event()
    client = install(lambda where: end.wait(20) if where == "init" else None)
    monkeypatch.setattr(wandb_log, "MOST_WAITING", 5)
    said: list[str] = []
    log = WandbLog({}, said.append)
    for number in range(9):
        log.log({"a": number})
    assert len(said) == 1 and "5 lines wait for Weights & Biases; further ones are not sent" in said[0]
    end.set()
    log.close()
    assert [line["a"] for line in client.lines] == [0, 1, 2, 3, 4] and client.finished
