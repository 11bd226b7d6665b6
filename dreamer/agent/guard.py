"""Updates that must not happen: those in which a loss, a gradient or a new parameter is not finite.

An update finds out by itself, inside its program, and then leaves everything that is learned as it was. It looks only
at sums that it computes anyway: losses, and sums of squares of gradients, parameters and steps, which clipping and
metrics need. A parameter and a step that have finite norms make a finite parameter. Moments of the optimizer are not
checked. A gradient whose sum of squares is finite leaves finite moments behind, if they were finite before; and the
momentum is added to the parameters, where it shows.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from dreamer.logs import averages
from dreamer.types import Metrics, TrainState, named_leaves

LOSS = "loss/"
"""Beginning of the name of every loss among the metrics of an update."""

TOTAL = f"{LOSS}total"
"""Their weighted sum."""


class Checked(NamedTuple):
    """What must be finite, one scalar for each tensor, in the order in which an update computes them."""

    losses: Mapping[str, Any]
    memory: Any
    """Its `scalars`. Arrays in it follow from parameters, or from what was checked when it was replayed."""
    gradients: Any
    parameters: Any
    """Finite if those after the step are."""


def sums_of_squares(tree: Any) -> Any:
    """The sum of squares of each leaf.

    It is not finite if an element is not, or if it is beyond the range of float32: then the norm is above 1.8e19, and
    no step is to be trusted either.
    """
    leaves, treedef = jax.tree.flatten(tree)
    sums: list[Any] = [None] * len(leaves)
    alike = defaultdict(list)
    for i, x in enumerate(leaves):
        # Two of three arrays are biases or scales. Those of one length are added up together: a few operations to
        # compile, and on an accelerator to launch, instead of some hundred.
        alike[x.shape if x.ndim == 1 else i].append(i)
    for places in alike.values():
        if len(places) == 1:
            sums[places[0]] = jnp.sum(jnp.square(leaves[places[0]]))
        else:
            together = jnp.sum(jnp.square(jnp.stack([leaves[i] for i in places])), 1)
            for row, i in enumerate(places):
                sums[i] = together[row]
    return jax.tree.unflatten(treedef, sums)


def norm(squares: Any) -> Float32[Array, ""]:
    """L2 norm of all arrays together, from their `sums_of_squares`."""
    return jnp.sqrt(sum(jax.tree.leaves(squares), start=jnp.zeros(())))


def first_bad(checked: Checked) -> Int32[Array, ""]:
    """Number of the first scalar that is not finite, in the order of `names`; -1 if all are."""
    bad = ~jnp.isfinite(jnp.stack(jax.tree.leaves(checked)))
    return jnp.where(bad.any(), jnp.argmax(bad), -1).astype(jnp.int32)


def scalars(memory: Any) -> Any:
    """The floating-point numbers without axes in a memory; all else is None, which is no leaf."""
    return jax.tree.map(lambda x: x if x.ndim == 0 and jnp.issubdtype(x.dtype, jnp.floating) else None, memory)


def loss_values(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The losses among the metrics of an update, by the names they have there without `LOSS`."""
    return {name.removeprefix(LOSS): value for name, value in metrics.items() if name.startswith(LOSS)}


def tensor_name(bad: int, metrics: Mapping[str, Any], state: TrainState) -> str:
    """Name of the tensor that was not finite in an update.

    Args:
        bad: the metric ``guard/bad``.
        metrics: of the update; their names count.
        state: the training state, or shapes of it.
    """
    checked = Checked(loss_values(dict.fromkeys(metrics, 0)), scalars(state.memory), state.nets, state.nets)
    return names(checked)[bad]


def names(checked: Checked) -> tuple[str, ...]:
    """Names of what is checked, for example ``gradients.world_model.rssm.mix.kernel``; leaves may be anything."""
    return tuple(named_leaves(checked))


def choose(condition: Bool[Array, ""], one: Any, other: Any) -> Any:
    """One pytree or the other, leaf by leaf. NaN in the one that is not chosen does no harm."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def accept(
    state: TrainState, proposed: TrainState, losses: Mapping[str, Array], gradients: Any, updates: Any
) -> tuple[TrainState, Metrics]:
    """The state after an update if all numbers in it are finite, else that before it; the counters move either way.

    Args:
        state: before the update.
        proposed: after it; its two counters do not count.
        losses: by name, the total among them.
        gradients: with the structure of ``state.nets``.
        updates: what was added to ``state.nets``.

    Returns:
        The state, and metrics of losses, norms and guard. If ``guard/skipped`` is 1, they may be anything.
    """
    gradient_squares = sums_of_squares(gradients)
    parameter_squares = sums_of_squares(state.nets)
    update_squares = sums_of_squares(updates)
    checked = Checked(
        losses=losses,
        memory=scalars(proposed.memory),
        gradients=gradient_squares,
        parameters=jax.tree.map(jnp.add, parameter_squares, update_squares),
    )
    bad = first_bad(checked)
    step = state.step + 1
    after = choose(
        bad < 0,
        proposed._replace(step=step, skipped_in_row=jnp.zeros_like(state.skipped_in_row)),
        state._replace(step=step, skipped_in_row=state.skipped_in_row + 1),
    )
    return after, {
        **{f"{LOSS}{name}": loss for name, loss in losses.items()},
        "optimizer/gradient_norm": norm(gradient_squares),
        "optimizer/update_norm": norm(update_squares),
        "optimizer/parameter_norm": norm(parameter_squares),
        averages.SKIPPED: jnp.asarray(bad >= 0, jnp.float32),
        averages.IN_ROW: after.skipped_in_row,
        averages.BAD: bad,
    }
