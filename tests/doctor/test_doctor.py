"""The doctor finds planted problems, says how to fix them, and otherwise finds nothing wrong with this machine."""

import collections
import json
import pathlib
import subprocess
import sys
import tomllib

import psutil
import pytest

from dreamer.devices import cores as own_cores
from dreamer.doctor import accelerator, findings, installation, machine, rendering, smoke
from dreamer.doctor.__main__ import examine, main
from dreamer.doctor.findings import Answer, MachineFinding

ROOT = pathlib.Path(__file__).resolve().parents[2]


def problems(found) -> list[str]:
    return [finding.text for finding in found if finding.level == "problem"]


def test_a_program_that_fails_hangs_or_is_not_there_gives_an_answer():
    assert findings.ask_python("print('yes')", {}) == Answer(0, "yes\n", "it ended with status 0")
    assert findings.ask_python("raise SystemExit('broken')", {}).error == "broken"
    assert findings.ask_python("import os; os.kill(os.getpid(), 11)", {}).error == "signal 11 killed it"
    assert findings.ask_python("import time; time.sleep(60)", {}, 0.2).error == "it did not end within 0 seconds"
    assert findings.ask(["no-such-program"]).error == "no-such-program cannot be started: No such file or directory"


def test_the_versions_here_are_those_that_are_needed():
    assert not problems(installation.versions())


def test_a_wrong_or_missing_version_is_named_with_the_range(monkeypatch):
    real = installation.version
    monkeypatch.setattr(installation, "version", lambda name: {"flax": "0.1", "optax": ""}.get(name, real(name)))
    (text,) = problems(installation.versions())
    assert text.startswith(
        "flax is 0.1, expected >=0.12; optax is missing: install what Dreamer needs with pip install"
    )


def test_a_jaxlib_of_another_version_and_files_that_are_not_installed_are_found(monkeypatch):
    real = installation.version
    monkeypatch.setattr(installation, "version", lambda name: {"jaxlib": "0.9", "dreamer": ""}.get(name, real(name)))
    first, second = problems(installation.versions())
    assert "only its files are here: run pip install" in first
    assert "jaxlib 0.9, expected the same" in second


def test_extras_are_those_of_the_package():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(installation.EXTRAS) == set(declared)


def test_extras_are_reported_with_version_and_purpose_and_clashes_are_found(monkeypatch):
    there = {"optuna": "5.0", "pygame": "2.6", "pygame-ce": "2.5"}
    monkeypatch.setattr(installation, "version", lambda name: there.get(name, ""))
    ok, note, problem = installation.extras()
    assert ok.text == "sweep: optuna 5.0, for sweeps with search: optuna."
    assert note.level == "note"
    assert "cuda (training on NVIDIA GPUs), " in note.text
    assert "sweep" not in note.data["missing"]
    assert problem.level == "problem"
    assert "overwrite each other's files" in problem.text


