"""Logs a run: terminal, ``metrics.jsonl``, TensorBoard, and Weights & Biases.

Metrics of updates stay on the device; they are fetched and averaged only when a line is due, so that nothing waits for
the accelerator in between. A full disk or a closed terminal never stops training: the disk is reported, and writing is
retried with the next line.
"""

import collections
import contextlib
import errno
import json
import math
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from dreamer.config import paths
from dreamer.envs.driver import Episode
from dreamer.envs.info import OUTCOMES
from dreamer.logs import averages
from dreamer.logs.sinks import DataTable, Entry, Sink
from dreamer.logs.tensorboard_log import TensorBoardClient
from dreamer.logs.wandb_log import WandbClient

RECENT = 10
"""Episodes in the mean return on display."""

MOST_UNWRITTEN = 100_000
"""Lines that are kept while they cannot be written; beyond this, the oldest are lost."""

RESUMED = "resume/count"
"""How often a run was resumed: in the first line after that, which has the counters of the checkpoint."""

COUNTERS = ("env_steps", "agent_steps", "updates", "episodes", "seconds")
"""Names of what the lines of a run begin with."""

LARGEST = 1e30
"""Largest size of a number in a line; beyond it, sums and squares in float32 are infinite."""

LARGEST_COUNT = 2**53
"""Largest counter; beyond it, not all whole numbers are numbers of float64."""

MOST_NAMED = 5
"""Most bad lines that a sentence names."""

Summarize = Callable[[list[Mapping[str, float]]], Mapping[str, float]]
"""Turns the logs of a run's episodes so far, at least one, into additional numbers by name."""


