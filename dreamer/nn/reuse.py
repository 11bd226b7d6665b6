"""Results of a network that are known already, with its gradient.

A loop that evaluates a network in each of its steps, on inputs that take no gradient, is followed by a loop backwards
for the gradient of the network, whose small operations an accelerator has to launch one by one. But nothing passes
from step to step there: all steps together are one batch, and the network is evaluated on it once more, for its
gradient. That is counted, not measured. On a CPU, where the arrays of a step stay in its cache, an update takes 5 %
longer so, and the loop backwards is left as it is.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Float

Network = Callable[[Any, Array], Any]
Modules = TypeVar("Modules")


def before_loop(modules: Modules) -> Modules:
    """Networks as a loop should evaluate them, if its results are given to `known`."""
    return modules if _on_cpu() else jax.lax.stop_gradient(modules)


def known(network: Network, module: nnx.Module, x: Float[Array, "H N F"], result: Any) -> Any:
    """``network(module, x)``, which a loop has computed as ``result``; gradients flow to ``module`` only.

    Args:
        network: treats all rows of ``x`` alike.
        module: its parameters.
        x: what it was evaluated on, H steps of N rows.
        result: what it returned, a pytree of arrays ``[H, N, ...]``; computed with the module from `before_loop`.
    """
    return result if _on_cpu() else _known(network, module, x, result)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _known(network: Network, module: nnx.Module, x: Array, result: Any) -> Any:
    return result


def _forward(network: Network, module: nnx.Module, x: Array, result: Any) -> tuple[Any, tuple[nnx.Module, Array]]:
    return result, (module, x)


def _backward(network: Network, saved: tuple[nnx.Module, Array], gradient: Any) -> tuple[Any, None, None]:
    module, x = saved
    x, gradient = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (x, gradient))
    _, pull = jax.vjp(lambda module: network(module, x), module)
    return pull(gradient)[0], None, None


_known.defvjp(_forward, _backward)
