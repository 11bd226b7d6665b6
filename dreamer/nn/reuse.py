"""Results of a network from a loop, with a gradient that needs no loop.

Computes exactly `plain`; skip this unless you work on speed. A loop that evaluates a network in each of its steps, on
inputs that take no gradient, is followed by a backward loop for the gradient of the network, whose small operations an
accelerator has to launch one by one. But nothing passes from step to step in it: all steps together are one batch, on
which the network is evaluated again, for its gradient. That is counted, not measured. On a CPU, where the arrays of a
step stay in its cache, an update takes 5 % longer that way: see `dreamer.nn.loops.reuse_pays`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

Network = Callable[[Any, Array], Any]
"""``(module, x [N, F]) -> result``."""


def plain(network: Network, module: nnx.Module, x: Float[Array, "H N F"], result: Any) -> Any:
    """``network(module, x)``, which a loop has computed as ``result``; gradients flow through that loop."""
    return result


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def reuse(network: Network, module: nnx.Module, x: Float[Array, "H N F"], result: Any) -> Any:
    """``network(module, x)``, which a loop has computed as ``result``; gradients flow to ``module`` only.

    Args:
        network: treats all rows of ``x`` alike.
        module: its parameters.
        x: what it was evaluated on, H steps of N rows.
        result: what it returned, a pytree of arrays ``[H, N, ...]``. The loop should stop the gradient of the module
            that it evaluates, so that no backward loop is left.
    """
    return result


def _forward(network: Network, module: nnx.Module, x: Array, result: Any) -> tuple[Any, tuple[nnx.Module, Array]]:
    return result, (module, x)


def _backward(network: Network, saved: tuple[nnx.Module, Array], gradient: Any) -> tuple[Any, None, None]:
    module, x = saved
    # All steps become rows of one batch, [H, N, ...] to [H * N, ...].
    x, gradient = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (x, gradient))
    _, pull = jax.vjp(lambda module: network(module, x), module)
    (module_gradient,) = pull(gradient)
    # Neither the inputs nor the result of the loop take a gradient.
    return module_gradient, None, None


reuse.defvjp(_forward, _backward)

__all__ = ["Network", "plain", "reuse"]
