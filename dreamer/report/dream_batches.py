"""Runs the programs of `open_loop` over recorded episodes, a fixed number of rows at a time; returns host arrays."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamer.behaviors import Behavior
from dreamer.config import Config
from dreamer.report import open_loop
from dreamer.report.held_out import HeldOut
from dreamer.report.open_loop import Dreams, FilteredEpisodes
from dreamer.types import Parts, Space, Spaces
from dreamer.world_models import RecurrentModel


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much is computed."""

    steps: int = 50
    """Dreamt steps K, if episodes are long enough."""
    context: int = 5
    """Least number of observed steps before a dream; fewer if episodes are shorter."""
    starts: int = 256
    """Start states, drawn from all that have a context."""
    samples: int = 4
    """Dreams of each start."""
    rows: int = 32
    """Start states in one call of the compiled program."""
    chunk: int = 64
    """Observed steps in one call of the compiled program."""


LEAST_STARTS = 10
"""Curves end where fewer starts are left, or only those of one episode."""


class Points(NamedTuple):
    """N start states."""

    episode: np.ndarray
    """Number of the episode, int ``[N]``."""
    step: np.ndarray
    """Step in it, int ``[N]``."""


def choose_points(length: np.ndarray, context: int, most: int, rng: np.random.Generator) -> Points:
    """Draw at most ``most`` start states among all that have ``context`` observed steps and a step to predict."""
    every = [(e, t) for e, size in enumerate(length.tolist()) for t in range(context - 1, size - 1)]
    chosen = np.sort(rng.permutation(len(every))[:most])
    episode, step = np.array(every, np.int64)[chosen].T
    return Points(episode, step)


def reach(length: np.ndarray, points: Points, most: int) -> int:
    """How many steps can be compared: as long as `LEAST_STARTS` starts of two episodes are left, and at least one."""
    left = length[points.episode] - 1 - points.step
    steps = 1
    for k in range(2, most + 1):
        if (left >= k).sum() < LEAST_STARTS or len(np.unique(points.episode[left >= k])) < 2:
            break
        steps = k
    return steps


def filter_episodes(behavior: Behavior, nets: Parts, batch: Any, key: jax.Array, chunk: int) -> FilteredEpisodes:
    """`open_loop.filter_states` over whole episodes, ``chunk`` steps at a time; host arrays ``[E, T, ...]``."""
    run = jax.jit(functools.partial(open_loop.filter_states, behavior))
    steps = batch.reward.shape[1]
    chunk = min(chunk, steps)
    # Each chunk continues from the states that the one before ended with.
    stored = batch.stored
    parts = []
    for number, begin in enumerate(range(0, steps, chunk)):
        fields = batch._replace(stored=None)
        part = jax.tree.map(lambda x, b=begin: _pad(x[:, b : b + chunk], chunk, axis=1), fields)._replace(stored=stored)
        found = run(nets, part, jax.random.fold_in(key, number))
        # In the last chunk, this may be a state of padding, but then nothing follows.
        stored = jax.tree.map(lambda x: x[:, -1], found.stored)
        parts.append(jax.device_get(found))
    joined: FilteredEpisodes = jax.tree.map(lambda *xs: np.concatenate(xs, 1)[:, :steps], *parts)
    return joined


def dream_from(
    nets: Parts,
    spaces: Spaces,
    held_out: HeldOut,
    filtered: FilteredEpisodes,
    points: Points,
    near: np.ndarray,
    key: jax.Array,
    budget: Budget,
) -> Dreams:
    """`open_loop.dream` from all points; host arrays, starts first: ``[N, K, ...]``."""
    batch: Any = held_out.batch
    steps = near.shape[1]
    obs = {name: value for name, value in batch.obs.items() if not spaces[name].is_grid}  # Grids are not decoded.
    average = {name: average_of(spaces[name], value, held_out.valid) for name, value in obs.items()}
    run = jax.jit(lambda nets, *inputs: open_loop.dream(nets.world_model, spaces, budget.samples, *inputs))
    parts = []
    for number, begin in enumerate(range(0, len(points.step), budget.rows)):
        chosen = slice(begin, begin + budget.rows)
        episode = _pad(points.episode[chosen], budget.rows)
        step = _pad(points.step[chosen], budget.rows)
        count = len(points.step[chosen])
        rows = episode, step
        # Indices [rows, K] of the steps after each start; those beyond the end of the arrays are not `near`.
        at = episode[:, None], np.minimum(step[:, None] + 1 + np.arange(steps), batch.reward.shape[1] - 1)
        found = run(
            nets,
            jax.tree.map(lambda x, rows=rows: x[rows], filtered.stored),
            {name: value[at] for name, value in batch.prev_action.items()},
            {name: value[at] for name, value in obs.items()},
            {name: value[rows] for name, value in obs.items()},
            average,
            jax.tree.map(lambda x, at=at: np.asarray(x)[at], filtered.posterior),
            _pad(near[chosen].astype(np.float32), budget.rows),
            jax.random.fold_in(key, number),
        )
        found = jax.device_get(found)
        own = jax.tree.map(lambda x, n=count: x[:, :n].swapaxes(0, 1), found._replace(where={}))
        parts.append(own._replace(where=found.where))
    # `asarray`, because the sum over a key of a single number is a scalar.
    where = jax.tree.map(lambda *xs: np.asarray(np.sum(xs, 0, dtype=np.float64)), *[part.where for part in parts])
    joined: Dreams = jax.tree.map(
        lambda *xs: np.concatenate(xs).astype(np.float64), *[p._replace(where={}) for p in parts]
    )
    return joined._replace(where=where)


