"""Model predictive control on the rules of the task: nothing is learned, and every action is planned.

The environment is its own model (`dreamer.world_models.exact`), which must be written in JAX, and shows where it is
(``env.observe_state=true``). ``planner.kind`` chooses the search. There is no value at the end of a plan, and where a
planner asks for a policy, actions are drawn evenly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from dreamer import planners
from dreamer.agent.learning import begin
from dreamer.algorithms.base import Algorithm
from dreamer.behaviors.noise import even_log_probs, random_action
from dreamer.config import Config, ConfigError
from dreamer.envs import native
from dreamer.envs.names import split
from dreamer.envs.native.observed import STATE, observe_state
from dreamer.planners.base import Plan
from dreamer.types import (
    Action,
    Batch,
    Metrics,
    Mode,
    Observation,
    Parts,
    Spaces,
    State,
    Stored,
    TrainState,
    mask_keys,
)
from dreamer.world_models.base import observed_masks
from dreamer.world_models.exact import ExactDynamics
from dreamer.world_models.imagine import row_count


class MPCMemory(NamedTuple):
    """What the policy remembers between steps of N environments."""

    plan: Plan
    """The planner's."""
    search: Metrics
    """What its latest search found, by the names of `dreamer.planners.base.SEARCH_METRICS`."""


def mpc(config: Config, obs_spaces: Spaces, action_spaces: Spaces) -> Algorithm:
    """The algorithm for one task.

    Args:
        config: the run's config.
        obs_spaces: observation spaces.
        action_spaces: action spaces.

    Raises:
        ConfigError: there is no planner, the planner cannot act in this task, or the rules of the task are not known.
    """
    model = _dynamics(config, obs_spaces)
    return plan_on(lambda nets: model, ExactDynamics.start, config, obs_spaces, action_spaces)


def plan_on(
    model_of: Callable[[Parts], Any],
    start: Callable[[Any, Observation], State],
    config: Config,
    obs_spaces: Spaces,
    action_spaces: Spaces,
) -> Algorithm:
    """An algorithm that plans every action on a model, and learns nothing.

    Args:
        model_of: the `Dynamics` that are planned on, from ``nets``.
        start: ``(model, observations [N, ...]) -> states [N, ...]``.
        config: the run's config.
        obs_spaces: observation spaces.
        action_spaces: action spaces.

    Raises:
        ConfigError: there is no planner, or it cannot act in this task.
    """
    planner = planners.make(config, action_spaces)
    if planner is None:
        raise ConfigError(
            f"planner.kind=none cannot be used with algorithm={config.algorithm}: expected a planner, for example "
            "planner.kind=cem."
        )
    masked = mask_keys(obs_spaces, action_spaces)

    def init(key: Array) -> TrainState:
        return begin(config, Parts(), Parts())

    def initial(batch: int) -> MPCMemory:
        return MPCMemory(planner.init(batch), planners.search_metrics({}, batch))

    def policy(
        nets: Parts, memory: MPCMemory, obs: Observation, is_first: Array, key: Array, mode: Mode
    ) -> tuple[Action, MPCMemory, Stored]:
        model = model_of(nets)

        def draw_evenly(state: State, key: Array) -> Action:
            return random_action(action_spaces, (row_count(state),), model.masks(state), key)

        def even(state: State) -> dict[str, Array]:
            return even_log_probs(action_spaces, (row_count(state),), model.masks(state))

        action, plan, metrics = planner.plan(
            model,
            leaf=lambda state: jnp.zeros(row_count(state)),
            prior=planners.Prior(draw_evenly, even),
            start=start(model, obs),
            plan=memory.plan,
            is_first=jnp.asarray(is_first),
            key=key,
            masks=observed_masks(obs, masked),
        )
        return action, MPCMemory(plan, planners.search_metrics(metrics, len(is_first))), ()

    def update(state: TrainState, batch: Batch, key: Array, config: Config) -> tuple[TrainState, Stored, Metrics]:
        """Nothing is learned."""
        return state._replace(step=state.step + 1), (), {}

    def acting(memory: MPCMemory) -> Metrics:
        return {name: value.mean() for name, value in memory.search.items()}

    return Algorithm(init, initial, policy, update, acting=acting)


def _dynamics(config: Config, obs_spaces: Spaces) -> ExactDynamics:
    """The rules of a config's task; raises `ConfigError`."""
    suite, name = split(config.task)
    if suite not in native.SUITES:
        tasks = ", ".join(f"task={suite}_NAME" for suite in native.SUITES)
        raise ConfigError(
            f"algorithm=mpc plans on the rules of a task, and those of task={config.task} are hidden behind its "
            f"observations: use an environment written in JAX ({tasks}), or algorithm=dreamer, which learns them."
        )
    if STATE not in obs_spaces:
        raise ConfigError(
            f"algorithm=mpc found no observation '{STATE}' to begin its plans with: use env.observe_state=true, and "
            "leave it among env.keys."
        )
    if config.env.repeat != 1:
        raise ConfigError(
            f"env.repeat={config.env.repeat} cannot be used with algorithm=mpc, whose model takes one step for each "
            "action: expected 1."
        )
    return ExactDynamics(observe_state(native.build(name, suite)))


__all__ = ["MPCMemory", "mpc", "plan_on"]
