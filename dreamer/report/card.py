"""Report card of a world model: every number about held-out episodes, as a function of an agent and the episodes.

docs/report.md says what each number means. Confidence bands come from resampling episodes, see
`dreamer.report.bootstrap`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.behaviors import Behavior
from dreamer.config import Config
from dreamer.equations.distributions import SymexpTwoHot
from dreamer.equations.transforms import symexp_bins
from dreamer.equations.unexplained import LEAST_NATS, unexplained_by_group, unexplained_share
from dreamer.report import bootstrap, calibration
from dreamer.report.bootstrap import Band
from dreamer.report.calibration import Bin
from dreamer.report.dream_batches import (
    Budget,
    Points,
    choose_points,
    dream_from,
    filter_episodes,
    imagine_from,
    measure_recurrent,
    reach,
)
from dreamer.report.held_out import HeldOut
from dreamer.types import Parts, Spaces

KNOWN = 0.05
"""A return is known if its unseen rest weighs at most this much: its episode ended, or lasted long enough."""

LEAST_KNOWN = 0.9
"""Least share of states whose return must be known for the critic to be compared with these alone."""


class Curves(NamedTuple):
    """Mean squared errors after k = 1..K dreamt steps, with bands over episodes, ``[K]``."""

    model: Band
    """Of what the model expects."""
    repeat: Band
    """Of the guess that nothing changes."""
    mean: Band
    """Of the mean over all episodes as a guess."""
    spread: np.ndarray
    """Variance among the dreams, ``[K]``."""
    ratio: Band
    """Error of the model over that of the better guess, both summed over the steps of the actor's horizon; ``[]``."""


class Agreement(NamedTuple):
    """How N predicted numbers agree with what happened."""

    correlation: Band
    bias: Band
    """Mean of predicted minus real."""
    scale: float
    """Standard deviation of the real numbers."""
    predicted: np.ndarray
    """``[N]``."""
    real: np.ndarray
    """``[N]``."""

    def to_json(self) -> dict[str, Any]:
        """The numbers without the pairs, of which there are many."""
        plain = {name: _plain(value) for name, value in self._asdict().items() if name not in ("predicted", "real")}
        return plain | {"pairs": len(self.real)}