def imagine_from(
    behavior: Behavior,
    nets: Parts,
    filtered: FilteredEpisodes,
    points: Points,
    discount: float,
    config: Config,
    key: jax.Array,
    budget: Budget,
) -> np.ndarray:
    """`open_loop.imagined_return` from all points, ``[N]``."""
    run = jax.jit(
        lambda nets, start, key: open_loop.imagined_return(
            behavior, nets, start, discount, config.behavior.horizon, budget.samples, key
        )
    )
    parts = []
    for number, begin in enumerate(range(0, len(points.step), budget.rows)):
        chosen = slice(begin, begin + budget.rows)
        rows = _pad(points.episode[chosen], budget.rows), _pad(points.step[chosen], budget.rows)
        start = jax.tree.map(lambda x, rows=rows: x[rows], filtered.stored)
        parts.append(np.asarray(run(nets, start, jax.random.fold_in(key, number)))[: len(points.step[chosen])])
    return np.concatenate(parts).astype(np.float64)


def measure_recurrent(nets: Parts, filtered: FilteredEpisodes, valid: np.ndarray, chunk: int) -> tuple[float, float]:
    """Spread and size of the recurrent part of filtered states; NaN for a model without one.

    The spread is the standard deviation over the episodes at the same step, mean over the units: what all episodes do
    in the same way, such as leaving the state that they begin with, carries nothing. It is NaN if no two episodes can
    be compared. The size is the root mean square.

    Args:
        nets: parameters.
        filtered: what the agent made of the episodes ``[E, T, ...]``.
        valid: steps that are not padding, bool ``[E, T]``.
        chunk: steps that are looked at together.
    """
    if not isinstance(nets.world_model, RecurrentModel):
        return float("nan"), float("nan")
    model: Any = nets.world_model
    squares: Any = 0.0
    variation: Any = 0.0
    for begin in range(0, valid.shape[1], chunk):
        part = jax.tree.map(lambda x, b=begin: x[:, b : b + chunk], filtered.stored)
        recurrent = np.asarray(model.recurrent(model.unpack(part)), np.float64)
        weight = valid[:, begin : begin + chunk, None]
        mean = (weight * recurrent).sum(0) / np.maximum(weight.sum(0), 1)
        squares = squares + (weight * np.square(recurrent)).sum((0, 1))
        variation = variation + (weight * np.square(recurrent - mean)).sum((0, 1))
    # At each step that an episode has, one degree of freedom goes into the mean.
    degrees = valid.sum() - valid.any(0).sum()
    spread = float(np.sqrt(variation / degrees).mean()) if degrees else float("nan")
    return spread, float(np.sqrt(squares.mean() / valid.sum()))


def average_of(space: Space, value: Any, valid: np.ndarray) -> np.ndarray:
    """Mean of an observation key over all steps that are not padding, in the units of `open_loop.encode`."""
    total: Any = 0.0
    for row, inside in zip(value, valid, strict=True):
        total = total + np.asarray(open_loop.encode(space, row[inside])).sum(0, dtype=np.float64)
    return np.asarray(total / valid.sum(), np.float32)


def _pad(x: Any, size: int, axis: int = 0) -> np.ndarray:
    """``x`` with zeros up to ``size``, so that every call has the same shapes."""
    missing = [(0, 0)] * x.ndim
    missing[axis] = (0, size - x.shape[axis])
    return np.pad(x, missing)
