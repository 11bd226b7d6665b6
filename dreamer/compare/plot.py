"""Draws comparisons: the curves of runs on top of the released band of the same task."""

import math
import os
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamer.compare.comparison import ENOUGH, Aggregate, Comparison
from dreamer.compare.curves import RunCurve
from dreamer.config import paths
from dreamer.evaluate import statistics
from dreamer.logs.plots import as_label

POINTS = 200
"""Points along the axis at which curves are drawn."""

_COLUMNS = 3
_COLORS = ("#1f4e79", "#c05a1a", "#3c7d3c", "#7a3c7d", "#8a6d1a")
_BAND = "#8a8f98"


def draw(
    comparisons: Sequence[Comparison], aggregates: Sequence[Aggregate], path: str | os.PathLike[str]
) -> pathlib.Path:
    """Write a picture: a panel for every task, with all its settings, and one for every aggregate.

    Args:
        comparisons: the curves to draw.
        aggregates: means over several of these.
        path: a file in a format that matplotlib writes; without a suffix, it gets .png.

    Returns:
        The file.

    Raises:
        ConfigError: it begins with ``~USER``, and there is no such user.
        OSError: it cannot be written.
        ValueError: matplotlib does not write its format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # Slow to import.
    from matplotlib.figure import Figure

    by_panel: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        reference = comparison.reference.name if comparison.reference else ""
        by_panel.setdefault((comparison.group.task, reference), []).append(comparison)
    count = len(by_panel) + len(aggregates)
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    size = (7.2, 4.6) if count == 1 else (4.6 * columns, 3.9 * rows)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, members in zip(panels, by_panel.values(), strict=False):
        _task(axes, members)
    for axes, total in zip(panels[len(by_panel) :], aggregates, strict=False):
        _aggregate(axes, total)
    for axes in panels[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter(lambda frames, _: _thousands(frames))
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlim(left=0)
        # Below the axes, where it hides no curve.
        axes.legend(frameon=False, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.17))
    for axes in panels[count:]:
        axes.set_visible(False)
    target = paths.expand(path)
    target = target if target.suffix else target.with_suffix(".png")
    with paths.replacing(target) as draft:
        figure.savefig(draft)
    return target


def _task(axes: Any, members: Sequence[Comparison]) -> None:
    end = max(run.end for comparison in members for run in comparison.group.runs)
    reference = members[0].reference  # The same for all members of a panel.
    if reference is not None:
        near = _points_to_draw(reference.frames, end)
        frames = reference.frames[near]
        mean = reference.mean[near]
        std = reference.std[near]
        seeds = int(reference.seeds.max())
        label = f"{reference.name}, {seeds} seeds, mean ± std" if seeds > 1 else f"{reference.name}, 1 seed"
        axes.plot(frames, mean, "o-", color=_BAND, markersize=3, linewidth=1.2, label=label)
        axes.fill_between(frames, mean - std, mean + std, color=_BAND, alpha=0.25, linewidth=0)
    for index, comparison in enumerate(members):
        _runs(axes, comparison, _COLORS[index % len(_COLORS)], alone=len(members) == 1)
    axes.set(xlabel="frames, repeats of actions included", ylabel="return", title=as_label(members[0].group.task))


def _points_to_draw(frames: np.ndarray, end: int) -> np.ndarray:
    """A mask of the released points up to the end of the runs, and the next one; at least two, to make a line."""
    last = int(np.searchsorted(frames, end))
    return np.arange(len(frames)) <= max(last, 1)


def _runs(axes: Any, comparison: Comparison, color: str, *, alone: bool) -> None:
    """Draw the mean of runs with its interval, or every curve if there are few."""
    runs = comparison.group.runs
    label = comparison.group.label
    if len(runs) >= ENOUGH:
        grid = np.linspace(0, min(run.end for run in runs), POINTS + 1)[1:]
        scores = np.array([_curve(run, grid) for run in runs])
        known = np.isfinite(scores).all(0)  # Where every run has finished an episode.
        grid = grid[known]
        scores = scores[:, known]
        name = _wrap(f"{label or 'here'}: {len(runs)} runs, mean, 95 %")
        axes.plot(grid, scores.mean(0), color=color, linewidth=1.6, label=name)
        if len(grid):
            axes.fill_between(grid, *statistics.intervals_of_means(scores.T), color=color, alpha=0.2, linewidth=0)
        return
    for number, run in enumerate(runs):
        own = _COLORS[number % len(_COLORS)] if alone else color
        name = _wrap(f"{label or 'here'}: seed {run.config.seed}")
        grid = np.unique(np.concatenate([np.linspace(0, run.end, POINTS + 1)[1:], run.frames]))
        axes.plot(grid, _curve(run, grid), color=own, linewidth=1.6, label=name)
        axes.plot(run.frames, run.scores, ".", color=own, markersize=2.5, alpha=0.35)


def _wrap(text: str) -> str:
    return as_label(textwrap.fill(text, 52, break_long_words=False))


def _curve(run: RunCurve, grid: np.ndarray) -> np.ndarray:
    points = [run.at(int(frames)) for frames in grid]
    return np.array([point.score if point else np.nan for point in points])


def _aggregate(axes: Any, total: Aggregate) -> None:
    frames = [row.frames for row in total.rows]
    for name, style in (("mean", "o-"), ("median", "s--")):
        released = [getattr(row, f"released_{name}") for row in total.rows]
        own = [getattr(row, name) for row in total.rows]
        axes.plot(frames, released, style, color=_BAND, markersize=3, label=f"{total.method}, {name}")
        axes.plot(frames, own, style, color=_COLORS[0], markersize=3, label=f"here, {name}")
        intervals = [getattr(row, f"{name}_interval") for row in total.rows]
        if intervals and all(intervals):
            axes.fill_between(frames, *np.array(intervals).T, color=_COLORS[0], alpha=0.15, linewidth=0)
    axes.set(xlabel="frames, repeats of actions included", ylabel="normalised score", title=as_label(total.title))


def _thousands(frames: float) -> str:
    if frames >= 1e6:
        return f"{frames / 1e6:g}M"
    return f"{frames / 1e3:g}k" if frames >= 1e3 else f"{frames:g}"


__all__ = ["draw"]
