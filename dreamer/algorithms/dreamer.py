"""Dreamer: learn a world model from real sequences, and a behaviour from what is imagined in it.

`world_model.kind` and `behavior.kind` choose the parts; with `planner.kind`, a planner acts in place of the policy.

Source: Hafner et al. 2025, "Mastering diverse control tasks through world models", Nature 640.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from dreamer import behaviors, planners, world_models
from dreamer.agent.diagnosis import gradients_by_loss
from dreamer.agent.learning import LossOutput, Stage, begin, begin_stages, gradient_step, gradient_steps
from dreamer.algorithms.base import Algorithm, View, no_metrics
from dreamer.behaviors.noise import add_noise
from dreamer.config import Config, ConfigError
from dreamer.types import Action, Batch, Metrics, Mode, Observation, Parts, Spaces, State, Stored, TrainState, mask_keys
from dreamer.world_models.base import Losses, RecurrentModel, Seen, observed_masks


class PolicyMemory(NamedTuple):
    """What the acting policy remembers between steps of N environments."""

    state: State
    """The world model's."""
    prev_action: Action
    """At the start, classes are -1 and all else 0: no action. As one-hot vectors, all of it is 0."""
    plan: Any = ()
    """The planner's, if there is one."""
    search: Any = ()
    """What its latest search found, by the names of `dreamer.planners.base.SEARCH_METRICS`."""


