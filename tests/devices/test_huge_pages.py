"""Huge pages are requested once, where that helps, and nothing else about the program changes."""

import os
import pathlib
import subprocess
import sys

import pytest

from dreamer.devices import huge_pages

PROGRAM = """
import os, sys
from dreamer.devices import huge_pages
huge_pages._KERNEL = huge_pages.pathlib.Path(sys.argv[1])
huge_pages.needs_request.__defaults__ = (huge_pages._KERNEL,)
print("started", os.environ.get("GLIBC_TUNABLES"), sys.argv[2:], os.getpid(), flush=True)
huge_pages.restart_with_huge_pages()
print("goes on")
"""


def setting(tmp_path: pathlib.Path, text: str) -> pathlib.Path:
    path = tmp_path / "enabled"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("always [madvise] never", {}, True),
        ("[always] madvise never", {}, False),
        ("always madvise [never]", {}, False),
        ("always [madvise] never", {"GLIBC_TUNABLES": "glibc.malloc.check=0"}, False),
        ("always [madvise] never", {"GLIBC_TUNABLES": ""}, False),
    ],
)
def test_pages_are_requested_only_where_that_helps(tmp_path, text, environ, expected):
    assert huge_pages.needs_request(environ, setting(tmp_path, text)) is expected


def test_nothing_is_requested_on_a_system_without_huge_pages(tmp_path):
    assert not huge_pages.needs_request({}, tmp_path / "nothing")


@pytest.mark.parametrize(("text", "starts"), [("always [madvise] never", 2), ("always madvise [never]", 1)])
def test_the_same_program_restarts_once(tmp_path, text, starts):
    environ = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    command = [sys.executable, "-c", PROGRAM, str(setting(tmp_path, text)), "a b", "--c=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    *begins, end = done.stdout.splitlines()
    assert end == "goes on"
    assert len(begins) == starts
    assert begins[-1].startswith(f"started {'glibc.malloc.hugetlb=1' if starts == 2 else None} ['a b', '--c=*'] ")
    assert len({line.rpartition(" ")[2] for line in begins}) == 1  # One process.


@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        (["python", "-m", "dreamer.train"], ["/x/train.py"], True),
        (["python", "-m", "dreamer.train", "-m", "a"], ["/x/train.py", "-m", "a"], True),
        (["python", "-um", "dreamer.train", "a"], ["/x/train.py", "a"], True),
        (["python", "-X", "dev", "-W", "error", "-i", "-m", "dreamer.train"], ["/x/train.py"], True),
        (["python", "train.py", "a"], ["train.py", "a"], True),
        (["python", "-c", "program", "a"], ["-c", "a"], True),
        (["python", "-m", "pdb", "-m", "dreamer.train", "a"], ["/x/train.py", "a"], False),
        (["python", "-m", "pdb", "-c", "c", "-m", "dreamer.train"], ["/x/train.py"], False),
        (["python", "-m", "pdb", "train.py"], ["train.py"], False),
        (["python", "-m", "coverage", "run", "-m", "dreamer.train"], ["/x/train.py"], False),
        (["python", "/bin/coverage", "run", "-m", "dreamer.train"], ["/x/train.py"], False),
        (["python", "-m", "ipykernel_launcher", "-f", "x.json"], ["/x/train.py", "a"], False),
        (["python", "/bin/ipython"], ["/x/train.py"], False),
    ],
)
def test_only_a_program_that_was_started_itself_restarts(command, arguments, expected):
    assert huge_pages.is_started_directly(command, arguments) is expected


@pytest.mark.parametrize(
    ("before", "starts"),
    [
        ("", 2),
        ("sys.settrace(lambda *_: None)", 1),
        ("sys.setprofile(lambda *_: None)", 1),
        pytest.param(
            "sys.monitoring.use_tool_id(0, 'debugger')",
            1,
            marks=pytest.mark.skipif(not hasattr(sys, "monitoring"), reason="Python 3.12 has it"),
        ),
    ],
)
def test_a_program_that_is_watched_goes_on_as_it_is(tmp_path, before, starts):
    environ = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    program = PROGRAM.replace("huge_pages.restart", f"{before}\nhuge_pages.restart")
    command = [sys.executable, "-c", program, str(setting(tmp_path, "always [madvise] never"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.count("started") == starts


def test_a_debugger_keeps_its_program(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    environ = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    command = [sys.executable, "-m", "pdb", "-c", "break 8", "-c", "continue", "-c", "p 'at the ' + 'end'", "-c", "q"]
    command += ["program.py", str(setting(tmp_path, "always [madvise] never"))]
    path = {"PYTHONPATH": os.pathsep.join(map(str, [pathlib.Path.cwd(), *filter(None, [environ.get("PYTHONPATH")])]))}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**environ, **path}, cwd=tmp_path, stdin=subprocess.DEVNULL
    )
    assert done.stdout.count("started") == 1, done.stdout + done.stderr
    assert "at the end" in done.stdout


def test_training_restarts_before_its_slow_imports():
    program = """
import runpy, sys
from dreamer.devices import huge_pages

def restart():
    print([name for name in ("jax", "flax", "gymnasium", "numpy") if name in sys.modules])
    sys.exit(7)

huge_pages.restart_with_huge_pages = restart
runpy.run_module("dreamer.train", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (7, "[]"), done.stderr
