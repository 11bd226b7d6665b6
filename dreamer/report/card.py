"""Report card of a world model: every number about held-out episodes, as a function of an agent and the episodes.

docs/report.md says what each number means. Confidence bands come from resampling episodes, see
`dreamer.report.bootstrap`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamer.behaviors import Behavior
from dreamer.config import Config
from dreamer.equations.transforms import symexp_bins
from dreamer.report import bootstrap, calibration
from dreamer.report.bootstrap import Band
from dreamer.report.calibration import Bin
from dreamer.report.dream_batches import Budget, Points, choose_points, dream_from, filter_episodes, imagine_from, reach
from dreamer.report.held_out import HeldOut
from dreamer.types import Parts, Spaces

KNOWN = 0.05
"""A return is known if its unseen rest weighs at most this much: its episode ended, or went on for long enough."""

MOST_KNOWN = 0.9
"""Share of states whose return must be known for the critic to be compared with these alone."""


class Curves(NamedTuple):
    """Mean squared errors after k = 1..K dreamt steps, with bands over episodes, ``[K]``."""

    model: Band
    repeat: Band
    """Of the guess that nothing changes."""
    mean: Band
    """Of the mean over all episodes as a guess."""
    spread: np.ndarray
    """Variance among the dreams."""
    ratio: Band
    """Error of the model over that of the better guess, both summed over the steps of the actor's horizon."""


class Agreement(NamedTuple):
    """How predicted numbers go with what came."""

    correlation: Band
    bias: Band
    """Mean of predicted minus real."""
    scale: float
    """Standard deviation of the real numbers."""
    predicted: np.ndarray
    real: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """The numbers without the pairs, of which there are many."""
        plain = {name: _plain(value) for name, value in self._asdict().items() if name not in ("predicted", "real")}
        return plain | {"pairs": len(self.real)}


@dataclasses.dataclass(frozen=True)
class Card:
    """All numbers."""

    episodes: int
    scores: np.ndarray
    """Sums of rewards of the recorded part of the episodes."""
    agent_steps: int
    context: int
    horizon: int
    """Steps that the actor imagines."""
    starts: np.ndarray
    """Start states behind each step of the curves, ``[K]``."""
    obs: dict[str, Curves]
    reward: Curves
    cont: Curves
    where: dict[str, tuple[np.ndarray, np.ndarray]]
    """Error of each entry (of images: each pixel) over the horizon: of the model, and of the better of the guesses."""
    kl: Band
    prior_entropy: Band
    most_entropy: float
    """Entropy of a prior that knows nothing, S ln C; NaN if the latent variables are not categorical."""
    perplexity: np.ndarray
    """Classes in use of each categorical latent variable, ``[S]``; the share of the uniform distribution is not part of
    it. Empty without such variables."""
    classes: int
    free_nats: float
    reliability: list[Bin]
    terminals: int
    """Steps after which the task was over, among those behind the table."""
    pit: np.ndarray
    """Distribution function of the PIT of rewards at `calibration.GRID`."""
    reward_varies: bool
    returns: Agreement
    """Imagined returns of H steps with what came."""
    value: Agreement
    """The critic's values with real returns, where these are known."""
    value_bootstrapped: Agreement
    """The same over all episodes: of those that were cut off, the last value stands for what is unknown."""

    @property
    def values_known(self) -> bool:
        """Whether real returns are known for nearly all states.

        Those of the others alone would mislead: where episodes are cut off late, they are the ones that failed.
        """
        return 0 < len(self.value.real) >= MOST_KNOWN * len(self.value_bootstrapped.real)

    def to_json(self) -> dict[str, Any]:
        """All numbers as plain data; what is not finite is None."""
        plain = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        return plain | {
            "pit_levels": _plain(calibration.GRID),
            "continue_calibration_error": _plain(calibration.calibration_error(self.reliability)),
            "reward_coverage": {str(level): _plain(calibration.coverage(self.pit, level)) for level in (0.5, 0.9)},
        }


