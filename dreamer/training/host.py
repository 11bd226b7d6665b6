"""A run with environments on the host: config -> environments -> replay -> agent -> loop.

In each turn of the loop, the policy acts, the row goes to replay, the learner is started, and the environments are
stepped while it computes. Compare `dreamer.training.device.DeviceRun`, where all of that is one program on the
accelerator.
"""

import contextlib
import math
import pathlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gymnasium
import jax
import numpy as np
import psutil

from dreamer import checkpoints, envs
from dreamer.agent import Agent
from dreamer.checkpoints import former, transfer
from dreamer.checkpoints.saver import room_for_copy
from dreamer.config import Config
from dreamer.devices import backend
from dreamer.devices.hosts import join
from dreamer.devices.memory import MemoryPlan, host_memory, tree_bytes, working_bytes
from dreamer.devices.placement import available_bytes, dtype_advice, expectation, placement
from dreamer.devices.profiler import Profiler
from dreamer.envs.driver import Driver, Row
from dreamer.envs.restore.states import pack, unpack
from dreamer.envs.spaces import refuse_other_spaces
from dreamer.evaluate import Evaluation
from dreamer.logs import logger
from dreamer.logs.watcher import SEQUENCES, Prediction, context_of
from dreamer.replay import Layout, Replay, ReplayDiskError, TrainRatio
from dreamer.training.directory import refuse_other_config, resume_command
from dreamer.training.failure import Skip
from dreamer.training.failure import report as report_failure
from dreamer.training.learner import Learner
from dreamer.training.run import Result, Run, numbers
from dreamer.training.stopping import EARLY, budget_spent, early_end
from dreamer.types import Batch, Metrics

ENDLESS = 30_000
"""An episode of more agent steps than this, which games of Atari do not have, is remarked on."""

DISK_PATIENCE = 1.0
"""Seconds between looks at a full disk."""


