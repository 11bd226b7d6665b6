"""Searches find a planted optimum, scores are read from metrics, and the report has the numbers."""

import json
import math
import pathlib

import numpy as np
import pytest
import scipy.stats
from matplotlib.figure import Figure

from dreamer.config import ConfigError
from dreamer.sweep import file, report, scores
from dreamer.sweep.board import Board, TrialRecord
from dreamer.sweep.plan import SweepPlan
from dreamer.sweep.search import search
from tests.sweep.fake_train import leave_run, score_of

WIDE = "presets: [cartpole]\nrandom: {optimizer.lr: {log_uniform: [1e-6, 1e-1]}}\n"


def read(tmp_path: pathlib.Path, text: str) -> SweepPlan:
    (tmp_path / "sweep.yaml").write_text(text)
    return file.read(tmp_path / "sweep.yaml", tmp_path / "runs")


def silent(message: str) -> None:
    pass


def play(plan: SweepPlan, most: int = 10_000, sign: int = 1) -> Board:
    """Run a sweep without processes, ``most`` trials at most."""
    board = Board(plan, search(plan), silent)
    while most and (trial := board.next()) is not None:
        board.record_start(trial)
        leave_run(trial.logdir, sign * score_of(trial.setting.config.optimizer.lr, trial.seed))
        board.record_end(trial, 0, 1.0)
        most -= 1
    return board


def best_lr(board: Board) -> float:
    return report.results(board)[0].setting.values["optimizer.lr"]


def test_a_grid_finds_the_planted_optimum(tmp_path):
    plan = read(tmp_path, "presets: [cartpole]\ngrid: {optimizer.lr: [1e-5, 1e-4, 1e-3, 1e-2]}\nseeds: [0, 2]")
    assert best_lr(play(plan)) == 1e-3


def test_settings_are_compared_within_a_task(tmp_path):
    grid = "{task: [gym_CartPole-v1, gym_Acrobot-v1], optimizer.lr: [1e-5, 1e-3, 1e-4]}"
    board = play(read(tmp_path, f"presets: [cartpole]\ngrid: {grid}\nseeds: [0, 1]"))
    ranking = report.results(board)
    best_first = [1e-3, 1e-4, 1e-5]
    assert [(result.setting.config.task, result.setting.values["optimizer.lr"]) for result in ranking] == [
        (task, lr) for task in ("gym_CartPole-v1", "gym_Acrobot-v1") for lr in best_first
    ]
    figure = Figure()
    assert report._draw_curves(board, ranking, figure)
    assert [axes.get_title().split()[-1] for axes in figure.axes] == ["gym_CartPole-v1", "gym_Acrobot-v1"]
    one, two = ([(line.get_label(), line.get_color()) for line in axes.lines] for axes in figure.axes)
    assert one == two
    assert [str(label).split("_")[-1] for label, _ in one] == ["0.001", "0.0001", "1e-05"]


def test_random_search_comes_near_it(tmp_path):
    board = play(read(tmp_path, WIDE + "trials: 30"))
    assert abs(math.log10(best_lr(board)) + 3) < 0.3
    assert len(report.results(board)) == 30


def test_optuna_comes_closer_and_learns_from_scores(tmp_path):
    board = play(read(tmp_path, WIDE + "trials: 30\nsearch: optuna"))
    tried = [trial.setting.values["optimizer.lr"] for trial in board.trials]
    assert abs(math.log10(best_lr(board)) + 3) < 0.1
    # The first ten are random draws; later ones lie closer to the optimum.
    distance = np.abs(np.log10(tried) + 3)
    assert distance[-10:].mean() < 0.5 * distance[:10].mean()


def test_optuna_minimizes_too(tmp_path):
    board = play(read(tmp_path, WIDE + "trials: 20\nsearch: optuna\ndirection: minimize\nseeds: [0, 1]"), sign=-1)
    assert abs(math.log10(best_lr(board)) + 3) < 0.3


def test_a_search_with_optuna_continues_after_it_was_killed(tmp_path):
    text = WIDE + "trials: 14\nsearch: optuna\nseeds: [0, 1]"
    (tmp_path / "two").mkdir()
    straight = play(read(tmp_path / "two", text))
    plan = read(tmp_path, text)
    for _ in range(2):
        play(plan, 9)  # Stops before the second seed of the fifth setting.
        # Killed while it was writing a line, with its lock held.
        with open(plan.logdir / "optuna.jsonl", "a") as journal:
            journal.write('{"op_code":')
        (plan.logdir / "optuna.jsonl.lock").symlink_to("optuna.jsonl")
    board = play(plan)
    values = [trial.setting.values for trial in straight.trials]
    assert [trial.setting.values for trial in board.trials] == values
    assert len(values) == 28
    assert best_lr(board) == best_lr(straight)


def test_a_proposal_that_was_cut_off_is_completed(tmp_path):
    text = "presets: [cartpole]\nsearch: optuna\ntrials: 3\nrandom: {optimizer.lr: {uniform: [1e-4, 1e-3]}, "
    plan = read(tmp_path, text + "behavior.horizon: {int_uniform: [3, 9]}, nets.mults: {choice: [[2, 3], [4, 5]]}}")
    play(plan, 1)
    found = search(plan)
    values = found.ask(1)
    journal = plan.logdir / "optuna.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]))  # Without the last value of the second setting.
    again = search(plan).ask(1)
    assert again.keys() == values.keys()
    assert again["nets.mults"] in ((2, 3), (4, 5))
    assert {**again, "nets.mults": 0} == {**values, "nets.mults": 0}


