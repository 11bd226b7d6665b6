"""Learning curves of runs, read from their log directories, and their scores after a number of env steps.

Env steps are frames: steps of the simulator, with every repeat of an action.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dreamer import config as configs
from dreamer.config import Config, paths, population
from dreamer.logs.logger import read_numbered, without_repeats

WINDOW = 0.1
"""A score after some frames is the mean of the episodes that ended in this last fraction of them ..."""

LEAST = 8
"""... or of this many last episodes, if fewer ended there."""

_IGNORED = (
    *("seed", "logdir", "devices", "distributed", "optimizer.moments", "population.seeds", "population.sweep"),
    *("env.workers", "env.per_worker", "env.timeout", "env.failures", "env.check", "env.python"),
    *(f"run.{name}" for name in ("env_steps", "profile", "episodes", "hours", "score", "max_skipped", "eval_episodes")),
    *(f"run.{name}" for name in ("log_every", "save_every", "keep")),
    *(f"logger.{field.name}" for field in dataclasses.fields(configs.LoggerConfig)),
)
"""Config keys in which runs of one setting may differ."""


class CurveError(ValueError):
    """The learning curve of a log directory cannot be read; the message says what to do."""


class Point(NamedTuple):
    """A score after some frames."""

    score: float
    episodes: int
    """Number of episodes of which it is the mean."""
    success: float | None = None
    """Share of these episodes that were a success at their last step; None if the environment does not say so."""


@dataclasses.dataclass(frozen=True)
class RunCurve:
    """A run and its finished training episodes.

    Attributes:
        frames: env steps of the run when each episode ended, int64 ``[E]``, rising.
        scores: sum of rewards of each, float64 ``[E]``.
        end: env steps of the run so far.
        suite_score: the Crafter score of all episodes, if the run logged it.
        successes: 1 for each that was a success at its last step, 0 for the others, float64 ``[E]``; None if the
            environment does not say so.
        complaints: sentences about lines of its metrics that were left out.
    """

    directory: pathlib.Path
    config: Config
    frames: np.ndarray
    scores: np.ndarray
    end: int
    suite_score: float | None = None
    successes: np.ndarray | None = None
    complaints: tuple[str, ...] = ()

    def at(self, frames: int) -> Point | None:
        """The mean score in the window that ends at a number of frames; None if no episode has ended by then."""
        # Episodes [first, past) end in the window; first moves back where these are fewer than LEAST.
        past = int(np.searchsorted(self.frames, frames, side="right"))
        first = int(np.searchsorted(self.frames, (1 - WINDOW) * frames, side="right"))
        first = max(0, min(first, past - LEAST))
        if not past:
            return None
        success = None if self.successes is None else float(self.successes[first:past].mean())
        return Point(float(self.scores[first:past].mean()), past - first, success)

    def reach(self, score: float, grid: Sequence[int]) -> int | None:
        """The first number of frames of the grid at which the run had at least this score; None if it never had."""
        points = ((frames, self.at(frames)) for frames in grid if frames <= self.end)
        return next((frames for frames, point in points if point and point.score >= score), None)


MOST_KEYS = 5
"""Config keys that may name a setting. Where more differ, as in a family of agents, a directory is the better name."""


class Group(NamedTuple):
    """Runs of one setting, which differ in their seed."""

    task: str
    label: str
    """What distinguishes it from other settings of the task; empty if it is the only one."""
    runs: tuple[RunCurve, ...]


def read(logdir: str | os.PathLike[str]) -> list[RunCurve]:
    """The run in a log directory, or all members of a population.

    Raises:
        CurveError: it is not the directory of a run, or ``metrics.jsonl`` is not a run's.
        ConfigError: ``config.yaml`` is not a config.
    """
    root = paths.expand(logdir)
    for name in ("config.yaml", "metrics.jsonl"):
        if not (root / name).exists():
            raise CurveError(f"{root} has no {name}, expected the directory of a run of python -m dreamer.train.")
    return [_read(path) for path in population.directories(root)]


def _read(path: pathlib.Path) -> RunCurve:
    metrics = path / "metrics.jsonl"
    if not metrics.exists():
        raise CurveError(f"{path} has no metrics.jsonl: this member of the population has not begun. Leave it out.")
    lines, complaints = _lines(metrics)
    # A score that was not finite was written as null.
    ended = [line for line in lines if line.get("episode/score") is not None]
    episodes = [(line["env_steps"], line["episode/score"]) for line in ended]
    reported = any(line.get("episode/success") is not None for line in ended)
    name = "episode/log/crafter_score"
    crafter = [line[name] for line in lines if line.get(name) is not None]
    frames, scores = zip(*episodes, strict=True) if episodes else ((), ())
    return RunCurve(
        directory=path,
        config=configs.load_yaml(path / "config.yaml"),
        frames=np.array(frames, np.int64),
        scores=np.array(scores, np.float64),
        end=lines[-1]["env_steps"] if lines else 0,
        suite_score=float(crafter[-1]) if crafter else None,
        successes=np.array([line.get("episode/success") or 0.0 for line in ended], np.float64) if reported else None,
        complaints=complaints,
    )


def _lines(path: pathlib.Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Lines of a ``metrics.jsonl`` by rising env steps, and a sentence for each kind of line that was left out."""
    try:
        found = read_numbered(path).requiring("env_steps")
    except OSError as error:
        raise CurveError(f"{path} cannot be read: {error.strerror}. Give the directory of a run.") from error
    good = list(found.lines.values())
    complaints = found.complaints()
    if complaints and not good:
        raise CurveError(
            f"{path} does not hold the metrics of a run: {'; '.join(complaints)}. Give the directory of a run of "
            "python -m dreamer.train."
        )
    return without_repeats(good), tuple(f"In {path}, {fault}, and was left out." for fault in complaints)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def settings(config: Config, *without: str) -> tuple[tuple[str, Any], ...]:
    """All keys of a config that affect what a seed learns, and their values, except the keys in ``without``."""
    return tuple(
        (key, _comparable(value)) for key, value in configs.flatten(config) if key not in (*_IGNORED, *without)
    )


def _comparable(value: Any) -> Any:
    """A value of a config, or a text for a dictionary, which has no hash."""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict) else value


def group(runs: Sequence[RunCurve]) -> list[Group]:
    """Runs by task and setting, in their order."""
    by_setting: dict[tuple[str, Any], list[RunCurve]] = {}
    for run in runs:
        by_setting.setdefault((run.config.task, settings(run.config)), []).append(run)
    groups = []
    for (task, own), members in by_setting.items():
        others = [dict(setting) for name, setting in by_setting if name == task and setting != own]
        differing = [f"{key}={_plain(value)}" for key, value in own if any(other[key] != value for other in others)]
        if len(differing) > MOST_KEYS:
            differing = [f"{members[0].directory.name}: {len(differing)} settings differ"]
        groups.append(Group(task, ", ".join(differing), tuple(members)))
    return groups


__all__ = ["LEAST", "MOST_KEYS", "WINDOW", "CurveError", "Group", "Point", "RunCurve", "group", "read", "settings"]