def measure(
    behavior: Behavior,
    nets: Parts,
    config: Config,
    spaces: Spaces,
    held_out: HeldOut,
    seed: int = 0,
    budget: Budget | None = None,
) -> Card:
    """Compute everything.

    Args:
        behavior: acts and values.
        nets: parameters.
        config: the run's config.
        spaces: observation spaces.
        held_out: recorded episodes.
        seed: of start states, dreams and resampling.
        budget: how much to compute.
    """
    budget = budget or Budget()
    rng = np.random.default_rng([seed, 0])
    keys = jax.random.split(jax.random.key(seed), 3)
    settings = config.behavior
    length = held_out.length
    batch: Any = held_out.batch
    discount = 1 - 1 / settings.return_horizon
    head_discount = discount if settings.cont_discount else 1.0
    context = max(1, min(budget.context, int(length.max()) - 1))
    points = choose_points(length, context, budget.starts, rng)
    steps = reach(length, points, budget.steps)
    followed = points.step[:, None] + 1 + np.arange(steps)
    valid = followed < length[points.episode, None]
    near = valid & (np.arange(steps) < settings.horizon)

    filtered: Any = filter_episodes(behavior, nets, batch, keys[0], budget.chunk)
    dreams: Any = dream_from(nets, spaces, held_out, filtered, points, near, keys[1], budget)
    imagined = imagine_from(
        behavior, nets, filtered, points, 1.0 if settings.cont_discount else discount, config, keys[2], budget
    )

    band = functools.partial(_band, episode=points.episode, episodes=len(length), rng=rng)
    at = points.episode[:, None], np.minimum(followed, batch.reward.shape[1] - 1)
    ends, seen = batch.is_terminal[at], held_out.valid
    reward, arrived = batch.reward[at].astype(np.float64), seen & ~batch.is_first
    cont = np.clip(dreams.cont / head_discount, 0, 1)

    def curves(errors: tuple[np.ndarray, ...]) -> Curves:
        return error_curves(errors, valid, near, points.episode, len(length), rng)

    def scalar(mean: np.ndarray, spread: np.ndarray, truth: np.ndarray, last: np.ndarray, average: float) -> Curves:
        model = np.square(mean - truth) - spread / budget.samples
        return curves((model, np.square(last[:, None] - truth), np.square(average - truth), spread))

    window, covered = window_returns(batch.reward, batch.is_terminal, length, points, discount, settings.horizon)
    to_go, unseen = returns_to_go(batch.reward, batch.is_terminal, length, discount)
    last_value = filtered.value[np.arange(len(length)), length - 1]
    acted = seen & (np.arange(seen.shape[1]) < length[:, None] - 1)
    which = np.broadcast_to(np.arange(len(length))[:, None], seen.shape)
    near_probs, near_reward = dreams.reward_probs[near], reward[near]

    def agreement(predicted: np.ndarray, real: np.ndarray, episode: np.ndarray) -> Agreement:
        return agree(predicted, real, episode, len(length), rng)

    # Of categorical variables, the posterior is one array of logits.
    categorical = isinstance(filtered.posterior, np.ndarray)
    perplexity = classes_in_use(filtered.posterior, seen) if categorical else np.zeros(0)
    classes = filtered.posterior.shape[-1] if categorical else 0

    known = acted & (unseen <= KNOWN)
    completed = to_go + unseen * last_value[:, None]
    return Card(
        episodes=len(length),
        scores=(batch.reward * seen).sum(1, dtype=np.float64),
        agent_steps=int((length - 1).sum()),
        context=context,
        horizon=settings.horizon,
        starts=valid.sum(0),
        obs={name: curves(tuple(errors)) for name, errors in dreams.errors.items()},
        reward=scalar(
            dreams.reward,
            dreams.reward_spread,
            reward,
            batch.reward[points.episode, points.step].astype(np.float64),
            float(batch.reward[arrived].mean(dtype=np.float64)),
        ),
        cont=scalar(
            cont,
            dreams.cont_spread / head_discount**2,
            1.0 - ends,
            np.ones(len(points.step)),
            float(1 - batch.is_terminal[arrived].mean()),
        ),
        where={name: _better(where, int(near.sum())) for name, where in dreams.where.items()},
        kl=band(dreams.kl, valid),
        prior_entropy=band(dreams.prior_entropy, valid),
        most_entropy=len(perplexity) * float(np.log(classes)) if classes else float("nan"),
        perplexity=perplexity,
        classes=classes,
        free_nats=float(config.rssm.free_nats),
        reliability=calibration.reliability(cont[near], ~ends[near]),
        terminals=int(ends[near].sum()),
        pit=_pit(near_probs, near_reward),
        reward_varies=bool(np.ptp(near_reward) > 0),
        returns=agreement(imagined[covered], window[covered], points.episode[covered]),
        value=agreement(filtered.value[known], to_go[known], which[known]),
        value_bootstrapped=agreement(filtered.value[acted], completed[acted], which[acted]),
    )


def error_curves(
    errors: tuple[np.ndarray, ...],
    valid: np.ndarray,
    near: np.ndarray,
    episode: np.ndarray,
    episodes: int,
    rng: np.random.Generator,
) -> Curves:
    """Means over start states, with bands.

    Args:
        errors: of model, repetition and mean, and the spread of the dreams, ``[N, K]`` each.
        valid: steps that were recorded, bool ``[N, K]``.
        near: those within the actor's horizon.
        episode: number of the episode of each start, ``[N]``.
        episodes: how many there are.
        rng: source of the draws.
    """
    # One row per kind, and the counts that they share.
    counted = np.stack([*(np.where(valid, x, 0) for x in errors[:3]), valid], -1).astype(np.float64)
    sums = bootstrap.sums_by_episode(counted, episode, episodes)
    every = bootstrap.bootstrap(sums, lambda total: total[..., :3] / total[..., 3:], rng)
    model, repeat, mean = (Band(*(x[..., i] for x in every)) for i in range(3))
    close = np.stack([np.where(near, x, 0).sum(1) for x in errors[:3]], -1).astype(np.float64)
    ratio = bootstrap.bootstrap(bootstrap.sums_by_episode(close, episode, episodes), _ratio, rng)
    count = np.maximum(1, valid.sum(0))
    return Curves(model, repeat, mean, np.where(valid, errors[3], 0).sum(0) / count, ratio)


