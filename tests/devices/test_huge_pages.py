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
