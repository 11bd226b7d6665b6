"""How hard each loss pulls on a part of an agent, next to the others."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from dreamer.agent import guard
from dreamer.agent.learning import Loss, LossOutput
from dreamer.config import Config
from dreamer.types import Batch, Metrics, Parts


def gradients_by_loss(
    loss: Loss, parts: Callable[[Parts], Mapping[str, Any]]
) -> Callable[[Parts, Parts, Batch, Array, Config], tuple[Metrics, LossOutput]]:
    """A function of the loss's arguments that measures the gradient of each loss by itself.

    Its metrics ``diagnose/gradient/LOSS/PART`` are the L2 norm of the gradient of a loss, times its weight, by the
    parameters of a part, over the L2 norm of these parameters. Where a loss does not reach a part, it is 0.

    The forward pass is computed once and the backward pass once for each loss, as a loop over one program: it compiles
    like the gradient of an update, and takes the memory of one gradient.

    Args:
        loss: what an update minimises.
        parts: takes parameters, or their gradients, apart: a pytree of arrays for each part by name.
    """

    def measure(nets: Parts, memory: Parts, batch: Batch, key: Array, config: Config) -> tuple[Metrics, LossOutput]:
        def means(nets: Parts) -> tuple[dict[str, Array], LossOutput]:
            output = loss(nets, memory, batch, key, config)
            weighted = {name: weight * value.mean() for name, (weight, value) in output.losses.items()}
            return {name: jnp.asarray(value, jnp.float32) for name, value in weighted.items()}, output

        values, pullback, output = jax.vjp(means, nets, has_aux=True)
        names = tuple(values)

        def norms(chosen: Float32[Array, "L"]) -> dict[str, Array]:
            """Norm of the gradient at each part, of the loss whose entry is 1."""
            (gradient,) = pullback(dict(zip(names, chosen, strict=True)))
            return {part: guard.norm(guard.sums_of_squares(tree)) for part, tree in parts(gradient).items()}

        found = jax.lax.map(norms, jnp.eye(len(names)))
        sizes = {part: guard.norm(guard.sums_of_squares(tree)) for part, tree in parts(nets).items()}
        smallest = jnp.finfo(jnp.float32).tiny
        ratios = {
            f"diagnose/gradient/{name}/{part}": found[part][i] / jnp.maximum(size, smallest)
            for i, name in enumerate(names)
            for part, size in sizes.items()
        }
        return ratios, output

    return measure


__all__ = ["gradients_by_loss"]