class Logger:
    """Metrics of one run.

    Args:
        logdir: directory of ``metrics.jsonl``; None: write no files.
        title: heading of the display.
        total_env_steps: budget of the run, for the progress and the ETA.
        quiet: print nothing.
        tensorboard: also write files for TensorBoard.
        wandb: keyword arguments of ``wandb.init``; None: do not use it.
        summarize: adds numbers about all episodes so far to the line of each; or None.
    """

    def __init__(
        self,
        logdir: pathlib.Path | None,
        title: str,
        total_env_steps: int,
        quiet: bool = False,
        tensorboard: bool = False,
        wandb: dict[str, Any] | None = None,
        summarize: Summarize | None = None,
    ):
        self.logdir = logdir
        self.recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self.episode_logs: list[Mapping[str, float]] = []
        self._summarize = summarize
        self.title = title
        self._total = total_env_steps
        self._updates: list[Mapping[str, Any]] = []
        self._unwritten: list[str] = []
        self._lost = 0
        self._directory: os.stat_result | None = None
        self._failing = False
        self._checked_end = False
        self._console = Console(file=sys.stderr, quiet=quiet)
        self._live: Live | None = None
        if self._console.is_terminal and not quiet:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._sinks: list[Sink] = []
        if logdir is not None and tensorboard:
            where = logdir / "tensorboard"
            self._sinks.append(Sink("TensorBoard", lambda: TensorBoardClient(where), self.say))
        if logdir is not None and wandb is not None:
            self._sinks.append(Sink("Weights & Biases", lambda: WandbClient(logdir, wandb, self.say), self.say))

    def say(self, message: str) -> None:
        """Print a line, above the display if there is one."""
        # The terminal may be closed, by an environment for example, or the output a file on a full disk.
        with contextlib.suppress(OSError, ValueError):
            self._console.print(message, highlight=False, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def while_busy(self, what: str, every: float = 10.0) -> Iterator[None]:
        """Say every few seconds that something is going on, such as ``compiling the update``."""
        begin = time.perf_counter()
        done = threading.Event()

        def report() -> None:
            while not done.wait(every):
                self.say(f"  Still {what}, for {duration(time.perf_counter() - begin)} now ...")

        reporter = threading.Thread(target=report, name="while busy", daemon=True)
        reporter.start()
        try:
            yield
        finally:
            done.set()
            reporter.join()

    def add_update(self, metrics: Mapping[str, Any]) -> None:
        """Keep the metrics of one update, without fetching them."""
        self._updates.append(metrics)

    def add_episode(self, episode: Episode, counters: dict[str, Any]) -> None:
        """Write the line of a finished episode."""
        self.recent.append(episode.score)
        outcome = {name: episode.log[name] for name in OUTCOMES if name in episode.log}
        numbers = {name: number for name, number in episode.log.items() if name not in outcome}
        if self._summarize is not None and numbers:
            self.episode_logs.append(dict(numbers))
            numbers.update(self._summarize(self.episode_logs))
        logs = {f"episode/log/{name}": number for name, number in numbers.items()}
        line = {**counters, "episode/score": episode.score, "episode/length": episode.length, **outcome, **logs}
        self._write(line)

    def tick(self, counters: dict[str, Any], rates: dict[str, Any]) -> dict[str, Any]:
        """Write a line: counters, rates, and the mean of each metric since the last line. Waits for the device.

        Skipped updates count only in the metrics of `dreamer.agent.guard`.

        Returns:
            The line.
        """
        fetched = jax.device_get(self._updates)
        self._updates = []
        line = {**counters, **rates, **averages.average(fetched)}
        if self.recent:
            line["episode/recent_score"] = float(np.mean(self.recent))
        self._write(line)
        self._show(line)
        return line

    def write(
        self,
        values: dict[str, Any],
        pictures: Mapping[str, pathlib.Path] | None = None,
        tables: Mapping[str, DataTable] | None = None,
    ) -> None:
        """Write a line of arbitrary values; pictures and tables go to TensorBoard and Weights & Biases only."""
        self._write(values, pictures, tables)

    def close(self) -> None:
        """Stop the display and flush."""
        if self._live:
            with contextlib.suppress(OSError, ValueError):
                self._live.stop()
            self._live = None
        self._flush()
        if lost := self._lost + len(self._unwritten):
            self.say(f"{lost:,} line(s) of metrics could not be written and are lost: {self._path} lacks them.")
        self._lost = 0
        self._unwritten.clear()
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def _write(
        self,
        values: dict[str, Any],
        pictures: Mapping[str, pathlib.Path] | None = None,
        tables: Mapping[str, DataTable] | None = None,
    ) -> None:
        # JSON has no NaN or infinity.
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._unwritten.append(json.dumps(clean))
        self._lost += max(0, len(self._unwritten) - MOST_UNWRITTEN)
        del self._unwritten[:-MOST_UNWRITTEN]
        self._flush()
        entry = Entry({k: v for k, v in clean.items() if v is not None}, pictures or {}, tables or {})
        for sink in self._sinks:
            sink.log(entry)

    @property
    def _path(self) -> pathlib.Path | None:
        return None if self.logdir is None else self.logdir / "metrics.jsonl"

    @property
    def bytes_written(self) -> int:
        """Size of ``metrics.jsonl``, which a checkpoint keeps so that a resume can tell whether it still has it all."""
        try:
            return 0 if self._path is None else self._path.stat().st_size
        except OSError:
            return 0

    def missing_history(self, saved_bytes: int) -> str:
        """A sentence about lines from before a resume that are not there any more; empty if all are.

        Args:
            saved_bytes: `bytes_written` as the checkpoint has it.
        """
        there = self.bytes_written
        if self._path is None or there >= saved_bytes:
            return ""
        if self._path.exists():
            gone = f"{self._path} has {there:,} of the {saved_bytes:,} bytes that the run had written by then"
        else:
            gone = f"{self._path} is gone, with {saved_bytes:,} bytes that the run had written by then"
        return f"{gone}: curves and comparisons will lack these lines. The agent and its replay are complete."

    def _flush(self) -> None:
        path = self._path
        if path is None:
            self._unwritten.clear()
        if path is None or not self._unwritten:
            return
        try:
            self._require_own_directory(path.parent)
            with open(path, "a+b") as file:
                if not self._checked_end:
                    _cut_partial_line(file)
                    self._checked_end = True
                start = file.seek(0, 2)
                try:
                    file.write(("\n".join(self._unwritten) + "\n").encode())
                    file.flush()
                except OSError:
                    file.truncate(start)  # Leave no partial line.
                    raise
        except OSError as error:
            if not self._failing:
                self.say(f"Cannot write {path}: {error.strerror}. Training continues; the lines follow once it works.")
            self._failing = True
        else:
            if self._failing:
                self.say(f"Writing {path} works again.")
            self._unwritten.clear()
            self._failing = False

    def _require_own_directory(self, directory: pathlib.Path) -> None:
        """Raise `OSError` if the directory is not the one that was written to first: another run may have it now."""
        found = os.stat(directory)
        if not os.path.samestat(self._directory or found, found):
            raise OSError(errno.ESTALE, "its directory was replaced by another one")
        self._directory = found

    def _show(self, line: dict[str, Any]) -> None:
        if self._live is None:
            score = f"{line['episode/recent_score']:.1f}" if "episode/recent_score" in line else "-"
            self.say(
                f"env steps {line['env_steps']:>9,}  updates {line['updates']:>8,}  "
                f"return {score:>8}  env steps/s {line['rate/env_steps']:8.1f}  "
                f"updates/s {line['rate/updates']:6.1f}  ratio {line['train_ratio']:6.1f}  "
                f"ETA {duration(line['eta_seconds'])}  limited by {line['bottleneck']}"
            )
            return
        table = Table(title=self.title, title_justify="left", show_header=False, expand=False)
        table.add_column(justify="left")
        table.add_column(justify="right")
        share = min(1.0, line["env_steps"] / self._total)
        table.add_row("progress", f"{'#' * int(30 * share):<30} {share:6.1%}")
        table.add_row("env steps", f"{line['env_steps']:,} of {self._total:,}")
        table.add_row("agent steps", f"{line['agent_steps']:,}")
        table.add_row("updates", f"{line['updates']:,}")
        table.add_row("env steps/s", f"{line['rate/env_steps']:.1f}")
        table.add_row("updates/s", f"{line['rate/updates']:.1f}")
        table.add_row("train ratio", f"{line['train_ratio']:.1f}")
        score = f"{line['episode/recent_score']:.1f}" if "episode/recent_score" in line else "no episode yet"
        table.add_row(f"mean return of last {self.recent.maxlen}", score)
        table.add_row("limited by", line["bottleneck"])
        table.add_row("elapsed", duration(line["seconds"]))
        table.add_row("ETA", duration(line["eta_seconds"]))
        with contextlib.suppress(OSError, ValueError):
            self._live.update(table, refresh=True)


class _Mark(NamedTuple):
    """Counters of a run at one time."""

    time: float
    env_steps: int
    updates: int


class Speed:
    """Rates over a sliding window, and where the loop spends its time."""

    def __init__(self, window: float = 60.0):
        self._window = window
        self._marks: collections.deque[_Mark] = collections.deque()
        self.busy = {"environment": 0.0, "learner": 0.0}

    def rates(self, env_steps: int, updates: int) -> dict[str, float]:
        """Env steps and updates per second since the oldest mark inside the window."""
        now = time.perf_counter()
        if self._marks and updates and not self._marks[-1].updates:
            self._marks.clear()  # The first update has compiled: earlier marks do not reflect the speed.
        self._marks.append(_Mark(now, env_steps, updates))
        while len(self._marks) > 2 and self._marks[0].time < now - self._window:
            self._marks.popleft()
        oldest = self._marks[0]
        elapsed = max(now - oldest.time, 1e-9)
        return {
            "rate/env_steps": (env_steps - oldest.env_steps) / elapsed,
            "rate/updates": (updates - oldest.updates) / elapsed,
        }

    def bottleneck(self) -> str:
        """Whether the loop has waited longer for the environment or the learner since the last call."""
        name = max(self.busy, key=lambda key: self.busy[key])
        self.busy = dict.fromkeys(self.busy, 0.0)
        return name


def duration(seconds: float) -> str:
    """``1:02:03``, ``2:03`` or ``-`` if not finite."""
    if not math.isfinite(seconds):
        return "-"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _cut_partial_line(file: BinaryIO) -> None:
    """Cut off an incomplete last line, left by a process that was killed while it was writing."""
    end = file.seek(0, 2)
    # Read the file backwards in blocks, up to the last newline.
    while end > 0:
        start = max(0, end - 2**16)
        file.seek(start)
        if (newline := file.read(end - start).rfind(b"\n")) >= 0:
            end = start + newline + 1
            break
        end = start
    file.truncate(end)


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """Lines of a ``metrics.jsonl``.

    An incomplete last line (the process was killed) is left out, and so are lines that a crash of the machine has
    damaged, or that no run writes.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    return list(read_numbered(path).lines.values())


class MetricsFile(NamedTuple):
    """What a ``metrics.jsonl`` holds."""

    lines: dict[int, dict[str, Any]]
    """By number from 1: the lines that a run could have written."""
    faults: dict[str, list[int]]
    """Numbers of the other complete lines, by what is wrong with them, as the end of a sentence."""

    def requiring(self, *counters: str) -> "MetricsFile":
        """The same, with lines that lack one of these counters among the faults."""
        foreign = [number for number, line in self.lines.items() if not line.keys() >= {*counters}]
        if not foreign:
            return self
        fault = f"lacks the {'number' if len(counters) == 1 else 'counters'} {' and '.join(counters)}"
        lines = {number: line for number, line in self.lines.items() if number not in {*foreign}}
        return MetricsFile(lines, {**self.faults, fault: foreign})

    def complaints(self) -> list[str]:
        """A clause for each fault, with the first of its lines."""
        return [f"line {_list_numbers(numbers)} {fault}" for fault, numbers in self.faults.items()]


def read_numbered(path: pathlib.Path) -> MetricsFile:
    """As `read_metrics`, with line numbers, and with what was left out."""
    lines = {}
    faults = collections.defaultdict[str, list[int]](list)
    for number, text in enumerate(paths.read_text(path, errors="replace").split("\n")[:-1], 1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):  # Python refuses numbers of thousands of digits, too.
            line = None
        if fault := _fault(line):
            faults[fault].append(number)
        else:
            lines[number] = line
    return MetricsFile(lines, dict(faults))


def _fault(line: Any) -> str:
    """What a run would not have written in a line, as the end of a sentence; empty if it could have written it."""
    if not isinstance(line, dict):
        return "cannot be read as a JSON object"
    for name, value in line.items():
        # Names with a slash are measurements, and so are counters; the other values may be words.
        is_measured = "/" in name or name in COUNTERS
        if name in ("env_steps", "updates", "agent_steps", "episodes") and not _is_count(value):
            return f"has no whole number from 0 on as its {name}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not abs(value) <= LARGEST:  # NaN is not.
                return f"has no finite number as its '{name[:60]}'"
        elif value is not None and (is_measured or not isinstance(value, str | bool)):
            return f"has no number as its '{name[:60]}'"
    return ""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_COUNT


def _list_numbers(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:MOST_NAMED]))
    more = f" and {len(numbers) - MOST_NAMED} more" if len(numbers) > MOST_NAMED else ""
    return f"{shown}{more}"


def without_repeats(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Lines of a run without those that it has undone and repeated.

    A killed run resumes from its last checkpoint, before its last lines. It then says so in a line with `RESUMED`, at
    the env steps of the checkpoint, and earlier lines beyond these were undone. Runs of former versions say nothing:
    their env steps go back. If the first line after that is an episode, it ended after the checkpoint, so an earlier
    line at the same env steps was undone as well. Members of a population that share a file are treated separately.
    """
    kept: list[dict[str, Any] | None] = []
    # Places in `kept` of the lines of each member that still count, whose env steps never fall.
    places = collections.defaultdict[Any, list[tuple[float, int]]](list)
    for line in lines:
        steps = line.get("env_steps")
        if isinstance(steps, int | float):
            own = places[line.get("member")]
            goes_back = bool(own) and steps < own[-1][0]
            undoes_equal = goes_back and "episode/score" in line
            while own and (own[-1][0] > steps or (undoes_equal and own[-1][0] == steps)):
                kept[own.pop()[1]] = None
            own.append((steps, len(kept)))
        kept.append(line)
    return [line for line in kept if line is not None]