def fake_machine(monkeypatch, platform="cpu", kinds=("cpu",), gflops=60.0, gpus="", status=0, error=""):
    """Replace the answers of the two programs that the doctor asks."""
    out = json.dumps({"platform": platform, "kinds": list(kinds), "gflops": gflops})
    monkeypatch.setattr(accelerator, "ask_python", lambda *_: Answer(status, out, error))
    monkeypatch.setattr(accelerator, "ask", lambda *_, **__: Answer(0 if gpus else None, gpus, ""))
    monkeypatch.setattr(accelerator.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(own_cores, "count", lambda: 2)


def test_a_cpu_is_fine_where_there_is_nothing_else(monkeypatch):
    fake_machine(monkeypatch)
    (found,) = accelerator.accelerator({})
    assert found.level == "ok" and "60 GFLOP/s in float32, 30 for each of 2 core(s)" in found.text


@pytest.mark.parametrize(
    ("driver", "environ", "fix"),
    [
        ("580.65.06", {}, "pip install -e '.[cuda]'."),
        ("570.10", {}, "pip install 'jax[cuda12]' (the driver is 570.10)."),
        ("580.65.06", {"JAX_PLATFORMS": "cpu"}, "because JAX_PLATFORMS=cpu: unset it."),
        ("580.65.06", {"CUDA_VISIBLE_DEVICES": ""}, "because CUDA_VISIBLE_DEVICES='' hides it: unset it."),
    ],
)
def test_a_gpu_that_jax_does_not_see_is_found_with_its_fix(monkeypatch, driver, environ, fix):
    fake_machine(monkeypatch, gpus=f"NVIDIA H100 80GB HBM3, {driver}\n")
    (text,) = problems(accelerator.accelerator(environ))
    assert text == f"NVIDIA H100 80GB HBM3 is there, but JAX computes on the CPU: {fix}"


def test_a_tpu_that_jax_does_not_see_is_found(monkeypatch):
    fake_machine(monkeypatch)
    monkeypatch.setattr(accelerator.glob, "glob", lambda pattern: ["/dev/accel0"] if "accel" in pattern else [])
    (text,) = problems(accelerator.accelerator({}))
    assert text == "a TPU is there, but JAX computes on the CPU: pip install -e '.[tpu]'."


def test_a_gpu_is_measured_against_what_is_published(monkeypatch):
    fake_machine(monkeypatch, "gpu", ["NVIDIA H100 80GB HBM3"] * 2, 600e3)
    (found,) = accelerator.accelerator({})
    assert found.level == "ok"
    assert found.text == "JAX computes on 2 x NVIDIA H100 80GB HBM3: 600.0 TFLOP/s in bfloat16, of 989 published."
    fake_machine(monkeypatch, "gpu", ["NVIDIA H100 80GB HBM3"], 50e3)
    (text,) = problems(accelerator.accelerator({}))
    assert "reaches 5% of its published rate" in text
    assert "nvidia-smi" in text
    fake_machine(monkeypatch, "gpu", ["Something New"], 50e3)
    assert not problems(accelerator.accelerator({}))


def test_a_slow_cpu_and_a_jax_that_does_not_work_are_found(monkeypatch):
    fake_machine(monkeypatch, gflops=4.0)
    (text,) = problems(accelerator.accelerator({}))
    assert "The CPU is slow, with 2.0 GFLOP/s a core" in text
    fake_machine(monkeypatch, status=-6, error="signal 6 killed it")
    (text,) = problems(accelerator.accelerator({}))
    assert text.startswith("JAX does not work here (signal 6 killed it).")


def test_the_measurement_is_a_program_that_jax_can_run():
    compile(accelerator._MEASURE, "measure", "exec")
    compile(rendering._TRY, "try", "exec")


Space = collections.namedtuple("Space", "total used free")


def test_a_full_slow_or_lockless_disk_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_try", lambda _: (3.0, False))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: Space(0, 0, 2e9))
    space, speed, locks = problems(machine.disk(tmp_path / "not" / "there"))
    assert f"Only 2.0 GB are free in {tmp_path}" in space and "logdir=DIR" in space
    assert "writes at only 3 MB/s" in speed
    assert "has no file locks" in locks


def test_a_disk_that_refuses_to_be_written_is_found(monkeypatch, tmp_path):
    def refuse(directory):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(machine, "_try", refuse)
    assert problems(machine.disk(tmp_path)) == [
        f"{tmp_path} cannot be written (Permission denied): choose logdir=DIR elsewhere."
    ]


def test_the_disk_is_measured_and_left_as_it_was(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_WRITTEN", 1)
    speed, locks = machine._try(tmp_path)
    assert speed > 0
    assert locks
    assert not list(tmp_path.iterdir())


Memory = collections.namedtuple("Memory", "total available")


def container(monkeypatch, root):
    """The directory of this process's control group, in a file system of its own."""
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/\n")
    (root / "proc/self/mountinfo").write_text("30 23 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n")
    monkeypatch.setattr(machine, "ROOT", root)
    return group


def test_little_memory_is_found_also_in_a_container(monkeypatch, tmp_path):
    group = container(monkeypatch, tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(64e9, 1e9))
    assert "Only 1.0 GB of memory" in problems(machine.memory())[0]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(64e9, 60e9))
    assert not problems(machine.memory())
    (group / "memory.max").write_text("4000000000\n")
    (group / "memory.current").write_text("3500000000\n")
    ok, problem = machine.memory()
    assert ok.text == "0.5 GB available of 4.0 GB that this container may use." and problem.level == "problem"
    (group / "memory.max").write_text("max\n")
    assert not problems(machine.memory())


def test_huge_pages_and_a_quota_of_cores_are_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "HUGE_PAGES", tmp_path / "enabled")
    group = container(monkeypatch, tmp_path)
    monkeypatch.setattr(own_cores, "count", lambda: 8)
    assert next(machine.huge_pages()).text == "This system does not say whether it has transparent huge pages."
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    assert "are off (never)" in next(machine.huge_pages()).text
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert next(machine.huge_pages()).level == "ok"
    (group / "cpu.max").write_text("200000 100000\n")
    ok, note = machine.cores()
    assert "8 of" in ok.text and "taskset -c 0-1" in note.text
    (group / "cpu.max").write_text("max 100000\n")
    assert [finding.level for finding in machine.cores()] == ["ok"]


