"""A command whose output cannot be written ends with its own status, and without a traceback."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from dreamer.logs.terminal import exit_status

def main():
    print("x" * 10)
    print("Error: y", file=sys.stderr)
    print("x" * 100_000)
    return int(sys.argv[1])

sys.exit(exit_status(main))
"""


def run(status: int, redirect: str) -> tuple[int, str]:
    command = f'"$0" -c "$1" {status} {redirect}'
    done = subprocess.run(["bash", "-c", command, sys.executable, PROGRAM], capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.parametrize("status", [0, 2, 75])
@pytest.mark.parametrize(
    "redirect",
    [">/dev/full", ">&-", "2>/dev/full", "2>&-", ">/dev/full 2>/dev/full", ">&- 2>&- <&-", "> >(true)"],
)
def test_the_status_is_that_of_the_command(status, redirect):
    got, said = run(status, redirect)
    assert got == status
    assert "Traceback" not in said and "Exception ignored" not in said


def test_what_can_be_written_is_written():
    assert run(3, ">/dev/full") == (3, "Error: y\n")
