"""From a loss to an update: gradient, optimizer, guard and metrics, the same for all algorithms that descend."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from dreamer.agent import guard
from dreamer.agent.optimizer import learning_rate, make_optimizer
from dreamer.config import Config
from dreamer.devices import batch_axis
from dreamer.devices.phases import phase
from dreamer.types import Batch, Metrics, Parts, Stored, TrainState


class LossOutput(NamedTuple):
    """What a loss returns. Averages over rows, and numbers of one row each, may be of any size."""

    losses: dict[str, tuple[Any, Array]]
    """Weight and values ``[...]`` of each loss by name; the sum of weighted means is minimised."""
    memory: Parts
    """The next memory, which must be the same on all devices that share a batch."""
    stored: Stored
    """What replay is to keep of the batch from now on, ``[B, T, ...]``; ``()``: what it has."""
    metrics: Metrics
    """Averages over the rows of the batch."""


Loss = Callable[[Parts, Parts, Batch, Array, Config], LossOutput]
"""``(nets, memory, batch, key, config) -> output``."""

AfterUpdate = Callable[[Parts, Parts, Config], Parts]
"""``(nets, memory, config) -> memory`` after the parameters have moved, for targets that follow them."""

Update = Callable[[TrainState, Batch, Array, Config], tuple[TrainState, Stored, Metrics]]
"""See `dreamer.algorithms.Algorithm.update`."""


def begin(config: Config, nets: Parts, memory: Parts) -> TrainState:
    """The state before the first update."""
    return _unmoved(nets, memory, make_optimizer(config.optimizer).init(nets))


def _unmoved(nets: Parts, memory: Parts, opt_state: Any) -> TrainState:
    """The state with its counters at 0."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, nets, memory, jnp.copy(zero), opt_state)


def gradient_step(loss: Loss, after_update: AfterUpdate = lambda nets, memory, config: memory) -> Update:
    """The update that takes one gradient step on a loss.

    If a loss, a gradient or a new parameter is not finite, the step is skipped: nothing changes but the two counters.
    The next update draws other random numbers. See `dreamer.agent.guard`. If the metric ``guard/skipped`` is 1, what
    the update returns for replay is not fit for it, and the other metrics may be anything.

    Args:
        loss: what is minimised.
        after_update: moves targets.
    """

    def update(state: TrainState, batch: Batch, key: Array, config: Config) -> tuple[TrainState, Stored, Metrics]:
        key = jax.random.fold_in(key, state.step)
        (total, gradient, metrics), memory, stored = _gradient(loss, config)(state.nets, state.memory, batch, key)
        with phase("optimizer"):
            updates, opt_state = make_optimizer(config.optimizer).update(gradient, state.opt_state, state.nets)
            nets = optax.apply_updates(state.nets, updates)
            proposed = state._replace(nets=nets, memory=after_update(nets, memory, config), opt_state=opt_state)
            state, metrics = _accept(state, proposed, metrics, total, gradient, updates, config)
        return state, stored, metrics

    return update


def _accept(
    state: TrainState,
    proposed: TrainState,
    metrics: Metrics,
    total: Array,
    gradients: Parts,
    updates: Parts,
    config: Config,
) -> tuple[TrainState, Metrics]:
    """The state that an update ends in, and all of its metrics; see `guard.accept`."""
    losses = guard.loss_values(metrics | {guard.TOTAL: total})
    rate = learning_rate(config.optimizer, state.step)
    after, accepted = guard.accept(state, proposed, losses, gradients, updates)
    return after, metrics | {"optimizer/learning_rate": rate} | accepted


class Stage(NamedTuple):
    """A part of an update that moves some parameters before the next part is computed."""

    parts: tuple[str, ...]
    """Fields of `Parts` that move; together, stages move all."""
    loss: Callable[[Parts, Parts, Batch, Array, Config, Any], tuple[LossOutput, Any]]
    """``(nets, memory, batch, key, config, before) -> (output, after)``: a loss that also gets what the stage before
    left, arrays of the rows of the batch, or () in the first. The stage that has something to store returns it."""


def begin_stages(config: Config, nets: Parts, memory: Parts, stages: Sequence[Stage]) -> TrainState:
    """As `begin`, for `gradient_steps`: the optimizer has a state for each stage."""
    optimizer = make_optimizer(config.optimizer)
    return _unmoved(nets, memory, tuple(optimizer.init(_chosen(nets, stage)) for stage in stages))


