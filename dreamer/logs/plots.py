"""Plots of a run over its env steps, from ``metrics.jsonl``."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamer.config import paths
from dreamer.logs.logger import RECENT, read_metrics, without_repeats

_EPISODE, _MEAN = "#9bb7d4", "#1f4e79"
_COLOURS = (_MEAN, "#d6781e", "#468c46", "#8a4f9e", "#b03a3a", "#7a7a7a", "#2f8f8f", "#a88a1e")


def plot_learning_curve(logdir: pathlib.Path, title: str) -> pathlib.Path | None:
    """Draw every episode's return and their running mean to ``LOGDIR/learning_curve.png``.

    Returns:
        The path of the PNG; None if it cannot be written, or there are no metrics.
    """
    try:
        lines = without_repeats(read_metrics(logdir / "metrics.jsonl"))
    except OSError:
        return None
    figure, (axes,) = _figure(1)
    _draw_returns(axes, lines)
    axes.set(xlabel="env steps", title=as_label(title))
    return _save(figure, logdir / "learning_curve.png")


def plot_training(logdir: pathlib.Path, path: pathlib.Path, title: str) -> pathlib.Path | None:
    """Draw return, losses, and the error of the world model's predictions, one above the other.

    Returns:
        ``path``; None if it cannot be written, or there are no metrics.
    """
    try:
        lines = without_repeats(read_metrics(logdir / "metrics.jsonl"))
    except OSError:
        return None
    figure, (returns, losses, errors) = _figure(3)
    _draw_returns(returns, lines)
    returns.set(title=as_label(title))
    _draw_metrics(losses, lines, "loss/", skip=("loss/total",))
    losses.set(ylabel="loss")
    losses.set_yscale("symlog", linthresh=0.1)
    _draw_metrics(errors, lines, "report/")
    errors.set(ylabel="open-loop error", xlabel="env steps")
    return _save(figure, path)


def _figure(rows: int) -> tuple[Any, Sequence[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # Slow to import, and rarely needed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 3 * rows), dpi=120 if rows == 1 else 90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: pathlib.Path) -> pathlib.Path | None:
    try:
        with paths.replacing(path) as draft:
            figure.savefig(draft)
    except OSError:
        return None
    return path


def _draw_returns(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    steps, scores = series(lines, "episode/score")
    axes.plot(steps, scores, ".", color=_EPISODE, markersize=4, label="episode")
    if len(scores) >= RECENT:
        mean = np.convolve(scores, np.ones(RECENT) / RECENT, "valid")
        axes.plot(steps[RECENT - 1 :], mean, color=_MEAN, label=f"mean of {RECENT}")
    if len(scores):
        axes.legend(frameon=False)
    axes.set(ylabel="return")


def _draw_metrics(axes: Any, lines: Sequence[dict[str, Any]], prefix: str, skip: Sequence[str] = ()) -> None:
    """Draw a curve for each metric with a prefix."""
    names = dict.fromkeys(name for line in lines for name in line if name.startswith(prefix) and name not in skip)
    for number, name in enumerate(names):
        steps, values = series(lines, name)
        marker = "." if len(steps) == 1 else ""
        axes.plot(
            steps,
            values,
            marker,
            color=_COLOURS[number % len(_COLOURS)],
            linewidth=1,
            label=as_label(name[len(prefix) :]),
        )
    if names:
        axes.legend(frameon=False, fontsize=7, ncols=2)


def as_label(text: str) -> str:
    """Text that matplotlib draws as it is: dollars begin no formula, and halves of characters become question marks."""
    return text.encode("utf-8", "replace").decode().replace("\0", "?").replace("$", r"\$")


def series(lines: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Env steps and values of a metric, where it was written and is finite."""
    pairs = [(line["env_steps"], line[name]) for line in lines if line.get(name) is not None and "env_steps" in line]
    steps, values = np.array(pairs, float).reshape(-1, 2).T
    return steps, values


__all__ = ["as_label", "plot_learning_curve", "plot_training", "series"]
