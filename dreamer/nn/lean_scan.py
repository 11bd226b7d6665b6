"""A scan whose two loops do only what one step needs from another. The rest is a batch of all steps.

Computes exactly `dreamer.nn.plain_scan.plain`; skip this unless you work on speed.

An accelerator launches the operations of a loop one by one, and small ones take less time than their launch. Left to
JAX, most of those in a loop over a recurrent network are no arithmetic: its forward loop writes every intermediate
result down for the backward loop, which then has the gradients of parameters beside those of the carry.

Here the forward loop writes down carries and outputs only. From the carries, all linear layers are evaluated on all
steps at once. The backward loop takes their results as given, and hands the gradient of the carry from step to step.
With these gradients, parameters and inputs get theirs from all steps at once. The products are evaluated twice more,
for a batch of sequences a small part of an update. On a CPU, see `dreamer.nn.late_kernels`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dreamer.nn.late_kernels import Kept
from dreamer.nn.layers import prepare, replace_linear
from dreamer.nn.plain_scan import Step, plain


def scan(step: Step, module: nnx.Module, carry: Any, inputs: Any) -> Any:
    """``jax.lax.scan(partial(step, module), carry, inputs)[1]``, whose loops have fewer operations.

    Args:
        step: ``(module, carry, inputs of one step) -> (carry, outputs)``, on arrays ``[B, ...]`` whose rows do not
            depend on each other. May call each layer of `dreamer.nn.layers.LINEAR` in ``module`` at most once.
        module: holds the parameters.
        carry: what the first step starts from; any pytree of arrays ``[B, ...]`` of floats.
        inputs: any pytree of arrays ``[T, B, ...]``.

    Returns:
        Outputs of all steps, ``[T, ...]``. Gradients flow to all arguments but ``step``.

    Raises:
        ValueError: when differentiated, if ``step`` calls a linear layer twice.
    """
    return _lean(step, module, carry, inputs)


def _forward(step: Step, module: nnx.Module, carry: Any, inputs: Any) -> tuple[Any, Any]:
    prepared = prepare(module)
    places: list[int | None] = []
    structure: list[Any] = []

    def body(carry: Any, now: Any) -> tuple[Any, Any]:
        following, outputs = step(prepared, carry, now)
        own, (leaves, treedef) = jax.tree.leaves(following), jax.tree.flatten(outputs)
        # An output that is a part of the carry is written down once.
        places[:] = [next((i for i, x in enumerate(own) if x is leaf), None) for leaf in leaves]
        structure[:] = [treedef]
        return following, (following, [leaf for leaf, place in zip(leaves, places, strict=True) if place is None])

    _, (following, rest) = jax.lax.scan(body, carry, inputs)
    own, others = jax.tree.leaves(following), iter(rest)
    outputs = jax.tree.unflatten(structure[0], [next(others) if place is None else own[place] for place in places])
    carries = jax.tree.map(lambda first, x: jnp.concatenate([first[None], x[:-1]]), carry, following)
    return outputs, (module, carries, inputs)


def _backward(step: Step, saved: Any, gradient: Any) -> tuple[Any, Any, Any]:
    module, carries, inputs = saved
    steps = len(jax.tree.leaves(carries)[0])
    results: dict[int, jax.Array] = {}
    layers: dict[int, Any] = {}

    def kept(index: int, layer: Any) -> Kept:
        layers[index] = layer.prepared()
        return Kept(results, index, layer)

    step(replace_linear(module, kept), *_rows((carries, inputs)))

    def back(carry_gradient: Any, now: Any) -> tuple[Any, Any]:
        carry, inputs, results, gradient = now
        known = replace_linear(module, lambda i, _: functools.partial(_known, layers[i], results.get(i)))
        _, pull = jax.vjp(lambda carry: step(known, carry, inputs), carry)
        return pull((carry_gradient, gradient))[0], carry_gradient

    none = jax.tree.map(lambda x: jnp.zeros_like(x[0]), carries)
    each_step = carries, inputs, _steps(results, steps), gradient
    first, carry_gradients = jax.lax.scan(back, none, each_step, reverse=True)
    _, pull = jax.vjp(lambda module, now: step(module, _rows(carries), now), module, _rows(inputs))
    module_gradient, input_gradient = pull(_rows((carry_gradients, gradient)))
    return module_gradient, first, _steps(input_gradient, steps)


_lean = jax.custom_vjp(plain, nondiff_argnums=(0,))
_lean.defvjp(_forward, _backward)


def _rows(tree: Any) -> Any:
    """Arrays ``[T, B, ...]`` as ``[T * B, ...]``."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _steps(tree: Any, steps: int) -> Any:
    """The inverse of `_rows`."""
    return jax.tree.map(lambda x: x.reshape(steps, -1, *x.shape[1:]), tree)


@jax.custom_vjp
def _known(layer: Any, result: jax.Array, *given: jax.Array) -> jax.Array:
    """``layer(*given)``, which is known to be ``result``; only what is given has a gradient."""
    return result


def _pull(saved: Any, gradient: jax.Array) -> tuple[Any, ...]:
    layer, given = saved
    return None, None, *jax.vjp(layer, *given)[1](gradient)


_known.defvjp(lambda layer, result, *given: (result, (layer, given)), _pull)
