"""Chooses the settings of a sweep: those that are known beforehand, or with Optuna, which learns from scores."""

import os
import pathlib
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dreamer.config import ConfigError
from dreamer.sweep.plan import Plan
from dreamer.sweep.values import Distribution, Values, text

if TYPE_CHECKING:
    import optuna


@runtime_checkable
class Search(Protocol):
    """Settings by number, which are the same however often a sweep is stopped and started again."""

    total: int

    def ask(self, index: int) -> Values:
        """Values of a setting; those with smaller numbers were asked for before."""

    def tell(self, index: int, score: float | None) -> None:
        """Its score, a mean over seeds; None if there is none. May be told again."""


class Listed:
    """Grid and random search: nothing depends on scores."""

    def __init__(self, plan: Plan):
        self._points = plan.points()
        self.total = len(self._points)

    def ask(self, index: int) -> Values:
        return self._points[index]

    def tell(self, index: int, score: float | None) -> None:
        pass


class Optuna:
    """Optuna's tree-structured Parzen estimator.

    Its own journal ``optuna.jsonl`` in the directory of the sweep holds what it has proposed and what it was told, so
    that it goes on where it was, and Optuna's dashboard can show it.
    """

    def __init__(self, plan: Plan):
        optuna = _optuna()
        self._plan = plan
        self.total = plan.trials
        plan.logdir.mkdir(parents=True, exist_ok=True)
        path = plan.logdir / "optuna.jsonl"
        # The sweep holds the lock of its directory, so one that a killed process has left behind is nobody's.
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        _mend(path)
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        self._study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=plan.logdir.name,
            direction=plan.direction,
            load_if_exists=True,
        )
        self._distributions = {key: _distribution(found) for key, found in plan.random.items()}

    def ask(self, index: int) -> Values:
        optuna = _optuna()
        # A sampler of its own for each, so that one which was started again does not repeat what the first has drawn.
        # Settings that are being tried count as bad ones, so that jobs side by side try different things.
        seed = (self._plan.search_seed * 1_000_003 + index) % 2**32
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        trials = self._study.get_trials(deepcopy=False)
        if index >= len(trials):
            return self._values(self._study.ask(self._distributions).params)
        found = trials[index]
        if not found.state.is_finished() and set(found.params) < set(self._distributions):
            # The process was killed while this one was proposed; values that it has stay as they are.
            trial = optuna.trial.Trial(self._study, found._trial_id)
            for key, kind in self._distributions.items():
                trial._suggest(key, kind)
            return self._values(trial.params)
        if set(found.params) != set(self._distributions):
            raise ConfigError(
                f"{self._plan.logdir} holds an Optuna search over {', '.join(found.params) or 'nothing'}, and "
                f"{self._plan.source} asks for {', '.join(self._distributions)}: choose another --logdir."
            )
        return self._values(found.params)

    def tell(self, index: int, score: float | None) -> None:
        if self._study.get_trials(deepcopy=False)[index].state.is_finished():
            return
        failed = _optuna().trial.TrialState.FAIL
        self._study.tell(index, score, state=None if score is not None else failed)

    def _values(self, params: dict[str, Any]) -> Values:
        found = {}
        for key, kind in self._plan.random.items():
            by_text = {text(value): value for value in kind.values} if kind.kind == "choice" else {}
            found[key] = by_text.get(params[key], params[key])
        return found


def search(plan: Plan) -> Search:
    """The search that a plan asks for.

    Raises:
        ConfigError: it needs Optuna, which is not installed.
    """
    return Optuna(plan) if plan.search == "optuna" else Listed(plan)


def _optuna() -> Any:
    try:
        import optuna  # An extra, and slow to import.
    except ImportError as error:
        raise ConfigError(
            f"'search' is optuna, which cannot be imported ({error}): install it with pip install 'dreamer[sweep]', or "
            "use search: random."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _mend(path: pathlib.Path) -> None:
    """Cut off what follows the last complete line, which Optuna would stumble over."""
    if path.exists():
        data = path.read_bytes()
        os.truncate(path, data.rfind(b"\n") + 1)


def _distribution(found: Distribution) -> "optuna.distributions.BaseDistribution":
    distributions = _optuna().distributions
    if found.kind == "choice":
        # As text, since Optuna knows no lists.
        return distributions.CategoricalDistribution([text(value) for value in found.values])
    kind = distributions.IntDistribution if found.kind.startswith("int") else distributions.FloatDistribution
    return kind(*found.values, log=found.kind.endswith("log_uniform"))


__all__ = ["Listed", "Optuna", "Search", "search"]
