"""Trials are processes: retried when killed, stopped with the sweep, and never run twice."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from dreamer import config as configs
from dreamer.config import ConfigError
from dreamer.sweep import file, launch, local, report
from dreamer.sweep.__main__ import main, sweep
from dreamer.sweep.board import Board
from dreamer.sweep.plan import SweepPlan
from dreamer.sweep.search import search
from dreamer.training.directory import exclusive, write_config
from tests.sweep.fake_train import leave_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAKE = (sys.executable, str(pathlib.Path(__file__).with_name("fake_train.py")))
GRID = "presets: [cartpole]\ngrid: {optimizer.lr: [1e-4, 1e-3]}\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(local, "_PAUSE", 0.01)
    # Plots are tested in test_search.py.
    monkeypatch.setattr(report, "_draw_curves", lambda *_: False)
    monkeypatch.setattr(report, "_draw_scores", lambda *_: False)


@pytest.fixture
def fake(monkeypatch):
    """Sets how long trials take, and which fail."""
    return lambda **values: monkeypatch.setenv("FAKE", json.dumps(values))


def read(tmp_path: pathlib.Path, text: str = GRID) -> SweepPlan:
    (tmp_path / "sweep.yaml").write_text(text)
    return file.read(tmp_path / "sweep.yaml", tmp_path / "runs")


def run_sweep(plan: SweepPlan, jobs: int = 4, **options) -> tuple[int, str]:
    """Exit status of a sweep, and its output."""
    with open(plan.source + ".out", "w+") as out:
        status = sweep(plan, jobs, command=FAKE, console=Console(file=out, width=200), **options)
        out.seek(0)
        return status, out.read()


def states(plan: SweepPlan) -> dict[str, str]:
    trials = json.loads((plan.logdir / "sweep.json").read_text())["trials"]
    return {name: record["state"] for name, record in trials.items()}


def attempts(plan: SweepPlan, name: str) -> int:
    return len((plan.logdir / name / "attempts").read_text())


def test_a_sweep_runs_every_trial_once_and_prints_its_table(tmp_path):
    plan = read(tmp_path)
    status, output = run_sweep(plan)
    assert status == 0
    assert set(states(plan).values()) == {"done"}
    assert "[2/2] lr_0.0001-seed_0: eval -1" in output or "[1/2] lr_0.0001-seed_0: eval -1" in output
    assert "95 % interval" in output
    assert "Written: " in output
    assert run_sweep(plan)[0] == 0
    assert attempts(plan, "lr_0.001-seed_0") == 1
    # Of seeds that are added later, only the new ones run.
    more = read(tmp_path, GRID + "seeds: [0, 1]")
    assert "4 trials, 2 of them done before" in run_sweep(more)[1]
    assert attempts(plan, "lr_0.001-seed_0") == attempts(plan, "lr_0.001-seed_1") == 1


def test_a_killed_trial_is_resumed_and_reported(tmp_path, fake):
    fake(statuses={"lr_0.0001-seed_0": [-9, 75, 0], "lr_0.001-seed_0": [-11]})
    plan = read(tmp_path)
    status, output = run_sweep(plan)
    assert status == 1
    assert states(plan) == {"lr_0.0001-seed_0": "done", "lr_0.001-seed_0": "failed"}
    assert attempts(plan, "lr_0.0001-seed_0") == attempts(plan, "lr_0.001-seed_0") == 3
    assert "lr_0.0001-seed_0: was killed by SIGKILL; attempt 2 of 3 resumes it" in output
    assert "retried: lr_0.0001-seed_0 (exit status -9, 75, 0)." in output
    assert "failed: lr_0.001-seed_0 (exit status -11, -11, -11). It was killed by SIGSEGV." in output


@pytest.mark.parametrize("code", [1, 2, 3])
def test_an_error_that_the_user_must_fix_is_retried_only_on_request(tmp_path, fake, code):
    fake(statuses={"lr_0.0001-seed_0": [code, 0]})
    plan = read(tmp_path)
    status, output = run_sweep(plan)
    assert status == 1
    assert attempts(plan, "lr_0.0001-seed_0") == 1
    assert (
        f"failed: lr_0.0001-seed_0 (exit status {code}). It ended with status {code}. Error: planted trouble." in output
    )
    assert run_sweep(plan)[0] == 1
    assert attempts(plan, "lr_0.0001-seed_0") == 1
    assert run_sweep(plan, retry_failed=True)[0] == 0
    assert attempts(plan, "lr_0.0001-seed_0") == 2


def test_an_interrupted_trial_waits_for_the_next_start(tmp_path, fake):
    fake(statuses={"lr_0.0001-seed_0": [130, 0]})
    plan = read(tmp_path)
    assert run_sweep(plan)[0] == 1
    assert states(plan)["lr_0.0001-seed_0"] == "stopped"
    assert run_sweep(plan)[0] == 0
    assert attempts(plan, "lr_0.0001-seed_0") == 2


def test_a_run_without_the_score_has_failed(tmp_path):
    plan = read(tmp_path, GRID + "score: loss/dyn")
    status, output = run_sweep(plan)
    assert status == 1
    assert "It finished without a score 'loss/dyn'." in output


PROGRAM = """
import sys, pathlib
from dreamer.sweep import file
from dreamer.sweep.__main__ import sweep
plan = file.read(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
sys.exit(sweep(plan, 2, command=sys.argv[3:]))
"""


def start(plan: SweepPlan) -> subprocess.Popen:
    """A sweep in a separate process; returns once its first trials run."""
    words = [sys.executable, "-c", PROGRAM, plan.source, str(plan.logdir), *FAKE]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for(lambda: len(list(plan.logdir.glob("*/attempts"))) == 2)
    return process


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow  # Each starts a process that imports JAX.
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_is_passed_on_and_the_sweep_waits_until_trials_are_saved(tmp_path, fake, number, expected):
    fake(seconds=600)
    plan = read(tmp_path, GRID + "seeds: [0, 1]")
    process = start(plan)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == expected
    assert f"Stopped by {number.name}; waiting until 2 running trial(s) are saved" in errors
    assert len(list(plan.logdir.glob("*/saved"))) == 2
    assert set(states(plan).values()) == {"waiting"}
    fake(seconds=0)
    assert run_sweep(plan)[0] == 0
    assert attempts(plan, "lr_0.001-seed_0") == 2
    assert attempts(plan, "lr_0.001-seed_1") == 1


@pytest.mark.slow
def test_a_killed_sweep_stops_its_trials_and_can_be_continued(tmp_path, fake):
    fake(seconds=600)
    plan = read(tmp_path, GRID + "seeds: [0, 1]")
    leave_run(plan.logdir / "lr_0.0001-seed_0", 5.0)
    process = start(plan)
    process.kill()
    process.communicate()
    wait_for(lambda: len(list(plan.logdir.glob("*/saved"))) == 2)
    assert list(states(plan).values()).count("running") == 2
    fake(seconds=0)
    assert run_sweep(plan)[0] == 0
    assert set(states(plan).values()) == {"done"}


def test_a_run_of_a_scheduler_is_taken_over(tmp_path):
    plan = read(tmp_path)
    trial = Board(plan, search(plan)).trials[1]
    leave_run(trial.logdir, 3.0)
    write_config(trial.logdir, trial.config)
    assert run_sweep(plan)[0] == 0
    assert not (trial.logdir / "attempts").exists()
    assert json.loads((plan.logdir / "results.json").read_text())["settings"][0]["mean"] == 3.0


@pytest.mark.parametrize("change", ["optimizer.lr=0.5", "run.env_steps=77"])
def test_a_run_with_another_config_or_half_done_is_not_taken_over(tmp_path, change):
    plan = read(tmp_path)
    trial = Board(plan, search(plan)).trials[1]
    leave_run(trial.logdir, 3.0)
    write_config(trial.logdir, configs.override(trial.config, [change]))
    assert run_sweep(plan)[0] == 0
    assert attempts(plan, trial.name) == 1


def test_a_sweep_waits_for_a_trial_that_another_process_runs(tmp_path):
    plan = read(tmp_path)
    trial = Board(plan, search(plan)).trials[0]
    held = exclusive(trial.logdir)
    held.__enter__()
    messages = []

    def say(message: str) -> None:
        messages.append(message)
        if "lr_0.001-seed_0: eval" in message:  # The other one is done meanwhile.
            held.__exit__(None, None, None)

    board = Board(plan, search(plan), say)
    local.run(board, 2, FAKE, say)
    assert messages[0] == f"lr_0.0001-seed_0 is already run by process {os.getpid()}; waiting for it."
    assert board.counts() == {"done": 2}


def test_two_sweeps_do_not_share_a_directory(tmp_path, capsys):
    plan = read(tmp_path)
    with exclusive(plan.logdir):
        assert main([plan.source, "--logdir", str(plan.logdir)]) == 2
    assert "is in use by another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 9, "trials": {}}', '{"version": 1, "trials": {"a": {"b": 1}}}']
)
def test_a_damaged_state_is_explained(tmp_path, text):
    plan = read(tmp_path)
    plan.logdir.mkdir()
    (plan.logdir / "sweep.json").write_text(text)
    with pytest.raises(ConfigError, match=r"sweep.json cannot be read .*: delete it, and the sweep finds its finished"):
        Board(plan, search(plan))


def test_another_sweep_in_the_same_directory_is_refused(tmp_path):
    run_sweep(read(tmp_path))
    other = read(tmp_path, GRID + "overrides: {run.env_steps: 77}")
    with pytest.raises(
        ConfigError, match=r"the trial lr_0.0001-seed_0 of another sweep; they differ in run.env_steps=77"
    ):
        Board(other, search(other))


def test_jobs_divide_cores_and_gpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 6})
    cpu = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0"}
    assert [share.cores for share in local.shares(2, cpu)] == [(0, 1), (2, 3, 6)]
    assert [share.cores for share in local.shares(1, cpu)] == [()]
    assert [share.cores for share in local.shares(6, cpu)] == [()] * 6
    assert {bool(share.environ) for share in local.shares(2, cpu)} == {False}
    gpus = {"CUDA_VISIBLE_DEVICES": "4,7"}
    assert [share.environ for share in local.shares(2, gpus)] == [
        {"CUDA_VISIBLE_DEVICES": "4"},
        {"CUDA_VISIBLE_DEVICES": "7"},
    ]
    assert not local.shares(1, gpus)[0].environ
    third = {"CUDA_VISIBLE_DEVICES": "4", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.450"}
    assert local.shares(3, gpus)[2].environ == third
    chosen = {**gpus, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    assert local.shares(3, chosen)[2].environ == {"CUDA_VISIBLE_DEVICES": "4"}


def test_a_trial_gets_its_cores_before_it_starts(tmp_path):
    core = min(os.sched_getaffinity(0))
    code = f"import os, pathlib; pathlib.Path({str(tmp_path / 'out')!r}).write_text(str(os.sched_getaffinity(0)))"
    subprocess.run(launch.words([core], [sys.executable, "-c", code]), check=True, cwd=ROOT)
    assert (tmp_path / "out").read_text() == str({core})


def test_a_trial_does_not_start_if_its_sweep_has_died():
    assert launch.main(["1234567", "all", sys.executable, "-c", "raise SystemExit(9)"]) == os.EX_TEMPFAIL


def test_an_error_names_the_extra_if_ray_is_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    plan = read(tmp_path)
    assert main([plan.source, "--logdir", str(plan.logdir), "--ray"]) == 2
    assert "install it with pip install 'dreamer[ray]', or leave out --ray" in capsys.readouterr().err


def test_the_report_of_a_sweep_that_has_not_begun(tmp_path, capsys):
    plan = read(tmp_path)
    assert main([plan.source, "--logdir", str(plan.logdir), "--report"]) == 2
    assert "nothing to report" in capsys.readouterr().err
    run_sweep(plan)
    assert main([plan.source, "--logdir", str(plan.logdir), "--report"]) == 0
    assert "95 % interval" in capsys.readouterr().out
