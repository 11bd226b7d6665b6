"""Chooses the settings of a sweep: a list that is known beforehand, or with Optuna, which learns from scores."""

import os
import pathlib
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from dreamer.config import ConfigError, paths
from dreamer.sweep.plan import SweepPlan
from dreamer.sweep.values import Distribution, Values, text

if TYPE_CHECKING:
    import optuna


@runtime_checkable
class Search(Protocol):
    """Settings by number, which stay the same however often a sweep is stopped and restarted."""

    total: int

    def ask(self, index: int) -> Values:
        """Values of a setting; call it for the settings in order."""

    def tell(self, index: int, score: float | None) -> None:
        """Take the score of a setting, a mean over seeds; None if there is none. May be called again."""


class ListSearch:
    """Grid and random search, which do not depend on scores."""

    def __init__(self, plan: SweepPlan):
        self._points = plan.points()
        self.total = len(self._points)

    def ask(self, index: int) -> Values:
        return self._points[index]

    def tell(self, index: int, score: float | None) -> None:
        pass


class OptunaSearch:
    """Optuna's tree-structured Parzen estimator.

    Optuna's journal ``optuna.jsonl`` in the directory of the sweep holds its proposals and their scores, so that the
    search can be resumed and shown in Optuna's dashboard.
    """

    def __init__(self, plan: SweepPlan):
        optuna = _optuna()
        self._plan = plan
        self.total = plan.trials
        plan.logdir.mkdir(parents=True, exist_ok=True)
        path = plan.logdir / "optuna.jsonl"
        # The sweep holds the lock of its directory, so a lock of the journal is a leftover of a killed process.
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
        _cut_partial_line(path)
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        self._study = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=plan.logdir.name,
            direction=plan.direction,
            load_if_exists=True,
        )
        self._distributions = {key: _distribution(kind) for key, kind in plan.random.items()}

    def ask(self, index: int) -> Values:
        optuna = _optuna()
        # Each setting has its own sampler, so a restarted search does not repeat earlier draws.
        # Running settings count as bad ones (constant_liar), so parallel jobs try different values.
        seed = (self._plan.search_seed * 1_000_003 + index) % 2**32
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        trials = self._study.get_trials(deepcopy=False)
        if index >= len(trials):
            return self._values(self._study.ask(self._distributions).params)
        saved = trials[index]
        if not saved.state.is_finished() and set(saved.params) < set(self._distributions):
            # The process was killed in the middle of this proposal: keep its values, and draw the missing ones.
            trial = optuna.trial.Trial(self._study, saved._trial_id)
            for key, kind in self._distributions.items():
                trial._suggest(key, kind)
            return self._values(trial.params)
        if set(saved.params) != set(self._distributions):
            raise ConfigError(
                f"{self._plan.logdir} holds an Optuna search over {', '.join(saved.params) or 'nothing'}, and "
                f"{self._plan.source} asks for {', '.join(self._distributions)}: choose another --logdir."
            )
        return self._values(saved.params)

    def tell(self, index: int, score: float | None) -> None:
        if self._study.get_trials(deepcopy=False)[index].state.is_finished():
            return
        failed = _optuna().trial.TrialState.FAIL
        self._study.tell(index, score, state=None if score is not None else failed)

    def _values(self, params: dict[str, Any]) -> Values:
        """Optuna's parameters as values; choices are texts there."""
        values = {}
        for key, distribution in self._plan.random.items():
            by_text = {text(value): value for value in distribution.values} if distribution.kind == "choice" else {}
            values[key] = by_text.get(params[key], params[key])
        return values


def search(plan: SweepPlan) -> Search:
    """The search of a plan.

    Raises:
        ConfigError: it needs Optuna, which is not installed.
    """
    return OptunaSearch(plan) if plan.search == "optuna" else ListSearch(plan)


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


def _cut_partial_line(path: pathlib.Path) -> None:
    """Cut off an incomplete last line, which Optuna could not read."""
    if path.exists():
        data = paths.read_bytes(path)
        os.truncate(path, data.rfind(b"\n") + 1)


def _distribution(distribution: Distribution) -> "optuna.distributions.BaseDistribution":
    distributions = _optuna().distributions
    if distribution.kind == "choice":
        # As text, since Optuna does not support lists.
        return distributions.CategoricalDistribution([text(value) for value in distribution.values])
    kind = distributions.IntDistribution if distribution.kind.startswith("int") else distributions.FloatDistribution
    return kind(*distribution.values, log=distribution.kind.endswith("log_uniform"))


__all__ = ["ListSearch", "OptunaSearch", "Search", "search"]
