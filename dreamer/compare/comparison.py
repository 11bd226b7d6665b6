"""Compares runs with released curves: after the released numbers of frames, over suites, and by frames to a score."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamer.compare.curves import Group, RunCurve, settings
from dreamer.compare.released import SETTINGS, Reference, Score, normalise, thresholds
from dreamer.config import flatten
from dreamer.evaluate import statistics

ENOUGH = 3
"""With at least this many runs of a setting, their mean gets an interval; fewer are shown one by one."""

NEAR = 1.05
"""The end of a run gets its own row if it is at least this many times the last released number of frames."""


@dataclasses.dataclass(frozen=True)
class BudgetRow:
    """Runs of one setting and the released score after some frames."""

    frames: int
    scores: tuple[float, ...]
    """Of every run that got this far and finished an episode: a mean over a window, see `dreamer.compare.curves`."""
    episodes: int
    """All episodes in these windows."""
    interval: tuple[float, float] | None
    """Bootstrap interval of the mean over runs, if there are enough."""
    released: Score | None
    success: float | None = None
    """Share of these episodes that were a success, mean over runs; None if the environment does not say so."""

    @property
    def score(self) -> float | None:
        """Mean over runs."""
        return float(np.mean(self.scores)) if self.scores else None

    @property
    def verdict(self) -> str | None:
        """See `Score.verdict`; None if there is nothing to compare."""
        return None if self.score is None or self.released is None else self.released.verdict(self.score)


@dataclasses.dataclass(frozen=True)
class FramesToScore:
    """Frames at which a score was first reached; None where it never was."""

    score: float
    runs: tuple[int | None, ...]
    released: int | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs of one setting on a task, compared with a released curve or with none."""

    group: Group
    reference: Reference | None
    rows: tuple[BudgetRow, ...]
    frames_to_scores: tuple[FramesToScore, ...]

    @property
    def title(self) -> str:
        """The task, and what distinguishes the setting."""
        return f"{self.group.task} ({self.group.label})" if self.group.label else self.group.task

    def differences(self) -> dict[str, tuple[Any, Any]]:
        """``{key: (released, here)}`` of config keys with a known value in the released runs and another one here."""
        if self.reference is None:
            return {}
        own = dict(flatten(self.group.runs[0].config))
        known = SETTINGS.get((self.reference.suite, self.reference.method), {})
        return {key: (value, own[key]) for key, value in known.items() if own[key] != value}


