"""What a run finds in its log directory and does not write through, and the commands that find its environment."""

import os
import pathlib
import socket
import sys

import pytest

from dreamer import config as configs
from dreamer.config import ConfigError
from dreamer.training.directory import (
    FILES,
    FOLDERS,
    LogdirGone,
    evaluate_command,
    exclusive,
    refuse_other_config,
    resume_command,
)


def open_and_close(logdir: pathlib.Path) -> None:
    with exclusive(logdir):
        pass


PLACES = [
    *FILES,
    *FOLDERS,
    "checkpoints/000000000010/meta.json",
    "checkpoints/000000000010",
    "replay/0/reward.bin",
    "profile/plugins",
]


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


def test_a_command_is_told_where_the_environment_was_found(tmp_path, monkeypatch):
    (tmp_path / "told_shop.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = "python -m dreamer.evaluate 'my run' --episodes 20"
    assert evaluate_command("my run", "gym_CartPole-v1") == command
    assert evaluate_command("my run", "told_shop:make") == f"PYTHONPATH={tmp_path} {command}"
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert resume_command("run", "told_shop:make") == (
        f"PYTHONPATH=/elsewhere{os.pathsep}{tmp_path} python -m dreamer.train --resume run"
    )
    monkeypatch.chdir(tmp_path)
    assert evaluate_command("my run", "told_shop:make") == command


def test_a_run_from_before_its_environment_had_a_name_goes_on(tmp_path):
    old, new, other = (configs.load([], [f"task={task}"]) for task in ("custom_Walk", "shop:Walk", "shop:Run"))
    refuse_other_config(old, new, tmp_path)
    refuse_other_config(new, old, tmp_path)
    with pytest.raises(ConfigError, match="task: shop:Run in the checkpoint, custom_Walk now"):
        refuse_other_config(other, old, tmp_path)
    # What else differs is refused as ever, and the way on is Python where no command would do.
    changed = configs.override(new, ["seed=3"])
    with pytest.raises(ConfigError, match=r"1 key\(s\) differ:\n  seed: .*\n.*: dreamer\.train\(env=Walk, config="):
        refuse_other_config(old, changed, tmp_path)


def test_a_start_clears_what_killed_saves_have_left(tmp_path):
    left = tmp_path / "checkpoints" / "000000000010-new.orbax-checkpoint-tmp-3"
    left.mkdir(parents=True)
    kept = tmp_path / "checkpoints" / "000000000009"
    kept.mkdir()
    open_and_close(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [kept.name]


def test_a_claim_knows_the_directory_that_it_was_made_for(tmp_path):
    logdir = tmp_path / "run"
    with exclusive(logdir) as claim:
        claim.check()
        moved = logdir.rename(tmp_path / "moved")
        with pytest.raises(LogdirGone, match=r"logdir=.*run is gone \(No such file or directory\) while"):
            claim.check()
        # Another run begins there.
        with (
            exclusive(logdir),
            pytest.raises(LogdirGone, match=r"logdir=.*run was replaced by another directory while"),
        ):
            claim.check()
        (logdir / ".lock").unlink()
        logdir.rmdir()
        moved.rename(logdir)
        claim.check()