def gradient_steps(stages: Sequence[Stage], after_update: AfterUpdate) -> Update:
    """The update that takes one gradient step for each stage in turn, guarded as one; see `gradient_step`.

    The draws of a stage are those of ``jax.random.split(key, len(stages))``.
    """

    def update(state: TrainState, batch: Batch, key: Array, config: Config) -> tuple[TrainState, Stored, Metrics]:
        keys = jax.random.split(jax.random.fold_in(key, state.step), len(stages))
        nets = state.nets
        memory = state.memory
        stored: Stored = ()
        metrics: Metrics = {}
        total = jnp.zeros(())
        before: Any = ()
        gradients = updates = Parts()
        opt_states = []
        for stage, opt_state, own_key in zip(stages, state.opt_state, keys, strict=True):
            function = _stage_gradient(stage, config)
            (own_total, gradient, own_metrics), memory, own_stored, before = function(
                nets, memory, batch, own_key, before
            )
            with phase("optimizer"):
                moved, opt_state = make_optimizer(config.optimizer).update(gradient, opt_state, _chosen(nets, stage))
                nets = _moved(nets, moved)
            opt_states.append(opt_state)
            gradients = gradients._replace(**gradient)
            updates = updates._replace(**moved)
            total += own_total
            metrics |= own_metrics
            stored = stored if jax.tree.leaves(stored) else own_stored
        with phase("optimizer"):
            proposed = state._replace(nets=nets, memory=after_update(nets, memory, config), opt_state=tuple(opt_states))
            state, metrics = _accept(state, proposed, metrics, total, gradients, updates, config)
        return state, stored, metrics

    return update


def _chosen(nets: Parts, stage: Stage) -> dict[str, Any]:
    """The parts that a stage moves."""
    return {part: getattr(nets, part) for part in stage.parts}


def _moved(nets: Parts, updates: dict[str, Any]) -> Parts:
    """Parameters after a step of some parts."""
    return nets._replace(**{part: optax.apply_updates(getattr(nets, part), step) for part, step in updates.items()})


def _stage_gradient(stage: Stage, config: Config) -> Callable[..., Any]:
    """The total of a stage with its gradient by its parts, averaged over all rows of a batch."""

    def gradient(nets: Parts, memory: Parts, batch: Batch, key: Array, before: Any) -> tuple[Any, Parts, Stored, Any]:
        def total(chosen: dict[str, Any]) -> tuple[Array, tuple[LossOutput, Any]]:
            output, after = stage.loss(nets._replace(**chosen), memory, batch, key, config, before)
            value, output = _total(output)
            return value, (output, after)

        (value, (output, after)), found = jax.value_and_grad(total, has_aux=True)(_chosen(nets, stage))
        averaged = batch_axis.mean((value, found, output.metrics))
        return averaged, output.memory, output.stored, jax.lax.stop_gradient(after)

    rows = {"nets": False, "memory": False, "batch": True, "key": False, "before": True}
    return batch_axis.on_each_device(gradient, tuple(rows.values()), (False, False, True, True))


def weighted_total(loss: Loss) -> Callable[..., tuple[Array, LossOutput]]:
    """The scalar that is minimised, as a function of the loss's arguments; its output has the means as metrics."""

    def total(nets: Parts, memory: Parts, batch: Batch, key: Array, config: Config) -> tuple[Array, LossOutput]:
        return _total(loss(nets, memory, batch, key, config))

    return total


def _total(output: LossOutput) -> tuple[Array, LossOutput]:
    """The sum of the weighted means, and the output with these means among its metrics."""
    means = {name: value.mean() for name, (_, value) in output.losses.items()}
    weighted = (weight * means[name] for name, (weight, _) in output.losses.items())
    metrics = {f"{guard.LOSS}{name}": mean for name, mean in means.items()}
    return sum(weighted, start=jnp.zeros(())), output._replace(metrics=metrics | output.metrics)


def _gradient(loss: Loss, config: Config) -> Callable[..., tuple[tuple[Array, Parts, Metrics], Parts, Stored]]:
    """The total with its gradient, averaged over all rows of a batch, of which each device may have its own."""
    total_of = weighted_total(loss)

    def gradient(
        nets: Parts, memory: Parts, batch: Batch, key: Array
    ) -> tuple[tuple[Array, Parts, Metrics], Parts, Stored]:
        (total, output), gradient = jax.value_and_grad(total_of, has_aux=True)(nets, memory, batch, key, config)
        return batch_axis.mean((total, gradient, output.metrics)), output.memory, output.stored

    rows = {"nets": False, "memory": False, "batch": True, "key": False}
    return batch_axis.on_each_device(gradient, tuple(rows.values()), (False, False, True))


__all__ = [
    "AfterUpdate",
    "Loss",
    "LossOutput",
    "Stage",
    "Update",
    "begin",
    "begin_stages",
    "gradient_step",
    "gradient_steps",
    "weighted_total",
]
