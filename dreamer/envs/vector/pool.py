"""A pool of environments in worker processes, which replaces those that fail."""

import itertools
import select
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dreamer.config import EnvConfig
from dreamer.envs.errors import EnvError
from dreamer.envs.vector.slots import MAKE, SKIP, STEP, Slots
from dreamer.envs.vector.workers import Recipe, Worker

LONGEST_START = 300.0
"""Seconds that making environments may take: they import packages and load files, 16 at a time on a few cores."""

_HINTS: dict[int, str] = {
    signal.SIGKILL: ", usually because memory ran out",
    signal.SIGSEGV: ", a crash in native code",
}


class Failure(NamedTuple):
    """What happened in a worker, and the indices of the environments to remake.

    ``making`` says that an environment could not be made, so trying again is pointless.
    """

    worker: Worker
    indices: list[int]
    sentence: str
    traceback: str = ""
    making: bool = False


class Pool:
    """N environments in ``ceil(N / config.per_worker)`` worker processes, which are replaced when they fail.

    If an environment raises, or its answer violates its spaces, its worker remakes it. A worker that takes longer than
    ``config.timeout`` or dies is restarted with all its environments. Either way the answer is the first observation
    of a new episode, so the previous episode ends with the last answer it gave.

    Some failures end everything with `EnvError`: an environment that cannot be made, any failure before all
    environments have answered a step, and more than ``config.failures`` in a row without any episode being finished.

    Args:
        recipe: how environments are made.
        config: number of environments and workers, and the limits above.
        slots: shared memory with the first seeds; the workers start making the environments at once.
        seeds: seed of environment i when it is remade for the k-th time, from ``(i, k)``.
        on_failure: called with a message about every failure that does not end everything.
        on_note: called with the key and the sentence of every note; see `Adapter.take_notes`.

    Attributes:
        failures: failures so far.
    """

    def __init__(
        self,
        recipe: Recipe,
        config: EnvConfig,
        slots: Slots,
        seeds: Callable[[int, int], int],
        on_failure: Callable[[str], None],
        on_note: Callable[[str, str], None],
    ) -> None:
        self.failures = 0
        self._recipe = recipe
        self._config = config
        self._slots = slots
        self._seeds = seeds
        self._on_failure = on_failure
        self._on_note = on_note
        self._in_a_row = 0
        self._stepped = False
        self._starts = [0] * config.count
        self._episode = np.zeros(config.count, np.int64)
        self._time = np.zeros(config.count, np.int64)
        self._workers: list[Worker] = []
        self._busy = True
        slots.command[:] = MAKE
        try:
            for first in range(0, config.count, config.per_worker):
                self._start(range(first, min(first + config.per_worker, config.count)))
        except BaseException:
            self.close(0)
            raise

    def run(self, command: int) -> dict[int, dict[str, float]]:
        """Have all execute a command; returns their logs by index.

        The first command must be a reset. It is already under way: workers reset an environment when they make it.

        Raises:
            EnvError: failures that end everything; see above.
        """
        slots = self._slots
        if not self._busy:
            slots.command[:] = command
            for worker in self._workers:
                worker.wake()
        logs: dict[int, dict[str, float]] = {}
        waiting: Sequence[Worker] = self._workers
        while failures := self._collect(waiting, logs):
            for index in itertools.chain.from_iterable(failure.indices for failure in failures):
                logs.pop(index, None)  # The worker failed after it reported this, so the step is lost.
            waiting = self._replace(failures)
        self._busy = False
        self._stepped |= command == STEP
        self._episode += slots.is_first
        self._time += slots.env_steps
        self._time[slots.is_first] = 0
        if self._in_a_row and slots.is_last.any():
            self._in_a_row = 0
        return logs

    def get_states(self) -> list[Any]:
        """State of every environment, by index.

        Raises:
            NotRestorable: an environment refused.
            EnvError: a worker failed; the next `run` replaces it.
        """
        found: dict[int, Any] = {}
        for worker in self._workers:
            worker.ask(None)
        for answer in self._answers():
            found |= answer
        return [found[index] for index in range(self._config.count)]

    def set_states(self, states: list[Any]) -> None:
        """Have every environment continue from a state; raises what `get_states` raises; all must be remade then."""
        for worker in self._workers:
            worker.ask({index: states[index] for index in worker.indices})
        self._answers()

    def counters(self) -> dict[str, Any]:
        """State of the pool itself, besides that of the environments."""
        return {
            "failures": self.failures,
            "in_a_row": self._in_a_row,
            "stepped": self._stepped,
            "starts": list(self._starts),
            "episode": self._episode.copy(),
            "time": self._time.copy(),
        }

    def set_counters(self, counters: dict[str, Any], seeds: Callable[[int, int], int]) -> None:
        """Continue from `counters`, and with the seeds of the saved run."""
        self._seeds = seeds
        if counters:  # A `LocalPool` saves none.
            self.failures = counters["failures"]
            self._in_a_row = counters["in_a_row"]
            self._stepped = counters["stepped"]
            self._starts = counters["starts"]
            self._episode = counters["episode"]
            self._time = counters["time"]

    def _answers(self) -> list[dict[int, Any]]:
        """Answers of all workers about states; each is read even if another fails, so that none is left in a pipe."""
        answers: list[dict[int, Any]] = []
        errors: list[EnvError] = []
        for worker in self._workers:
            try:
                answers.append(worker.answer(max(self._config.timeout, LONGEST_START)))
            except EnvError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return answers

    def close(self, patience: float) -> None:
        """End all workers; those that need more than ``patience`` seconds to close their environments are killed."""
        for worker in self._workers:
            worker.leave()
        deadline = time.monotonic() + patience
        for worker in self._workers:
            worker.stop(max(0.0, deadline - time.monotonic()))
        self._workers = []

    def _start(self, indices: Sequence[int]) -> Worker:
        self._slots.turn[indices[0]] = -1
        worker = Worker(indices, self._recipe, self._slots)
        self._workers.append(worker)
        worker.wake()
        return worker

    def _collect(self, waiting: Sequence[Worker], logs: dict[int, dict[str, float]]) -> list[Failure]:
        """Wait for the workers' answers; adds their logs to ``logs``, and returns their failures."""
        failures: list[Failure] = []
        pending = {worker.fileno(): worker for worker in waiting}
        poll = select.poll()
        for number in pending:
            poll.register(number, select.POLLIN)
        making = (self._slots.command == MAKE).any()
        limit = max(self._config.timeout, LONGEST_START) if making else self._config.timeout
        deadline = time.monotonic() + limit
        while pending:
            ready = poll.poll(max(0.0, min(deadline - time.monotonic(), 1e6)) * 1000)
            if not ready and time.monotonic() >= deadline:
                return failures + [self._end_hanging(worker, limit) for worker in pending.values()]
            for number, _ in ready:
                poll.unregister(number)
                worker = pending.pop(number)
                report = worker.receive()
                if report is None:
                    failures.append(self._remove_dead(worker))
                    continue
                logs.update(report.logs)
                for note in report.notes:
                    self._on_note(*note)
                failures += [Failure(worker, [index], *rest) for index, rest in report.failures.items()]
        return failures

    def _replace(self, failures: list[Failure]) -> list[Worker]:
        """Start remaking what failed; returns the workers that are busy with it."""
        self._slots.command[:] = SKIP
        for failure in failures:
            self._report(failure)
            for index in failure.indices:
                self._starts[index] += 1
                self._slots.seed[index] = self._seeds(index, self._starts[index])
                self._slots.command[index] = MAKE
        busy: dict[int, Worker] = {}
        for worker in {id(failure.worker): failure.worker for failure in failures}.values():
            if worker in self._workers:
                worker.wake()
            else:
                worker = self._start(worker.indices)
            busy[id(worker)] = worker
        return list(busy.values())

    def _report(self, failure: Failure) -> None:
        """Count and report a failure; raises `EnvError` if it ends everything."""
        self.failures += 1
        self._in_a_row += 1
        allowed = self._config.failures
        traceback = ""
        if failure.traceback:
            traceback = f"\nIn the worker process:\n{failure.traceback.rstrip()}"
        if failure.making or not self._stepped:
            raise EnvError(failure.sentence + traceback)
        if self._in_a_row > allowed:
            raise EnvError(
                f"{failure.sentence} This was failure {self._in_a_row} in a row without a finished episode, expected "
                f"at most env.failures={allowed}: fix the cause, or run with env.workers=sync to see more.{traceback}"
            )
        self._on_failure(
            f"{failure.sentence} Its episode ends here as truncated, and a new one begins (failure {self._in_a_row} in "
            f"a row, env.failures={allowed}).{traceback}"
        )

    def _end_hanging(self, worker: Worker, limit: float) -> Failure:
        where = self._where(worker)
        self._drop(worker, patience=0.0)
        key = " (env.timeout)" if limit == self._config.timeout else ""
        sentence = f"{where}: no answer within {limit:g} seconds{key}, so its worker process was ended."
        return Failure(worker, worker.indices, sentence)

    def _remove_dead(self, worker: Worker) -> Failure:
        where = self._where(worker)
        code = self._drop(worker, patience=1.0)  # The exit code arrives a moment after the pipe closes.
        hint = _HINTS.get(-code, "") if code is not None else ""
        sentence = f"{where}: its worker process ended without a word (exit code {code}{hint})."
        return Failure(worker, worker.indices, sentence)

    def _drop(self, worker: Worker, patience: float) -> int | None:
        self._workers.remove(worker)
        return worker.stop(patience)

    def _where(self, worker: Worker) -> str:
        """Which environment a worker was busy with, and which others it has."""
        turn = int(self._slots.turn[worker.indices[0]])
        index = turn if turn >= 0 else worker.indices[0]
        where = f"Environment {self._recipe.name}, step {self._time[index] + 1} of episode {self._episode[index]}"
        others = [other for other in worker.indices if other != index]
        return f"{where} (environment number {index}{f', together with {others}' if others else ''})"


__all__ = ["LONGEST_START", "Failure", "Pool"]
