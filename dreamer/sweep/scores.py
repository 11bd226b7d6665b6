"""What a run is worth, read from its ``metrics.jsonl``."""

import math
import pathlib
from typing import Any

import numpy as np

from dreamer import config as configs
from dreamer.config import ConfigError
from dreamer.logs.logger import RECENT, read_metrics, without_repeats
from dreamer.sweep.plan import Direction, Trial


def lines(logdir: pathlib.Path) -> list[dict[str, Any]]:
    """Metrics of a run in order, without what it has done twice; none if it has not begun."""
    try:
        return without_repeats(read_metrics(logdir / "metrics.jsonl"))
    except OSError:
        return []


def score(logdir: pathlib.Path, what: str, direction: Direction = "maximize") -> float | None:
    """The score of a run.

    Args:
        logdir: its directory.
        what: ``eval``, the mean return of the closing evaluation; ``last``, that of the last ten training episodes;
            ``best``, the best mean of ten training episodes in a row; or the name of a metric, whose last counts.
        direction: what is better; for ``best``.

    Returns:
        The score; None if the run has not got there, or it is not finite.
    """
    found = lines(logdir)
    if what in ("last", "best"):
        _, means = means_of(found)
        pick = max if direction == "maximize" else min
        value = None if not len(means) else means[-1] if what == "last" else pick(means)
    else:
        name = "eval/mean" if what == "eval" else what
        values = [line[name] for line in found if name in line]
        value = values[-1] if values else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def means_of(found: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Env steps and mean return of the last ten training episodes, once for each episode from the tenth on.

    A run with fewer than ten episodes has one mean, over all.
    """
    episodes = [line for line in found if isinstance(line.get("episode/score"), int | float)]
    if not episodes:
        return np.zeros(0), np.zeros(0)
    width = min(RECENT, len(episodes))
    steps = np.array([line["env_steps"] for line in episodes], float)[width - 1 :]
    returns = np.array([line["episode/score"] for line in episodes], float)
    return steps, np.lib.stride_tricks.sliding_window_view(returns, width).mean(-1)


def finished(trial: Trial) -> bool:
    """Whether the directory of a trial holds this very run, and it has come to its end, whoever has run it."""
    try:
        saved = configs.to_dict(configs.load_yaml(trial.logdir / "config.yaml"))
    except ConfigError:
        return False
    config = trial.config
    if {**saved, "logdir": str(trial.logdir)} != configs.to_dict(config):
        return False
    found = lines(trial.logdir)
    if config.run.eval_episodes:
        return any("eval/mean" in line for line in found)
    return any(line.get("env_steps", 0) >= config.run.env_steps for line in found)


__all__ = ["finished", "lines", "means_of", "score"]
