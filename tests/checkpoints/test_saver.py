"""The background thread: the loop is held for the copy alone, one save at a time, and no outcome is lost."""

import pathlib
import threading

import numpy as np
import pytest

from dreamer.checkpoints import CheckpointError, Written
from dreamer.checkpoints import saver as savers
from dreamer.checkpoints.saver import Saver, room_for_copy
from dreamer.devices.memory import HostMemory

WRITTEN = Written(pathlib.Path("checkpoint"), 42)


@pytest.fixture
def saver():
    saver = Saver()
    yield saver
    saver.close()


def test_writing_does_not_hold_the_loop(saver):
    begun, go = threading.Event(), threading.Event()
    told: list[bool] = []
    writers = []

    def prepare(copy):
        told.append(copy)
        return "contents"

    def write(contents):
        begun.set()
        writers.append((contents, threading.current_thread()))
        assert go.wait(10)
        return WRITTEN

    assert saver.outcome() is None and not saver.busy
    saver.start(prepare, write)
    assert begun.wait(10)
    assert saver.busy
    assert saver.outcome() is None
    with pytest.raises(RuntimeError, match="still being written"):
        saver.start(lambda copy: None, write)
    go.set()
    saved = saver.outcome(wait=True)
    assert saved.written == WRITTEN and 0 < saved.held_seconds <= saved.seconds
    assert saved.metrics() == {
        "save/seconds": saved.seconds,
        "save/held_seconds": saved.held_seconds,
        "save/bytes": 42,
    }
    assert told == [True]
    assert writers[0][0] == "contents"
    assert writers[0][1] is not threading.main_thread()
    assert not saver.busy and saver.outcome(wait=True) is None


@pytest.mark.parametrize(("able", "wanted"), [(False, True), (True, False)])
def test_a_save_that_cannot_be_in_the_background_holds_the_loop(able, wanted):
    saver = Saver(background=able)
    told = []
    saver.start(lambda copy: told.append(copy), lambda contents: WRITTEN, background=wanted)
    saved = saver.outcome()
    assert saved is not None
    assert told == [False]
    assert saved.held_seconds >= saved.seconds
    saver.close()


def test_an_error_is_told_once_and_the_next_save_may_work(saver):
    def fail(contents):
        raise CheckpointError("No space.")

    for wait in (False, True):
        saver.start(lambda copy: None, fail, background=wait)
        with pytest.raises(CheckpointError, match="No space"):
            saver.outcome(wait=True)
        assert not saver.busy and saver.outcome(wait=True) is None
    saver.start(lambda copy: None, lambda contents: WRITTEN)
    assert saver.outcome(wait=True).written == WRITTEN


def test_what_cannot_be_fetched_raises_at_once(saver):
    with pytest.raises(LookupError):
        saver.start(lambda copy: dict[str, int]()["state"], lambda contents: WRITTEN)
    assert not saver.busy


def test_closing_waits_for_the_write():
    saver, go, done = Saver(), threading.Event(), []

    def write(contents):
        done.append(go.wait(10))
        return WRITTEN

    saver.start(lambda copy: None, write)
    threading.Timer(0.05, go.set).start()
    saver.close()
    assert done == [True]


def test_a_copy_needs_twice_its_room(monkeypatch):
    monkeypatch.setattr(savers, "host_memory", lambda: HostMemory(total=2000, available=1000, limited=False))
    assert room_for_copy([np.zeros(240, np.uint8), np.zeros(62, np.float32)])
    assert not room_for_copy([np.zeros(240, np.uint8), np.zeros(65, np.float32)])
