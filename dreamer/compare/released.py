"""Released scores: what Dreamer's authors, and others, reached on a task after a number of frames.

The tables are in ``dreamer/compare/reference/``, whose README gives their sources. A row has the mean over runs with
different seeds, each of them the mean of the episodes in a window that ends at a number of frames, and the population
standard deviation between these runs. The band extends one standard deviation to either side of the mean.
"""

import csv
import dataclasses
import difflib
import functools
import pathlib
import re
from typing import NamedTuple

import numpy as np

from dreamer.config import Config

TABLES = pathlib.Path(__file__).parent / "reference"

ATARI_100K = 400_000
"""Frames of the small Atari benchmark: 100,000 decisions, each for four frames."""

SETTINGS: dict[tuple[str, str], dict[str, int | float]] = {
    ("dmc_proprio", "dreamerv3"): {"env.repeat": 2, "rssm.deter": 2048, "run.train_ratio": 512.0},
    ("dmc_vision", "dreamerv3"): {"env.repeat": 2, "rssm.deter": 2048, "run.train_ratio": 512.0},
    ("atari100k", "dreamerv3"): {"env.repeat": 4},
    ("atari57", "dreamerv3"): {"env.repeat": 4},
}
"""The known settings of the released runs, as config keys."""

RESOLUTION = {"dmc_proprio": 10_000, "dmc_vision": 20_000}
"""Frames between the points of ``steps_to_threshold_dmc.csv``."""

_BY_NAME_ONLY = ("dreamerv1", "dreamerv2", "dmc_vision_zeroshot")
"""Prefixes of suites that are never chosen by the task alone."""


class NoReference(ValueError):
    """There is no released score to compare with; the message lists the available ones."""


class Score(NamedTuple):
    """A released score after some frames."""

    mean: float
    std: float
    seeds: int
    interpolated: bool
    """Whether it lies linearly between two released numbers of frames."""

    def verdict(self, score: float) -> str:
        """``inside``, ``above`` or ``below`` the band; of a single seed there is none: ``one seed``."""
        if self.seeds < 2:
            return "one seed"
        if abs(score - self.mean) <= self.std:
            return "inside"
        return "above" if score > self.mean else "below"


@dataclasses.dataclass(frozen=True)
class Reference:
    """The released curve of a method on a task.

    Attributes:
        frames, mean, std, seeds: arrays ``[K]``, by rising frames.
    """

    suite: str
    task: str
    method: str
    frames: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    seeds: np.ndarray

    @property
    def name(self) -> str:
        """Method and suite."""
        return f"{self.method} in {self.suite}"

    def at(self, frames: int) -> Score | None:
        """The score after some frames; None before the first released number of frames, and after the last."""
        if not self.frames[0] <= frames <= self.frames[-1]:
            return None
        after = int(np.searchsorted(self.frames, frames))
        if self.frames[after] == frames:
            mean, std, seeds = float(self.mean[after]), float(self.std[after]), int(self.seeds[after])
            return Score(mean, std, seeds, interpolated=False)
        pair = slice(after - 1, after + 1)  # The released points on both sides.
        mean, std = (float(np.interp(frames, self.frames[pair], x[pair])) for x in (self.mean, self.std))
        return Score(mean, std, int(self.seeds[pair].min()), interpolated=True)

    def reach(self, score: float) -> int | None:
        """Frames at which the mean over seeds first reached a score; None if it never did."""
        if (known := thresholds(self.suite, self.task, self.method)) and score in known:
            return known[int(score)]
        reached = np.flatnonzero(self.mean >= score)
        return int(self.frames[reached[0]]) if len(reached) else None

    def grid(self, score: float, end: int) -> list[int]:
        """The numbers of frames up to ``end`` that `reach` considers: for a fair comparison, use the same for a run."""
        if score in thresholds(self.suite, self.task, self.method):
            step = RESOLUTION[self.suite]
            return list(range(step, end + 1, step))
        return [int(frames) for frames in self.frames if frames <= end]


