"""The results of a sweep: a table, ``results.json``, and plots of curves and of scores over values."""

import io
import json
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from rich.console import Console
from rich.table import Table

from dreamer.checkpoints.manifest import write_durably
from dreamer.config import paths
from dreamer.logs.plots import as_label
from dreamer.sweep.board import Board
from dreamer.sweep.plan import Setting, Trial
from dreamer.sweep.scores import read_lines, running_means

_COLORS = 10
"""The best settings of a task, as many as this, have colours in the plot of curves; others are gray."""


class SettingResult(NamedTuple):
    """The scores of one setting so far."""

    setting: Setting
    trials: list[Trial]
    scores: dict[int, float]
    """By seed, of trials that are done."""

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN if none is done."""
        return float(np.mean(list(self.scores.values()))) if self.scores else math.nan

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval of the mean; NaN with fewer than two seeds."""
        return half_interval(list(self.scores.values()))


def half_interval(values: list[float]) -> float:
    """Half the width of Student's 95 % confidence interval of a mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    return float(scipy.special.stdtrit(len(values) - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(len(values)))


def results(board: Board) -> list[SettingResult]:
    """All settings, by task, the best of each first, those without a score last."""
    unsorted = []
    for trials in board.setting_trials().values():
        records = {trial.seed: board.records[trial.name] for trial in trials}
        scores = {seed: record.score for seed, record in records.items() if record.score is not None}
        unsorted.append(SettingResult(trials[0].setting, trials, scores))
    sign = -1 if board.plan.direction == "maximize" else 1
    ranked = sorted(unsorted, key=lambda result: (not result.scores, sign * result.mean if result.scores else 0.0))
    return [result for task in by_task(unsorted) for result in by_task(ranked)[task]]


def by_task(results: list[SettingResult]) -> dict[str, list[SettingResult]]:
    """Results of each task, as scores of different tasks cannot be compared; one key if there is one task."""
    groups: dict[str, list[SettingResult]] = {}
    for result in results:
        groups.setdefault(result.setting.config.task, []).append(result)
    return groups


def table(board: Board, results: list[SettingResult]) -> Table:
    """The results for people, one row per setting."""
    plan = board.plan
    title = f"{plan.logdir.name}: {plan.score}, {plan.direction}d"
    rows = Table(title=title, title_justify="left", caption_justify="left")
    for key in plan.keys:
        rows.add_column(key, justify="right", overflow="fold")
    rows.add_column("mean", justify="right")
    rows.add_column("95 % interval", justify="right")
    rows.add_column("seeds", justify="right")
    rows.add_column("best", justify="right")
    rows.add_column("worst", justify="right")
    for result in results:
        values = [plan.show(result.setting.values[key]) for key in plan.keys]
        ends = sorted(result.scores.values(), reverse=plan.direction == "maximize")
        interval = "-"
        if not math.isnan(result.half_width):
            interval = f"{_number(result.mean - result.half_width)} to {_number(result.mean + result.half_width)}"
        numbers = [_number(result.mean), interval, f"{len(ends)} of {len(plan.seeds)}"]
        numbers += [_number(ends[0]), _number(ends[-1])] if ends else ["-", "-"]
        rows.add_row(*values, *numbers)
    return rows


def text(board: Board, results: list[SettingResult]) -> str:
    """The table and the failures, without colours, as ``table.txt`` holds them."""
    rows = table(board, results)
    console = Console(file=io.StringIO(), width=max(80, 24 * len(rows.columns)), no_color=True)
    console.print(rows)
    output = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line.rstrip() for line in output.splitlines()]
    return "\n".join([*lines, *failures(board)]) + "\n"


def failures(board: Board) -> list[str]:
    """A line for each trial that failed, was interrupted, or needed more than one attempt."""
    messages = []
    for trial in board.trials:
        record = board.records[trial.name]
        statuses = f"exit status {', '.join(map(str, record.exits))}" if record.exits else "never started"
        if record.state in ("failed", "stopped"):
            messages.append(f"{record.state}: {trial.name} ({statuses}). {record.message}")
        elif record.state == "done" and len(record.exits) > 1:
            messages.append(f"retried: {trial.name} ({statuses}).")
    return messages


def as_json(board: Board, results: list[SettingResult]) -> dict[str, Any]:
    """The results for programs: settings, by task, the best of each first, with all their trials."""
    settings = []
    for result in results:
        half = result.half_width
        trials = []
        for trial in result.trials:
            record = board.records[trial.name]
            trials.append(
                {
                    "name": trial.name,
                    "seed": trial.seed,
                    "logdir": str(trial.logdir),
                    "state": record.state,
                    "score": record.score,
                    "exits": record.exits,
                    "seconds": record.seconds,
                    "message": record.message,
                    "command": trial.command(),
                }
            )
        interval = None if math.isnan(half) else [result.mean - half, result.mean + half]
        mean = result.mean if result.scores else None
        settings.append({"values": dict(result.setting.values), "mean": mean, "interval": interval, "trials": trials})
    plan = board.plan
    about = {"sweep": plan.source, "score": plan.score, "direction": plan.direction, "states": dict(board.counts())}
    return {**about, "settings": settings}


def write(board: Board) -> list[pathlib.Path]:
    """Write ``table.txt``, ``results.json``, ``curves.png`` and, for one or two numeric keys, ``scores.png``.

    Returns:
        The files.

    Raises:
        OSError: one cannot be written.
    """
    logdir = board.plan.logdir
    ranking = results(board)
    logdir.mkdir(parents=True, exist_ok=True)
    table_path = logdir / "table.txt"
    json_path = logdir / "results.json"
    write_durably(table_path, text(board, ranking))
    write_durably(json_path, json.dumps(as_json(board, ranking), indent=1))
    written = [table_path, json_path]
    for name, draw in (("curves.png", _draw_curves), ("scores.png", _draw_scores)):
        figure = _figure()
        if draw(board, ranking, figure):
            with paths.replacing(logdir / name) as draft:
                figure.savefig(draft)
            written.append(logdir / name)
    return written


def _figure() -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # Slow to import, and needed once.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _add_axes(figure: Any, title: str, places: tuple[int, int, int] = (1, 1, 1)) -> Any:
    axes = figure.add_subplot(*places)
    axes.set_title(as_label(title))
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _draw_curves(board: Board, results: list[SettingResult], figure: Any) -> bool:
    """Draw the mean return of the last ten episodes over env steps: the mean over seeds, and their range."""
    groups = by_task(results)
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure.set_size_inches(7 * columns, 4 * rows)
    name = board.plan.logdir.name
    colors: dict[str, str] = {}  # Of each setting but for the task, the same in all panels.
    panels = []
    for number, (task, group) in enumerate(groups.items()):
        axes = _add_axes(figure, f"{name}: {task}" if len(groups) > 1 else name, (rows, columns, number + 1))
        panels.append(_draw_panel(board, group, axes, colors, alone=len(groups) == 1))
    return any(panels)


def _draw_panel(board: Board, results: list[SettingResult], axes: Any, colors: dict[str, str], *, alone: bool) -> bool:
    """Draw the curves of one task; returns whether there are any."""
    drawn = False
    known = len(colors)
    for result in results:
        curves = [running_means(read_lines(trial.logdir)) for trial in result.trials]
        curves = [(steps, means) for steps, means in curves if len(steps)]
        if not curves:
            continue
        drawn = True
        # Only where all seeds have a curve.
        start = max(steps[0] for steps, _ in curves)
        end = min(steps[-1] for steps, _ in curves)
        grid = np.linspace(start, max(start, end), 200)
        values = np.stack([np.interp(grid, steps, means) for steps, means in curves])
        shown = {key: value for key, value in result.setting.values.items() if alone or key != "task"}
        label = as_label(board.plan.label(shown))
        colored = label in colors or len(colors) < _COLORS
        color = colors.setdefault(label, f"C{len(colors)}") if colored else "#c8c8c8"
        (line,) = axes.plot(
            grid, values.mean(0), color=color, label=label if label and colored else None, zorder=2 if colored else 1
        )
        if colored and len(curves) > 1:
            axes.fill_between(grid, values.min(0), values.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="env steps", ylabel="return, mean of 10 episodes")
    # A panel before this one may have explained all colours.
    if len(colors) > known and axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize="small")
    return drawn


def _draw_scores(board: Board, results: list[SettingResult], figure: Any) -> bool:
    """Draw the score over the value of a numeric key, or as colour over the values of two."""
    keys = board.plan.keys
    results = [result for result in results if result.scores]
    columns = [[result.setting.values[key] for result in results] for key in keys]
    if not results or len(keys) > 2 or any(type(value) not in (int, float) for column in columns for value in column):
        return False
    axes = _add_axes(figure, f"{board.plan.logdir.name}: {board.plan.score}")
    for key, column, axis in zip(keys, columns, ("x", "y"), strict=False):
        axes.set(**{f"{axis}label": key})
        if min(column) > 0 and max(column) / min(column) >= 10:
            axes.set(**{f"{axis}scale": "log"})
    if len(keys) == 2:
        points = axes.scatter(*columns, c=[result.mean for result in results], s=60)
        figure.colorbar(points, label=f"{board.plan.score}, mean over seeds")
        return True
    (values,) = columns
    for result, value in zip(results, values, strict=True):
        axes.plot([value] * len(result.scores), list(result.scores.values()), ".", color="#9bb7d4", zorder=1)
    order = np.argsort(values)
    means = np.array([result.mean for result in results])[order]
    halves = np.nan_to_num(np.array([result.half_width for result in results]))[order]
    axes.errorbar(np.array(values)[order], means, halves, color="#1f4e79", marker="o", capsize=3, zorder=2)
    axes.set(ylabel=f"{board.plan.score}, mean and 95 % interval")
    return True


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


__all__ = ["SettingResult", "as_json", "failures", "half_interval", "results", "table", "text", "write"]
