"""Manifests: any change of any file is found and named, and nothing is called complete before it is on the disk."""

import os

import pytest

from dreamer.checkpoints import manifest
from dreamer.checkpoints.manifest import DamageError


@pytest.fixture
def directory(tmp_path):
    """A directory with a manifest."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "numbers").write_bytes(bytes(range(256)) * 3)
    (tmp_path / "text").write_text("state")
    (tmp_path / "empty").touch()
    return tmp_path


def test_what_was_written_is_accepted(directory):
    size = manifest.write(directory)
    assert size == 768 + 5 + (directory / "manifest.json").stat().st_size
    manifest.verify(directory)
    # Written again, it is the same: it does not count itself.
    before = (directory / "manifest.json").read_bytes()
    assert manifest.write(directory) == size and (directory / "manifest.json").read_bytes() == before


def test_every_byte_counts_also_of_the_manifest(directory):
    manifest.write(directory)
    for name in ("deep/er/numbers", "text", "manifest.json"):
        path = directory / name
        whole = path.read_bytes()
        for place in {0, 1, 2, len(whole) // 3, len(whole) // 2, len(whole) - 2, len(whole) - 1}:
            damaged = bytearray(whole)
            damaged[place] ^= 1
            path.write_bytes(bytes(damaged))
            with pytest.raises(DamageError, match=f"'{name}' is not what was written"):
                manifest.verify(directory)
        path.write_bytes(whole)
    manifest.verify(directory)


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "text").unlink(), "'text' is missing"),
        (lambda d: (d / "text").write_text("stat"), "'text' has 4 bytes, expected 5"),
        (lambda d: (d / "empty").write_text("x"), "'empty' has 1 bytes, expected 0"),
        (lambda d: (d / "deep" / "more").touch(), "'deep/more' is not in its manifest"),
        (lambda d: (d / "manifest.json").unlink(), "'manifest.json' is missing"),
        (lambda d: (d / "manifest.json").write_text(""), "'manifest.json' is not what was written"),
        (lambda d: (d / "manifest.json").write_text("[" * 100_000), "'manifest.json' is not what was written"),
        (lambda d: (d / "manifest.json").write_text('{"files": 3}'), "'manifest.json' is not what was written"),
        (lambda d: (d / "manifest.json").write_bytes(b"\xff\xfe"), "'manifest.json' is not what was written"),
        (lambda d: _pipe(d / "text"), "'text' has 0 bytes"),
        (lambda d: _pipe(d / "empty"), "'empty' cannot be read .*not a plain file"),
        (lambda d: ((d / "text").rename(d.parent / "t"), (d / "text").symlink_to(d.parent / "t")), "not a plain file"),
        (lambda d: (d / "deep" / "link").symlink_to(d), "'deep/link' is not in its manifest"),
    ],
)
def test_damage_is_named(directory, damage, message):
    manifest.write(directory)
    damage(directory)
    with pytest.raises(DamageError, match=message):
        manifest.verify(directory)


def test_a_manifest_of_other_files_does_not_help(directory, tmp_path):
    """Its own digest alone proves nothing."""
    manifest.write(directory)
    text = (directory / "manifest.json").read_text()
    (directory / "text").write_text("STATE")
    manifest.write(directory)
    (directory / "manifest.json").write_text(text)
    with pytest.raises(DamageError, match="'text' is not what was written: its checksum differs"):
        manifest.verify(directory)


def test_a_file_is_replaced_at_once(tmp_path, monkeypatch):
    path = tmp_path / "note"
    manifest.write_durably(path, "old")

    def fail(descriptor):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            manifest.write_durably(path, "new")
    assert path.read_text() == "old"
    manifest.write_durably(path, "new")
    assert path.read_text() == "new" and [p.name for p in tmp_path.iterdir()] == ["note"]
