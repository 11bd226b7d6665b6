"""Files for TensorBoard, in ``LOGDIR/tensorboard``: ``tensorboard --logdir runs`` shows every run under it."""

import os
import pathlib
import time
from typing import Any

from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from dreamer.logs.sinks import DataTable, Entry

FLUSH_SECONDS = 5.0
"""Seconds between two flushes of the file, unless there are pictures."""


class TensorBoardClient:
    """Writes entries to an event file, over env steps.

    It writes to the file directly: the library's queue would wait on a full disk instead of raising.

    Args:
        directory: directory of the event files, one for each start of the run; TensorBoard joins them.

    Raises:
        OSError: the directory or the file cannot be made.
    """

    def __init__(self, directory: pathlib.Path):
        directory.mkdir(parents=True, exist_ok=True)
        # With the process id, as file names count in seconds, and a run may start twice within one.
        self._writer = EventsWriter(str(directory / "events"), f".{os.getpid()}")
        self._flushed = time.monotonic()
        self._step = 0

    def log(self, entry: Entry) -> None:
        """See `dreamer.logs.sinks.Client.log`."""
        self._step = int(entry.line.get("env_steps", self._step))
        for name, value in entry.line.items():
            if isinstance(value, int | float) and name != "env_steps":
                self._write(summary.scalar(name, value))
        for name, path in entry.pictures.items():
            self._write(_picture(name, path))
        for name, table in entry.tables.items():
            self._write(summary.text(name, _markdown(table)))
        if entry.pictures or time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._writer.flush()
            self._flushed = time.monotonic()

    def finish(self) -> None:
        """See `dreamer.logs.sinks.Client.finish`."""
        self._writer.close()

    def _write(self, what: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=self._step, summary=what))


def _picture(name: str, path: pathlib.Path) -> Any:
    """A PNG or an animated GIF, with the bytes of the file."""
    data = path.read_bytes()
    with Image.open(path) as image:
        width, height = image.size
    encoded = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
    return Summary(value=[Summary.Value(tag=name, image=encoded)])


def _markdown(table: DataTable) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


__all__ = ["TensorBoardClient"]
