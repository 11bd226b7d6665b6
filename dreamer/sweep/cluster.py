"""Runs the trials of a sweep with Ray Tune: on this machine, or on a cluster whose machines share a file system.

Ray places the trials, and restarts them elsewhere when a machine is lost. What is tried, done and retried stays with
the `Board`, so that a sweep that began without Ray can continue with it, and the other way round.
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
from dreamer.sweep.scores import read_lines
from dreamer.training.stopping import StopRequest

_PAUSE = 10.0
"""Seconds between two reports to Ray about a running trial."""


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
        board: gives the trials, and records how each ends.
        jobs: how many run at a time.
        command: the training command; must exist on every machine.
        say: prints a line.
        address: of the cluster; None: start Ray on this machine for the duration of the sweep.
        cpus: CPUs of each trial.
        gpus: GPUs of each trial.

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
        """Tune shuts down cleanly on SIGINT, and does not handle SIGTERM."""
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
                # Tune's files are of no use after the sweep: sweep.json has everything.
                run_config=tune.RunConfig(name=board.plan.logdir.name, storage_path=scratch, verbose=0),
            )
            tuner.fit()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        ray.shutdown()
    if board.unfinished:
        # Ray ends its processes, at which the trials get SIGTERM.
        stop.signal = stop.signal or "SIGINT"
        _wait_until_saved(board, say)
    return stop


def _wait_until_saved(board: Board, say: Callable[[str], object]) -> None:
    """Wait for trials that still hold the lock of their directory, on other machines too if locks work across them."""
    running = [trial for trial in board.trials if board.records[trial.name].state == "running"]
    if running:
        say(f"Waiting until {len(running)} running trial(s) are saved ...")
    for trial in running:
        while owner(trial.logdir):
            time.sleep(1)


def _searcher(tune: Any, board: Board) -> Any:
    """A search algorithm for Tune that hands out the board's trials."""

    class BoardSearcher(tune.search.Searcher):
        def __init__(self) -> None:
            super().__init__()
            self._running: dict[str, tuple[Trial, float]] = {}

        def __deepcopy__(self, memo: Any) -> Any:
            return self  # There is one board.

        def __reduce__(self) -> Any:
            return object, ()  # Tune pickles its parts to resume from them; sweeps resume from sweep.json.

        def suggest(self, trial_id: str) -> Any:
            waiting = (trial for trial in board.trials if board.records[trial.name].state == "waiting")
            trial = board.next({trial.name for trial in waiting if owner(trial.logdir)})
            if trial is None:
                return None if board.unfinished else self.FINISHED
            self._running[trial_id] = trial, time.monotonic()
            board.record_start(trial)
            return {"words": trial.words, "logdir": str(trial.logdir)}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            trial, start = self._running.pop(trial_id)
            # Without a status, the machine was lost, or the process in which Ray had started the trial.
            status = (result or {}).get("status", -int(signal.SIGKILL))
            board.record_end(trial, status, time.monotonic() - start)

        def save(self, checkpoint_path: str) -> None:
            pathlib.Path(checkpoint_path).touch()  # The board holds the state.

        def restore(self, checkpoint_path: str) -> None:
            pass

        def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
            pass

    return BoardSearcher()


def _trainable(config: Mapping[str, Any]) -> None:
    """Run one trial from a process of Ray, and report its counters and exit status."""
    from ray import tune

    directory = pathlib.Path(config["directory"])
    logdir = directory / config["logdir"]
    logdir.mkdir(parents=True, exist_ok=True)
    with open(logdir / OUTPUT, "ab") as output:
        process = subprocess.Popen(
            # If Ray ends this process, the trial gets SIGTERM and saves. Ray has chosen its cores and GPUs.
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
            for line in read_lines(logdir):
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
