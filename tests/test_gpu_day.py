"""`scripts/gpu_day.py` plans, measures, skips, survives its rows, continues and writes tables, of fake rows."""

import inspect
import os
import pathlib
import sys
from typing import Any

import gpu_day
import gpu_rows
import psutil
import pytest
from gpu_day import Day, NotHere, Row

ROOT = pathlib.Path(__file__).resolve().parent.parent
MACHINE = "a machine"

FAKE = """
import json, pathlib, subprocess, sys, time
kind, arguments, folder = sys.argv[1], json.loads(sys.argv[2]), pathlib.Path(sys.argv[3])
if kind == "crash":
    sys.exit("Boom.")
if kind == "flag":
    sys.exit("F1 file.cc:1] Unknown flag in XLA_FLAGS: --xla_new=1")
if kind == "endless":
    child = subprocess.Popen(["sleep", "60"])
    (folder / "child").write_text(str(child.pid))
    time.sleep(60)
(folder / "ready").touch()
if sys.stdin.readline():
    if kind == "slow":
        time.sleep(60)
    (folder / "figures.json").write_text(json.dumps(arguments))
"""


def row(name: str, kind: str = "good", compile_s: float = 10, measure_s: float = 5, **more: Any) -> Row:
    figures = {"case": "vector", "update_ms": 2.0, "range_ms": [1.0, 1234.5]}
    return Row(name, "update", f"what of {name}", kind, figures, compile_s, measure_s)._replace(**more)


def measured(*rows: Row, times: float = 1.0) -> dict[str, gpu_day.Record]:
    return {
        row.name: {
            "name": row.name,
            "status": "measured",
            "machine": MACHINE,
            "figures": row.arguments,
            "compile_s": times * row.compile_s,
            "measure_s": times * row.measure_s,
        }
        for row in rows
    }


