"""Puts runs beside released curves: after as many frames as were released, over suites, and by frames to a score."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamer.compare.curves import Group, Run, settings
from dreamer.compare.released import SETTINGS, Reference, Score, normalise, thresholds
from dreamer.config import flatten
from dreamer.evaluate import statistics

ENOUGH = 3
"""Runs of one setting from which on their mean gets an interval; fewer are shown one by one."""

NEAR = 1.05
"""The end of a run gets a row of its own if it is at least so many times beyond the last released number of frames."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs of one setting and the released score after some frames."""

    frames: int
    scores: tuple[float, ...]
    """Of every run that has come so far and finished an episode; a window of them, see `dreamer.compare.curves`."""
    episodes: int
    """All episodes in these windows."""
    interval: tuple[float, float] | None
    """Bootstrap interval of the mean over runs, if there are enough."""
    released: Score | None

    @property
    def score(self) -> float | None:
        """Mean over runs."""
        return float(np.mean(self.scores)) if self.scores else None

    @property
    def verdict(self) -> str | None:
        """See `Score.verdict`; None if there is nothing to compare."""
        return None if self.score is None or self.released is None else self.released.verdict(self.score)


@dataclasses.dataclass(frozen=True)
class Reached:
    """Frames at which a score was first reached; None where it never was."""

    score: float
    runs: tuple[int | None, ...]
    released: int | None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs of one setting on a task beside a released curve, or beside none."""

    group: Group
    reference: Reference | None
    rows: tuple[Row, ...]
    reached: tuple[Reached, ...]

    @property
    def title(self) -> str:
        """Task, and what sets the setting apart."""
        return f"{self.group.task} ({self.group.label})" if self.group.label else self.group.task

    def differences(self) -> dict[str, tuple[Any, Any]]:
        """``{key: (released, here)}`` of the config keys that are known of the released runs and differ here."""
        if self.reference is None:
            return {}
        own = dict(flatten(self.group.runs[0].config))
        known = SETTINGS.get((self.reference.suite, self.reference.method), {})
        return {key: (value, own[key]) for key, value in known.items() if own[key] != value}


def compare(group: Group, reference: Reference | None, reach: Sequence[float] = ()) -> Comparison:
    """Compare runs of one setting with a released curve.

    Args:
        group: the runs.
        reference: the curve; None: only their own scores, at tenths of the longest run.
        reach: scores to be reached; empty: those that are known of the reference, as far as it or a run got.
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
    return Comparison(group, reference, rows, _reached(group.runs, reference, reach, end))


def _row(runs: Sequence[Run], reference: Reference | None, frames: int) -> Row:
    points = [point for run in runs if run.end >= frames and (point := run.at(frames))]
    scores = tuple(point.score for point in points)
    interval = statistics.interval([scores], np.mean) if len(scores) >= ENOUGH else None
    released = reference.at(frames) if reference else None
    return Row(frames, scores, sum(point.episodes for point in points), interval, released)


def _reached(
    runs: Sequence[Run], reference: Reference | None, scores: Sequence[float], end: int
) -> tuple[Reached, ...]:
    found = []
    known = thresholds(reference.suite, reference.task, reference.method) if reference else {}
    for score in map(float, scores or known):
        grid = reference.grid(score, end) if reference else sorted({int(x) for run in runs for x in run.frames})
        own = tuple(run.reach(score, grid) for run in runs)
        # Unless somebody asks, what neither could reach is of no interest.
        if scores or any(own) or known.get(int(score)):
            found.append(Reached(score, own, reference.reach(score) if reference else None))
    return tuple(found)


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
        """What it is a mean of."""
        label = self.comparisons[0].group.label
        return f"{self.suite}, {len(self.comparisons)} tasks" + (f" ({label})" if label else "")


def aggregate(comparisons: Sequence[Comparison]) -> list[Aggregate]:
    """Normalised scores of settings with several tasks of a suite; see `dreamer.compare.released.normalise`.

    A number of frames counts if all of these tasks were run that far, here and by those who released.
    """
    found: dict[Any, list[Comparison]] = {}
    for one in comparisons:
        if one.reference is not None and normalise(one.reference.task, 0.0) is not None:
            setting = settings(one.group.runs[0].config, "task")
            found.setdefault((one.reference.suite, one.reference.method, setting), []).append(one)
    return [
        Aggregate(suite, method, tuple(members), _aggregate_rows(members))
        for (suite, method, _), members in found.items()
        if len({one.reference.task for one in members if one.reference}) > 1
    ]


def _aggregate_rows(comparisons: Sequence[Comparison]) -> tuple[AggregateRow, ...]:
    tables = [
        {row.frames: row for row in one.rows if row.scores and row.released and not row.released.interpolated}
        for one in comparisons
    ]
    names = [one.reference.task for one in comparisons if one.reference]
    rows = []
    for frames in sorted(set.intersection(*(set(table) for table in tables))):
        at = [table[frames] for table in tables]
        own = [np.array([_normal(name, score) for score in row.scores]) for name, row in zip(names, at, strict=True)]
        released = [_normal(name, row.released.mean) for name, row in zip(names, at, strict=True) if row.released]
        tasks = np.array([scores.mean() for scores in own])
        enough = min(map(len, own)) >= ENOUGH
        mean, median = (
            statistics.interval_of(own, _over_tasks(statistic)) if enough else None
            for statistic in (np.mean, np.median)
        )
        rows.append(
            AggregateRow(
                frames,
                tuple(names),
                float(tasks.mean()),
                float(np.median(tasks)),
                mean,
                median,
                float(np.mean(released)),
                float(np.median(released)),
            )
        )
    return tuple(rows)


def _normal(task: str, score: float) -> float:
    normal = normalise(task, score)
    assert normal is not None
    return normal


def _over_tasks(statistic: Any) -> statistics.Statistic:
    """A statistic over tasks of the mean over runs."""
    return lambda *tasks, axis=-1: statistic(np.stack([scores.mean(axis) for scores in tasks]), axis=0)


__all__ = ["ENOUGH", "Aggregate", "AggregateRow", "Comparison", "Reached", "Row", "aggregate", "compare"]