def test_renderers_are_tried_one_by_one(monkeypatch):
    def answer(code, environ, seconds):
        name = environ["MUJOCO_GL"]
        return Answer(0, "works\n", "") if name == "egl" else Answer(-6, "", f"signal 6 killed {name}")

    monkeypatch.setattr(rendering, "ask_python", answer)
    (found,) = rendering.rendering({})
    assert found.text == "Works: egl. Does not: osmesa: signal 6 killed osmesa; glfw: signal 6 killed glfw."
    (text,) = problems(rendering.rendering({"MUJOCO_GL": "osmesa"}))
    assert text == "MUJOCO_GL=osmesa is set and does not work: set MUJOCO_GL=egl, or unset it."
    monkeypatch.setattr(rendering, "ask_python", lambda *_: Answer(1, "", "no driver"))
    (note,) = rendering.rendering({})
    assert note.level == "note"
    assert "apt-get install libegl1" in note.text
    assert "egl: no driver" in note.text


def test_a_run_that_fails_is_reported_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setattr(smoke, "ask", lambda *_: Answer(2, "", "Error: no room."))
    (text,) = problems(smoke.smoke(tmp_path))
    assert text.startswith("A tiny run could not train: Error: no room. See for yourself: python -m dreamer.train")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("level", "status"), [("ok", 0), ("note", 0), ("problem", 1)])
def test_the_status_says_whether_there_is_a_problem(monkeypatch, capsys, level, status):
    found = MachineFinding(level, "disk", "A sentence.", {"free_gb": 1.0})
    monkeypatch.setattr("dreamer.doctor.__main__.examine", lambda *_, **__: iter([found]))
    assert main([]) == status
    assert f"{level:<8}disk         A sentence." in capsys.readouterr().out
    assert main(["--json"]) == status
    printed = json.loads(capsys.readouterr().out)
    assert printed["problems"] == status and printed["findings"][0]["data"] == {"free_gb": 1.0}


def test_the_tiny_run_can_be_left_out(monkeypatch, tmp_path):
    monkeypatch.setattr("dreamer.doctor.__main__.smoke", lambda _: iter([MachineFinding("ok", "smoke", "")]))
    for module, name in ((rendering, "rendering"), (accelerator, "accelerator")):
        monkeypatch.setattr(module, name, lambda: iter(()))
    assert "smoke" not in [finding.topic for finding in examine(tmp_path, with_smoke=False)]
    assert [finding.topic for finding in examine(tmp_path)][-1] == "smoke"


@pytest.mark.slow
def test_the_doctor_sees_this_machine_as_it_is(tmp_path):
    command = [sys.executable, "-m", "dreamer.doctor", "--json", "--runs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    printed = json.loads(done.stdout)
    by_topic = {finding["topic"]: finding for finding in printed["findings"]}
    assert by_topic["smoke"]["level"] == "ok" and by_topic["smoke"]["data"]["updates"] > 0, by_topic["smoke"]["text"]
    assert by_topic["accelerator"]["data"]["gflops"] > 0.1
    assert done.returncode == (1 if printed["problems"] else 0)
    assert not list(tmp_path.iterdir())
