"""A scan whose two loops do only what one step needs from another. The rest is a batch of all steps.

Computes exactly `dreamer.nn.plain_scan.plain`; skip this unless you work on speed.

An accelerator launches the operations of a loop one by one, and small ones take less time than their launch. Left to
JAX, most operations in a loop over a recurrent network are not arithmetic: its forward loop stores every intermediate
result for the backward loop, which computes the gradients of parameters in addition to those of the carry.

Here the forward loop stores only carries and outputs. From the carries, all linear layers are evaluated on all steps at
once. The backward loop takes their results as given, and passes the gradient of the carry from step to step. From these
gradients, parameters and inputs get theirs on all steps at once. The products are evaluated twice more, which for a
batch of sequences is a small part of an update. For CPUs, see `dreamer.nn.late_kernels`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dreamer.nn.late_kernels import ResultRecorder
from dreamer.nn.layers import prepare, replace_linear
from dreamer.nn.plain_scan import LoopStep, plain


def scan(step: LoopStep, module: nnx.Module, carry: Any, inputs: Any) -> Any:
    """``jax.lax.scan(partial(step, module), carry, inputs)[1]``, whose loops have fewer operations.

    Args:
        step: ``(module, carry, inputs of one step) -> (carry, outputs)``, on arrays ``[B, ...]`` whose rows do not
            depend on each other. May call each layer of `dreamer.nn.layers.LINEAR` in ``module`` at most once.
        module: holds the parameters.
        carry: what the first step starts from; any pytree of arrays ``[B, ...]`` of floats.
        inputs: any pytree of arrays ``[T, B, ...]``.

    Returns:
        Outputs of all steps, ``[T, ...]``. Gradients flow to all arguments except ``step``.

    Raises:
        ValueError: when differentiated, if ``step`` calls a linear layer twice.
    """
    return _lean(step, module, carry, inputs)


_lean = jax.custom_vjp(plain, nondiff_argnums=(0,))
"""`plain` itself, with the gradient defined below."""


def _forward(step: LoopStep, module: nnx.Module, carry: Any, inputs: Any) -> tuple[Any, Any]:
    """Outputs of the loop, and what `_backward` needs: the carry that each step started from."""
    layers = prepare(module)
    # Filled when the body is traced: for each output leaf, its place among the leaves of the carry, or None.
    places: list[int | None] = []
    structure: list[Any] = []

    def body(carry: Any, now: Any) -> tuple[Any, Any]:
        following, outputs = step(layers, carry, now)
        own = jax.tree.leaves(following)
        leaves, treedef = jax.tree.flatten(outputs)
        # An output that is the very array of a carry leaf is stored once, as part of the carry.
        places[:] = [next((i for i, x in enumerate(own) if x is leaf), None) for leaf in leaves]
        structure[:] = [treedef]
        return following, (following, [leaf for leaf, place in zip(leaves, places, strict=True) if place is None])

    _, (following, rest) = jax.lax.scan(body, carry, inputs)
    # Put the outputs together again, from the carries [T, B, ...] and from what was stored separately.
    own = jax.tree.leaves(following)
    others = iter(rest)
    outputs = jax.tree.unflatten(structure[0], [next(others) if place is None else own[place] for place in places])
    # Step t started from what step t - 1 left, and the first from `carry`.
    carries = jax.tree.map(lambda first, x: jnp.concatenate([first[None], x[:-1]]), carry, following)
    return outputs, (module, carries, inputs)


def _backward(step: LoopStep, saved: Any, gradient: Any) -> tuple[Any, Any, Any]:
    """Gradients of module, carry and inputs."""
    module, carries, inputs = saved
    steps = len(jax.tree.leaves(carries)[0])
    results: dict[int, jax.Array] = {}
    layers: dict[int, Any] = {}

    def record(index: int, layer: Any) -> ResultRecorder:
        layers[index] = layer.prepare()
        return ResultRecorder(results, index, layer)

    # Evaluate the step once on all T * B rows, and record the result of each linear layer.
    step(replace_linear(module, record), *_rows((carries, inputs)))

    def back(carry_gradient: Any, now: Any) -> tuple[Any, Any]:
        carry, inputs, results, gradient = now
        # No layer is evaluated: each answers with its recorded result, and only multiplies gradients by its kernel.
        replay = replace_linear(module, lambda i, _: functools.partial(_recall, layers[i], results.get(i)))
        _, pull = jax.vjp(lambda carry: step(replay, carry, inputs), carry)
        (earlier_gradient,) = pull((carry_gradient, gradient))
        # Emit the gradient of the carry that this step returned: with it, a step can be differentiated on its own.
        return earlier_gradient, carry_gradient

    # Nothing follows the last step, so the gradient of its carry is zero.
    none = jax.tree.map(lambda x: jnp.zeros_like(x[0]), carries)
    each_step = carries, inputs, _steps(results, steps), gradient
    first, carry_gradients = jax.lax.scan(back, none, each_step, reverse=True)
    # Given the gradients of what each step returned, steps no longer depend on each other: one batch of T * B rows.
    _, pull = jax.vjp(lambda module, now: step(module, _rows(carries), now), module, _rows(inputs))
    module_gradient, input_gradient = pull(_rows((carry_gradients, gradient)))
    return module_gradient, first, _steps(input_gradient, steps)


_lean.defvjp(_forward, _backward)


def _rows(tree: Any) -> Any:
    """Arrays ``[T, B, ...]`` as ``[T * B, ...]``."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _steps(tree: Any, steps: int) -> Any:
    """The inverse of `_rows`."""
    return jax.tree.map(lambda x: x.reshape(steps, -1, *x.shape[1:]), tree)


@jax.custom_vjp
def _recall(layer: Any, result: jax.Array, *given: jax.Array) -> jax.Array:
    """``layer(*given)``, of which the ``result`` is at hand; only ``given`` gets a gradient."""
    return result


def _recall_backward(saved: Any, gradient: jax.Array) -> tuple[Any, ...]:
    layer, given = saved
    _, pull = jax.vjp(layer, *given)
    return None, None, *pull(gradient)


_recall.defvjp(lambda layer, result, *given: (result, (layer, given)), _recall_backward)
