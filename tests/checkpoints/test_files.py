"""Which checkpoints there are, which stay, and which is the best; with directories that hold nothing else."""

import pytest

from dreamer.checkpoints import files
from dreamer.checkpoints.files import Best, CheckpointError


def make(logdir, *names):
    for name in names:
        (files.directory(logdir) / name).mkdir(parents=True)
    return files.directory(logdir)


def names(logdir):
    return sorted(path.name for path in files.directory(logdir).iterdir())


def name(step, suffix=""):
    return f"{step:012d}{suffix}"


def test_complete_ones_come_newest_first(tmp_path):
    assert files.complete(tmp_path) == [] and not files.exists(tmp_path)
    root = make(tmp_path, name(5), name(20), name(20, "-old"), name(3, "-old"), name(30, "-new"), name(40, "-damaged"))
    make(tmp_path, name(50, "-gone"), "of the user", name(31, "-host1-new"))
    (root / name(60)).write_text("a file")
    found = [path.name for path in files.complete(tmp_path)]
    assert found == [name(20), name(20, "-old"), name(5), name(3, "-old")]
    assert files.steps(tmp_path) == {3, 5, 20} and files.exists(tmp_path)


def test_the_last_ones_stay(tmp_path):
    make(tmp_path, *(name(step) for step in (1, 10, 200, 3000)), name(200, "-old"), name(4, "-old"))
    left = [name(8, "-new"), name(8, "-new.orbax-checkpoint-tmp"), name(8, "-gone"), name(8, "-host12-new")]
    others = [name(7, "-damaged"), name(7, "-damaged-2"), "of the user", name(8, "-newer")]
    make(tmp_path, *left, *others)
    files.keep(tmp_path, 3000, 3)
    assert names(tmp_path) == sorted([name(10), name(200), name(3000), *others])
    files.keep(tmp_path, 3000, 1)
    assert names(tmp_path) == sorted([name(3000), *others])


def test_one_that_was_just_written_can_be_taken_back(tmp_path):
    root = make(tmp_path, name(5), name(9), name(9, "-old"))
    (root / name(9, "-old") / "old").touch()
    files.discard(tmp_path, 9)
    assert names(tmp_path) == [name(5), name(9)]
    assert (root / name(9) / "old").exists()
    files.discard(tmp_path, 9)
    files.discard(tmp_path, 9)
    assert names(tmp_path) == [name(5)]


def test_one_that_a_crash_left_as_old_counts(tmp_path):
    make(tmp_path, name(5, "-old"), name(9))
    files.keep(tmp_path, 9, 2)
    assert names(tmp_path) == [name(5, "-old"), name(9)]


def test_newer_ones_that_were_undone_go(tmp_path):
    make(tmp_path, name(5), name(7), name(9))
    files.keep(tmp_path, 7, 2)
    assert names(tmp_path) == [name(5), name(7)]


def test_the_best_stays(tmp_path):
    make(tmp_path, *(name(step) for step in range(1, 6)))
    assert files.mark_best(tmp_path, 2, -3.5) and files.best(tmp_path) == Best(2, -3.5)
    files.keep(tmp_path, 5, 2)
    assert names(tmp_path) == [name(2), name(4), name(5), "best.json"]
    # Only a better one takes its place.
    assert not files.mark_best(tmp_path, 4, -3.5) and not files.mark_best(tmp_path, 4, -10.0)
    assert not files.mark_best(tmp_path, 4, float("nan")) and files.best(tmp_path) == Best(2, -3.5)
    assert files.mark_best(tmp_path, 5, -3.0)
    files.keep(tmp_path, 5, 1)
    assert names(tmp_path) == [name(5), "best.json"]
    # The same one again: its score is the last one.
    assert files.mark_best(tmp_path, 5, -4.0) and files.best(tmp_path) == Best(5, -4.0)


def test_the_best_one_must_be_there(tmp_path):
    root = make(tmp_path, name(1))
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 2 in .* to mark as the best"):
        files.mark_best(tmp_path, 2, 1.0)
    files.mark_best(tmp_path, 1, 10.0)
    make(tmp_path, name(2))
    (root / name(1)).rename(root / name(1, "-damaged"))
    assert files.best(tmp_path) is None
    assert files.mark_best(tmp_path, 2, 3.0) and files.best(tmp_path) == Best(2, 3.0)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"step": "x", "score": 1}', '{"step": 1}', "\x00\x00"])
def test_a_note_that_cannot_be_read_is_no_note(tmp_path, text):
    root = make(tmp_path, name(1))
    (root / "best.json").write_text(text)
    assert files.best(tmp_path) is None
    assert files.mark_best(tmp_path, 1, 2.0) and files.best(tmp_path) == Best(1, 2.0)


def test_damaged_ones_are_put_aside_each_under_its_name(tmp_path):
    root = make(tmp_path, name(4))
    assert files.set_aside(root / name(4)).name == name(4, "-damaged")
    make(tmp_path, name(4))
    assert files.set_aside(root / name(4)).name == name(4, "-damaged-2")
    with pytest.raises(CheckpointError, match="could not be renamed to 000000000004-damaged-3: No such file"):
        files.set_aside(root / name(4))
    assert not files.exists(tmp_path)
