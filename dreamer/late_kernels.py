"""A scan that computes the gradients of kernels after its backward loop, and not in it.

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

from dreamer.networks import LINEAR

Step = Callable[[Any, Any, Any], tuple[Any, Any]]


def scan(step: Step, module: nnx.Module, carry: Any, inputs: Any) -> Any:
    """``jax.lax.scan(partial(step, module), carry, inputs)[1]``, whose gradient takes less time.

    Args:
        step: ``(module, carry, inputs of one step) -> (carry, outputs)``. May call each layer of `LINEAR` in ``module``
            at most once, on arrays ``[B, ...]``.
        module: holds the parameters.
        carry: what the first step starts from; any pytree.
        inputs: any pytree of arrays ``[T, ...]``.

    Returns:
        Outputs of all steps, ``[T, ...]``. Gradients flow to all arguments but ``step``.

    Raises:
        ValueError: when differentiated, if ``step`` calls a linear layer twice.
    """
    return _late(step, module, carry, inputs)


def _plain(step: Step, module: nnx.Module, carry: Any, inputs: Any) -> Any:
    return jax.lax.scan(functools.partial(step, module), carry, inputs)[1]


class _Tapped:
    """Stands for a linear layer in the loop: keeps what it is given, and lets an offset take its result's gradient."""

    def __init__(self, layer: Any, index: int, offsets: dict[int, jax.Array] | None, kept: dict[int, Any]):
        self.layer, self.index, self.offsets, self.kept = layer, index, offsets, kept

    def __call__(self, *given: jax.Array) -> jax.Array:
        if self.index in self.kept:
            raise ValueError(f"The step of a scan calls a {type(self.layer).__name__} twice; use jax.lax.scan for it.")
        result = self.layer(*given)
        if self.offsets is None:
            self.kept[self.index] = result
            return result
        # Not differentiated: the gradients of what is kept would be zeros, and the loop would add them.
        self.kept[self.index] = jax.lax.stop_gradient(given)
        return _tap(result, self.offsets[self.index])


@jax.custom_vjp
def _tap(result: jax.Array, offset: jax.Array) -> jax.Array:
    """``result + offset`` for an offset of zeros, without the addition."""
    return result


_tap.defvjp(lambda result, offset: (result, None), lambda _, gradient: (gradient, gradient))


def _is_linear(x: Any) -> bool:
    return isinstance(x, LINEAR)


def _forward(step: Step, module: nnx.Module, carry: Any, inputs: Any) -> tuple[Any, Any]:
    leaves, structure = jax.tree.flatten(module, is_leaf=_is_linear)
    linear = {index: leaf for index, leaf in enumerate(leaves) if _is_linear(leaf)}
    others = {index: leaf for index, leaf in enumerate(leaves) if index not in linear}

    def tapped(others: Any, carry: Any, now: Any, offsets: dict[int, jax.Array] | None) -> tuple[Any, Any]:
        kept: dict[int, Any] = {}
        parts = {index: _Tapped(layer, index, offsets, kept) for index, layer in linear.items()} | others
        stand_in = jax.tree.unflatten(structure, [parts[index] for index in range(len(leaves))])
        carry, outputs = step(stand_in, carry, now)
        return carry, (outputs, kept)

    def loop(others: Any, carry: Any, inputs: Any, offsets: dict[int, jax.Array]) -> tuple[Any, Any]:
        return jax.lax.scan(lambda carry, now: tapped(others, carry, *now), carry, (inputs, offsets))[1]

    first = jax.tree.map(lambda x: x[0], inputs)
    _, (_, results) = jax.eval_shape(functools.partial(tapped, offsets=None), others, carry, first)
    steps = len(jax.tree.leaves(inputs)[0])
    offsets = {index: jnp.zeros((steps, *result.shape), result.dtype) for index, result in results.items()}
    outputs, pull, kept = jax.vjp(loop, others, carry, inputs, offsets, has_aux=True)
    return outputs, (module, pull, kept)


def _backward(step: Step, saved: Any, gradient: Any) -> tuple[Any, Any, Any]:
    module, pull, kept = saved
    others, carry, inputs, offsets = pull(gradient)

    def late(index: int, layer: Any) -> Any:
        if index not in kept:
            return jax.tree.map(jnp.zeros_like, layer)
        flat = jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), (kept[index], offsets[index]))
        return jax.vjp(lambda layer: layer(*flat[0]), layer)[1](flat[1])[0]

    leaves, structure = jax.tree.flatten(module, is_leaf=_is_linear)
    parts = [late(index, leaf) if _is_linear(leaf) else others[index] for index, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, parts), carry, inputs


_late = jax.custom_vjp(_plain, nondiff_argnums=(0,))
_late.defvjp(_forward, _backward)
