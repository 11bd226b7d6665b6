"""Plots of a report, each a self-contained SVG picture."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dreamer.logs.plots import as_label
from dreamer.report import calibration
from dreamer.report.bootstrap import Band
from dreamer.report.calibration import Bin
from dreamer.report.card import Agreement, Card, Curves

MODEL = "#d6781e"
REPEAT = "#3b6fb6"
MEAN = "#7a7a7a"
REAL = "#222222"
_COLOURS = ("#1f4e79", "#d6781e", "#468c46", "#8a4f9e", "#b03a3a", "#7a7a7a", "#2f8f8f", "#a88a1e")

Series = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Env steps ``[n]`` and values ``[n]``, by name."""


def _axes(height: float = 2.6) -> tuple[Figure, Axes]:
    # As wide as a phone shows without shrinking letters much.
    figure = Figure(figsize=(3.9, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    return figure, axes


def svg(figure: Figure) -> bytes:
    """The picture, the same bytes for the same numbers."""
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "dreamer"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _label(axes: Axes, x: str, y: str, legend: bool = True) -> None:
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    if legend:
        axes.legend(frameon=False, fontsize=8)


def lines(series: Series, y: str, log: bool = False, dots: Sequence[str] = ()) -> bytes:
    """Numbers over env steps; those in ``dots`` as dots."""
    figure, axes = _axes()
    for number, (name, (steps, values)) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        if name in dots:
            axes.plot(steps, values, ".", color="#9bb7d4", markersize=3, label=as_label(name))
        else:
            axes.plot(steps, values, color=colour, linewidth=1.3, label=as_label(name))
    if log:
        axes.set_yscale("log")
    _label(axes, "env steps", y)
    return svg(figure)


def _shade(axes: Axes, band: Band, colour: str, label: str, width: float = 1.4) -> None:
    """A curve ``[K]`` over the steps 1 to K, with its band."""
    k = np.arange(1, len(band.value) + 1)
    axes.plot(k, band.value, color=colour, linewidth=width, label=label)
    if np.isfinite(band.low).any():
        axes.fill_between(k, band.low, band.high, color=colour, alpha=0.2, linewidth=0)


def errors(curves: Curves, horizon: int, y: str = "mean squared error") -> bytes:
    """Compounding error of one quantity."""
    figure, axes = _axes()
    _shade(axes, curves.repeat, REPEAT, "nothing changes")
    _shade(axes, curves.mean, MEAN, "mean")
    _shade(axes, curves.model, MODEL, "model", width=2.0)
    axes.plot(
        np.arange(1, len(curves.spread) + 1), curves.spread, ":", color=MODEL, linewidth=1.2, label="spread of dreams"
    )
    axes.axvline(horizon, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_ylim(bottom=min(0.0, *axes.get_ylim()))
    _label(axes, "dreamt steps (line: the actor's horizon)", y)
    return svg(figure)


def divergence(card: Card) -> bytes:
    """KL and prior entropy along the dream."""
    figure, axes = _axes()
    _shade(axes, card.kl, MODEL, "KL(posterior, dream's prior)")
    _shade(axes, card.prior_entropy, REPEAT, "entropy of the prior")
    axes.axvline(card.horizon, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_ylim(bottom=0)
    _label(axes, "dreamt steps", "nats")
    return svg(figure)


def reliability(bins: Sequence[Bin]) -> bytes:
    """Reliability diagram of the continue head."""
    figure, axes = _axes()
    x = np.array([b.predicted for b in bins])
    y = np.array([b.observed for b in bins])
    spans = np.array([[b.observed - b.observed_low, b.observed_high - b.observed] for b in bins]).T.clip(0)
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, label="calibrated")
    axes.errorbar(x, y, spans, fmt="o", color=MODEL, markersize=4, linewidth=1.2, label="model, 95 % interval")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _label(axes, "predicted probability of continuing", "share that continued")
    return svg(figure)


def pit(cdf: np.ndarray) -> bytes:
    """Histogram of the PIT of rewards."""
    figure, axes = _axes()
    # Ten bars, each as wide as two levels.
    share = np.diff(cdf[::2])
    axes.bar(calibration.GRID[:-1:2] + 0.05, share, 0.092, color=MODEL)
    axes.axhline(0.1, color=REAL, linewidth=1, linestyle="--", label="calibrated")
    axes.set_ylim(0, max(0.2, 1.1 * float(np.nanmax(share))))
    _label(axes, "place of the reward in the predicted distribution", "share of rewards")
    return svg(figure)


def classes(perplexity: np.ndarray, most: int) -> bytes:
    """Classes in use of each latent variable, sorted."""
    figure, axes = _axes()
    axes.bar(np.arange(len(perplexity)), np.sort(perplexity)[::-1], 0.85, color=REPEAT)
    axes.axhline(most, color=REAL, linewidth=1, linestyle="--", label=f"all {most}")
    axes.set_ylim(0, 1.12 * most)
    _label(axes, "latent variables, sorted", "classes in use (perplexity)")
    return svg(figure)


def agreement(both: Agreement, x: str, y: str, most: int = 1000) -> bytes:
    """Scatter of predicted over real numbers; of many, only every n-th."""
    figure, axes = _axes()
    # -(-a // b) rounds a / b up, so at most `most` dots are left.
    every = max(1, -(-len(both.real) // most))
    real = both.real[::every]
    predicted = both.predicted[::every]
    axes.plot(real, predicted, ".", color=MODEL, markersize=4, alpha=0.5)
    ends = [min(real.min(), predicted.min()), max(real.max(), predicted.max())]
    axes.plot(ends, ends, color="#bbbbbb", linewidth=1, label="equal")
    _label(axes, x, y)
    return svg(figure)


def entries(model: np.ndarray, guess: np.ndarray, most: int = 40) -> bytes:
    """Error of each entry of a vector; of many, the largest ones."""
    model = model.ravel()
    guess = guess.ravel()
    chosen = np.sort(np.argsort(model)[::-1][:most])
    figure, axes = _axes()
    at = np.arange(len(chosen))
    axes.bar(at - 0.2, guess[chosen], 0.4, color=MEAN, label="better blind guess")
    axes.bar(at + 0.2, model[chosen].clip(0), 0.4, color=MODEL, label="model")
    axes.set_xticks(at, [str(index) for index in chosen], fontsize=7 if len(chosen) < 20 else 5)
    _label(axes, "entry", "mean squared error")
    return svg(figure)


def heat(model: np.ndarray, guess: np.ndarray) -> bytes:
    """Root mean squared error of each pixel."""
    figure = Figure(figsize=(3.9, 2.1), layout="constrained")
    maps = [np.sqrt(np.maximum(x, 0)) for x in (model, guess)]
    top = max(1e-6, *(float(x.max()) for x in maps))
    shown: Any = None
    for number, (values, title) in enumerate(zip(maps, ("model", "better blind guess"), strict=True)):
        axes = figure.add_subplot(1, 2, number + 1)
        shown = axes.imshow(values, vmin=0, vmax=top, cmap="inferno", interpolation="nearest")
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    figure.colorbar(shown, ax=figure.axes, shrink=0.8).ax.tick_params(labelsize=7)
    return svg(figure)
