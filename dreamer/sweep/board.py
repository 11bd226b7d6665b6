"""Which trials of a sweep are done, which failed, and which comes next: written to ``sweep.json`` at every change."""

import collections
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import signal
from collections.abc import Callable, Container
from typing import Any, Literal, get_args

from dreamer.checkpoints.manifest import write_durably
from dreamer.config import ConfigError, paths
from dreamer.sweep.plan import SweepPlan, Trial
from dreamer.sweep.scores import is_finished, score
from dreamer.sweep.search import Search

NAME = "sweep.json"
OUTPUT = "output.txt"
"""The file in a trial's directory that holds what it prints."""

FILES = (".lock", NAME, "optuna.jsonl", "table.txt", "results.json", "curves.png", "scores.png")
"""Files that a sweep writes in its directory."""

_VERSION = 1

State = Literal["waiting", "running", "done", "failed", "stopped"]


@dataclasses.dataclass
class TrialRecord:
    """The history of a trial so far."""

    words: list[str]
    """Its arguments, without ``logdir``, as a directory may be moved."""
    state: State = "waiting"
    """``stopped``: it was interrupted, and the next start of the sweep resumes it."""
    exits: list[int] = dataclasses.field(default_factory=list)
    """Exit statuses; negative ones are signals."""
    score: float | None = None
    seconds: float = 0.0
    message: str = ""
    """Why it failed."""

    def is_sane(self) -> bool:
        """Whether all values have the types that a sweep gives them; a file may hold anything."""
        numbers = [self.seconds, *([] if self.score is None else [self.score])]
        return (
            self.state in get_args(State)
            and isinstance(self.message, str)
            and isinstance(self.words, list)
            and all(isinstance(word, str) for word in self.words)
            and isinstance(self.exits, list)
            and all(type(number) is int and abs(number) < 2**31 for number in self.exits)
            and all(type(number) in (int, float) and abs(number) < math.inf for number in numbers)
        )


