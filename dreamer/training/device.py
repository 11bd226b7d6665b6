"""A run with the device loop: windows of turns, and between them everything for the terminal and the disk.

Compare `dreamer.training.host.HostRun`, where environments are on the host. The program reports once per window, and
windows last about a second, so that the display moves, Ctrl-C works, and logging costs nothing.
"""

import collections
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from dreamer import checkpoints
from dreamer import config as configs
from dreamer.agent import Agent, guard
from dreamer.algorithms.base import no_metrics
from dreamer.checkpoints import Checkpoint, Snapshot, transfer
from dreamer.checkpoints.saver import room_for_copy
from dreamer.config import Config
from dreamer.config.population import members
from dreamer.devices import backend
from dreamer.devices.member_axis import member_of
from dreamer.devices.memory import MemoryPlan, working_bytes
from dreamer.devices.placement import dtype_advice
from dreamer.devices.profiler import Profiler
from dreamer.envs import summarizer
from dreamer.envs.native import native_env
from dreamer.evaluate import make_env
from dreamer.logs import averages, logger
from dreamer.logs.plots import plot_learning_curve
from dreamer.logs.watcher import Prediction, context_of
from dreamer.replay import TrainRatio, device, rows_until_ready
from dreamer.training import device_saves
from dreamer.training.device_program import DeviceLoop, LoopState, available_bytes, next_batch
from dreamer.training.device_report import Report
from dreamer.training.device_window import WINDOW, Pace, Record, summarize
from dreamer.training.directory import refuse_other_config, resume_command, write_config
from dreamer.training.failure import Skip
from dreamer.training.failure import report as report_failure
from dreamer.training.run import Result, Run, numbers
from dreamer.training.stopping import budget_spent, early_end
from dreamer.types import Metrics

_TURNS = ("ended", "score", "length", "steps", "logs")
"""Fields of a report that have a row for each turn."""


