"""A run, whichever loop it has: what `dreamer.training.host` and `dreamer.training.device` share.

A run is built, or refused before it changes anything; then `train` announces, compiles, loops, saves, evaluates and
closes. The loops differ in what a turn is, and what a checkpoint holds.
"""

import contextlib
import dataclasses
import math
import pathlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax
import psutil

from dreamer import checkpoints
from dreamer import config as configs
from dreamer.agent import Agent
from dreamer.checkpoints import transfer
from dreamer.checkpoints.saver import Saved, Saver
from dreamer.config import Config, paths
from dreamer.devices.memory import working_bytes
from dreamer.envs import EnvError
from dreamer.evaluate import Evaluation, MakeEnv, evaluate
from dreamer.evaluate.episodes import PlayStopped
from dreamer.logs import logger
from dreamer.logs.logger import Logger
from dreamer.logs.plots import plot_learning_curve
from dreamer.logs.watcher import Prediction, Watcher
from dreamer.training.directory import Claim, evaluate_command, exclusive, note_best, write_config
from dreamer.training.stopping import StopRequest
from dreamer.types import Metrics

DIAGNOSE_EVERY = 10
"""One in this many lines of metrics has a diagnosis, if `logger.diagnose` asks for it."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run leaves."""

    agent: Agent
    logdir: pathlib.Path
    evaluation: Evaluation | None
    """The closing evaluation; None if there was none."""
    interrupted: bool
    """Whether a signal or a failure ended it."""
    ended: str = ""
    """What ended it: ``env_steps``, ``episodes``, ``hours`` or ``score``, which are keys of ``run``, or a signal."""
    members: tuple["Result", ...] = ()
    """Results of all members of a population, else empty. The fields above are then those of the first member, except
    for ``logdir``, which is that of the population."""