@dataclasses.dataclass(frozen=True)
class Card:
    """All numbers."""

    episodes: int
    """Number E of episodes."""
    scores: np.ndarray
    """Sums of rewards of the recorded part of the episodes, ``[E]``."""
    agent_steps: int
    context: int
    """Least number of observed steps before a dream."""
    horizon: int
    """Steps that the actor imagines."""
    starts: np.ndarray
    """Number of start states behind each step of the curves, ``[K]``."""
    obs: dict[str, Curves]
    """By observation key."""
    reward: Curves
    cont: Curves
    where: dict[str, tuple[np.ndarray, np.ndarray]]
    """Error of each entry (of images: each pixel) over the horizon: of the model, and of the better of the guesses."""
    kl: Band
    """KL from posterior to the prior of the dream in nats, ``[K]``."""
    prior_entropy: Band
    """Entropy of that prior in nats, ``[K]``."""
    most_entropy: float
    """Entropy of a prior that knows nothing, S ln C; NaN if the latent variables are not categorical."""
    perplexity: np.ndarray
    """Classes in use of each categorical latent variable, without the share of the uniform distribution, ``[S]``.
    Empty without such variables."""
    classes: int
    """Classes C of each; 0 without such variables."""
    free_nats: float
    reliability: list[Bin]
    terminals: int
    """Number of steps behind that table after which the task was over."""
    pit: np.ndarray
    """Distribution function of the PIT of rewards at `calibration.GRID`, ``[len(GRID)]``."""
    reward_varies: bool
    """Whether the rewards behind that differ at all."""
    reward_unexplained: float
    """Share of the reward's cross-entropy, above what no guess goes below, that is left with the state, compared with
    the best guess that knows the step alone; NaN where that is always right, or the model has no bins."""
    recurrent_std: float
    """Standard deviation of the recurrent state over the episodes at the same step, mean over the units; NaN without
    one, or if no two episodes have a step in common."""
    recurrent_rms: float
    """Its root mean square; NaN without one."""
    returns: Agreement
    """Imagined returns of H steps with real ones."""
    value: Agreement
    """The critic's values with real returns, where these are known."""
    value_bootstrapped: Agreement
    """The same over all episodes: where they were cut off, the last value stands in for what is unknown."""

    @property
    def has_real_returns(self) -> bool:
        """Whether real returns are known for nearly all states.

        A few known ones would mislead: where episodes are cut off late, those that ended are the ones that failed.
        """
        return 0 < len(self.value.real) >= LEAST_KNOWN * len(self.value_bootstrapped.real)

    def to_json(self) -> dict[str, Any]:
        """All numbers as plain data; None for those that are not finite."""
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
        seed: seed of start states, dreams and resampling.
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
    # Steps [N, K] of the episodes that dreams are compared with, and which of them were recorded.
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
    ends = batch.is_terminal[at]
    reward = batch.reward[at].astype(np.float64)
    seen = held_out.valid
    arrived = seen & ~batch.is_first
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
    near_probs = dreams.reward_probs[near]
    near_reward = reward[near]

    def agreement(predicted: np.ndarray, real: np.ndarray, episode: np.ndarray) -> Agreement:
        return agree(predicted, real, episode, len(length), rng)

    # The posterior of categorical variables is one array of logits.
    categorical = isinstance(filtered.posterior, np.ndarray)
    perplexity = classes_in_use(filtered.posterior, seen) if categorical else np.zeros(0)
    classes = filtered.posterior.shape[-1] if categorical else 0

    recurrent_std, recurrent_rms = measure_recurrent(nets, filtered, seen, budget.chunk)
    known = acted & (unseen <= KNOWN)
    bootstrapped = to_go + unseen * last_value[:, None]
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
        reward_unexplained=_unexplained(filtered.reward_logits, batch.reward, arrived),
        recurrent_std=recurrent_std,
        recurrent_rms=recurrent_rms,
        returns=agreement(imagined[covered], window[covered], points.episode[covered]),
        value=agreement(filtered.value[known], to_go[known], which[known]),
        value_bootstrapped=agreement(filtered.value[acted], bootstrapped[acted], which[acted]),
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
        errors: errors of model, repetition and mean, and the spread of the dreams, ``[N, K]`` each.
        valid: which steps were recorded, bool ``[N, K]``.
        near: which of them lie within the actor's horizon, bool ``[N, K]``.
        episode: number of the episode of each start, ``[N]``.
        episodes: how many there are.
        rng: source of the draws.
    """
    *kinds, spread = errors
    # [N, K, 4]: the error of each kind, and the count that all three share.
    counted = np.stack([*(np.where(valid, x, 0) for x in kinds), valid], -1).astype(np.float64)
    sums = bootstrap.sums_by_episode(counted, episode, episodes)
    means = bootstrap.bootstrap(sums, lambda total: total[..., :3] / total[..., 3:], rng)
    model, repeat, mean = (Band(*(x[..., kind] for x in means)) for kind in range(3))
    # [N, 3]: the error of each kind over the actor's horizon.
    totals = np.stack([np.where(near, x, 0).sum(1) for x in kinds], -1).astype(np.float64)
    ratio = bootstrap.bootstrap(bootstrap.sums_by_episode(totals, episode, episodes), _ratio, rng)
    count = np.maximum(1, valid.sum(0))
    return Curves(model, repeat, mean, spread=np.where(valid, spread, 0).sum(0) / count, ratio=ratio)


def _pit(probs: np.ndarray, reward: np.ndarray) -> np.ndarray:
    """`calibration.pit` of rewards over bins; NaN where the model gives no distribution over bins."""
    bins = probs.shape[-1]
    return calibration.pit(probs, reward, symexp_bins(bins)) if bins else np.full(len(calibration.GRID), np.nan)


def _unexplained(logits: np.ndarray, reward: np.ndarray, arrived: np.ndarray) -> float:
    """`unexplained_share` of rewards ``[E, T]`` where ``arrived``, compared with the best guess for each step.

    NaN where they do not differ at any step, or if logits ``[E, T, bins]`` have no bins.
    """
    if not logits.shape[-1]:
        return float("nan")
    _, step = np.nonzero(arrived)
    excess, blind_excess = unexplained_by_group(
        SymexpTwoHot(jnp.asarray(logits[arrived])),
        jnp.asarray(reward[arrived], jnp.float32),
        jnp.asarray(step),
        reward.shape[1],
    )
    return float(unexplained_share(excess, blind_excess)) if blind_excess > LEAST_NATS else float("nan")


def _ratio(totals: np.ndarray) -> np.ndarray:
    """Error of the model over that of the better guess, from ``[R, 3]``; NaN if the guess is never wrong."""
    model, repeat, mean = totals.T
    guess = np.minimum(repeat, mean)
    return model / np.where(guess > 1e-12, guess, np.nan)


def _band(values: np.ndarray, valid: np.ndarray, episode: np.ndarray, episodes: int, rng: np.random.Generator) -> Band:
    """Means over the starts of ``values [N, K]`` where ``valid``, with bands, ``[K]``."""
    counted = np.stack([np.where(valid, values, 0), valid], -1).astype(np.float64)
    return bootstrap.bootstrap(bootstrap.sums_by_episode(counted, episode, episodes), bootstrap.mean, rng)


def _better(where: tuple[np.ndarray, ...], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean errors of each entry: of the model, and of the guess that is better on the whole."""
    model, *guesses = where
    best = min(guesses, key=lambda guess: float(guess.sum()))
    return np.asarray(model / max(1, count)), np.asarray(best / max(1, count))


