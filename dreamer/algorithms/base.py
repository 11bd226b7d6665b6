"""What an algorithm is: five pure functions, and a description of what replay keeps for it.

Everything that loops, saves, evaluates, reports or trains populations knows this protocol and nothing else. Whatever
satisfies it runs in the host loop and in the device loop, is saved, resumed, evaluated, reported, compared and swept.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from dreamer.config import Config, Registry
from dreamer.types import Action, Batch, Metrics, Mode, Observation, Parts, Spaces, Stored, TrainState

Memory = Any
"""What a policy remembers from step to step: a pytree of arrays ``[N, ...]`` that only it reads, or ``()``."""


class View(NamedTuple):
    """What an agent makes of the moment, for videos, ``[N, ...]``."""

    predictions: dict[str, Array]
    """Its reconstruction of each observation key, in the units of `dreamer.nn.observations.Decoder`; may be empty."""
    value: Array | None
    """The return that it expects; None: it expects none."""


def no_prediction(nets: Parts, batch: Batch, key: Array, context: int) -> tuple[dict[str, Array], Metrics]:
    """The prediction of an algorithm that does not predict observations."""
    return {}, {}


def no_view(nets: Parts, memory: Memory) -> View:
    """The view of an algorithm that neither predicts nor values."""
    return View({}, None)


def no_metrics(memory: Memory) -> Metrics:
    """The metrics of a policy that has none."""
    return {}


class Algorithm(NamedTuple):
    """One algorithm for one task. Functions are pure and traced; ``N`` environments, B sequences of T steps."""

    init: Callable[[Array], TrainState]
    """``(key) -> state``: everything that changes during training."""
    initial: Callable[[int], Memory]
    """``(batch) -> memory`` before the first step of so many episodes; acting from it is acting where ``is_first``."""
    policy: Callable[[Parts, Memory, Observation, Array, Array, Mode], tuple[Action, Memory, Stored]]
    """``(nets, memory, obs, is_first, key, mode) -> (action, memory, stored)``; no memory counts where ``is_first``."""
    update: Callable[[TrainState, Batch, Array, Config], tuple[TrainState, Stored, Metrics]]
    """``(state, batch, key, config) -> (state, stored, metrics)``: one update.

    The update's own key is ``fold_in(key, state.step)``, and ``step`` grows by 1. ``config`` is the run's, with numbers
    that may be traced: those of one member of a population. ``stored`` replaces what replay keeps of the batch,
    ``[B, T, ...]``; ``()`` leaves it. See `dreamer.agent.learning`, which makes an update out of a loss.
    """
    stored: Any = ()
    """What replay keeps with each step: a pytree of shapes and dtypes, without batch axes."""
    stored_span: Literal["context", "sequence"] = "context"
    """Whether a batch has what was stored with the step before each sequence, or also with each of its steps."""
    predict: Callable[[Parts, Batch, Array, int], tuple[dict[str, Array], Metrics]] = no_prediction
    """``(nets, batch, key, context) -> (predictions, metrics)``: see `dreamer.world_models.predict`. For pictures."""
    view: Callable[[Parts, Memory], View] = no_view
    """``(nets, memory) -> view``, for videos."""
    loss: Callable[..., Any] | None = None
    """The `dreamer.agent.learning.Loss` that the update descends, if it does; for diagnosis and tests."""
    diagnose: Callable[[Parts, Parts, Batch, Array, Config], Metrics] | None = None
    """``(nets, memory, batch, key, config) -> metrics``: scalars ``diagnose/...`` that say what is learned from a
    batch, and what is not; None: there are none. It may take as long as a few updates."""
    acting: Callable[[Memory], Metrics] = no_metrics
    """``(memory) -> metrics``: scalars about the latest step of the policy, for the log; asked when a line is due."""
    behavior: Any = None
    """The `dreamer.behaviors.Behavior` whose parameters are ``nets.behavior``, if there is one that acts on features of
    ``nets.world_model``; reports then measure the world model under it."""


ALGORITHMS = Registry(
    "algorithm",
    {
        "dreamer": "dreamer.algorithms.dreamer:dreamer",
        "mpc": "dreamer.algorithms.mpc:mpc",
        "sac": "dreamer.algorithms.sac:sac",
        "dqn": "dreamer.algorithms.dqn:dqn",
        "dyna_q": "dreamer.algorithms.dyna_q:dyna_q",
        "dyna_tabular": "dreamer.algorithms.dyna_tabular:dyna_tabular",
        "mbpo": "dreamer.algorithms.mbpo:mbpo",
        "muzero": "dreamer.algorithms.muzero:muzero",
        "pets": "dreamer.algorithms.pets:pets",
        "plan2explore": "dreamer.algorithms.plan2explore:plan2explore",
    },
)
"""Functions ``(config, obs_spaces, action_spaces) -> Algorithm``."""


def make(config: Config, obs_spaces: Spaces, action_spaces: Spaces) -> Algorithm:
    """The algorithm that ``config.algorithm`` names.

    Raises:
        ConfigError: there is no such algorithm, or it cannot do what config and spaces ask for.
    """
    sorted_spaces = dict(sorted(obs_spaces.items())), dict(sorted(action_spaces.items()))
    return ALGORITHMS.load(config.algorithm)(config, *sorted_spaces)


def blank_stored(algorithm: Algorithm, *lead: int) -> Stored:
    """Zeros in place of what replay keeps, ``[*lead, ...]``, as NumPy arrays."""
    return jax.tree.map(lambda x: np.zeros((*lead, *x.shape), x.dtype), algorithm.stored)


__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Memory",
    "View",
    "blank_stored",
    "make",
    "no_metrics",
    "no_prediction",
    "no_view",
]