def compare(group: Group, reference: Reference | None, reach: Sequence[float] = ()) -> Comparison:
    """Compare runs of one setting with a released curve.

    Args:
        group: the runs.
        reference: the curve; None: only the scores of the runs, at tenths of the longest run.
        reach: scores whose first frames are wanted; empty: those of the reference that it or a run has reached.
    """
    end = max(run.end for run in group.runs)
    if reference is None:
        grid = sorted({end * tenth // 10 for tenth in range(1, 11)} - {0})
    else:
        grid = [int(frames) for frames in reference.frames if frames <= end]
        last = min(run.end for run in group.runs)
        if last and (not grid or last >= NEAR * grid[-1]):
            grid.append(last)
    rows = tuple(_row(group.runs, reference, frames) for frames in grid)
    return Comparison(group, reference, rows, _frames_to_scores(group.runs, reference, reach, end))


def _row(runs: Sequence[RunCurve], reference: Reference | None, frames: int) -> BudgetRow:
    points = [point for run in runs if run.end >= frames and (point := run.at(frames))]
    scores = tuple(point.score for point in points)
    interval = statistics.interval([scores], np.mean) if len(scores) >= ENOUGH else None
    released = reference.at(frames) if reference else None
    rates = [point.success for point in points if point.success is not None]
    success = float(np.mean(rates)) if rates else None
    return BudgetRow(frames, scores, sum(point.episodes for point in points), interval, released, success)


def _frames_to_scores(
    runs: Sequence[RunCurve], reference: Reference | None, scores: Sequence[float], end: int
) -> tuple[FramesToScore, ...]:
    lines = []
    known = thresholds(reference.suite, reference.task, reference.method) if reference else {}
    for score in map(float, scores or known):
        grid = reference.grid(score, end) if reference else sorted({int(x) for run in runs for x in run.frames})
        own = tuple(run.reach(score, grid) for run in runs)
        # By default, scores that neither reached are left out.
        if scores or any(own) or known.get(int(score)):
            lines.append(FramesToScore(score, own, reference.reach(score) if reference else None))
    return tuple(lines)


@dataclasses.dataclass(frozen=True)
class AggregateRow:
    """Normalised scores over several tasks after some frames: here, and as released for the same tasks."""

    frames: int
    tasks: tuple[str, ...]
    mean: float
    median: float
    mean_interval: tuple[float, float] | None
    median_interval: tuple[float, float] | None
    released_mean: float
    released_median: float


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """Several tasks of a suite, with the same setting on each."""

    suite: str
    method: str
    comparisons: tuple[Comparison, ...]
    rows: tuple[AggregateRow, ...]

    @property
    def title(self) -> str:
        """The suite and the number of its tasks."""
        label = self.comparisons[0].group.label
        return f"{self.suite}, {len(self.comparisons)} tasks" + (f" ({label})" if label else "")


def aggregate(comparisons: Sequence[Comparison]) -> list[Aggregate]:
    """Normalised scores of settings with several tasks of a suite; see `dreamer.compare.released.normalise`.

    There is a row for every number of frames for which all of these tasks have a score, here and released.
    """
    by_setting: dict[Any, list[Comparison]] = {}
    for comparison in comparisons:
        reference = comparison.reference
        if reference is not None and normalise(reference.task, 0.0) is not None:
            setting = settings(comparison.group.runs[0].config, "task")
            by_setting.setdefault((reference.suite, reference.method, setting), []).append(comparison)
    return [
        Aggregate(suite, method, tuple(members), _aggregate_rows(members))
        for (suite, method, _), members in by_setting.items()
        if len({member.reference.task for member in members if member.reference}) > 1
    ]


def _aggregate_rows(comparisons: Sequence[Comparison]) -> tuple[AggregateRow, ...]:
    tables = [
        {row.frames: row for row in comparison.rows if row.scores and row.released and not row.released.interpolated}
        for comparison in comparisons
    ]
    names = [comparison.reference.task for comparison in comparisons if comparison.reference]
    rows = []
    for frames in sorted(set.intersection(*(set(table) for table in tables))):
        by_task = [table[frames] for table in tables]
        own = [
            np.array([_normalised(name, score) for score in row.scores])
            for name, row in zip(names, by_task, strict=True)
        ]
        released = [
            _normalised(name, row.released.mean) for name, row in zip(names, by_task, strict=True) if row.released
        ]
        means = np.array([scores.mean() for scores in own])
        enough = min(map(len, own)) >= ENOUGH
        mean_interval, median_interval = (
            statistics.joint_interval(own, _over_tasks(statistic)) if enough else None
            for statistic in (np.mean, np.median)
        )
        rows.append(
            AggregateRow(
                frames=frames,
                tasks=tuple(names),
                mean=float(means.mean()),
                median=float(np.median(means)),
                mean_interval=mean_interval,
                median_interval=median_interval,
                released_mean=float(np.mean(released)),
                released_median=float(np.median(released)),
            )
        )
    return tuple(rows)


def _normalised(task: str, score: float) -> float:
    normalised = normalise(task, score)
    assert normalised is not None
    return normalised


def _over_tasks(statistic: Any) -> statistics.Statistic:
    """A statistic over tasks of each task's mean over runs."""
    # Each of ``tasks`` is [..., runs]; bootstrap resamples lie along the leading axes.
    return lambda *tasks, axis=-1: statistic(np.stack([scores.mean(axis) for scores in tasks]), axis=0)


__all__ = ["ENOUGH", "Aggregate", "AggregateRow", "BudgetRow", "Comparison", "FramesToScore", "aggregate", "compare"]