def _pit(probs: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """`calibration.pit` of rewards over bins; NaN where the model gives no distribution over bins."""
    bins = probs.shape[-1]
    return calibration.pit(probs, reward, symexp_bins(bins)) if bins else np.full(len(calibration.GRID), np.nan)


def _ratio(totals: np.ndarray) -> np.ndarray:
    """Error of the model over that of the better guess, from ``[R, 3]``; NaN if the guess is never wrong."""
    guess = np.minimum(totals[:, 1], totals[:, 2])
    return totals[:, 0] / np.where(guess > 1e-12, guess, np.nan)


def _band(values: np.ndarray, valid: np.ndarray, episode: np.ndarray, episodes: int, rng: np.random.Generator) -> Band:
    counted = np.stack([np.where(valid, values, 0), valid], -1).astype(np.float64)
    return bootstrap.bootstrap(bootstrap.sums_by_episode(counted, episode, episodes), bootstrap.mean, rng)


def _better(where: tuple[np.ndarray, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    model, *guesses = where
    best = min(guesses, key=lambda guess: float(guess.sum()))
    return np.asarray(model / max(1, count)), np.asarray(best / max(1, count))


def classes_in_use(logits: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Perplexity of the mean posterior of each latent variable, 1 to C, from logits ``[E, T, S, C]``.

    Softmax of the logits is the posterior before the uniform share (`rssm.unimix`) is mixed in: with that share, a
    variable that never changes would seem to use several classes.
    """
    chosen = logits[valid].astype(np.float64)
    weights = np.exp(chosen - chosen.max(-1, keepdims=True))
    return calibration.perplexity((weights / weights.sum(-1, keepdims=True)).mean(0))


def window_returns(
    reward: np.ndarray, is_terminal: np.ndarray, length: np.ndarray, points: Points, discount: float, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """``sum_{h=1..H} discount^(h-1) r[t+h]`` after each start ``[N]``, and whether all of it was recorded.

    After the end of the task all rewards are 0; after a time limit they are unknown.
    """
    real, covered = np.zeros(len(points.step)), np.zeros(len(points.step), bool)
    for n, (e, t) in enumerate(zip(*points, strict=True)):
        last = min(t + horizon, length[e] - 1)
        rewards = reward[e, t + 1 : last + 1].astype(np.float64)
        real[n] = (rewards * discount ** np.arange(len(rewards))).sum()
        covered[n] = last == t + horizon or is_terminal[e, last]
    return real, covered


def returns_to_go(
    reward: np.ndarray, is_terminal: np.ndarray, length: np.ndarray, discount: float
) -> tuple[np.ndarray, np.ndarray]:
    """Discounted rewards from each step to the end of its episode, and the weight of what is unknown, ``[E, T]``.

    The weight is 0 where the task was over in the end, and ``discount^(steps left)`` where a time limit cut it off.
    """
    to_go, unseen = np.zeros(reward.shape), np.zeros(reward.shape)
    for e, size in enumerate(length.tolist()):
        unseen[e, size - 1] = 0.0 if is_terminal[e, size - 1] else 1.0
        for t in range(size - 2, -1, -1):
            to_go[e, t] = reward[e, t + 1] + discount * to_go[e, t + 1]
            unseen[e, t] = discount * unseen[e, t + 1]
    return to_go, unseen


def agree(
    predicted: np.ndarray, real: np.ndarray, episode: np.ndarray, episodes: int, rng: np.random.Generator
) -> Agreement:
    """Correlation and bias with bands, of pairs ``[N]`` and the episodes they are from."""
    predicted, real = predicted.astype(np.float64), real.astype(np.float64)
    products = bootstrap.sums_by_episode(bootstrap.moments(predicted, real), episode, episodes)
    difference = np.stack([predicted - real, np.ones(len(real))], -1)
    bias = bootstrap.bootstrap(bootstrap.sums_by_episode(difference, episode, episodes), bootstrap.mean, rng)
    correlation = bootstrap.bootstrap(products, bootstrap.pearson, rng)
    return Agreement(correlation, bias, float(real.std()) if len(real) else float("nan"), predicted, real)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(x) for name, x in value.items()}
    if isinstance(value, Agreement):
        return value.to_json()
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