def classes_in_use(logits: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Perplexity of the mean posterior of each latent variable, 1 to C, from logits ``[E, T, S, C]``.

    Softmax of the logits is the posterior before the uniform share (`rssm.unimix`) is mixed in: with that share, a
    variable that never changes would seem to use several classes.
    """
    logits = logits[valid].astype(np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return calibration.perplexity((weights / weights.sum(-1, keepdims=True)).mean(0))


def window_returns(
    reward: np.ndarray, is_terminal: np.ndarray, length: np.ndarray, points: Points, discount: float, horizon: int
) -> tuple[np.ndarray, np.ndarray]:
    """``sum_{h=1..H} discount^(h-1) r[t+h]`` after each start ``[N]``, and whether all of it was recorded.

    After the end of the task all rewards are 0; after a time limit they are unknown.
    """
    real = np.zeros(len(points.step))
    covered = np.zeros(len(points.step), bool)
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

    The weight is 0 where the episode ended with the task, and ``discount^(steps left)`` where a time limit cut it off.
    """
    to_go = np.zeros(reward.shape)
    unseen = np.zeros(reward.shape)
    for e, size in enumerate(length.tolist()):
        unseen[e, size - 1] = 0.0 if is_terminal[e, size - 1] else 1.0
        for t in range(size - 2, -1, -1):
            to_go[e, t] = reward[e, t + 1] + discount * to_go[e, t + 1]
            unseen[e, t] = discount * unseen[e, t + 1]
    return to_go, unseen


def agree(
    predicted: np.ndarray, real: np.ndarray, episode: np.ndarray, episodes: int, rng: np.random.Generator
) -> Agreement:
    """Correlation and bias, with bands, of pairs ``[N]`` and the episodes that they are from."""
    predicted = predicted.astype(np.float64)
    real = real.astype(np.float64)
    products = bootstrap.sums_by_episode(bootstrap.moments(predicted, real), episode, episodes)
    difference = np.stack([predicted - real, np.ones(len(real))], -1)
    bias = bootstrap.bootstrap(bootstrap.sums_by_episode(difference, episode, episodes), bootstrap.mean, rng)
    correlation = bootstrap.bootstrap(products, bootstrap.pearson, rng)
    scale = float(real.std()) if len(real) else float("nan")
    return Agreement(correlation, bias, scale, predicted, real)


def _plain(value: Any) -> Any:
    """A value as JSON takes it: six digits, and None for what is not finite."""
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
