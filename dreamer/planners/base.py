"""What a planner is: a search in a model for the best next action."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from dreamer.config import Config, Registry
from dreamer.types import Action, Masks, Metrics, Spaces, State
from dreamer.world_models.base import Dynamics

Leaf = Callable[[State], Float32[Array, "batch"]]
"""Value of the states ``[N, ...]`` in which a plan ends."""


@dataclasses.dataclass(frozen=True)
class Prior:
    """A policy that a search may begin with: ``prior(states [N, ...], key) -> actions [N, ...]``.

    Attributes:
        draw: what a call does.
        log_probs: ``(states [N, ...]) -> {key: [N, ..., C]}``, of the classes of discrete actions; very low where a
            class is not allowed.
    """

    draw: Callable[[State, Array], Action]
    log_probs: Callable[[State], dict[str, Array]]

    def __call__(self, state: State, key: Array) -> Action:
        """Draw actions."""
        return self.draw(state, key)


Plan = Any
"""What a planner remembers for the next step, such as a warm start: a pytree of arrays ``[N, ...]``, or ``()``."""


@runtime_checkable
class Planner(Protocol):
    """Acting by searching a model."""

    def init(self, batch: int) -> Plan:
        """The plan before the first step of ``batch`` episodes."""

    def plan(
        self,
        model: Dynamics,
        leaf: Leaf,
        prior: Prior,
        start: State,
        plan: Plan,
        is_first: Bool[Array, "N"],
        key: Array,
        masks: Masks | None = None,
    ) -> tuple[Action, Plan, Metrics]:
        """The best action found in each state, the plan for the next step, and metrics of the search.

        Args:
            model: what the search asks.
            leaf: value of the last states of a plan.
            prior: policy to begin with.
            start: states ``[N, ...]`` to act in.
            plan: from the step before; ignored where ``is_first``.
            is_first: whether the state is the first of an episode.
            key: random key.
            masks: classes of discrete actions that are allowed now; None or ``{}``: all.
        """


SEARCH_METRICS = ("planner/return", "planner/spread")
"""Metrics of a search that a policy remembers until a line of the log is due: the return that it expects, and how much
that of its last candidates varies. What a planner does not give is not a number."""


def search_metrics(metrics: Metrics, batch: int) -> Metrics:
    """The metrics in `SEARCH_METRICS` as part of a policy's memory, ``[batch]`` each."""
    return {
        name: jnp.broadcast_to(jnp.asarray(metrics.get(name, jnp.nan), jnp.float32), (batch,))
        for name in SEARCH_METRICS
    }


PLANNERS = Registry(
    "planner.kind",
    {
        "random": "dreamer.planners.shooting:random",
        "cem": "dreamer.planners.shooting:cem",
        "icem": "dreamer.planners.shooting:icem",
        "mppi": "dreamer.planners.shooting:mppi",
        "ilqr": "dreamer.planners.ilqr:ilqr",
        "muzero": "dreamer.planners.tree:muzero",
        "gumbel_muzero": "dreamer.planners.tree:gumbel_muzero",
    },
    also=["none"],
)
"""Functions ``(config, action_spaces) -> Planner``."""


def make(config: Config, action_spaces: Spaces) -> Planner | None:
    """The planner that ``config.planner.kind`` names; None if the policy is to act.

    Raises:
        ConfigError: there is no such planner, or it cannot act in these spaces.
    """
    if config.planner.kind == "none":
        return None
    return PLANNERS.load(config.planner.kind)(config, action_spaces)


__all__ = ["PLANNERS", "SEARCH_METRICS", "Leaf", "Plan", "Planner", "Prior", "make", "search_metrics"]
