"""Control groups as systems show them: both versions, containers that see a part of the tree, and limits above one."""

import collections
import pathlib

import psutil
import pytest

from dreamer.devices import cgroups
from dreamer.devices.memory import host_memory

Memory = collections.namedtuple("Memory", "total available")

HOST = Memory(64_000, 40_000)
V2 = "30 23 0:26 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 23 0:27 {top} /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory"
OTHER = "32 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Makes the files of a system: which groups a process is in, what is mounted, and the files of groups."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: HOST)

    def make(membership: str, mounts: list[str], files: dict[str, str]) -> pathlib.Path:
        own = tmp_path / "proc/self"
        own.mkdir(parents=True)
        (own / "cgroup").write_text(membership)
        (own / "mountinfo").write_text("".join(f"{line}\n" for line in mounts))
        for name, text in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


CASES = {
    "version 2, in a container that sees itself as the top": (
        "0::/\n",
        [V2.format(top="/")],
        {"memory.max": "3000\n", "memory.current": "1000\n"},
        (3000, 2000, True),
    ),
    "version 2, in a job of a scheduler": (
        "0::/slurm/job_7/step_0\n",
        [V2.format(top="/")],
        {
            "slurm/memory.max": "max\n",
            "slurm/job_7/memory.max": "5000\n",
            "slurm/job_7/memory.current": "4500\n",
            "slurm/job_7/step_0/memory.max": "max\n",
            "slurm/job_7/step_0/memory.current": "100\n",
        },
        (5000, 500, True),
    ),
    "version 2, where only the group above has less left": (
        "0::/a/b\n",
        [V2.format(top="/")],
        {
            "a/memory.max": "9000\n",
            "a/memory.current": "8800\n",
            "a/b/memory.max": "6000\n",
            "a/b/memory.current": "1000\n",
        },
        (6000, 200, True),
    ),
    "version 2, with a soft limit": (
        "0::/a\n",
        [V2.format(top="/")],
        {"a/memory.max": "9000\n", "a/memory.high": "7000\n", "a/memory.current": "1000\n"},
        (7000, 6000, True),
    ),
    "version 2, where files that can be dropped are in use": (
        "0::/a\n",
        [V2.format(top="/")],
        {
            "a/memory.max": "9000\n",
            "a/memory.current": "8000\n",
            "a/memory.stat": "anon 1000\ninactive_file 4000\nactive_file 2000\nshmem 500\n",
        },
        (9000, 7000, True),
    ),
    "version 1": (
        "12:cpu,cpuacct:/x\n4:memory:/batch/7\n0::/\n",
        [V1.format(top="/"), OTHER],
        {
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/memory.usage_in_bytes": "50000\n",
            "memory/batch/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/batch/7/memory.limit_in_bytes": "3000\n",
            "memory/batch/7/memory.usage_in_bytes": "1200\n",
            "memory/batch/7/memory.stat": "cache 7\ninactive_file 9\ntotal_inactive_file 500\ntotal_active_file 200\n",
        },
        (3000, 2500, True),
    ),
    "version 1, in a container that sees its own group as the top": (
        "4:memory:/docker/abc\n",
        [V1.format(top="/docker/abc")],
        {"memory/memory.limit_in_bytes": "3000\n", "memory/memory.usage_in_bytes": "1000\n"},
        (3000, 2000, True),
    ),
    "a group that cannot be seen": (
        "0::/../other\n",
        [V2.format(top="/")],
        {"memory.max": "3000\n", "memory.current": "2900\n"},
        (3000, 100, True),
    ),
    "no limit": ("0::/a\n", [V2.format(top="/")], {"a/memory.max": "max\n"}, (64_000, 40_000, False)),
    "a limit beyond the memory of the host": (
        "0::/a\n",
        [V2.format(top="/")],
        {"a/memory.max": "99999\n", "a/memory.current": "70000\n"},
        (64_000, 29_999, False),
    ),
    "more in use than is allowed": (
        "0::/a\n",
        [V2.format(top="/")],
        {"a/memory.max": "3000\n", "a/memory.current": "3500\n"},
        (3000, 0, True),
    ),
    "files that hold something else": (
        "nonsense\n0::/a\n",
        ["short line", V2.format(top="/")],
        {"a/memory.max": "much\n", "a/memory.current": "\n"},
        (64_000, 40_000, False),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_tightest_limit_counts(case, system):
    membership, mounts, files, expected = CASES[case]
    assert host_memory(system(membership, mounts, files)) == expected


def test_a_system_without_control_groups_is_its_own_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: HOST)
    assert host_memory(tmp_path) == (64_000, 40_000, False)


def test_groups_of_a_resource_come_from_the_inside_out(system):
    root = system("3:cpu,cpuacct:/a/b\n4:memory:/c\n", [OTHER], {"cpu/a/b/cpu.shares": "1024\n"})
    found = [(group.version, group.directory) for group in cgroups.groups("cpu", root)]
    mount = root / "sys/fs/cgroup/cpu"
    assert found == [(1, mount / "a/b"), (1, mount / "a"), (1, mount)]
    assert cgroups.groups("memory", root) == []
