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

from dreamer.types import TrainState, named_leaves

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
