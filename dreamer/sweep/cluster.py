"""Runs the trials of a sweep with Ray Tune: on this machine, or on a cluster whose machines share a file system.

Ray places the trials and starts them again elsewhere when a machine is lost. What is tried, what is done and what is
retried stays with the `Board`, so that a sweep may go on with Ray where it has begun without, and the other way round.
"""

import os
import pathlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dreamer.config import ConfigError
from dreamer.sweep import launch
from dreamer.sweep.board import OUTPUT, Board
from dreamer.sweep.local import owner
from dreamer.sweep.plan import Trial
from dreamer.sweep.scores import lines
from dreamer.training.run import StopRequest

_PAUSE = 10.0
"""Seconds between what Ray is told of a trial that runs."""


def run(
    board: Board,
    jobs: int,
    command: Sequence[str],
    say: Callable[[str], object],
    *,
    address: str | None = None,
    cpus: float = 1.0,
    gpus: float = 0.0,
) -> StopRequest:
    """Run all trials of a board that are not done; as `local.run`.

    Args:
        board: which trials there are; is told how each ends.
        jobs: how many run at a time.
        command: what trains; must be there on every machine.
        say: prints a line.
        address: of the cluster; None: Ray is started on this machine for as long as it takes.
        cpus: CPUs that each trial gets.
        gpus: GPUs that each trial gets.

    Raises:
        ConfigError: Ray is not installed, or the cluster cannot be reached.
    """
    ray, tune = _ray()
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning", include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"Ray cannot be used with --address {address}: {reason}.") from error
    stop = StopRequest()

    def interrupt(number: int, frame: Any) -> None:
        """Tune ends well after SIGINT, and knows no SIGTERM."""
        stop.signal = signal.Signals(number).name
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="dreamer-sweep-") as scratch:
            tuner = tune.Tuner(
                tune.with_resources(_trainable, {"cpu": cpus, "gpu": gpus}),
                param_space={"command": list(command), "directory": os.getcwd()},
                tune_config=tune.TuneConfig(
                    search_alg=_searcher(tune, board), num_samples=-1, max_concurrent_trials=jobs
                ),
                # What Tune writes is of no use after the sweep: sweep.json has it all.
                run_config=tune.RunConfig(name=board.plan.logdir.name, storage_path=scratch, verbose=0),
            )
            tuner.fit()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        ray.shutdown()
    if board.unfinished:
        # Ray ends its processes, and with them trials get SIGTERM.
        stop.signal = stop.signal or "SIGINT"
        _wait_until_saved(board, say)
    return stop


def _wait_until_saved(board: Board, say: Callable[[str], object]) -> None:
    """Wait for trials that still hold their directory; those on other machines too, if locks reach there."""
    running = [trial for trial in board.trials if board.records[trial.name].state == "running"]
    if running:
        say(f"Waiting until {len(running)} running trial(s) are saved ...")
    for trial in running:
        while owner(trial.logdir):
            time.sleep(1)


def _searcher(tune: Any, board: Board) -> Any:
    """A search algorithm of Tune's that hands out what the board has to give."""

    class FromBoard(tune.search.Searcher):
        def __init__(self) -> None:
            super().__init__()
            self._given: dict[str, tuple[Trial, float]] = {}

        def __deepcopy__(self, memo: Any) -> Any:
            return self  # There is one board.

        def __reduce__(self) -> Any:
            return object, ()  # Tune writes its parts down, to go on from there; sweeps go on from sweep.json.

        def suggest(self, trial_id: str) -> Any:
            waiting = (trial for trial in board.trials if board.records[trial.name].state == "waiting")
            trial = board.next({trial.name for trial in waiting if owner(trial.logdir)})
            if trial is None:
                return None if board.unfinished else self.FINISHED
            self._given[trial_id] = trial, time.monotonic()
            board.started(trial)
            return {"words": trial.words, "logdir": str(trial.logdir)}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            trial, began = self._given.pop(trial_id)
            # No status, and so the machine was lost, or the process in which Ray had started it.
            status = (result or {}).get("status", -int(signal.SIGKILL))
            board.ended(trial, status, time.monotonic() - began)

        def save(self, checkpoint_path: str) -> None:
            pathlib.Path(checkpoint_path).touch()  # The board keeps what is to be kept.

        def restore(self, checkpoint_path: str) -> None:
            pass

        def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
            pass

    return FromBoard()


def _trainable(config: Mapping[str, Any]) -> None:
    """Run one trial in the process in which Ray has started it, and report its counters and exit status."""
    from ray import tune

    directory = pathlib.Path(config["directory"])
    logdir = directory / config["logdir"]
    logdir.mkdir(parents=True, exist_ok=True)
    with open(logdir / OUTPUT, "ab") as output:
        process = subprocess.Popen(
            # Should Ray end this process, the trial is told to save. Ray has chosen its cores and GPUs.
            launch.words((), [*config["command"], *config["words"]]),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while True:
        try:
            status = process.wait(_PAUSE)
        except subprocess.TimeoutExpired:
            latest: dict[str, Any] = {}
            for line in lines(logdir):
                latest.update(line)
            numbers = ("env_steps", "episode/recent_score")
            tune.report({name: latest[name] for name in numbers if name in latest} or {"env_steps": 0})
        else:
            tune.report({"status": status})
            return


def _ray() -> tuple[Any, Any]:
    try:
        import ray  # An extra, and slow to import.
        from ray import tune
    except ImportError as error:
        raise ConfigError(
            f"--ray needs Ray Tune, which cannot be imported ({error}): install it with pip install 'dreamer[ray]', or "
            "leave out --ray to run on this machine."
        ) from error
    return ray, tune


__all__ = ["run"]
