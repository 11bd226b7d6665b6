"""The loop over a recurrent network as it is written; what every faster one in this room computes exactly."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

Step = Callable[[Any, Any, Any], tuple[Any, Any]]
"""``(module, carry, inputs of one step) -> (carry, outputs)``."""


def plain(step: Step, module: nnx.Module, carry: Any, inputs: Any) -> Any:
    """Outputs of all steps, ``[T, ...]``, of a loop over ``inputs [T, ...]`` that begins with ``carry``."""
    return jax.lax.scan(functools.partial(step, module), carry, inputs)[1]


__all__ = ["Step", "plain"]
