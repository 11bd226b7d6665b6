"""Replay in files: exact continuation, what a crash leaves, damage, a full disk, and that saving writes what is new."""

import errno
import json
import os
import shutil

import ml_dtypes
import numpy as np
import pytest

from dreamer.replay import ReplayDiskError, ReplayMemoryError, Ticket, read_contents
from dreamer.replay import storage as ring
from dreamer.types import Space
from dreamer.world_models.rssm import StoredLatent
from tests.replay.test_buffer import OBS, assert_same, fill, make, row_values

SIZES = {"num_envs": 2, "rows": 12, "batch": 3, "length": 4, "online": True}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of four rows, and eight slots to spare: 20 slots for 12 rows."""
    monkeypatch.setattr(ring, "_BLOCK_ROWS", 4)
    monkeypatch.setattr(ring, "_SPARE_BLOCKS", 2)


def on_record(replay):
    """Commit, and what a checkpoint makes of it: arrays, and JSON."""
    state = replay.commit()
    replay.flush()
    replay.confirm()
    rest = json.loads(json.dumps({key: value for key, value in state.items() if key != "fields"}))
    return {**rest, "fields": state["fields"]}


def write_latents(replay, seed, dtype=np.float32):
    """As an update would: latents of a batch, changed."""
    rng = np.random.default_rng(seed)
    _, ticket = replay.sample()
    deter = rng.normal(size=(3, 4, 2)).astype(dtype)
    replay.update_stored(ticket, StoredLatent(deter, rng.integers(0, 99, (3, 4, 3), np.uint8)))


def same_contents(one, two):
    one, two = one.contents(), two.contents()
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("total", [9, 31, 64])  # Partly filled; wrapped around, once and often.
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_restored_replay_continues_bit_for_bit(total, dtype, tmp_path):
    replay = make(**SIZES, dtype=dtype, directory=tmp_path / "one")
    for row in range(total):
        fill(replay, 2, row, row + 1, first=[1] if row % 5 == 0 else [], dtype=dtype)
        if replay.ready:
            write_latents(replay, row, dtype)
    state = on_record(replay)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    other = make(**SIZES, seed=99, dtype=dtype, directory=tmp_path / "two")
    assert other.restore(state) == ""
    assert same_contents(replay, other) and other.steps == replay.steps
    looked = read_contents(tmp_path / "one", state)
    assert all(np.array_equal(looked[name], value) for name, value in other.contents().items())
    assert looked["latent/deter"].dtype == dtype
    for row in range(total, total + 20):
        for one in (replay, other):
            one.add(*row_values(2, row, first=[0] if row == total else [], dtype=dtype))
        (batch, ticket), (other_batch, other_ticket) = replay.sample(), other.sample()
        assert_same(batch, other_batch)
        np.testing.assert_array_equal(ticket.env, other_ticket.env)
        np.testing.assert_array_equal(ticket.row, other_ticket.row)
    assert same_contents(replay, other)
    told, other_told = ({k: v for k, v in on_record(one).items() if k != "fields"} for one in (replay, other))
    assert told == other_told and told["rows_lost"] == 0


@pytest.mark.parametrize("lost", [1, 2])
def test_a_crash_leaves_what_was_committed_last(tmp_path, lost):
    """Whatever was written after a commit, latents included, and even a commit that nobody wrote down."""
    replay = make(**SIZES, directory=tmp_path / "ring")
    fill(replay, 2, 0, 17)
    states, expected = [], []
    for number in range(4):
        fill(replay, 2, 17 + 2 * number, 19 + 2 * number)
        write_latents(replay, number)
        expected.append(replay.contents())
        states.append(on_record(replay))
    fill(replay, 2, 25, 27, first=[0, 1])  # Row 24 becomes the last of its episode.
    write_latents(replay, 5)
    replay.commit()  # A crash before anything else happens.
    replay = make(**SIZES, directory=tmp_path / "ring")
    said = replay.restore(states[-lost])
    found = replay.contents()
    rows = {name: np.array_equal(found[name], value) for name, value in expected[-lost].items()}
    latents = [rows.pop("latent/deter"), rows.pop("latent/stoch")]
    assert all(rows.values())
    # The commit that was lost had begun to replace the copy of latents of the checkpoint before the last.
    assert all(latents) == (lost == 1) and (said == "") == (lost == 1)
    assert lost == 1 or "blocks of its latents are zeros" in said


def test_both_of_the_last_two_checkpoints_can_be_restored(tmp_path):
    replay = make(**SIZES, directory=tmp_path / "ring")
    fill(replay, 2, 0, 30)
    kept = []
    for row in range(30, 70):
        if replay.commit_due or not row % 7:
            kept.append((on_record(replay), replay.contents()))
        fill(replay, 2, row, row + 1)
        write_latents(replay, row)
    assert len(kept) > 6
    for number, (state, contents) in enumerate(kept[-2:]):
        shutil.copytree(tmp_path / "ring", tmp_path / str(number))
        other = make(**SIZES, directory=tmp_path / str(number))
        assert other.restore(state) == ""
        assert all(np.array_equal(value, contents[name]) for name, value in other.contents().items())


def test_rows_that_the_older_checkpoint_needs_are_overwritten_only_after_another(tmp_path):
    replay = make(**SIZES, directory=tmp_path / "ring")
    fill(replay, 2, 0, 30)
    first = on_record(replay)
    fill(replay, 2, 30, 31)
    on_record(replay)
    row = 31
    while not replay.commit_due:
        fill(replay, 2, row, row + 1)
        row += 1
    # Rows 18..29 are needed, and with them their block, 16..19; row 36 would be written over row 16.
    assert row == 36
    shutil.copytree(tmp_path / "ring", tmp_path / "copy")
    other = make(**SIZES, directory=tmp_path / "copy")
    assert other.restore(first) == "" and other.rows_total == 30
    on_record(replay)
    assert replay.commit_due  # What row 31 needs begins in the same block.
    on_record(replay)
    assert not replay.commit_due


def test_a_commit_that_was_not_confirmed_is_replaced(tmp_path):
    replay = make(**SIZES, directory=tmp_path / "ring")
    fill(replay, 2, 0, 14)
    first = on_record(replay)
    expected = replay.contents()
    for number in range(3):  # As when every save fails.
        write_latents(replay, number)
        replay.commit()
    again = make(**SIZES, directory=tmp_path / "ring")
    assert again.restore(first) == ""
    assert all(np.array_equal(value, expected[name]) for name, value in again.contents().items())


def test_only_what_changed_is_written(tmp_path, monkeypatch):
    replay = make(num_envs=2, rows=400, batch=2, length=3, directory=tmp_path / "ring")
    fill(replay, 2, 0, 390)
    on_record(replay)
    on_record(replay)
    hashed, real = [], ring.Storage._hash

    def listening(self, arrays, block, rows):
        hashed.append((block, rows))
        return real(self, arrays, block, rows)

    monkeypatch.setattr(ring.Storage, "_hash", listening)
    fill(replay, 2, 390, 392)
    latents = StoredLatent(np.zeros((1, 3, 2), np.float32), np.zeros((1, 3, 3), np.uint8))
    replay.update_stored(Ticket(np.array([1]), np.array([8])), latents)
    on_record(replay)
    # Latents of rows 8 to 10 and 390 to 391; rows 388 to 391, because row 389 might have changed.
    assert sorted(hashed) == [(2, 4), (97, 4), (97, 4)]


def test_the_last_row_may_change_after_its_block_was_hashed(tmp_path):
    """Twelve rows fill three blocks; the reset in the row after them makes the last of them the end of its episode."""
    replay = make(**SIZES, directory=tmp_path / "ring")
    fill(replay, 2, 0, 12)
    on_record(replay)
    fill(replay, 2, 12, 13, first=[1])
    state = on_record(replay)
    other = make(**SIZES, directory=tmp_path / "ring")
    assert other.restore(state) == ""
    # Rows 1 to 12 are held, and row 11 is the last but one of them.
    assert other.contents()["is_last"][:, -2].tolist() == [False, True]
    assert same_contents(replay, other)


def files(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_damage_in_any_file_is_found(tmp_path, harm):
    replay = make(**SIZES, directory=tmp_path / "ring")
    # Rows 18..29 are in use, in blocks 16..19, 20..23, 24..27 and 28..29. No field is all zeros, unlike lost files.
    fill(replay, 2, 0, 30, first=[0], last=[1], terminal=[0, 1])
    write_latents(replay, 0)
    state = on_record(replay)
    expected = replay.contents()
    names = files(tmp_path / "ring")
    latents = [f"latent%2F{part}.{copy}" for part in ("deter", "stoch") for copy in (0, 1)]
    flags = ["is_first", "is_last", "is_terminal"]
    fields = ["action%2Fmove", "action%2Ftool", *flags, *latents, "obs%2Fimage", "obs%2Fwhere", "reward"]
    assert names == fields
    for name in names:
        copy = tmp_path / f"copy-{name}"
        shutil.copytree(tmp_path / "ring", copy)
        size = (copy / name).stat().st_size
        if harm == "delete":
            (copy / name).unlink()
        elif harm == "truncate":
            os.truncate(copy / name, size // 20)
        else:
            with open(copy / name, "r+b") as file:
                # Row 21, in slot 1 of 20.
                file.seek(size // 20)
                byte = file.read(1)
                file.seek(size // 20)
                file.write(bytes([byte[0] ^ 64]))
        other = make(**SIZES, directory=copy)
        said = other.restore(state)
        found = other.contents()
        if name.endswith(".1"):  # The copy for the next checkpoint, which is brought up to date in any case.
            assert said == "" and same_contents(replay, other)
        elif name.startswith("latent"):
            assert "blocks of its latents are zeros until updates refresh them" in said
            assert all(np.array_equal(found[key], expected[key]) for key in found if not key.startswith("latent"))
            changed = (found["latent/deter"] != expected["latent/deter"]).any((0, 2))
            assert not found["latent/deter"][:, changed].any()
            assert harm != "flip" or changed.tolist() == [False] * 2 + [True] * 4 + [False] * 6
        else:
            assert f"in {copy} are damaged: the oldest" in said
            if harm == "flip":
                assert "the oldest 12 of its steps" in said and other.steps == 2 * 6
                assert all(np.array_equal(value, expected[key][:, 6:]) for key, value in found.items())
            for row in range(30, 45):
                fill(other, 2, row, row + 1)
            _, ticket = other.sample()
            assert other.steps == 24 and (ticket.row > 29 - 12).all()


def test_what_was_lost_stays_lost(tmp_path):
    replay = make(**SIZES, directory=tmp_path / "ring")
    fill(replay, 2, 0, 12)
    state = on_record(replay)
    with open(tmp_path / "ring" / "reward", "r+b") as file:
        file.write(b"\x01")
    replay = make(**SIZES, directory=tmp_path / "ring")
    assert "the oldest 8 of its steps" in replay.restore(state)
    assert replay.steps == 16
    fill(replay, 2, 12, 14)
    state = on_record(replay)
    again = make(**SIZES, directory=tmp_path / "ring")
    again.restore(state)
    assert again.steps == replay.steps == 20 and same_contents(replay, again)


def test_a_full_disk_refuses_the_row_and_takes_it_later(tmp_path, monkeypatch):
    replay = make(**SIZES, directory=tmp_path / "ring")
    fill(replay, 2, 0, 8)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        for _ in range(2):
            with pytest.raises(ReplayDiskError, match=r"No room for more of the replay in .*ring \(No space left\)"):
                fill(replay, 2, 8, 9)
        assert replay.rows_total == 8
    fill(replay, 2, 8, 12)
    state = on_record(replay)
    again = make(**SIZES, directory=tmp_path / "ring")
    assert again.restore(state) == "" and again.contents()["reward"][0].tolist() == list(range(12))


def test_disk_space_is_asked_for_before_anything_starts(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 10**6})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ReplayMemoryError, match=r"needs 0\.08 GB on disk in .*, 0\.00 GB are available.* logdir\."):
        make(num_envs=1, rows=10**6, directory=tmp_path / "ring" / "0")
    assert not (tmp_path / "ring").exists()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"num_envs": 3}, "'environments' is 3 there and 2 here"),
        ({"rows": 9}, "'rows' is 9 there and 8 here"),
        ({"obs": {"where": Space("vector", (2,))}}, r"'obs/image' is absent there and uint8\[2, 2, 3\] here"),
        ({"obs": {**OBS, "extra": Space("vector", (1,))}}, r"'obs/extra' is float32\[1\] there and absent here"),
        ({"obs": {**OBS, "where": Space("vector", (5,))}}, r"'obs/where' is float32\[5\] there and float32\[2\] here"),
        ({"dtype": ml_dtypes.bfloat16}, r"'latent/deter' is bfloat16\[2\] there and float32\[2\] here"),
        ({"dtype": np.float16}, r"'latent/deter' is float16\[2\] there and float32\[2\] here"),
    ],
)
def test_restore_names_the_first_difference_and_leaves_the_files_alone(saved, message, tmp_path):
    theirs = make(**{"num_envs": 2, "rows": 8} | saved, directory=tmp_path / "ring")
    state = on_record(theirs)
    before = {path.name: path.read_bytes() for path in (tmp_path / "ring").iterdir()}
    replay = make(num_envs=2, rows=8, directory=tmp_path / "ring")
    with pytest.raises(ValueError, match=message):
        replay.restore(state)
    assert {path.name: path.read_bytes() for path in (tmp_path / "ring").iterdir()} == before


def test_restore_refuses_damaged_states(tmp_path):
    replay = make(rows=4, directory=tmp_path)
    fill(replay, 1, 0, 3)
    state = on_record(replay)
    with pytest.raises(ValueError, match="lacks 'rng'"):
        replay.restore({key: value for key, value in state.items() if key != "rng"})
    with pytest.raises(ValueError, match="draws with SFC64, this one with PCG64"):
        replay.restore({**state, "rng": {**state["rng"], "bit_generator": "SFC64"}})
    assert replay.restore(state) == ""


def test_without_a_directory_there_is_nothing_to_commit():
    with pytest.raises(RuntimeError, match="in memory only: give it a directory"):
        make(rows=4).commit()


def test_another_run_in_the_same_place_starts_empty(tmp_path):
    first = make(**SIZES, directory=tmp_path / "ring")
    fill(first, 2, 0, 12)
    on_record(first)
    second = make(num_envs=1, rows=6, directory=tmp_path / "ring")
    fill(second, 1, 0, 1)
    assert second.steps == 1 and (tmp_path / "ring" / "reward").stat().st_size < 200


def test_restore_with_another_batch_length_goes_on_with_fresh_rows(tmp_path):
    kwargs = {"num_envs": 2, "rows": 40, "batch": 2, "online": True, "directory": tmp_path / "ring"}
    replay = make(**kwargs, length=4)
    fill(replay, 2, 0, 9)
    replay.sample()  # Rows 1..4 of both.
    state = on_record(replay)
    other = make(**kwargs, length=2)
    other.restore(state)
    assert [other.sample()[1].row.tolist() for _ in range(2)] == [[5, 5], [7, 7]]