@functools.cache
def _rows() -> dict[tuple[str, str, str], list[tuple[int, float, float, int]]]:
    """Rows of all tables by suite, task and method: frames, mean, standard deviation and number of seeds."""
    rows: dict[tuple[str, str, str], list[tuple[int, float, float, int]]] = {}
    for path in sorted(TABLES.glob("*.csv")):
        with path.open(encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if "mean_score" not in (reader.fieldnames or ()):
                continue
            for row in reader:
                numbers = int(row["env_steps"]), float(row["mean_score"]), float(row["std"]), int(row["n_seeds"])
                rows.setdefault((row["suite"], row["task"], row["method"]), []).append(numbers)
    return rows


@functools.cache
def thresholds(suite: str, task: str, method: str) -> dict[int, int | None]:
    """Frames at which DreamerV3 first reached 200, 500, 700, 800 and 900 on DeepMind Control; empty for any other."""
    with (TABLES / "steps_to_threshold_dmc.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if (row["suite"], row["task"], "dreamerv3") == (suite, task, method):
                cells = {int(key.removeprefix("steps_to_")): text for key, text in row.items() if key[:5] == "steps"}
                return {score: int(text) if text else None for score, text in cells.items()}
    return {}


@functools.cache
def _human() -> dict[str, tuple[float, float]]:
    with (TABLES / "atari_human.csv").open(encoding="utf-8") as file:
        return {row["game"]: (float(row["random"]), float(row["human"])) for row in csv.DictReader(file)}


def normalise(task: str, score: float) -> float | None:
    """A score as papers average it over tasks; None for suites that they do not average.

    Atari: 0 is a random player, 1 a human tester. DeepMind Control: 1 is the maximum of 1000.
    """
    if task.startswith("atari_") and (players := _human().get(task.removeprefix("atari_"))):
        random, human = players
        return (score - random) / (human - random)
    return score / 1000 if task.startswith("dmc_") else None


def suites() -> list[str]:
    """Names of all suites."""
    return sorted({suite for suite, _, _ in _rows()})


def tasks(suite: str) -> list[str]:
    """Tasks of a suite."""
    return sorted({task for row_suite, task, _ in _rows() if row_suite == suite})


def methods(suite: str, task: str) -> list[str]:
    """Methods with scores on a task of a suite, the suite's Dreamer first."""
    names = [method for row_suite, row_task, method in _rows() if (row_suite, row_task) == (suite, task)]
    return sorted(names, key=lambda method: (not method.startswith("dreamer"), method))


def get(suite: str, task: str, method: str = "") -> Reference:
    """A released curve.

    Args:
        suite: one of `suites`.
        task: one of its tasks.
        method: one of its methods; empty: the suite's Dreamer.

    Raises:
        NoReference: there is none.
    """
    if suite not in suites():
        raise NoReference(f"There is no reference '{suite}'.{_nearest(suite, suites())} There are: {_list(suites())}.")
    if task not in tasks(suite):
        near = _nearest(_snake(task), tasks(suite))
        raise NoReference(f"The reference {suite} has no task '{task}'.{near} It has: {_list(tasks(suite))}.")
    known = methods(suite, task)
    if method and method not in known:
        raise NoReference(f"{suite} has no method '{method}' on {task}. It has: {_list(known)}.")
    method = method or known[0]
    frames, mean, std, seeds = zip(*sorted(_rows()[suite, task, method]), strict=True)
    return Reference(suite, task, method, np.array(frames), np.array(mean), np.array(std), np.array(seeds))


def find(config: Config, name: str = "", method: str = "") -> Reference:
    """The released curve to compare a run with.

    Args:
        config: the run's config, of which the task, the observations of DeepMind Control and the length of a run on
            Atari count.
        name: a suite, or SUITE/TASK; empty: the one that matches the config.
        method: see `get`.

    Raises:
        NoReference: there is none.
    """
    if name:
        suite, _, task = name.partition("/")
        return get(suite, task or config.task, method)
    task = config.task
    own = [suite for suite in suites() if not suite.startswith(_BY_NAME_ONLY) and task in tasks(suite)]
    if not own:
        everything = sorted({task for _, task, _ in _rows()})
        raise NoReference(
            f"There is no released score for the task '{task}'.{_nearest(_snake(task), everything)} Choose one with "
            f"--reference SUITE/TASK, or none with --reference none; there are the suites {_list(suites())}."
        )
    if task.startswith("dmc_"):
        seen = config.env.dmc.obs
        suite = {"proprio": "dmc_proprio", "pixels": "dmc_vision"}.get(seen, "")
        if suite not in own:
            raise NoReference(
                f"The run on {task} sees env.dmc.obs={seen}, and there are released scores for {_list(own)}. Choose "
                f"one with --reference {own[0]}."
            )
        return get(suite, task, method)
    if "atari57" in own:
        small = "atari100k" in own and config.run.env_steps <= ATARI_100K
        return get("atari100k" if small else "atari57", task, method)
    return get(own[0], task, method)


def _snake(task: str) -> str:
    """The name of a task in the style of the tables: ``dmc_walker_walk`` for ``playground_WalkerWalk``."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", task.replace("playground_", "dmc_", 1))
    return words.lower()


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.8)
    return f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""


def _list(names: list[str]) -> str:
    return ", ".join(names)


__all__ = [
    "RESOLUTION",
    "SETTINGS",
    "NoReference",
    "Reference",
    "Score",
    "find",
    "get",
    "methods",
    "normalise",
    "suites",
    "tasks",
    "thresholds",
]
