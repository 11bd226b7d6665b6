"""From a loss to an update: gradient, optimizer, guard and metrics, the same for all algorithms that descend."""

from collections.abc import Callable
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
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, nets, memory, jnp.copy(zero), make_optimizer(config.optimizer).init(nets))


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
            losses = guard.loss_values(metrics | {guard.TOTAL: total})
            rate = learning_rate(config.optimizer, state.step)
            state, accepted = guard.accept(state, proposed, losses, gradient, updates)
        metrics |= {"optimizer/learning_rate": rate} | accepted
        return state, stored, metrics

    return update


def weighted_total(loss: Loss) -> Callable[..., tuple[Array, LossOutput]]:
    """The scalar that is minimised, as a function of the loss's arguments; its output has the means as metrics."""

    def total(nets: Parts, memory: Parts, batch: Batch, key: Array, config: Config) -> tuple[Array, LossOutput]:
        output = loss(nets, memory, batch, key, config)
        means = {name: value.mean() for name, (_, value) in output.losses.items()}
        weighted = (weight * means[name] for name, (weight, _) in output.losses.items())
        metrics = {f"{guard.LOSS}{name}": mean for name, mean in means.items()}
        return sum(weighted, start=jnp.zeros(())), output._replace(metrics=metrics | output.metrics)

    return total


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


__all__ = ["AfterUpdate", "Loss", "LossOutput", "Update", "begin", "gradient_step", "weighted_total"]