class HostRun(Run):
    """One training run in one log directory.

    Args:
        config: the run's config, with ``logdir`` set.
        make: makes an environment.
        quiet: print nothing.

    Raises:
        LogdirInUse, ConfigError, CheckpointError, EnvError, ReplayMemoryError: the run cannot start; nothing changed.
        HostError: it cannot start on another host.
    """

    def __init__(self, config: Config, make: Callable[[], gymnasium.Env], *, quiet: bool = False):
        super().__init__(config)
        self._make = make
        self._heard: list[str] | None = []
        self.hosts = hosts = join(config)
        with contextlib.ExitStack() as undo:
            undo.callback(self._cleanup.close)
            self._cleanup.enter_context(self._stop.listening())
            attempt = undo.enter_context(contextlib.ExitStack())
            attempt.enter_context(hosts.together("start"))
            if hosts.first:
                self._claim(self.logdir)
            own = hosts.part(config)
            where = placement(config)
            found = checkpoints.exists(self.logdir)
            saved = checkpoints.load(self.logdir, with_replay=True, hosts=hosts) if found else None
            if saved is not None:
                refuse_other_config(saved.config, config, self.logdir)
            self._saved: dict[str, Any] = saved.meta if saved is not None else {}
            with checkpoints.explain_content(saved.path if saved is not None else self.logdir):
                resumes = self._saved["resumes"] + 1 if self._saved else 0
            # Where environments cannot be restored, a resume plays new episodes, with new seeds.
            env_seed, replay_seed = np.random.SeedSequence([config.seed, resumes, hosts.index]).spawn(2)
            vector = envs.VectorEnv(make, own.env, env_seed, on_message=self._hear)
            self._cleanup.enter_context(vector)
            self._stop.keep_listening()  # What was just made may have taken the signals.
            backend.refuse_switches()  # Modules of environments may set them.
            if saved is not None:
                refuse_other_spaces(vector.obs_spaces, vector.action_spaces, trained=saved.spaces)
            self.agent = Agent(config, vector.obs_spaces, vector.action_spaces, where)
            replay = Replay(
                own.replay,
                vector.num_envs,
                Layout.of(
                    vector.obs_spaces,
                    vector.action_spaces,
                    self.agent.algorithm.stored,
                    self.agent.algorithm.stored_span,
                ),
                np.random.default_rng(replay_seed),
                available_bytes=host_memory().available,
                directory=self.logdir / "replay" / str(hosts.index),
            )
            replayed = config.replay.batch_size * config.replay.batch_length
            self.learner = Learner(self.agent, replay, TrainRatio(config.run.train_ratio, replayed))
            self.learner.on_skip = self._report_skip
            self.driver = Driver(vector, self.agent.explore, self.agent.initial(vector.num_envs))
            self._resumes = resumes
            self._new_episodes = ""
            self._noted_endless = False
            self._damage = ""
            self._damaged = saved.damaged if saved is not None else ()
            if saved is not None:
                with checkpoints.explain_content(saved.path):
                    self._restore(saved)
            elif config.load.from_:
                self._transfer = transfer.read(config, self.agent.state.nets, hosts)
                self.agent.state = transfer.begin_with(self.agent.state, self._transfer)
            self._counted = self._steps()
            if hosts.first:
                self._write_config()
            self._open_log(quiet=quiet)
            self.saver = self._make_saver(background=hosts.count == 1)
            attempt.close()
            hosts.same("The checkpoint found by", f"{self._counted} {resumes}")
            hosts.same("What load.from gave to", str(self._transfer and self._transfer.listing()))
            with hosts.together("set damaged checkpoints aside"):
                for damaged in self._damaged if hosts.first else ():
                    checkpoints.set_aside(damaged.path)
            undo.pop_all()

    def _hear(self, message: str) -> None:
        """Say what the environments have to say, or keep it until there is a log."""
        if self._heard is None:
            self.log.say(message)
        else:
            self._heard.append(message)

    def _open_log(self, *, quiet: bool) -> None:
        """Open the log and the watcher; only those of the first host write anything."""
        config = self.config
        first = self.hosts.first
        self.log = self._make_log(
            title=f"Dreamer on {config.task}",
            quiet=quiet or not first,
            summarize=envs.summarizer(config.task),
            logdir=self.logdir if first else None,
        )
        self.log.recent.extend(self._saved.get("recent", []))
        self.log.episode_logs.extend(self._saved.get("episode_logs", []))
        every = config.logger.pictures_every if first else 0.0
        self.watcher = self._make_watcher(self.logdir, self.agent.obs_spaces, config.seed, every)

    @property
    def env_steps(self) -> int:
        """Environment steps of all hosts together."""
        return self.driver.env_steps

    def train(self) -> Result:
        """Run to the end of the budget or until interrupted; saves, evaluates, and cleans up in any case.

        Raises:
            ConfigError: there is not enough memory for an update alongside a full replay; no turn has run yet.
            EnvError: an environment failed; everything up to then was saved.
            CheckpointError: the last checkpoint could not be written.
            TrainingFailed: too many updates in a row were skipped; the last checkpoint stays unchanged.
        """
        with self._cleanup:
            self._announce()
            self._compile()
            try:
                self._loop()
            except envs.EnvError as error:
                self._stop.signal = "a failed environment"
                self._agree()
                self._save()
                raise envs.EnvError(
                    f"{error}\nThe run was saved after {self.driver.env_steps} env steps. Fix the environment, then "
                    f"resume with: {resume_command(self._as_typed(self.logdir), self.config.task)}"
                ) from error
            path = self._save()
            if self._stop:
                saved = (
                    f"saved {self._as_typed(path)}"
                    if self.learner.replay.rows_total
                    else "there was nothing to save yet"
                )
                self.log.say(
                    f"Stopped by {self._stop} after {self.driver.env_steps:,} env steps; {saved}.\n"
                    f"Resume with: {resume_command(self._as_typed(self.logdir), self.config.task)}"
                )
                return Result(self.agent, self.logdir, evaluation=None, interrupted=True, ended=self._stop.signal)
            if self.learner.updates:
                self.watcher.finish(self._prediction, self.log, self._counters)
            evaluation = self._evaluate()
            self._closing_words(path, evaluation)
            ended = self._stop.signal or self._over
            return Result(self.agent, self.logdir, evaluation, interrupted=bool(self._stop), ended=ended)

    def _compile(self) -> None:
        """Compile the update before the first turn: only the compiler knows how much memory it takes."""
        config = self.config
        replay = self.learner.replay
        start = time.perf_counter()
        batch = replay.blank_batch()
        on_host = backend.on_cpu()
        with (
            self.log.while_busy("compiling the update"),
            self.hosts.together("compile the update"),
            # The update takes longest, and leaves cores to the other programs for half of that time. Programs are
            # traced here, one after another, and compiled side by side.
            ThreadPoolExecutor(thread_name_prefix="compiler") as compiler,
        ):
            update = compiler.submit(self.agent.lower_update(batch))
            explore = compiler.submit(self.agent.lower_explore(self.driver.envs.num_envs))
            newest, context = replay.blank_batch(SEQUENCES), context_of(config.replay.batch_length)
            predict = compiler.submit(self.agent.lower_predict(newest, context)) if self.watcher.enabled else None
            own = self._own_rows(batch)
            diagnose = compiler.submit(self.agent.lower_diagnose(own)) if self._diagnoses else None
            explore.result()
            self._program = update.result()
            program = working_bytes(self._program)
            program = max(program, self._keep_programs(predict, diagnose))
            # Devices that are CPUs share the memory of their host with replay.
            devices = self.agent.placement.count // self.hosts.count if on_host else 1
            rest = replay.unclaimed_bytes if on_host else 0
            plan = MemoryPlan(devices * program + tree_bytes(batch), rest, available_bytes())
            plan.check(config.replay.batch_size, config.replay.batch_length)
        most = psutil.Process().memory_info().rss + plan.replay + (plan.program if on_host else 0)
        self.log.say(
            f"  The update was compiled in {logger.duration(time.perf_counter() - start)} and takes "
            f"{plan.program / 1e9:.2f} GB while it runs; {plan.available / 1e9:.2f} GB are free. With a full replay, "
            f"the run will take about {most / 1e9:.2f} GB on this host."
        )

    def _loop(self) -> None:
        config = self.config.run
        driver = self.driver
        learner = self.learner
        self._start_clock()
        speed = logger.Speed()
        record = config.profile if self.hosts.first else 0
        profiler = Profiler(
            self.logdir,
            record,
            wait=lambda: jax.block_until_ready(self.agent.state),
            say=self.log.say,
            program=self._program,
        )
        estimated = False
        next_log = self._next_log(first=True)
        next_save = self._begin + config.save_every
        self._agree()
        while not self._stopped and not self._over:
            start = time.perf_counter()
            if not self._add(driver.act()):
                if self.hosts.count == 1:
                    break
                # The others are in this turn and wait for its update. Here it has no row: the run ends without one.
                learner.replay.close_open_episodes()
            for metrics in learner.learn(driver.agent_steps):
                self.log.add_update(metrics)
            self._refuse_failure()
            middle = time.perf_counter()
            for episode in driver.advance():
                self.log.add_episode(episode, self._counters())
            end = time.perf_counter()
            speed.busy["learner"] += middle - start
            speed.busy["environment"] += end - middle
            if end >= next_log:
                line = self._rate_line(
                    speed.rates(driver.env_steps, learner.updates),
                    train_ratio=learner.ratio.true_ratio,
                    bottleneck=speed.bottleneck(),
                    failures=driver.envs.failures,
                )
                acting = numbers(self.agent.algorithm.acting(driver.memory))
                self.log.tick(self._counters(), line | self._diagnosis() | acting)
                self._note_endless()
                if math.isfinite(line["eta_seconds"]) and not estimated and end - self._begin > 20:
                    estimated = True
                    self._estimate(line["eta_seconds"])
                next_log = self._next_log()
            if learner.updates:
                self.watcher.turn(self._prediction, self.log, self._counters)
            profiler.turn(learner.updates)
            due = learner.replay.commit_due
            self._collect_save(wait=due)
            # While updates are skipped, the state may be the cause: it is not saved.
            if self._agree(save=(end >= next_save or due) and not learner.skip and not self.saver.busy):
                self._start_save()
                next_save = time.perf_counter() + config.save_every
        profiler.close(learner.updates)

    def _note_endless(self) -> None:
        """Say once if an episode has gone on for so long that it may have no end."""
        longest = self.driver.longest // self.config.env.repeat
        if longest > ENDLESS and not self._noted_endless:
            self._noted_endless = True
            self.log.say(
                f"An episode has gone on for {longest:,} actions. Training does not mind, but an episode without an "
                f"end has no score, and evaluations cut it off after run.eval_steps={self.config.run.eval_steps:,} "
                "actions. If that is not intended, use env.time_limit."
            )

    def _add(self, row: Row) -> bool:
        """Add a row to replay; while the disk is full, wait. Returns False if a signal ended the wait."""
        waiting = False
        while True:
            try:
                self.learner.replay.add(*row)
            except ReplayDiskError as error:
                if self._stop:
                    return False
                self._check_logdir()
                if not waiting:
                    self.log.say(f"{error.strerror}. Training waits for it.")
                waiting = True
                time.sleep(DISK_PATIENCE)
            else:
                if waiting:
                    self.log.say("There is room on disk again: training continues.")
                return True

    def _report_skip(self, skip: Skip) -> None:
        """Log an update that was skipped; on the terminal, only the 1st, 2nd, 4th, ... in a row."""
        self.log.write({**self._counters(), "guard_update": skip.update, "guard_tensor": skip.tensor})
        # A power of two has one bit, and what is one less has none in common with it.
        if skip.in_row & (skip.in_row - 1) == 0:
            self.log.say(
                f"Update {skip.update} was skipped, {skip.in_row} in a row now: {skip.tensor} is not finite. "
                f"Parameters stay as they were; {self.config.run.max_skipped} in a row end the run."
            )

    def _refuse_failure(self) -> None:
        """Raise `TrainingFailed` if too many updates in a row were skipped, on all hosts in the same turn."""
        most = self.config.run.max_skipped
        if self.learner.skip and self.learner.skip.in_row >= most:
            # The update after it, which has been started since, may be good.
            self.learner.settle()
            if self.learner.skip and self.learner.skip.in_row >= most:
                self._collect_save(wait=True)  # So that the report knows of a checkpoint that is being written.
                raise report_failure(self.logdir, self.agent, self.learner.skip, self.hosts)

    def _steps(self) -> dict[str, int]:
        return {name: getattr(self.driver, name) for name in ("env_steps", "agent_steps", "episodes")}

    def _agree(self, *, save: bool = False) -> bool:
        """What the hosts decide together after every turn, so that each does as many updates as the others.

        The driver's counters become those of all hosts; ``_stopped`` is set if one was interrupted, and ``_over`` to
        the rule that ends the run. Returns whether to save, as host 0 decides; never at the end, when `train` saves.
        """
        self._stop.keep_listening()
        counted = self._counted
        own = [number - counted[name] for name, number in self._steps().items()]
        run = self.config.run
        first = self.hosts.first
        early = EARLY.index(early_end(run, self._seconds(), self.log.recent)) if first else 0
        table = self.hosts.table([*own, self._stop.code, early, first and save])
        # Counters are summed over hosts; what host 0 decides is 0 on the others, so its sum is host 0's.
        *new, _, early, saves = table.sum(0)
        self._counted = {name: counted[name] + int(more) for name, more in zip(counted, new, strict=True)}
        for name, number in self._counted.items():
            setattr(self.driver, name, number)
        self._over = budget_spent(run, self._counted["env_steps"], self._counted["episodes"]) or EARLY[early]
        # The column before the last two: stop requests of all hosts, by their codes.
        stop = int(table[:, -3].max())
        self._stop.receive(stop)
        # A signal that came during the exchange counts from the next turn on: the others do not know of it.
        self._stopped = stop > 0
        return bool(saves) and not (self._stopped or self._over)

    def _counters(self) -> dict[str, Any]:
        return {
            "env_steps": self.driver.env_steps,
            "agent_steps": self.driver.agent_steps,
            "updates": self.learner.updates,
            "episodes": self.driver.episodes,
            "seconds": self._seconds(),
        }

    def _prediction(self) -> Prediction:
        """What the world model predicts for the newest sequences."""
        batch = self.learner.replay.newest(SEQUENCES)
        return Prediction(batch, context_of(batch.reward.shape[1]), *self._predict(batch))

    @property
    def _diagnoses(self) -> bool:
        """Whether lines of metrics have a diagnosis: if so, those of the host that writes them."""
        wanted = self.config.logger.diagnose and self.hosts.first
        return wanted and self.agent.algorithm.diagnose is not None

    def _diagnose(self) -> Metrics:
        """What `Algorithm.diagnose` says of the batch of the newest update."""
        batch = self.learner.newest_batch
        # No batch is drawn for it: that would change which ones training draws.
        return self._compiled_diagnose(self._own_rows(batch)) if self._diagnoses and batch is not None else {}

    def _own_rows(self, batch: Batch) -> Batch:
        """As many sequences of this host's batch as one device has in an update, for which it has memory."""
        rows = len(batch.reward) * self.hosts.count // self.agent.placement.count
        own: Batch = jax.tree.map(lambda x: x[:rows], batch)
        return own

    def _start_save(self, *, wait: bool = False) -> None:
        """Begin to save while training continues, unless there is no memory for a copy; or save at once."""
        with self.hosts.together("find its log directory"):
            self._check_logdir()
        step = self.driver.env_steps
        agent = self.agent
        replay = self.learner.replay_state()
        meta = {**self._counters(), "resumes": self._resumes, "learner": self.learner.state()}
        meta["metrics_bytes"] = self.log.bytes_written
        meta["recent"] = list(self.log.recent)
        meta["episode_logs"] = [dict(log) for log in self.log.episode_logs]
        # With the replay, as each host has its own environments too.
        try:
            replay["driver"], replay["fields"]["driver/arrays"] = pack(self.driver.state())
        except envs.EnvError as error:
            replay["driver"] = {"reason": str(error)}
        self.saver.start(
            lambda *, copy: checkpoints.prepare(agent, replay, meta, self.hosts, copy=copy, copy_replay=copy),
            lambda contents: checkpoints.write(
                self.logdir,
                step,
                contents,
                self.hosts,
                keep_last=self.config.run.keep,
                before_commit=self._before_commit,
            ),
            background=not wait
            and room_for_copy([*checkpoints.state_arrays(agent).values(), *replay["fields"].values()]),
        )

    def _before_commit(self) -> None:
        self.learner.replay.flush()
        # The directory may have been replaced since the save began: no checkpoint of ours belongs into another one.
        self._check_logdir()

    def _save(self) -> pathlib.Path:
        """See `Run._save`."""
        if not self.learner.replay.rows_total:
            return self.logdir  # No step was taken yet, so there is nothing to lose.
        return super()._save()

    def _confirm_save(self) -> None:
        """Replay may discard what only the checkpoint before needed."""
        self.learner.replay.confirm()

    def _restore(self, saved: checkpoints.Checkpoint) -> None:
        checkpoints.restore_agent(self.agent, saved)
        replay = {"fields": {}, **(saved.replay or {})}
        arrays = replay["fields"].pop("driver/arrays", None)
        self._damage = self.learner.restore(saved.meta["learner"], replay)
        try:
            structure = replay.get("driver", {"reason": "The checkpoint was written before states were saved."})
            if arrays is None:
                raise envs.NotRestorable(structure["reason"])
            state = unpack(structure, arrays)
            if saved.meta["version"] == former.VERSION:
                state["memory"] = former.policy_memory(state["memory"], self.agent.action_spaces)
            self.driver.restore(state)
        except envs.NotRestorable as error:
            self._new_episodes = str(error)
            self.learner.replay.close_open_episodes()
        for name in ("env_steps", "agent_steps", "episodes"):
            setattr(self.driver, name, saved.meta[name])
        self._seconds_before = saved.meta["seconds"]

    def _evaluate(self) -> Evaluation | None:
        episodes = self.config.run.eval_episodes
        if not episodes or not self.hosts.first:
            return None
        self.log.say(f"Closing evaluation over {episodes} fresh episodes with the policy's mode ...")
        # Where there is one robot, or one license, the evaluation needs it.
        self.driver.envs.close()
        return self._score(self.agent, self._make, self.log, self._counters(), self.driver.env_steps)

    def _announce(self) -> None:
        c = self.config
        replay = self.learner.replay
        devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
        again = f", resumed at {self.driver.env_steps:,} env steps" if self._resumes else ""
        self.log.say(
            f"Dreamer on {c.task}, seed {c.seed}, {c.run.env_steps:,} env steps, in {c.logdir}{again}\n"
            f"  {self.agent.parameter_count:,} parameters in {c.nets.dtype} on {devices}; {c.env.count} environments; "
            f"batches of {c.replay.batch_size} x {c.replay.batch_length}; train ratio {c.run.train_ratio:g}\n"
            f"  replay of {c.replay.capacity:,} steps takes up to {replay.memory_bytes * 1e-9:.2f} GB of memory "
            f"and {replay.disk_bytes * 1e-9:.2f} GB on disk. The update is compiled first; after it has run for "
            "a while, the wall time is estimated."
        )
        for advice in (expectation(c, self.agent.parameter_count, self.agent.placement), dtype_advice(c)):
            if advice:
                self.log.say(f"  {advice}")
        for message in self._heard or ():
            self.log.say(f"  {message}")
        self._heard = None
        self._announce_origin()
        self._announce_budget(replay.steps_until_ready * self.hosts.count * c.env.repeat)
        self._say_lost_history(self.log, self._saved)
        if self._damage:
            self.log.say(f"  {self._damage}")
        if self._resumes:
            self.log.say(f"  {self._resume_report()}")

    def _resume_report(self) -> str:
        """Whether the environments continue where they were, and if not, why; all hosts call it together."""
        new = self.hosts.table([bool(self._new_episodes)])[:, 0]
        if not new.any():
            where = "environments continue in the middle of their episodes."
            return f"The {where}" if self._damage else f"Resumed exactly: the {where}"
        reason = self._new_episodes or f"Host {int(new.argmax())} could not restore its environments."
        return f"New episodes begin, open ones count as truncated, and all else is exact. {reason}"

    def _estimate(self, eta: float) -> None:
        total = self._seconds() + eta
        self.log.say(f"Expected: about {logger.duration(total)} in all, {logger.duration(eta)} from here.")

    def _closing_words(self, path: pathlib.Path, evaluation: Evaluation | None) -> None:
        if self.hosts.first:
            self._say_result(
                ended=self._over,
                scores=[] if evaluation is None else [str(evaluation)],
                checkpoint=path,
                again="Score it again",
                title=f"seed {self.config.seed}",
            )


__all__ = ["HostRun"]
