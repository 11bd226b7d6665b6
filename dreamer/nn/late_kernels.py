"""A scan that computes the gradients of kernels after its backward loop, and not in it.

Computes exactly `dreamer.nn.plain_scan.plain`; skip this unless you work on speed.

The gradient of a kernel that a loop uses at every step is a sum over the steps. JAX adds to that sum at every step of
the backward loop: for a batch of 16 rows a thin product and three passes over an array of the kernel's size, 64 times.
Here the loop only hands gradients from step to step and keeps those of each layer's result; then one product over all
steps and rows gives each kernel its gradient.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dreamer.nn.layers import replace_linear
from dreamer.nn.plain_scan import Step, plain


def scan(step: Step, module: nnx.Module, carry: Any, inputs: Any) -> Any:
    """``jax.lax.scan(partial(step, module), carry, inputs)[1]``, whose gradient takes less time.

    Args:
        step: ``(module, carry, inputs of one step) -> (carry, outputs)``. May call each layer of
            `dreamer.nn.layers.LINEAR` in ``module`` at most once, on arrays ``[B, ...]``.
        module: holds the parameters.
        carry: what the first step starts from; any pytree.
        inputs: any pytree of arrays ``[T, ...]``.

    Returns:
        Outputs of all steps, ``[T, ...]``. Gradients flow to all arguments but ``step``.

    Raises:
        ValueError: when differentiated, if ``step`` calls a linear layer twice.
    """
    return _late(step, module, carry, inputs)


class Kept:
    """Stands for a linear layer: evaluates it, and keeps its result under its index.

    Raises:
        ValueError: when called twice.
    """

    def __init__(self, results: dict[int, jax.Array], index: int, layer: Any):
        self.results, self.index, self.layer = results, index, layer

    def __call__(self, *given: jax.Array) -> jax.Array:
        if self.index in self.results:
            raise ValueError(f"The step of a scan calls a {type(self.layer).__name__} twice; use jax.lax.scan for it.")
        self.results[self.index] = self.layer(*given)
        return self.results[self.index]


@jax.custom_vjp
def _tap(result: jax.Array, offset: jax.Array) -> jax.Array:
    """``result + offset`` for an offset of zeros, without the addition."""
    return result


_tap.defvjp(lambda result, offset: (result, None), lambda _, gradient: (gradient, gradient))


def _forward(step: Step, module: nnx.Module, carry: Any, inputs: Any) -> tuple[Any, Any]:
    def results_of_step(module: Any, carry: Any, now: Any) -> dict[int, jax.Array]:
        results: dict[int, jax.Array] = {}
        step(replace_linear(module, functools.partial(Kept, results)), carry, now)
        return results

    def loop(module: Any, carry: Any, inputs: Any, offsets: dict[int, jax.Array]) -> tuple[Any, dict[int, Any]]:
        """Outputs, and what each linear layer was given; an offset takes the gradient of the layer's result."""

        def body(carry: Any, now: Any) -> tuple[Any, Any]:
            now, offset = now
            kept: dict[int, Any] = {}

            def tapped(index: int, layer: Any) -> Callable[..., jax.Array]:
                fixed = jax.lax.stop_gradient(layer)

                def call(*given: jax.Array) -> jax.Array:
                    # Not differentiated: the gradients of what is kept would be zeros, and the loop would add them.
                    kept[index] = jax.lax.stop_gradient(given)
                    return _tap(fixed(*given), offset[index])

                return call

            carry, outputs = step(replace_linear(module, tapped), carry, now)
            return carry, (outputs, kept)

        return jax.lax.scan(body, carry, (inputs, offsets))[1]

    results = jax.eval_shape(results_of_step, module, carry, jax.tree.map(lambda x: x[0], inputs))
    steps = len(jax.tree.leaves(inputs)[0])
    offsets = {index: jnp.zeros((steps, *result.shape), result.dtype) for index, result in results.items()}
    outputs, pull, kept = jax.vjp(loop, module, carry, inputs, offsets, has_aux=True)
    return outputs, (module, pull, kept)


def _backward(step: Step, saved: Any, gradient: Any) -> tuple[Any, Any, Any]:
    module, pull, kept = saved
    in_loop, carry, inputs, offsets = pull(gradient)
    late: dict[int, Any] = {}

    def product(index: int, layer: Any) -> Any:
        if index in kept:
            flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), (kept[index], offsets[index]))
            late[index] = jax.vjp(lambda layer: layer(*flat[0]), layer)[1](flat[1])[0]
        return layer

    replace_linear(module, product)
    return replace_linear(in_loop, lambda index, zeros: late.get(index, zeros)), carry, inputs


_late = jax.custom_vjp(plain, nondiff_argnums=(0,))
_late.defvjp(_forward, _backward)