class Board:
    """Trials of a sweep, in the order in which they are started.

    Args:
        plan: the sweep file as a plan.
        search: chooses settings.
        say: prints a line.
        retry_failed: also run trials again that failed before.

    Raises:
        ConfigError: ``sweep.json`` cannot be read, or is that of another sweep.
    """

    def __init__(
        self, plan: SweepPlan, search: Search, say: Callable[[str], object] = print, *, retry_failed: bool = False
    ):
        self.plan = plan
        self.records: dict[str, TrialRecord] = {}
        self.trials: list[Trial] = []
        self._search = search
        self._say = say
        self._saved = _read(plan.logdir / NAME)
        self._retry_failed = retry_failed
        self._settings = 0
        if plan.search == "optuna":
            # First the settings that it has proposed before; further ones depend on scores.
            proposed = max((int(name.partition("-")[0]) + 1 for name in self._saved), default=0)
            while self._settings < min(proposed, search.total):
                self._add_setting()
        else:
            while self._settings < search.total:
                self._add_setting()
            # All settings with the first seed, then with the next: results cover all settings early, and get sharper.
            order = {seed: place for place, seed in enumerate(plan.seeds)}
            self.trials.sort(key=lambda trial: (order[trial.seed], trial.setting.number))
        for trial in self.trials:
            self._tell(trial)

    def next(self, skip: Container[str] = ()) -> Trial | None:
        """The trial to start now, if any; ``skip`` are names of trials that cannot be started."""
        for trial in self.trials:
            if self.records[trial.name].state == "waiting" and trial.name not in skip:
                return trial
        if self._settings < self._search.total:
            self._add_setting()
            return self.next(skip)
        return None

    @property
    def unfinished(self) -> bool:
        """Whether anything is running or to be run."""
        states = {record.state for record in self.records.values()}
        return bool(states & {"waiting", "running"}) or self._settings < self._search.total

    @property
    def planned(self) -> int:
        """Trials of the whole sweep, including those that are not chosen yet."""
        return self._search.total * len(self.plan.seeds)

    def record_start(self, trial: Trial) -> None:
        """Record that a trial runs."""
        self.records[trial.name].state = "running"
        self.write()

    def record_end(self, trial: Trial, status: int, seconds: float, *, stopping: bool = False) -> None:
        """Record how a trial ended, and decide whether it is done, has failed, or runs again.

        Args:
            trial: the trial.
            status: its exit status, or minus the number of the signal that killed it.
            seconds: for how long it ran.
            stopping: the sweep stopped it; it will be resumed, and no attempt is counted.
        """
        record = self.records[trial.name]
        record.exits.append(status)
        record.seconds += seconds
        can_resume = status == os.EX_TEMPFAIL or status < 0 or status > 128
        if status == 0:
            self._finish(trial, record)
        elif can_resume and stopping:
            record.exits.pop()
            record.state = "waiting"
        elif status == 128 + signal.SIGINT:
            record.state = "stopped"
            record.message = "It was interrupted (SIGINT); start the sweep again to resume it."
        elif can_resume and sum(exit_status != 0 for exit_status in record.exits) <= self.plan.retries:
            record.state = "waiting"
        else:
            record.state = "failed"
            record.message = f"It {describe_exit(status)}. {_last_error(trial.logdir / OUTPUT)}".strip()
        self.write()
        self._tell(trial)
        self._announce(trial, status)

    def refresh(self, name: str) -> None:
        """Update the record of a trial that another process has run."""
        (trial,) = (trial for trial in self.trials if trial.name == name)
        self._adopt(trial, self.records[name])
        self.write()
        self._tell(trial)

    def setting_trials(self) -> dict[int, list[Trial]]:
        """Trials by number of their setting, in the order of seeds."""
        found: dict[int, list[Trial]] = collections.defaultdict(list)
        for trial in sorted(self.trials, key=lambda trial: (trial.setting.number, self.plan.seeds.index(trial.seed))):
            found[trial.setting.number].append(trial)
        return found

    def counts(self) -> collections.Counter[str]:
        """Trials by state."""
        return collections.Counter(record.state for record in self.records.values())

    def write(self) -> None:
        """Replace ``sweep.json`` atomically: after a kill at any instant, it is the old one or the new one."""
        self.plan.logdir.mkdir(parents=True, exist_ok=True)
        # Records stay of trials that are no longer part of the file.
        trials = {**self._saved, **{name: dataclasses.asdict(record) for name, record in self.records.items()}}
        write_durably(self.plan.logdir / NAME, json.dumps({"version": _VERSION, "trials": trials}, indent=1))

    def _add_setting(self) -> None:
        """Take the next setting from the search."""
        setting = self.plan.setting(self._settings, self._search.ask(self._settings))
        self._settings += 1
        for trial in self.plan.trials_of(setting):
            self.trials.append(trial)
            self.records[trial.name] = self._restore(trial)

    def _restore(self, trial: Trial) -> TrialRecord:
        """The saved record of a trial, or a new one."""
        words = [*trial.setting.words, f"seed={trial.seed}"]
        record = TrialRecord(**self._saved.get(trial.name, {"words": words}))
        if record.words != words:
            changed = sorted(set(record.words) ^ set(words))
            raise ConfigError(
                f"{self.plan.logdir} holds the trial {trial.name} of another sweep; they differ in "
                f"{', '.join(changed)}. Choose another --logdir, or undo the change."
            )
        if record.state in ("running", "stopped") or (record.state == "failed" and self._retry_failed):
            record.state = "waiting"
            record.exits = []
            record.message = ""
        self._adopt(trial, record)
        return record

    def _adopt(self, trial: Trial, record: TrialRecord) -> None:
        """Take over a finished run: an earlier one, or one started elsewhere, such as in a scheduler's array job."""
        if record.state == "done" or (record.state == "waiting" and is_finished(trial)):
            self._finish(trial, record)  # Scores of done trials are read again: the file may score differently now.

    def _finish(self, trial: Trial, record: TrialRecord) -> None:
        """Score a trial whose run ended with status 0; without a score it has failed."""
        record.score = score(trial.logdir, self.plan.score, self.plan.direction)
        record.state = "done" if record.score is not None else "failed"
        record.message = "" if record.score is not None else f"It finished without a score '{self.plan.score}'."

    def _tell(self, trial: Trial) -> None:
        """Tell the search about a setting once all its seeds have ended."""
        names = [other.name for other in self.trials if other.setting.number == trial.setting.number]
        records = [self.records[name] for name in names]
        if len(records) < len(self.plan.seeds) or {record.state for record in records} - {"done", "failed"}:
            return
        values = [record.score for record in records if record.score is not None]
        self._search.tell(trial.setting.number, sum(values) / len(values) if len(values) == len(records) else None)

    def _announce(self, trial: Trial, status: int) -> None:
        record = self.records[trial.name]
        counts = self.counts()
        place = f"[{counts['done'] + counts['failed']}/{self.planned}] {trial.name}"
        if record.state == "done":
            self._say(f"{place}: {self.plan.score} {record.score:.6g}, after {record.seconds:.0f} seconds")
        elif record.state == "waiting" and status:
            attempt = f"; attempt {len(record.exits) + 1} of {self.plan.retries + 1} resumes it" if record.exits else ""
            self._say(f"{place}: {describe_exit(status)}{attempt}")
        else:
            self._say(f"{place}: {record.state}. {record.message}")


def describe_exit(status: int) -> str:
    """What an exit status means, as the end of a sentence; see ``docs/reliability.md``."""
    number = -status if status < 0 else status - 128
    if number > 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(number).name}"
    if status == os.EX_TEMPFAIL:
        return "was saved because of SIGTERM"
    return f"ended with status {status}"


def _last_error(path: pathlib.Path) -> str:
    """The error at the end of a trial's output, or its last line."""
    try:
        lines = [line.strip() for line in paths.read_text(path, errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    errors = [line for line in lines[-30:] if line.startswith("Error: ")]
    return (errors or lines or [""])[-1][:300]


def _read(path: pathlib.Path) -> dict[str, Any]:
    """Records of earlier starts of the sweep by name of their trial."""
    if not path.exists():
        return {}
    try:
        saved = json.loads(paths.read_text(path))
        if saved["version"] != _VERSION:
            raise ValueError(f"its version is {saved['version']}, expected {_VERSION}")
        records = {name: TrialRecord(**record) for name, record in saved["trials"].items()}
        for name, record in records.items():
            if not record.is_sane():
                raise ValueError(f"the record of {name!r} is not one of a sweep")
        return {name: dataclasses.asdict(record) for name, record in records.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): delete it, and the sweep finds its finished trials in their directories."
        ) from error


__all__ = ["FILES", "NAME", "OUTPUT", "Board", "TrialRecord", "describe_exit"]
