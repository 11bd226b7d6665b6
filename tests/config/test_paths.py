"""Files that people name: homes, files that are none, and replacing one without leaving a trace of a failure."""

import os
import pathlib
import socket

import pytest

from dreamer import config as configs
from dreamer.config import ConfigError, documents, paths


@pytest.fixture
def home(tmp_path, monkeypatch):
    place = tmp_path / "home"
    place.mkdir()
    monkeypatch.setenv("HOME", str(place))
    return place


def test_a_tilde_is_the_home_directory(home):
    assert paths.expand("~/runs/a") == home / "runs/a"
    assert paths.expand("~") == home
    assert paths.expand("~root/a") == pathlib.Path("~root/a").expanduser()
    assert paths.expand("runs/~/a") == pathlib.Path("runs/~/a")
    with pytest.raises(ConfigError, match=r"'~nobody-of-this-name/a' cannot be used: .*Write the directory in full"):
        paths.expand("~nobody-of-this-name/a")


@pytest.mark.parametrize("key", ["logdir", "load.from"])
def test_a_config_holds_no_tilde(home, key):
    config = configs.load([], [f"{key}=~/runs/a"])
    assert dict(configs.flatten(config))[key] == str(home / "runs/a")
    assert "~" not in configs.to_yaml(config)
    with pytest.raises(ConfigError, match=rf"{key}=~nobody-of-this-name/a cannot be used"):
        configs.load([], [f"{key}=~nobody-of-this-name/a"])


def make(path: pathlib.Path, kind: str) -> pathlib.Path:
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a directory":
        path.mkdir()
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["a pipe", "a directory", "a device"])
def test_what_is_no_file_is_not_read_and_not_waited_for(tmp_path, kind):
    path = make(tmp_path / "config.yaml", kind)
    with pytest.raises(OSError, match=f"it is {kind}, expected a file"):
        paths.read_text(path)
    with pytest.raises(ConfigError, match=rf"config\.yaml is not a readable config: it is {kind}, expected a file\.$"):
        configs.load_yaml(path)


def test_files_are_read_through_links_up_to_a_size(tmp_path):
    (tmp_path / "file").write_text("äb")
    (tmp_path / "link").symlink_to("file")
    assert paths.read_text(tmp_path / "link", most=3) == "äb"
    with pytest.raises(OSError, match=r"it has more than 2 bytes"):
        paths.read_bytes(tmp_path / "link", most=2)


def test_what_stands_in_the_place_of_a_file_is_named(tmp_path):
    assert paths.obstacle(tmp_path / "nothing") == ""
    (tmp_path / "file").touch()
    assert paths.obstacle(tmp_path / "file") == ""
    assert paths.obstacle(tmp_path / "file", directory=True) == "a file"
    (tmp_path / "link").symlink_to("file")
    assert paths.obstacle(tmp_path / "link") == "a link"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tmp_path / "s"))
        assert paths.obstacle(tmp_path / "s") == "a socket"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "table.txt"
    paths.write_text(path, "one")

    def fail_in_the_middle() -> None:
        with paths.replacing(path) as draft:
            assert draft.suffix == ".txt"
            draft.write_text("tw")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        fail_in_the_middle()
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("table.txt", "one")]


def test_nothing_is_written_through_a_link_that_waits_for_the_draft(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / ".new-table.txt").symlink_to(precious)
    paths.write_text(tmp_path / "table.txt", "two")
    assert precious.read_text() == "precious"
    assert (tmp_path / "table.txt").read_text() == "two"
    (tmp_path / "link.txt").symlink_to(precious)
    with pytest.raises(OSError, match="it is a link, expected a file or nothing"):
        paths.write_text(tmp_path / "link.txt", "three")
    assert precious.read_text() == "precious"


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

HOSTILE = {
    "aliases of aliases": (LAUGHS, r"stands for more than 100,000 values"),
    "itself": ("a: &a [*a]", r"contains itself"),
    "itself in a mapping": ("&a {a: *a}", r"contains itself"),
    "brackets": ("[" * 50_000, r"more than 50 levels"),
    "closed brackets": ("[" * 100 + "]" * 100, r"more than 50 levels"),
    "braces": ("{a: " * 5_000, r"more than 50 levels"),
    "a number as a key": ("1: 2", r"key in line 1 that is not text"),
    "nothing as a key": ("\n~: 2", r"key in line 2 that is not text"),
    "a list as a key": ("? [a]\n: 2", r"key in line 1 that is not text"),
    "half a character": (r'task: "\ud800"', r"character in line 1 that no file can hold"),
    "a zero": (r'task: "a\0b"', r"character in line 1 that no file can hold"),
    "a raw zero": ("task: a\0b", r"special characters are not allowed"),
    "too large": ("a: " + "x" * 300_000, r"too large"),
    "thousands of digits": ("seed: " + "9" * 5000, r"4300 digits"),
    "an object": ("!!python/object/apply:os.getcwd []", r"could not determine a constructor"),
    "a second document": ("a: 1\n---\nb: 2", r"found another document"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", HOSTILE)
def test_yaml_that_no_person_would_write_is_refused_before_it_is_built(case, tmp_path):
    text, message = HOSTILE[case]
    with pytest.raises(documents.DocumentError, match=message):
        documents.parse(text)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"is not a readable config: ") as error:
        configs.load_yaml(tmp_path / "config.yaml")
    assert len(str(error.value)) < 500 + len(str(tmp_path))
    assert "\n" not in str(error.value)


def test_yaml_of_people_may_share_values():
    text = "grid: {a: &two [1, 2], b: *two}\nbase: &base {x: 1}\nmore: {<<: *base, y: 2}"
    found = documents.parse(text)
    assert found["grid"]["b"] == [1, 2]
    assert found["more"] == {"x": 1, "y": 2}
    assert documents.parse("") is None


@pytest.mark.parametrize("text", ["0x" + "f" * 5000, "[" + "9" * 4000 + "]", "{a: [" + "x, " * 1000 + "]}", "x" * 5000])
def test_a_message_about_a_long_value_is_short(text):
    with pytest.raises(ConfigError) as error:
        configs.load([], [f"seed={text}"])
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("value", ["a\udcffb", "a\0b"])
@pytest.mark.parametrize("key", ["logdir", "task", "logger.project"])
def test_text_that_no_file_can_hold_is_refused(key, value):
    with pytest.raises(ConfigError, match=rf"{key}=.* cannot be used: expected characters that a file can hold"):
        configs.load([], [f"{key}={value}"])
