"""What a run finds in its log directory and does not write through: links, pipes, and what is of another kind."""

import os
import pathlib
import socket

import pytest

from dreamer.config import ConfigError
from dreamer.training.directory import FILES, FOLDERS, exclusive


def open_and_close(logdir: pathlib.Path) -> None:
    with exclusive(logdir):
        pass


PLACES = [*FILES, *FOLDERS, "checkpoints/000000000010/meta.json", "checkpoints/000000000010", "replay/0/reward.bin"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["a link to a file", "a link to a directory", "a link to nothing", "a pipe"])
def test_nothing_is_written_through_what_is_no_file(tmp_path, place, kind):
    elsewhere = tmp_path / "elsewhere"
    logdir = tmp_path / "run"
    path = logdir / place
    path.parent.mkdir(parents=True)
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(elsewhere)
    if kind == "a link to a file":
        elsewhere.write_text("precious")
    elif kind == "a link to a directory":
        elsewhere.mkdir()
    got = "a pipe" if kind == "a pipe" else "a link"
    with pytest.raises(ConfigError, match=rf"{path} is {got}, expected a (file|directory) or nothing, .*Remove it, or"):
        open_and_close(logdir)
    assert kind != "a link to a file" or elsewhere.read_text() == "precious"
    assert not (logdir / ".lock").is_file() or place == ".lock"


def test_sockets_and_the_wrong_one_of_file_and_directory_are_refused(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"metrics.jsonl is a directory, expected a file or nothing"):
        open_and_close(tmp_path)
    (tmp_path / "metrics.jsonl").rmdir()
    (tmp_path / "checkpoints").touch()
    with pytest.raises(ConfigError, match=r"checkpoints is a file, expected a directory or nothing"):
        open_and_close(tmp_path)
    (tmp_path / "checkpoints").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "load.txt"))  # Absolute names may be too long for a socket.
        with pytest.raises(ConfigError, match=r"load.txt is a socket, expected a file or nothing"):
            open_and_close(tmp_path)


def test_what_a_run_does_not_write_to_may_be_anything_and_so_may_the_directory_itself(tmp_path):
    real = tmp_path / "other_disk"
    (real / "wandb").mkdir(parents=True)
    (real / "wandb" / "latest-run").symlink_to("offline-run-1")  # As Weights & Biases leaves it.
    (real / "notes").symlink_to(tmp_path)
    (real / "checkpoints").mkdir()
    (tmp_path / "run").symlink_to(real)
    open_and_close(tmp_path / "run")
    assert (real / ".lock").read_text() == str(os.getpid())