def test_another_search_over_other_keys_is_refused(tmp_path):
    play(read(tmp_path, WIDE + "trials: 2\nsearch: optuna"))
    other = read(tmp_path, WIDE.replace("optimizer.lr", "loss.rep") + "trials: 2\nsearch: optuna")
    with pytest.raises(ConfigError, match=r"an Optuna search over optimizer.lr, and .* asks for loss.rep"):
        Board(other, search(other), silent)


def test_an_error_names_the_extra_if_optuna_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"install it with pip install 'dreamer\[sweep\]', or use search: random"):
        search(read(tmp_path, WIDE + "trials: 2\nsearch: optuna"))


def write(logdir: pathlib.Path, lines: list[dict]) -> pathlib.Path:
    logdir.mkdir(exist_ok=True)
    (logdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return logdir


def test_every_kind_of_score_is_read_from_the_metrics(tmp_path):
    episodes = [{"env_steps": step, "episode/score": float(step)} for step in [*range(15), *range(20, 25)]]
    lines = [*episodes, {"env_steps": 25, "loss/dyn": 2.0}, {"env_steps": 26, "eval/mean": 7.5, "loss/dyn": None}]
    logdir = write(tmp_path / "run", lines)
    assert scores.score(logdir, "eval") == 7.5
    assert scores.score(logdir, "last") == np.mean([*range(10, 15), *range(20, 25)])
    assert scores.score(logdir, "best") == scores.score(logdir, "last")
    assert scores.score(logdir, "best", "minimize") == np.mean(range(10))
    assert scores.score(logdir, "loss/dyn") is None
    assert scores.score(logdir, "loss/rew") is None
    assert scores.score(tmp_path / "nothing", "eval") is None
    assert scores.score(write(tmp_path / "short", episodes[:4]), "last") == 1.5


def test_steps_that_a_killed_run_repeated_count_once(tmp_path):
    def episode(step: int, value: float) -> dict:
        return {"env_steps": step, "episode/score": value}

    logdir = write(
        tmp_path / "run", [episode(1, 1.0), episode(5, 9.0), episode(9, 9.0), episode(4, 3.0), episode(8, 5.0)]
    )
    assert [line["episode/score"] for line in scores.read_lines(logdir)] == [1.0, 3.0, 5.0]
    assert scores.score(logdir, "last") == 3.0


@pytest.mark.parametrize("values", [[1.0, 2.0], [3.0, 1.0, 5.5], [0.5 * step for step in range(40)]])
def test_the_interval_is_that_of_student(values):
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy.stats.sem(values))
    assert report.half_interval(values) == pytest.approx((high - low) / 2)
    assert math.isnan(report.half_interval(values[:1]))


def test_the_report_has_the_numbers_and_what_failed(tmp_path):
    plan = read(tmp_path, "presets: [cartpole]\ngrid: {optimizer.lr: [1e-5, 1e-3, 1e-1]}\nseeds: [0, 1]\nretries: 1")
    board = Board(plan, search(plan), silent)
    for trial in board.trials:
        board.record_start(trial)
        if trial.name == "lr_1e-05-seed_0":
            board.record_end(trial, -9, 1.0)
        if trial.name.startswith("lr_0.1"):
            board.record_end(trial, 2, 1.0)
            continue
        leave_run(trial.logdir, score_of(trial.setting.config.optimizer.lr, trial.seed))
        board.record_end(trial, 0, 1.0)
    paths = report.write(board)
    assert [path.name for path in paths] == ["table.txt", "results.json", "curves.png", "scores.png"]
    assert all(path.stat().st_size > 100 for path in paths)
    table = (plan.logdir / "table.txt").read_text()
    rows = [line for line in table.splitlines() if " of 2" in line]
    assert [row.split("│")[1].strip() for row in rows] == ["0.001", "1e-05", "0.1"]
    best, _, worst = rows
    assert "0.005" in best
    assert "-0.05853 to 0.06853" in best
    assert "2 of 2" in best
    assert "0 of 2" in worst
    assert "failed: lr_0.1-seed_0 (exit status 2). It ended with status 2." in table
    assert "retried: lr_1e-05-seed_0 (exit status -9, 0)." in table
    result = json.loads((plan.logdir / "results.json").read_text())
    first, _, last = result["settings"]
    assert first["values"] == {"optimizer.lr": 1e-3}
    assert first["mean"] == pytest.approx(0.005)
    assert first["interval"] == pytest.approx([0.005 - 0.063531, 0.005 + 0.063531], abs=1e-5)
    assert [trial["score"] for trial in first["trials"]] == [0.0, 0.01]
    assert last["mean"] is None
    assert last["interval"] is None
    assert result["states"] == {"done": 4, "failed": 2}


@pytest.mark.parametrize(
    ("grid", "drawn"),
    [
        ("{optimizer.lr: [1e-3, 1e-2], loss.rep: [0.1, 0.2]}", True),
        ("{task: [gym_CartPole-v1, gym_Acrobot-v1]}", False),
        ("{env.check: [yes, no]}", False),
        ("{loss.rep: [0, 1], loss.dyn: [0, 1], loss.cont: [0, 1]}", False),
    ],
)
def test_scores_are_drawn_over_one_or_two_numbers(tmp_path, grid, drawn):
    board = play(read(tmp_path, f"presets: [cartpole]\ngrid: {grid}"))
    assert ("scores.png" in [path.name for path in report.write(board)]) == drawn


def test_the_report_of_a_sweep_without_results_has_no_plots(tmp_path):
    plan = read(tmp_path, WIDE + "trials: 2")
    board = Board(plan, search(plan), silent)
    assert [path.name for path in report.write(board)] == ["table.txt", "results.json"]
    assert board.records[board.trials[0].name] == TrialRecord([*board.trials[0].setting.words, "seed=0"])
