"""Floating-point operations: how many a program has, and how many per second this machine can do."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters import partial_eval

from dreamer.devices import backend


def matmul_ceiling(dtype: str) -> float:
    """GFLOP/s of the product of two large random square matrices; the best of a dozen."""
    size = 2048 if backend.on_cpu() else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    times = []
    for _ in range(12):
        begin = time.perf_counter()
        jax.block_until_ready(product(x, x))
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times) / 1e9


def program_gflop(function: Callable[..., Any], *args: Any) -> float:
    """GFLOP of a function, counted in its program; shapes and dtypes of the arguments are enough."""
    traced = jax.make_jaxpr(function)(*args)
    # Custom gradients compute results that nothing uses; the compiler leaves them out too.
    used, _ = partial_eval.dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return count_flops(used) / 1e9


def count_flops(jaxpr: Any) -> float:
    """Operations of all matrix products and convolutions in a program, two for each multiplication and addition.

    A loop counts as often as it runs; once, if the number of its rounds is not known beforehand.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        params = equation.params
        if name == "dot_general":
            # Each entry of the result is a sum over the contracted axes.
            (contracted, _), _ = params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * equation.outvars[0].aval.size * depth
        elif name == "conv_general_dilated":
            # Each entry of the result is a sum over the kernel of one output channel.
            kernel = equation.invars[1].aval
            outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * equation.outvars[0].aval.size * kernel.size / outputs
        inner = sum(
            count_flops(getattr(x, "jaxpr", x)) for x in jax.tree.leaves(params, is_leaf=_is_jaxpr) if _is_jaxpr(x)
        )
        total += inner * (params["length"] if name == "scan" else 1)
    return total


def _is_jaxpr(x: object) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


__all__ = ["count_flops", "matmul_ceiling", "program_gflop"]