class DeviceRun(Run):
    """One run of a population, or of a single agent, in one log directory.

    Args:
        config: the run's config, with ``logdir`` set.
        quiet: print nothing.

    Raises:
        LogdirInUse, ConfigError, CheckpointError, EnvError, ReplayMemoryError: the run cannot start; nothing changed.
    """

    def __init__(self, config: Config, *, quiet: bool = False):
        backend.local_devices()  # Says what is wrong if there are none.
        self.members = members(config)
        # A population of one is a run like any other: its config and directory mention no population.
        config = config if len(self.members) > 1 else self.members[0].config
        super().__init__(config)
        self.env = native_env(config)
        backend.refuse_switches()  # Modules of environments may set them.
        self.loop = DeviceLoop(config, self.members, self.env)
        self._ready = rows_until_ready(config.replay, config.env.count)
        self._required = self.loop.required_bytes()
        # Each device has its own memory, unless they are the cores of one CPU.
        self._memories = self.loop.devices if not backend.on_cpu() else 1
        available = available_bytes() * self._memories
        device.check_memory(
            replay=self._required.replay,
            other=self._required.other,
            members=self.loop.places,
            capacity=config.replay.capacity,
            available=available,
        )
        with contextlib.ExitStack() as undo:
            undo.callback(self._cleanup.close)
            self._cleanup.enter_context(self._stop.listening())
            for path in dict.fromkeys([self.logdir, *(pathlib.Path(m.config.logdir).absolute() for m in self.members)]):
                self._claim(path)
            self._refuse_other_config()
            saved = device_saves.load(self.members)
            if saved is None:
                self.state = self._begin_fresh()
            else:
                with checkpoints.explain_content(saved[0].path):
                    self.state = self.loop.place(device_saves.restore(self.loop.shapes(), saved))
            self.ratio = TrainRatio(config.run.train_ratio, config.replay.batch_size * config.replay.batch_length)
            self.turns = 0
            self.updates = 0
            if saved is not None:
                first_saved, *_ = saved
                self._damaged = first_saved.damaged
                with checkpoints.explain_content(first_saved.path):
                    self._restore(first_saved)
            self._open_logs(saved, quiet=quiet)
            first = self.members[0].config
            every = config.logger.pictures_every
            self.watcher = self._make_watcher(pathlib.Path(first.logdir), self.env.obs_spaces, first.seed, every)
            self.saver = self._make_saver(background=True)
            for damaged in self._damaged:
                checkpoints.set_aside(damaged.path)
            undo.pop_all()

    @property
    def env_steps(self) -> int:
        """Environment steps of each member, resets included: what the budget and the train ratio count."""
        return self.turns * self.config.env.count

    def train(self) -> Result:
        """Run to the end of the budget or until interrupted; saves, evaluates, and cleans up in any case.

        Raises:
            ConfigError: there is not enough memory for the program; no turn has run yet.
            CheckpointError: the last checkpoint could not be written.
            TrainingFailed: too many updates of a member in a row were skipped; the last checkpoints stay unchanged.
        """
        with self._cleanup:
            self._announce()
            with self.log.while_busy("compiling the program"):
                self._compile()
            self._loop()
            self._save()
            if not self._stop and self.updates:
                self.watcher.finish(self._prediction, self._first.log, self._first_counters)
            if self._stop:
                self.log.say(
                    f"Stopped by {self._stop} after {self.env_steps:,} env steps; saved.\n"
                    f"Resume with: {resume_command(self._as_typed(self.logdir), self.config.task)}"
                )
            results = self._results()
            if not self._stop:
                self._closing_words(results)
            first, *_ = results
            population = tuple(results) if len(results) > 1 else ()
            return dataclasses.replace(first, logdir=self.logdir, members=population)

    def _compile(self) -> None:
        """Compile the program before the first turn: only the compiler knows how much memory it takes."""
        replay = self.config.replay
        start = time.perf_counter()
        with ThreadPoolExecutor(thread_name_prefix="compiler") as compiler:  # See `HostRun._compile`.
            run = compiler.submit(self.loop.lower(self.state, WINDOW))
            predict = compiler.submit(self.loop.lower_predict(self.state)) if self.watcher.enabled else None
            diagnose = compiler.submit(self.loop.lower_diagnose(self.state)) if self._diagnoses else None
            self._program = run.result()
            program = working_bytes(self._program) * self.loop.devices // self._memories
            program = max(program, self._keep_programs(predict, diagnose))
        plan = MemoryPlan(program, 0, available_bytes())
        plan.check(replay.batch_size, replay.batch_length)
        self.log.say(
            f"  The program was compiled in {logger.duration(time.perf_counter() - start)} and takes "
            f"{program / 1e9:.2f} GB more while it runs; {plan.available / 1e9:.2f} GB are free."
        )

    def _loop(self) -> None:
        config = self.config.run
        pace = Pace()
        speed = logger.Speed()
        self._start_clock()
        # The state is fetched after every window, so there is nothing to wait for.
        profiler = Profiler(self.logdir, config.profile, lambda: None, self.log.say, self._program)
        next_log = self._next_log(first=True)
        next_save = self._begin + config.save_every
        while self._continues():
            learning = self.turns + 1 >= self._ready
            left = -(-config.env_steps // self.config.env.count) - self.turns
            # A window ends before the first turn that learns: fast and slow turns are measured separately.
            turns = min(pace.turns(learning=learning), left, left if learning else self._ready - 1 - self.turns)
            due = self._updates_due(turns)
            start = time.perf_counter()
            self.state, report = self.loop.run(self.state, due, turns)
            report = self.loop.fetch(report)
            end = time.perf_counter()
            pace.measure(turns, end - start, learning=learning)
            self._record_window(report, due[:turns])
            skipping = self._report_skips(report) if due.any() else False
            profiler.turn(self.updates)
            if end >= next_log:
                self._tick(speed)
                next_log = self._next_log()
            if self.updates:
                self.watcher.turn(self._prediction, self._first.log, self._first_counters)
            self._collect_save()
            # While updates are skipped, the state may be the cause: it is not saved.
            if end >= next_save and not skipping and not self.saver.busy:
                self._start_save()
                next_save = time.perf_counter() + config.save_every
        profiler.close(self.updates)

    def _updates_due(self, turns: int) -> np.ndarray:
        """Updates of each of the next turns, padded to the size of a window."""
        count = self.config.env.count
        due = np.zeros(WINDOW, np.int32)
        for i, turn in enumerate(range(self.turns, self.turns + turns)):
            due[i] = self.ratio.updates_due(turn * count, ready=turn + 1 >= self._ready)
        return due

    def _record_window(self, report: Report, due: np.ndarray) -> None:
        """Count and log what happened in a window."""
        turns = len(due)
        updates = self.updates + np.cumsum(due)
        for index, record in enumerate(self.records):
            own: Report = jax.tree.map(lambda x, i=index: x[i], report)
            shown = own._replace(**{name: getattr(own, name)[:turns] for name in _TURNS})
            episodes = record.add(shown, updates, self._seconds())
            if due.any():
                record.log.add_update(own.metrics)
            if self.log is not record.log:
                for episode, counters in episodes:
                    self.log.add_episode(episode, {**counters, "member": record.member.name})
        if due.any() and len(self.records) > 1:
            self.log.add_update({name: np.mean(values) for name, values in report.metrics.items()})
        self.turns += turns
        self.updates = int(updates[-1])

    def _report_skips(self, report: Report) -> bool:
        """Log which members skipped updates in a window; returns whether one of them skipped the last.

        Raises:
            TrainingFailed: a member has skipped too many in a row.
        """
        in_row = report.metrics[averages.IN_ROW]
        for index in np.flatnonzero(report.metrics[averages.SKIPPED]).tolist():
            record = self.records[index]
            own, cursor = self.loop.member(self.state, index)
            config = record.member.config
            bad = int(report.metrics[averages.BAD][index])
            tensor = guard.tensor_name(bad, report.metrics, own.train)
            record.log.write({**self._counters_of(record), "guard_tensor": tensor})
            share = float(report.metrics[averages.SKIPPED][index])
            self.log.say(
                f"{record.member.name}: {share:.1%} of the updates up to {self.updates} were skipped, the last "
                f"{in_row[index]} in a row: {tensor} is not finite. {config.run.max_skipped} in a row end the run."
            )
            if in_row[index] >= config.run.max_skipped:
                # The batches of a window are gone. The next one meets the same parameters.
                batch = next_batch(config, self.loop.layout, own, cursor)
                skip = Skip(update=self.updates, in_row=int(in_row[index]), tensor=tensor, batch=batch)
                agent = Snapshot(
                    config,
                    obs_spaces=self.env.obs_spaces,
                    action_spaces=self.env.action_spaces,
                    policy_steps=self.turns,
                    state=own.train,
                    acting_nets=own.acting,
                )
                self._collect_save(wait=True)  # So that the report knows of a checkpoint that is being written.
                raise report_failure(pathlib.Path(config.logdir), agent, skip)
        return bool(in_row.any())

    def _tick(self, speed: logger.Speed) -> None:
        rates = speed.rates(self.env_steps, self.updates)
        line = self._rate_line(rates, train_ratio=self.ratio.true_ratio, bottleneck="device", failures=0)
        diagnosis = self._diagnosis()
        for index, record in enumerate(self.records):
            own = line | diagnosis if record is self._first else line
            record.log.tick(self._counters_of(record), own | self._acting(index))
        if len(self.records) > 1:
            together = {name: len(self.records) * rate for name, rate in rates.items()}
            self.log.tick(self._counters(), {**line, **together})

    def _acting(self, index: int) -> dict[str, float]:
        """What a member's algorithm says of how it acts."""
        acting = self.loop.algorithm.acting
        return {} if acting is no_metrics else numbers(acting(member_of(self.state.members.memory, index)))

    def _continues(self) -> bool:
        """Whether there is another window; if not, notes why. A population has reached what all its members have."""
        run = self.config.run
        self._stop.keep_listening()
        episodes = min(record.episodes for record in self.records)
        early = {early_end(run, self._seconds(), record.log.recent) for record in self.records}
        rule = budget_spent(run, self.env_steps, episodes) or ("" if "" in early else max(early))
        self._ended = self._stop.signal or rule
        return not self._ended

    def _counters_of(self, record: Record) -> dict[str, Any]:
        """Counters of one member."""
        return record.counters(record.env_steps, self.updates, self._seconds())

    def _counters(self) -> dict[str, Any]:
        """Counters of the run: those of its only member, or totals over all members."""
        own = self._counters_of(self._first)
        if len(self.records) == 1:
            return own
        steps = {"env_steps": self.env_steps, "agent_steps": self.env_steps}
        return {**own, **steps, "episodes": sum(record.episodes for record in self.records)}

    def _prediction(self) -> Prediction:
        """What the world model of the first member predicts for its newest sequences."""
        batch, predictions, metrics = self._predict(self.state)
        return Prediction(batch, context_of(self.config.replay.batch_length), predictions, metrics)

    @property
    def _diagnoses(self) -> bool:
        """Whether the first member's lines of metrics have a diagnosis."""
        return self.config.logger.diagnose and self.loop.algorithm.diagnose is not None

    def _diagnose(self) -> Metrics:
        """What `Algorithm.diagnose` says of the batch that the next update of the first member will get."""
        return self._compiled_diagnose(self.state) if self._diagnoses and self.updates else {}

    @property
    def _first(self) -> Record:
        """Record of the first member, whose predictions are drawn and whose batches are diagnosed."""
        return self.records[0]

    def _first_counters(self) -> dict[str, Any]:
        return self._counters_of(self._first)

    def _start_save(self, *, wait: bool = False) -> None:
        """Begin to save while training continues, unless the host has no memory for a copy; or save at once."""
        self._check_logdir()
        learner = {"updates": self.updates, "ratio": self.ratio.state()}
        common = {"resumes": self._resumes, "learner": learner, "turns": self.turns}
        logs = [
            {
                "recent": list(record.log.recent),
                "episode_logs": list(record.log.episode_logs),
                "metrics_bytes": record.log.bytes_written,
            }
            for record in self.records
        ]
        metas = [{**self._counters_of(r), **common, **log} for r, log in zip(self.records, logs, strict=True)]
        state = self.state
        step = self.env_steps

        def prepare(*, copy: bool) -> Iterable[device_saves.PreparedMember]:
            contents = device_saves.prepare(state, self.members, self.env, metas, copy=copy)
            return list(contents) if copy else contents

        self.saver.start(
            prepare,
            lambda contents: device_saves.write(contents, step, self.config.run.keep),
            background=not wait and room_for_copy(jax.tree.leaves(state.members)),
        )

    def _refuse_other_config(self) -> None:
        """Raise `ConfigError` if the directory, or one in it, holds a checkpoint of another config."""
        written = self.logdir / "config.yaml"
        if written.exists() and any(checkpoints.exists(path) for path in (self.logdir, *self.logdir.iterdir())):
            refuse_other_config(configs.load_yaml(written), self.config, self.logdir)

    def _begin_fresh(self) -> LoopState:
        """The state before the first turn, with parameters of another run if the config asks for them."""
        state = self.loop.begin()
        if not self.config.load.from_:
            return state
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state.members.train.nets)
        self._transfer = transfer.read(self.config, shapes)
        train = transfer.begin_with(state.members.train, self._transfer)
        return self.loop.place(state._replace(members=state.members._replace(train=train, acting=train.nets)))

    def _restore(self, saved: Checkpoint) -> None:
        meta = saved.meta
        self.ratio.restore(meta["learner"]["ratio"])
        self.turns = meta["turns"]
        self.updates = meta["learner"]["updates"]
        self._resumes = meta["resumes"] + 1
        self._seconds_before = meta["seconds"]

    def _open_logs(self, saved: Sequence[Checkpoint] | None, *, quiet: bool) -> None:
        """Write the configs, and open the log of each member, and that of the run if there are several."""
        config = self.config
        alone = len(self.members) == 1
        title = f"Dreamer on {config.task}" + ("" if alone else f", {len(self.members)} members")
        names = getattr(self.env, "log_names", ())
        summarize = summarizer(config.task)
        shown = self._make_log(title=title, quiet=quiet, summarize=summarize if alone else None, logdir=self.logdir)
        shown.recent = collections.deque(maxlen=logger.RECENT * len(self.members))
        self._write_config()
        self.log = shown
        self.records = []
        self._saved: list[dict[str, Any]] = []
        for index, member in enumerate(self.members):
            path = pathlib.Path(member.config.logdir)
            write_config(path, member.config)
            log = shown
            if not alone:
                log = logger.Logger(
                    path,
                    title=title,
                    total_env_steps=config.run.env_steps,
                    quiet=True,
                    tensorboard=config.logger.tensorboard,
                    summarize=summarize,
                )
            self._cleanup.callback(log.close)
            meta = saved[index].meta if saved is not None else None
            with checkpoints.explain_content(path if saved is None else saved[index].path):
                self.records.append(Record(member, log, meta, names))
            self._saved.append(meta or {})
            if not alone:
                shown.recent.extend(log.recent)

    def _results(self) -> list[Result]:
        """Results of all members, with scores unless the run was interrupted."""
        agents: list[Agent] = []
        for index, member in enumerate(self.members):
            train = member_of(self.state.members.train, index)
            if agents:
                agent = agents[0].twin(member.config, train)
            else:
                agent = Agent(member.config, self.env.obs_spaces, self.env.action_spaces, state=train)
            agent.acting_nets = member_of(self.state.members.acting, index)
            agent.policy_steps = self.turns
            agents.append(agent)
        episodes = 0 if self._stop else self.config.run.eval_episodes
        if episodes:
            self.log.say(f"Closing evaluation over {episodes} fresh episodes of each with the policy's mode ...")
        results = []
        for agent, record in zip(agents, self.records, strict=True):
            evaluation = None
            if episodes and not self._stop:
                counters = self._counters_of(record)
                evaluation = self._score(agent, make_env(agent.config), record.log, counters, self.env_steps)
            results.append(
                Result(
                    agent,
                    logdir=pathlib.Path(agent.config.logdir),
                    evaluation=evaluation,
                    interrupted=bool(self._stop),
                    ended=self._stop.signal or self._ended,
                )
            )
        return results

    def _announce(self) -> None:
        c = self.config
        count = len(self.members)
        parameters = sum(x.size for x in jax.tree.leaves(self.loop.shapes().members.train.nets)) // self.loop.places
        kind = jax.devices()[0].device_kind
        shared = self.loop.devices
        devices = kind if shared == 1 else f"{shared} {'cores' if kind == 'cpu' else kind} side by side"
        again = f", resumed at {self.env_steps:,} env steps" if self._resumes else ""
        who = f"seed {c.seed}" if count == 1 else f"{count} members"
        each = "" if count == 1 else " for each member"
        self.log.say(
            f"Dreamer on {c.task}, {who}, {c.run.env_steps:,} env steps{each}, in {c.logdir}{again}\n"
            f"  {parameters:,} parameters in {c.nets.dtype} on {devices}, together with {c.env.count} environments"
            f"{each}; batches of {c.replay.batch_size} x {c.replay.batch_length}; train ratio {c.run.train_ratio:g}\n"
            f"  replay takes {self._required.replay * 1e-9:.2f} GB of device memory, networks and optimizers "
            f"{self._required.other * 1e-9:.2f} GB. Everything is compiled as one program first, which takes a while."
        )
        if advice := dtype_advice(c):
            self.log.say(f"  {advice}")
        self._announce_origin()
        self._announce_budget(self._ready * c.env.count)
        for record, meta in zip(self.records, self._saved, strict=True):
            self._say_lost_history(record.log, meta)

    def _mark_resume(self, line: dict[str, Any]) -> None:
        """See `Run._mark_resume`; in the metrics of the population, there are lines of each member, and of all."""
        alone = len(self.records) == 1
        for record in self.records:
            # What else is to be said of a population is said once.
            own = {**self._counters_of(record), **(line if alone else {logger.RESUMED: line[logger.RESUMED]})}
            record.log.write(own)
            if record.log is not self.log:
                self.log.write({**own, "member": record.member.name})
        if not alone:
            self.log.write({**self._counters(), **line})

    def _closing_words(self, results: Sequence[Result]) -> None:
        scored = [(record.member.name, result.evaluation) for record, result in zip(self.records, results, strict=True)]
        for result in results if len(results) > 1 else []:
            plot_learning_curve(result.logdir, f"{self.config.task}, {result.logdir.name}")
        self._say_result(
            ended=self._ended,
            scores=summarize([(name, evaluation) for name, evaluation in scored if evaluation is not None]),
            checkpoint=None,
            again="Score again",
            title=self.log.title,
        )

    def _scored_logdir(self) -> pathlib.Path:
        return pathlib.Path(self.members[0].config.logdir)


__all__ = ["DeviceRun"]