@pytest.fixture
def make(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a day in one folder, whose rows are fakes."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(gpu_day, "COMMAND", [sys.executable, "-S", str(script)])
    monkeypatch.setattr(gpu_day, "GRACE", 1)
    return lambda *rows: Day(rows, tmp_path, MACHINE, os.environ)


A, LONG, B = row("a"), row("long", compile_s=100), row("b", measure_s=2)


@pytest.mark.parametrize(
    ("seconds", "jobs", "pace", "expected"),
    [
        (1000, 3, 1.0, [A, LONG, B]),
        (1000, 2, 1.0, [A, LONG]),
        (17, 3, 1.0, [A, B]),  # 10 to compile, 5 and 2 to measure
        (16, 3, 1.0, [A]),
        (33, 3, 2.0, [A]),
        (34, 3, 2.0, [A, B]),
        (11, 3, 1.0, []),
    ],
)
def test_a_batch_is_what_fits_in_the_order_of_value(seconds, jobs, pace, expected):
    assert gpu_day.next_batch([A, LONG, B], seconds, jobs, pace) == expected


def test_what_was_measured_corrects_the_estimates():
    assert gpu_day.pace_of([A, LONG, B], {}) == 1
    assert gpu_day.pace_of([A, LONG, B], measured(A, B, times=3)) == pytest.approx(3)


def test_the_plan_names_what_is_skipped():
    lines = gpu_day.plan([A, LONG, B], {}, 20, 2).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["a", "b", "long"]
    assert [" 17 s " in lines[2], " 17 s " in lines[3], "skipped" in lines[4]] == [True, True, True]


def test_rows_that_fail_cost_themselves_only_and_are_tried_last(make):
    rows = row("crash", "crash"), row("flag", "flag"), A, row("endless", "endless", compile_s=0), B
    day = make(*rows, row("slow", "slow", measure_s=0))
    day.measure(seconds=100, jobs=6)
    status = {name: record["status"] for name, record in day.records.items()}
    assert status == {
        "a": "measured",
        "b": "measured",
        "crash": "failed",
        "flag": "failed",
        "endless": "stopped",
        "slow": "stopped",
    }
    assert day.records["crash"]["error"] == "status 1: Boom."
    assert day.records["flag"]["error"].startswith("this XLA does not know the flag: Unknown flag")
    child = int((day.out / "rows" / "endless" / "child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    again = make(*rows, LONG)
    assert again.records == day.records
    assert [row.name for row in gpu_day.in_order(again.rows, again.records)] == ["long", "crash", "flag", "endless"]


def test_a_row_that_lacks_time_is_as_if_it_had_not_been_tried(make):
    day = make(A, row("endless", "endless", compile_s=0.1, measure_s=0.1))
    day.measure(seconds=0.5, jobs=1)
    assert day.records == {}
    assert "not yet" in (day.out / "gpu.md").read_text()


def test_a_line_that_was_cut_off_is_not_read(make):
    day = make(A)
    day.measure(seconds=100, jobs=1)
    with open(day.out / "rows.jsonl", "a") as file:
        file.write('{"name": "b", "sta')
    assert make(A, B).records.keys() == {"a"}


def test_the_page_has_figures_failures_and_the_fastest_setting():
    slow = row("1m", setting=gpu_day.AS_IT_IS)
    fast = row("1m-fast", setting="faster", arguments={**A.arguments, "update_ms": 1.5})
    failed, never = row("failed"), row("never", predicted="3 ms")
    records = measured(slow, fast) | {"failed": {"status": "failed", "error": "signal 6: a | b"}}
    text = gpu_day.page([slow, fast, failed, never], records, MACHINE)
    assert "|  | predicted | case | update ms | range ms |" in text
    assert "| what of 1m |  | vector | 2 | 1 to 1,234 |" in text
    assert "| what of failed |  | failed: signal 6: a / b |  |  |" in text
    assert "| what of never | 3 ms | not yet |  |  |" in text
    assert gpu_day.winners([slow, fast, failed], records) == [
        "At size 1m, the fastest of 2 settings is: faster, 1.5 ms; as it is: 2 ms."
    ]


def test_kernels_that_overlap_are_busy_once():
    # 0 to 4 and 2 to 6 on two streams, a gap of 4, and 10 to 12; of two updates.
    events = [("a", 0e6, 4e6), ("b", 2e6, 6e6), ("a", 10e6, 12e6)]
    assert gpu_rows.timeline(events, rounds=2) == {
        "whole_ms": 6,
        "busy_ms": 4,
        "gaps_ms": 2,
        "kernels": 1.5,
        "longest": [["a", 3, 1], ["b", 2, 0.5]],
    }


@pytest.mark.parametrize("row", gpu_day.ROWS, ids=lambda row: row.name)
def test_a_row_calls_its_function_with_arguments_it_has(row):
    for each in (row, gpu_day.miniature(row)):
        inspect.signature(gpu_rows.KINDS[each.kind]).bind(**each.arguments)
    assert row.section in gpu_day.SECTIONS


def test_the_page_of_results_has_every_row():
    text = (ROOT / "docs/results/gpu.md").read_text()
    assert [row.what for row in gpu_day.ROWS if f"| {row.what} |" not in text] == []
    assert len({row.name for row in gpu_day.ROWS}) == len(gpu_day.ROWS)


# Bad input


def fake_smi(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """A driver that answers so; an empty answer is an error."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{f'echo {answer}' if answer else 'exit 6'}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/bin")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "There is no NVIDIA GPU here that nvidia-smi can describe, expected one"),
        ("No devices were found", "There is no NVIDIA GPU here that nvidia-smi can describe, expected one"),
        ("Tesla T4, 7.5, 15360, 15000", "The Tesla T4 has compute capability 7.5, expected 8.0 or newer"),
        ("NVIDIA H200, 9.0, 143771, 3000", "The NVIDIA H200 has 3.1 of 150.8 GB of memory free, expected 24 GB"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_refused(answer, said, tmp_path, monkeypatch, capsys):
    fake_smi(tmp_path, monkeypatch, answer)
    assert gpu_day.main(["--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_machine_without_a_driver_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_day.main([]) == 2
    assert "try the script in miniature with --cpu" in capsys.readouterr().err


def test_a_gpu_that_fits_is_accepted(tmp_path, monkeypatch):
    fake_smi(tmp_path, monkeypatch, "NVIDIA H200, 9.0, 143771, 143000")
    gpu_day.check_gpu("0")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_minutes_that_are_none_are_refused(value, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu_day.main([f"--minutes={value}"])
    assert ended.value.code == 2
    assert f"got {value}, expected a number of minutes above 0" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotHere, match=r"cannot be written \(Not a directory\): choose another folder with --out"):
        gpu_day.claim(tmp_path / "file" / "out", MACHINE)


def test_rows_of_another_machine_are_not_mixed_in(make):
    day = make(A)
    day.measure(seconds=100, jobs=1)
    gpu_day.claim(day.out, MACHINE)
    with pytest.raises(NotHere, match=r"has rows of another machine \(a machine\), expected another"):
        gpu_day.claim(day.out, "another")


ONE_OF_EACH = list({row.kind: row for row in reversed(gpu_day.ROWS)}.values())
OTHER_UPDATES = [row for row in gpu_day.ROWS if row.name in ("1m-no-reuse", "1m-unroll-4", "1m-unrolled-graphs")]


@pytest.mark.slow
@pytest.mark.parametrize("row", [*ONE_OF_EACH, *OTHER_UPDATES], ids=lambda row: row.name)
def test_a_row_is_measured_in_miniature(row, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_day, "ROWS", [row])
    assert gpu_day.main(["--cpu", "--minutes=10", f"--out={tmp_path}"]) == 0
    figures = gpu_day.read_records(tmp_path)[row.name]["figures"]
    assert figures.get("update_ms", 1) > 0
    assert figures.get("gradient_error_float32", 0) < 1e-5
    assert figures.get("differ_when_resumed", 0) == 0
