"""The score of a run, read from its ``metrics.jsonl``."""

import math
import pathlib
from typing import Any

import numpy as np

from dreamer import config as configs
from dreamer.config import ConfigError
from dreamer.logs.logger import RECENT, read_metrics, without_repeats
from dreamer.sweep.plan import Direction, Trial


def read_lines(logdir: pathlib.Path) -> list[dict[str, Any]]:
    """Metrics of a run in order, without repeated steps and foreign lines; none if it has not begun."""
    try:
        lines = read_metrics(logdir / "metrics.jsonl")
        return without_repeats([line for line in lines if "env_steps" in line])
    except OSError:
        return []


def score(logdir: pathlib.Path, what: str, direction: Direction = "maximize") -> float | None:
    """The score of a run.

    Args:
        logdir: its directory.
        what: ``eval``, the mean return of the closing evaluation; ``last``, that of the last ten training episodes;
            ``best``, the best mean of ten consecutive training episodes; or a metric, whose last value is taken.
        direction: of improvement; for ``best``.

    Returns:
        The score; None if the run has not got that far, or it is not finite.
    """
    lines = read_lines(logdir)
    if what in ("last", "best"):
        _, means = running_means(lines)
        pick = max if direction == "maximize" else min
        value = None if not len(means) else means[-1] if what == "last" else pick(means)
    else:
        name = "eval/mean" if what == "eval" else what
        values = [line[name] for line in lines if name in line]
        value = values[-1] if values else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def running_means(lines: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Env steps and mean return of the last ten training episodes, once for each episode from the tenth on.

    A run with fewer than ten episodes has one mean, over all of them.
    """
    episodes = [line for line in lines if isinstance(line.get("episode/score"), int | float)]
    if not episodes:
        return np.zeros(0), np.zeros(0)
    width = min(RECENT, len(episodes))
    steps = np.array([line["env_steps"] for line in episodes], float)[width - 1 :]
    returns = np.array([line["episode/score"] for line in episodes], float)
    return steps, np.lib.stride_tricks.sliding_window_view(returns, width).mean(-1)


def is_finished(trial: Trial) -> bool:
    """Whether the directory of a trial holds a finished run with its config, however it was started."""
    try:
        saved = configs.to_dict(configs.load_yaml(trial.logdir / "config.yaml"))
    except ConfigError:
        return False
    config = trial.config
    if {**saved, "logdir": str(trial.logdir)} != configs.to_dict(config):
        return False
    lines = read_lines(trial.logdir)
    if config.run.eval_episodes:
        return any("eval/mean" in line for line in lines)
    return any(line.get("env_steps", 0) >= config.run.env_steps for line in lines)


__all__ = ["is_finished", "read_lines", "running_means", "score"]
