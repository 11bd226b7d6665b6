"""Plan2Explore: seek what the world model would learn from, and prepare for tasks without practising them.

A `dreamer.algorithms.dreamer` learns the world model, and a behaviour for the task from imagined rewards alone. Beside
it, an explorer of the same kind learns to earn the bonus of `exploration.kind`. The explorer acts in training (mode
"sample"), and the behaviour for the task in evaluation (mode "mode").

What belongs to the task is named as that of a Dreamer, so that one takes it over with ``load.from``.

Source: Sekar et al. 2020, "Planning to explore via self-supervised world models".
"""

import dataclasses
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.tree_util import Partial
from jaxtyping import Array

from dreamer import exploration
from dreamer.agent.learning import LossOutput, begin, gradient_step
from dreamer.algorithms.base import Algorithm, no_metrics
from dreamer.algorithms.dreamer import PolicyMemory, dreamer
from dreamer.config import Config, ConfigError, PlannerConfig
from dreamer.config.population import with_numbers
from dreamer.types import Action, Batch, Mode, Observation, Parts, Spaces, Stored, TrainState


class Explorer(NamedTuple):
    """What exploring adds to parameters, and to what is remembered: the field ``bonus`` of `Parts`."""

    bonus: Any
    behavior: Any


def plan2explore(config: Config, obs_spaces: Spaces, action_spaces: Spaces) -> Algorithm:
    """The algorithm for one task.

    Args:
        config: the run's config.
        obs_spaces: observation spaces.
        action_spaces: action spaces.

    Raises:
        ConfigError: a part cannot do what another, or the task, asks of it.
    """
    if config.behavior.kind == "none":
        raise ConfigError(
            "behavior.kind=none cannot be used with algorithm=plan2explore: an explorer is a behaviour that learns. "
            "Use behavior.kind=actor_critic."
        )
    if config.optimizer.order != "together":
        raise ConfigError(
            f"optimizer.order={config.optimizer.order} cannot be used with algorithm=plan2explore: its model and both "
            "behaviours learn in one step. Use optimizer.order=together."
        )
    task = dreamer(config, obs_spaces, action_spaces)
    # A planner searches for the rewards of the task, and has no part in exploring.
    unplanned = dataclasses.replace(config, planner=PlannerConfig())
    explore = task if unplanned == config else dreamer(unplanned, obs_spaces, action_spaces)
    model_shapes = jax.eval_shape(task.init, jax.random.key(0)).nets.world_model
    bonus = exploration.make(config, action_spaces, model_shapes)
    behavior = task.behavior  # It holds sizes only, which are those of the explorer, too.

    @jax.jit
    def build(key: Array) -> tuple[Explorer, Explorer]:
        rngs = nnx.Rngs(params=key)
        bonus_nets, bonus_memory = bonus.init(rngs)
        nets, memory = behavior.init(rngs)
        return Explorer(bonus_nets, nets), Explorer(bonus_memory, memory)

    def init(key: Array) -> TrainState:
        task_key, explorer_key = jax.random.split(key)
        fresh = task.init(task_key)
        nets, memory = build(explorer_key)
        return begin(config, fresh.nets._replace(bonus=nets), fresh.memory._replace(bonus=memory))

    def policy(
        nets: Parts, memory: PolicyMemory, obs: Observation, is_first: Array, key: Array, mode: Mode
    ) -> tuple[Action, PolicyMemory, Stored]:
        """The explorer's action in training, that of the task in evaluation."""
        if mode == "mode":
            return task.policy(nets, memory, obs, is_first, key, mode)
        explorer = nets._replace(behavior=nets.bonus.behavior)
        unplanned_memory = memory._replace(plan=(), search=())
        action, after, stored = explore.policy(explorer, unplanned_memory, obs, is_first, key, mode)
        return action, after._replace(plan=memory.plan, search=memory.search), stored

    def loss(nets: Parts, memory: Parts, batch: Batch, key: Array, config: Config) -> LossOutput:
        """What a Dreamer learns for the task, and what the explorer learns, which moves nothing of it."""
        assert task.loss is not None
        task_key, explorer_key = jax.random.split(key)
        output: LossOutput = task.loss(nets, memory, batch, task_key, config)
        model = jax.lax.stop_gradient(nets.world_model)
        # What the loss returns for replay are the states that it was computed from.
        states = jax.lax.stop_gradient(model.unpack(output.stored))
        losses, bonus_memory, metrics = bonus.loss(nets.bonus.bonus, memory.bonus.bonus, model, states, batch, config)
        bonus_of = Partial(bonus.reward, jax.lax.stop_gradient(nets.bonus.bonus), bonus_memory)
        own = config.exploration
        explorers = with_numbers(
            config, {"behavior.entropy": own.explorer_entropy, "behavior.return_horizon": own.explorer_horizon}
        )
        further = (1 - 1 / own.explorer_horizon) / (1 - 1 / config.behavior.return_horizon)
        if not config.behavior.cont_discount:
            further = 1.0
        # What an explorer is rewarded for: a world model, for all that a behaviour asks of one.
        curious: Any = exploration.Curious(model, bonus_of, own.intrinsic, own.extrinsic, further)
        seen, relived = curious.relive(states, batch)
        explorer_losses, explorer_memory, explorer_metrics = behavior.loss(
            nets.bonus.behavior,
            memory.bonus.behavior,
            curious,
            seen,
            relived,
            key=explorer_key,
            config=explorers,
        )
        return output._replace(
            losses=output.losses | losses | of_explorer(explorer_losses),
            memory=output.memory._replace(bonus=Explorer(bonus_memory, explorer_memory)),
            metrics=output.metrics | metrics | of_explorer(explorer_metrics),
        )

    def after_update(nets: Parts, memory: Parts, config: Config) -> Parts:
        """Targets follow, those of both behaviours."""
        explorer = memory.bonus
        followed = behavior.after_update(nets.bonus.behavior, explorer.behavior, config)
        return memory._replace(
            behavior=behavior.after_update(nets.behavior, memory.behavior, config),
            bonus=explorer._replace(behavior=followed),
        )

    return task._replace(
        init=init,
        policy=policy,
        update=gradient_step(loss, after_update),
        loss=loss,
        acting=no_metrics,  # These say how training acts, and no planner does.
    )


def of_explorer(values: dict[str, Any]) -> dict[str, Any]:
    """Losses or metrics under the explorer's name."""
    return {f"explorer/{name}": value for name, value in values.items()}


__all__ = ["Explorer", "plan2explore"]
