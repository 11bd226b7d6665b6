"""The loop over a recurrent network, plainly written; every faster one in this room computes exactly the same."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

LoopStep = Callable[[Any, Any, Any], tuple[Any, Any]]
"""``(module, carry, inputs of one step) -> (carry, outputs)``."""


def plain(step: LoopStep, module: nnx.Module, carry: Any, inputs: Any) -> Any:
    """Outputs of all steps, ``[T, ...]``, of a loop over ``inputs [T, ...]`` that begins with ``carry``."""
    _, outputs = jax.lax.scan(functools.partial(step, module), carry, inputs)
    return outputs


__all__ = ["LoopStep", "plain"]
