"""Between windows of the device loop: the length of the next one, counters of members, and the table of scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dreamer.config.population import Member
from dreamer.envs.driver import Episode
from dreamer.evaluate import Evaluation
from dreamer.logs import logger
from dreamer.training.device_report import Report

WINDOW = 512
"""Most turns of a window: size of the buffers of its report."""


class Pace:
    """Chooses the length of windows so that one takes about ``seconds``.

    Turns before learning begins are so much faster than later ones that the two are measured separately.
    """

    def __init__(self, seconds: float = 1.0):
        self._seconds = seconds
        self._turns = {False: 64, True: 1}

    def turns(self, *, learning: bool) -> int:
        """Turns of the next window."""
        return self._turns[learning]

    def measure(self, turns: int, seconds: float, *, learning: bool) -> None:
        """Remember how long a window of so many turns took; the next has at most twice as many."""
        fitting = int(self._seconds * turns / max(seconds, 1e-6))
        self._turns[learning] = max(1, min(fitting, 2 * turns, WINDOW))


class Record:
    """Counters and log of one member.

    Args:
        member: the member.
        log: its metrics.
        meta: counters of its checkpoint, if it is resumed.
        names: names of what its environment reports of an episode.
    """

    def __init__(self, member: Member, log: logger.Logger, meta: dict[str, Any] | None, names: Sequence[str] = ()):
        self.member = member
        self.log = log
        self._names = names
        self.env_steps: int = meta["env_steps"] if meta else 0
        self.episodes: int = meta["episodes"] if meta else 0
        self.log.recent.extend(meta["recent"] if meta else [])
        self.log.episode_logs.extend(meta["episode_logs"] if meta else [])

    def add(self, report: Report, updates: np.ndarray, seconds: float) -> list[tuple[Episode, dict[str, Any]]]:
        """Count and log the member's part of a report, fetched and without turns that did not happen.

        Args:
            report: the report.
            updates: updates done after each turn, ``int [turns]``.
            seconds: of the run so far.

        Returns:
            The episodes that ended, and the counters at that time.
        """
        env_steps = self.env_steps + np.cumsum(report.steps)
        found = []
        for turn, env in np.argwhere(report.ended).tolist():
            self.episodes += 1
            log = dict(zip(self._names, report.logs[turn, env].tolist(), strict=True))
            score = float(report.score[turn, env])
            episode = Episode(score=score, length=int(report.length[turn, env]), env=env, log=log)
            counters = self.counters(int(env_steps[turn]), int(updates[turn]), seconds)
            found.append((episode, counters))
            self.log.add_episode(episode, counters)
        self.env_steps = int(env_steps[-1])
        return found

    def counters(self, env_steps: int, updates: int, seconds: float) -> dict[str, Any]:
        """Counters as every line of metrics begins with them."""
        return {
            "env_steps": env_steps,
            "agent_steps": env_steps,
            "updates": updates,
            "episodes": self.episodes,
            "seconds": seconds,
        }


def summarize(evaluations: Sequence[tuple[str, Evaluation]]) -> list[str]:
    """Lines of a table of evaluations by name; the last one is about their means. One evaluation is one sentence."""
    if len(evaluations) < 2:
        return [str(evaluation) for _, evaluation in evaluations]
    width = max(len(name) for name, _ in evaluations)
    lines = [f"  {'member':<{width}}  {'mean':>9}  {'std':>9}  {'min':>9}  {'max':>9}"]
    for name, evaluation in evaluations:
        numbers = evaluation.summary()
        row = "  ".join(f"{numbers[column]:9.1f}" for column in ("mean", "std", "min", "max"))
        lines.append(f"  {name:<{width}}  {row}")
    means = np.array([evaluation.summary()["mean"] for _, evaluation in evaluations])
    row = "  ".join(f"{number:9.1f}" for number in (means.mean(), means.std(ddof=1), means.min(), means.max()))
    return [*lines, f"  {'means':<{width}}  {row}"]


__all__ = ["WINDOW", "Pace", "Record", "summarize"]