class Run(ABC):
    """One run in one log directory.

    Args:
        config: the run's config, with ``logdir`` set.

    Attributes:
        config: the same.
        logdir: directory of the run, absolute.
        log: metrics, and messages on the terminal.
        watcher: draws what the world model predicts.
        saver: writes checkpoints.
    """

    log: Logger
    watcher: Watcher
    saver: Saver

    def __init__(self, config: Config):
        self.config = config
        # An environment may change the working directory; what is printed stays as it was typed.
        self.logdir = pathlib.Path(config.logdir).absolute()
        self._stop = StopRequest()
        # Closed in reverse order when the run is over: the saver before the log, and both before the lock.
        self._cleanup = contextlib.ExitStack()
        self._begin = time.perf_counter()
        self._seconds_before = 0.0
        self._resumes = 0
        self._damaged: Sequence[checkpoints.Damaged] = ()
        self._transfer: transfer.Taken | None = None
        self._claims: list[Claim] = []
        self._lines = DIAGNOSE_EVERY  # Since the last diagnosis: the first line that can have one does.

    @property
    @abstractmethod
    def env_steps(self) -> int:
        """Environment steps so far, which the budget counts."""

    @abstractmethod
    def train(self) -> Result:
        """Run to the end of the budget or until interrupted; saves, evaluates, and cleans up in any case."""

    @abstractmethod
    def _counters(self) -> dict[str, Any]:
        """Counters that every line of the run's metrics begins with."""

    @abstractmethod
    def _start_save(self, *, wait: bool = False) -> None:
        """Begin to save while training continues, unless there is no memory for a copy; or save at once."""

    @abstractmethod
    def _prediction(self) -> Prediction:
        """What the world model predicts for the newest sequences."""

    @abstractmethod
    def _diagnose(self) -> Metrics:
        """What `Algorithm.diagnose` says of a batch; empty if that is not wanted, or not known yet."""

    # Opening

    def _claim(self, logdir: pathlib.Path) -> None:
        """Create and lock a directory for as long as the run lasts."""
        self._claims.append(self._cleanup.enter_context(exclusive(logdir)))

    def _check_logdir(self) -> None:
        """Raise `LogdirGone` if a directory of the run was removed or replaced."""
        for claim in self._claims:
            claim.check()

    def _make_log(
        self,
        *,
        title: str,
        quiet: bool,
        summarize: Callable[..., Any] | None,
        logdir: pathlib.Path | None,
    ) -> Logger:
        """The log of the run; with ``logdir`` None, one that writes nothing."""
        settings = self.config.logger
        wandb = {"project": settings.project, "name": self.logdir.name, "config": configs.to_dict(self.config)}
        log = Logger(
            logdir,
            title=title,
            total_env_steps=self.config.run.env_steps,
            quiet=quiet,
            tensorboard=settings.tensorboard,
            wandb=wandb if settings.wandb and logdir is not None else None,
            summarize=summarize,
        )
        self._cleanup.callback(log.close)
        return log

    def _make_watcher(self, logdir: pathlib.Path, spaces: Any, seed: int, every: float) -> Watcher:
        watcher = Watcher(logdir, spaces, f"{self.config.task}, seed {seed}", every)
        self._cleanup.callback(watcher.close)
        return watcher

    def _make_saver(self, *, background: bool) -> Saver:
        saver = Saver(background=background)
        self._cleanup.callback(saver.close)
        return saver

    def _write_config(self) -> None:
        """Write the config, and the list of what ``load.from`` gave."""
        write_config(self.logdir, self.config)
        if self._transfer is not None:
            paths.write_text(self.logdir / "load.txt", self._transfer.listing())

    def _announce_origin(self) -> None:
        """Say what the run starts from, if not from scratch."""
        if self._transfer is not None:
            self.log.say(f"  {self._transfer.summary()} All: {self._as_typed(self.logdir / 'load.txt')}")
        for damaged in self._damaged:
            self.log.say(f"  {damaged} It was set aside, and this run continues from the one before.")

    # Turns

    def _keep_programs(self, predict: Future[Any] | None, diagnose: Future[Any] | None) -> int:
        """Wait for the programs for pictures and diagnosis, where there are any, and keep them.

        Args:
            predict: compiles `_predict`, and gives JAX's compiled object as well.
            diagnose: the same of `_compiled_diagnose`.

        Returns:
            Bytes that the larger one needs while it runs, besides its arguments.
        """
        largest = 0
        if predict:
            self._predict, program = predict.result()
            largest = working_bytes(program)
        if diagnose:
            self._compiled_diagnose, program = diagnose.result()
            largest = max(largest, working_bytes(program))
        return largest

    def _start_clock(self) -> None:
        """Training begins now; if it was resumed, the metrics say where."""
        self._begin = time.perf_counter()
        if self._resumes:
            damaged = {"resume/damaged_checkpoints": len(self._damaged)} if self._damaged else {}
            self._mark_resume({logger.RESUMED: self._resumes, **damaged})

    def _mark_resume(self, line: dict[str, Any]) -> None:
        """Write the first line after a resume, by which readers know that what lies beyond its counters was undone."""
        self.log.write({**self._counters(), **line})

    def _say_lost_history(self, log: Logger, meta: Mapping[str, Any]) -> None:
        """Say so if metrics from before the checkpoint with this ``meta`` are gone."""
        if lost := log.missing_history(meta.get("metrics_bytes", 0)):
            self.log.say(f"  {lost}")

    def _announce_budget(self, ready: int) -> None:
        """Say so if the run ends before its first update.

        Args:
            ready: env steps after which replay holds a batch, if no episode ends before.
        """
        run = self.config.run
        replay = self.config.replay
        # What an update replays has to be earned by steps after that.
        first = ready + math.ceil(replay.batch_size * replay.batch_length / run.train_ratio) * self.config.env.repeat
        if run.env_steps < first:
            self.log.say(
                f"  run.env_steps={run.env_steps:,} ends this run before its first update, so the agent will not be "
                f"trained: batches of {replay.batch_size} x {replay.batch_length} can be drawn and are due after about "
                f"{first:,} env steps. Raise run.env_steps, or lower replay.batch_size or replay.batch_length."
            )

    def _seconds(self) -> float:
        """Seconds of training, over all resumes."""
        return self._seconds_before + time.perf_counter() - self._begin

    def _next_log(self, *, first: bool = False) -> float:
        """When the next line of metrics is due; the first comes early."""
        every = self.config.run.log_every
        return self._begin + min(every, 5.0) if first else time.perf_counter() + every

    def _rate_line(self, rates: Mapping[str, float], *, train_ratio: float, bottleneck: str, failures: int) -> dict:
        """What a line of metrics says about the run's speed, with the time that is left."""
        run = self.config.run
        eta = (run.env_steps - self.env_steps) / max(rates["rate/env_steps"], 1e-9)
        if run.hours:
            eta = min(eta, 3600 * run.hours - self._seconds())
        return {
            **rates,
            "train_ratio": train_ratio,
            # Steps of several environments can end a little beyond the budget.
            "eta_seconds": max(0.0, eta) if rates["rate/updates"] > 0 else float("inf"),
            "bottleneck": bottleneck,
            "memory_bytes": psutil.Process().memory_info().rss,
            "env/failures": failures,
        }

    def _diagnosis(self) -> dict[str, float]:
        """What a line of metrics says beyond the rates and the updates, in one line of `DIAGNOSE_EVERY`."""
        self._lines += 1
        if self._lines < DIAGNOSE_EVERY or not (metrics := numbers(self._diagnose())):
            return {}
        self._lines = 0
        return metrics

    # Saving

    def _collect_save(self, *, wait: bool = False) -> None:
        """Log what the last save took; a failed one does not stop the run."""
        try:
            saved = self.saver.outcome(wait=wait)
        except checkpoints.CheckpointError as error:
            self.log.say(f"{error} Training continues, and the next save tries again.")
        else:
            self._record_save(saved)

    def _record_save(self, saved: Saved | None) -> None:
        """Log what a save took."""
        if saved is not None:
            self._confirm_save()
            self.log.write({**self._counters(), **saved.metrics()})

    def _confirm_save(self) -> None:
        """Called when a checkpoint is complete."""
        return

    def _save(self) -> pathlib.Path:
        """Save, and wait until it is done; raises `CheckpointError` if it fails."""
        self._collect_save(wait=True)
        self._start_save(wait=True)
        saved = self.saver.outcome(wait=True)
        assert saved is not None
        self._record_save(saved)
        return saved.written.path

    # Closing

    def _score(
        self, agent: Agent, make: MakeEnv, log: Logger, counters: Mapping[str, Any], step: int
    ) -> Evaluation | None:
        """Play the closing evaluation of an agent, and log it; ``step`` is that of its checkpoint.

        Returns None, and says so, if the run is asked to stop meanwhile.

        Raises:
            EnvError: an environment failed; the run itself is done and saved.
        """
        config = agent.config
        try:
            evaluation = evaluate(
                agent,
                make,
                config.run.eval_episodes,
                seed=config.seed,
                checkpoint_env_steps=counters["env_steps"],
                stop=self._asked_to_stop,
            )
        except PlayStopped as stopped:
            self.log.say(
                f"Stopped by {self._stop} during the closing evaluation: {stopped} The run is done and was saved. "
                f"Score it with: {evaluate_command(config.logdir, config.task, config.run.eval_episodes)}"
            )
            return None
        except EnvError as error:
            raise EnvError(
                f"The closing evaluation failed: {error}\nThe run is done and was saved. Score it with: "
                f"{evaluate_command(config.logdir, config.task, config.run.eval_episodes)}"
            ) from error
        summary = {f"eval/{name}": value for name, value in evaluation.summary().items() if name != "task"}
        log.write({**counters, **summary}, tables={"eval/episodes": evaluation.table()})
        note_best(log.logdir or self.logdir, step, summary["eval/mean"], self.log.say)
        return evaluation

    def _asked_to_stop(self) -> bool:
        # Environments that were just made may have taken the signals.
        self._stop.keep_listening()
        return bool(self._stop)

    def _say_result(
        self, *, ended: str, scores: Sequence[str], checkpoint: pathlib.Path | None, again: str, title: str
    ) -> None:
        """The closing words: what ended the run, how good it is, where its files are, and how to score it again."""
        curve = plot_learning_curve(self.logdir, f"{self.config.task}, {title}")
        duration = logger.duration(self._seconds())
        files = {
            "checkpoint": checkpoint,
            "metrics": self.logdir / "metrics.jsonl",
            "config": self.logdir / "config.yaml",
            "learning curve": curve,
        }
        lines = [f"Trained for {self.env_steps:,} env steps in {duration}; run.{ended} ended it."]
        if not self._counters()["updates"]:
            lines.append("No update was made: the agent is as it was at the start, not trained.")
        lines += scores
        lines += [f"  {name:<15} {self._as_typed(where)}" for name, where in files.items() if where is not None]
        lines.append(f"{again}: {evaluate_command(self._scored_logdir(), self.config.task)}")
        self.log.say("\n".join(lines))

    def _scored_logdir(self) -> pathlib.Path:
        """The directory that the command in the closing words names."""
        return self._as_typed(self.logdir)

    def _as_typed(self, path: pathlib.Path) -> pathlib.Path:
        """A path in the log directory, beginning with ``logdir`` as the user typed it."""
        return pathlib.Path(self.config.logdir, path.relative_to(self.logdir))


def numbers(metrics: Metrics) -> dict[str, float]:
    """Metrics on the host; waits for the device."""
    return {name: float(value) for name, value in jax.device_get(metrics).items()}


__all__ = ["Result", "Run", "numbers"]
