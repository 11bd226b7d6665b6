"""A scan that computes the gradients of kernels after its backward loop instead of in it.

Computes exactly `dreamer.nn.plain_scan.plain`; skip this unless you work on speed.

The gradient of a kernel that a loop uses at every step is a sum over the steps. JAX adds to that sum at every step of
the backward loop: for a batch of 16 rows, a thin product and three passes over an array of the kernel's size, 64 times.
Here the loop only passes gradients from step to step, and saves those of each layer's result. Then one product over all
steps and rows gives each kernel its gradient.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dreamer.nn.layers import replace_linear
from dreamer.nn.plain_scan import LoopStep, plain


def scan(step: LoopStep, module: nnx.Module, carry: Any, inputs: Any) -> Any:
    """``jax.lax.scan(partial(step, module), carry, inputs)[1]``, whose gradient takes less time.

    Args:
        step: ``(module, carry, inputs of one step) -> (carry, outputs)``. May call each layer of
            `dreamer.nn.layers.LINEAR` in ``module`` at most once, on arrays ``[B, ...]``.
        module: holds the parameters.
        carry: what the first step starts from; any pytree.
        inputs: any pytree of arrays ``[T, ...]``.

    Returns:
        Outputs of all steps, ``[T, ...]``. Gradients flow to all arguments except ``step``.

    Raises:
        ValueError: when differentiated, if ``step`` calls a linear layer twice.
    """
    return _late(step, module, carry, inputs)


_late = jax.custom_vjp(plain, nondiff_argnums=(0,))
"""`plain` itself, with the gradient defined below."""


class ResultRecorder:
    """Stands in for a linear layer: evaluates it, and records its result under its index.

    Raises:
        ValueError: when called twice.
    """

    def __init__(self, results: dict[int, jax.Array], index: int, layer: Any):
        self.results = results
        self.index = index
        self.layer = layer

    def __call__(self, *given: jax.Array) -> jax.Array:
        if self.index in self.results:
            raise ValueError(f"The step of a scan calls a {type(self.layer).__name__} twice; use jax.lax.scan for it.")
        self.results[self.index] = self.layer(*given)
        return self.results[self.index]


@jax.custom_vjp
def _tap(result: jax.Array, offset: jax.Array) -> jax.Array:
    """``result + offset`` for an offset of zeros, without the addition: the offset gets the gradient of the result."""
    return result


_tap.defvjp(lambda result, offset: (result, None), lambda _, gradient: (gradient, gradient))


def _forward(step: LoopStep, module: nnx.Module, carry: Any, inputs: Any) -> tuple[Any, Any]:
    """Outputs of the loop, and what `_backward` needs."""

    def results_of_step(module: Any, carry: Any, now: Any) -> dict[int, jax.Array]:
        results: dict[int, jax.Array] = {}
        step(replace_linear(module, functools.partial(ResultRecorder, results)), carry, now)
        return results

    def loop(module: Any, carry: Any, inputs: Any, offsets: dict[int, jax.Array]) -> tuple[Any, dict[int, Any]]:
        """Outputs, and the arguments of each linear layer; an offset takes the gradient of the layer's result."""

        def body(carry: Any, now: Any) -> tuple[Any, Any]:
            now, offset = now
            arguments: dict[int, Any] = {}

            def tap(index: int, layer: Any) -> Callable[..., jax.Array]:
                # The layer's parameters get their gradient in `_backward`, so the loop computes none.
                fixed = jax.lax.stop_gradient(layer)

                def call(*given: jax.Array) -> jax.Array:
                    # Not differentiated: the gradients of what is saved would be zeros, and the loop would add them.
                    arguments[index] = jax.lax.stop_gradient(given)
                    return _tap(fixed(*given), offset[index])

                return call

            carry, outputs = step(replace_linear(module, tap), carry, now)
            return carry, (outputs, arguments)

        return jax.lax.scan(body, carry, (inputs, offsets))[1]

    # Trace one step for the shapes of its layers' results; nothing is computed.
    results = jax.eval_shape(results_of_step, module, carry, jax.tree.map(lambda x: x[0], inputs))
    # Give each result of each step an offset of zeros, [T, *result.shape].
    steps = len(jax.tree.leaves(inputs)[0])
    offsets = {index: jnp.zeros((steps, *result.shape), result.dtype) for index, result in results.items()}
    # Run the loop; `pull` is its backward loop, which has no kernels to add to.
    outputs, pull, arguments = jax.vjp(loop, module, carry, inputs, offsets, has_aux=True)
    return outputs, (module, pull, arguments)


def _backward(step: LoopStep, saved: Any, gradient: Any) -> tuple[Any, Any, Any]:
    """Gradients of module, carry and inputs."""
    module, pull, arguments = saved
    # The backward loop gives every gradient except those of linear layers, and those of the layers' results.
    in_loop, carry, inputs, result_gradients = pull(gradient)
    late: dict[int, Any] = {}

    def multiply(index: int, layer: Any) -> Any:
        if index in arguments:
            # Steps and rows become the rows of one matrix, [T, B, size] to [T * B, size], so that one product of a
            # layer's arguments with the gradient of its result is the sum over both.
            pair = arguments[index], result_gradients[index]
            given, result_gradient = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), pair)
            _, pull_layer = jax.vjp(lambda layer: layer(*given), layer)
            (late[index],) = pull_layer(result_gradient)
        return layer

    # Visits every linear layer and fills `late`; the modules that it returns are those it was given.
    replace_linear(module, multiply)
    # A layer that no step calls keeps the zeros of the loop.
    return replace_linear(in_loop, lambda index, zeros: late.get(index, zeros)), carry, inputs


_late.defvjp(_forward, _backward)