def dreamer(config: Config, obs_spaces: Spaces, action_spaces: Spaces) -> Algorithm:
    """The algorithm for one task.

    Args:
        config: the run's config.
        obs_spaces: observation spaces.
        action_spaces: action spaces.

    Raises:
        ConfigError: a part cannot do what another, or the task, asks of it.
    """
    masked = mask_keys(obs_spaces, action_spaces)

    @jax.jit  # Traced once, for its shapes as for its numbers.
    def build(key: Array) -> Parts:
        """All parameters, and what the behaviour remembers."""
        rngs = nnx.Rngs(params=key)
        model = world_models.make(config, obs_spaces, action_spaces, rngs)
        behavior = behaviors.make(config, action_spaces, model.feature_size)
        nets, memory = behavior.init(rngs)
        return Parts(model, (nets, memory))

    # Sizes follow from the model, and so does what replay keeps; shapes are enough to know them.
    model_shapes = jax.eval_shape(build, jax.random.key(0)).world_model
    behavior = behaviors.make(config, action_spaces, model_shapes.feature_size)
    planner = planners.make(config, action_spaces)
    in_stages = config.optimizer.order == "model_first" and config.behavior.kind != "none"

    def init(key: Array) -> TrainState:
        model, (nets, memory), _ = build(key)
        fresh = Parts(world_model=model, behavior=nets), Parts(behavior=memory)
        return begin_stages(config, *fresh, stages) if in_stages else begin(config, *fresh)

    def initial(batch: int) -> PolicyMemory:
        none: Action = {
            key: jnp.full((batch, *space.shape), -1 if space.kind == "discrete" else 0, space.dtype)
            for key, space in action_spaces.items()
        }
        memory = PolicyMemory(model_shapes.initial(batch), none)
        if planner is None:
            return memory
        return memory._replace(plan=planner.init(batch), search=planners.search_metrics({}, batch))

    def policy(
        nets: Parts, memory: PolicyMemory, obs: Observation, is_first: Array, key: Array, mode: Mode
    ) -> tuple[Action, PolicyMemory, Stored]:
        """Update the state with an observation, and choose an action that the observation allows."""
        state_key, action_key = jax.random.split(key)
        model = nets.world_model
        noise = model.noise(state_key, len(is_first))
        state = model.filter(memory.state, memory.prev_action, obs, is_first, noise)
        masks = observed_masks(obs, masked)
        plan: Any = ()
        search: Any = ()
        if planner is None:
            action = behavior.act(nets.behavior, model.features(state), masks, action_key, mode)
        else:
            action, plan, metrics = planner.plan(
                model,
                leaf=lambda state: behavior.value(nets.behavior, model, state),
                prior=planners.Prior(
                    lambda state, key: behavior.act(
                        nets.behavior, model.features(state), model.masks(state), key, "sample"
                    ),
                    lambda state: log_probs(nets, state),
                ),
                start=state,
                plan=memory.plan,
                is_first=jnp.asarray(is_first),
                key=action_key,
                masks=masks,
            )
            search = planners.search_metrics(metrics, len(is_first))
        exploration = config.behavior.exploration_noise
        if exploration and mode == "sample":
            # Number 2 of this key: `split` above took numbers 0 and 1, which stay what they are without exploration.
            action = add_noise(action, exploration, action_spaces, masks, jax.random.fold_in(key, 2))
        return action, PolicyMemory(state, action, plan, search), model.pack(state)

    def log_probs(nets: Parts, state: State) -> dict[str, Array]:
        """How probable the policy makes each class, for tree search."""
        if not isinstance(behavior, behaviors.ClassProbabilities):
            raise ConfigError(
                f"planner.kind={config.planner.kind} cannot be used with behavior.kind={config.behavior.kind}, which "
                "does not say how probable actions are: add its function log_probs, or use planner.kind=cem."
            )
        model = nets.world_model
        return behavior.log_probs(nets.behavior, model.features(state), model.masks(state))

    def loss(nets: Parts, memory: Parts, batch: Batch, key: Array, config: Config) -> LossOutput:
        """Learn the model from what happened, and the behaviour from what is imagined."""
        model_key, imagine_key = jax.random.split(key)
        of_model, seen = model_loss(nets, memory, batch, model_key, config, ())
        of_behavior, _ = behavior_loss(nets, memory, batch, imagine_key, config, seen)
        return LossOutput(
            losses=of_model.losses | of_behavior.losses,
            memory=of_behavior.memory,
            stored=of_model.stored,
            metrics=of_model.metrics | of_behavior.metrics,
        )

    def model_loss(
        nets: Parts, memory: Parts, batch: Batch, key: Array, config: Config, before: tuple[()]
    ) -> tuple[LossOutput, Seen]:
        """Learn the model from what happened."""
        model = nets.world_model
        seen = model.observe(batch, key)
        losses: Losses
        losses, metrics = model.loss(seen, batch, config)
        return LossOutput(losses, memory, model.pack(seen.states), metrics), seen

    def behavior_loss(
        nets: Parts, memory: Parts, batch: Batch, key: Array, config: Config, seen: Seen
    ) -> tuple[LossOutput, tuple[()]]:
        """Learn the behaviour from what is imagined."""
        losses, behavior_memory, metrics = behavior.loss(
            nets.behavior, memory.behavior, nets.world_model, seen, batch, key=key, config=config
        )
        return LossOutput(losses, memory._replace(behavior=behavior_memory), (), metrics), ()

    def after_update(nets: Parts, memory: Parts, config: Config) -> Parts:
        """Targets follow."""
        return memory._replace(behavior=behavior.after_update(nets.behavior, memory.behavior, config))

    stages = (Stage(("world_model",), model_loss), Stage(("behavior",), behavior_loss))

    def predict(nets: Parts, batch: Batch, key: Array, context: int) -> tuple[dict[str, Array], Metrics]:
        return world_models.predict(nets.world_model, obs_spaces, batch, key, context)

    def diagnose(nets: Parts, memory: Parts, batch: Batch, key: Array, config: Config) -> Metrics:
        """How hard each loss pulls on the world model, and what its states carry."""
        gradients, output = gradients_by_loss(loss, trunk)(nets, memory, batch, key, config)
        model = nets.world_model
        # What the loss returns for replay are the states that it was computed from.
        return gradients | world_models.diagnose_states(model, model.unpack(output.stored), batch)

    def view(nets: Parts, memory: PolicyMemory) -> View:
        model = nets.world_model
        return View(model.decode(memory.state) or {}, behavior.value(nets.behavior, model, memory.state))

    def acting(memory: PolicyMemory) -> Metrics:
        return {name: value.mean() for name, value in memory.search.items()}

    stored = jax.eval_shape(lambda: jax.tree.map(lambda x: x[0], model_shapes.pack(model_shapes.initial(1))))
    update = gradient_steps(stages, after_update) if in_stages else gradient_step(loss, after_update)
    return Algorithm(
        init,
        initial,
        policy,
        update,
        stored,
        predict=predict,
        view=view,
        loss=loss,
        diagnose=diagnose,
        acting=acting if planner else no_metrics,
        behavior=behavior,
    )


def trunk(nets: Parts) -> dict[str, Any]:
    """The parts of a recurrent world model that all losses share, from its parameters or their gradients."""
    model = nets.world_model
    return {"encoder": model.encoder, "rssm": model.rssm} if isinstance(model, RecurrentModel) else {}


__all__ = ["PolicyMemory", "dreamer", "trunk"]
