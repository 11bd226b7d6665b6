"""The loop over a recurrent network: `plain` says what it computes, `scan` computes exactly that, faster.

The backend decides what a loop should do in its steps and what afterwards, on all steps at once: see
`dreamer.nn.late_kernels` (CPUs, measured) and `dreamer.nn.lean_scan` (accelerators, counted but not yet timed). Skip
both unless you work on speed.
"""

from typing import Any, Literal

from flax import nnx

from dreamer.devices import backend
from dreamer.nn import late_kernels, lean_scan
from dreamer.nn.plain_scan import LoopStep, plain

Loops = Literal["auto", "plain"]
"""``nets.loops`` of the config."""


def scan(step: LoopStep, module: nnx.Module, carry: Any, inputs: Any, loops: Loops = "auto") -> Any:
    """Outputs of all steps, exactly those of `plain`, computed in the order that suits the backend.

    Args:
        step: see `LoopStep`; on arrays ``[B, ...]`` whose rows do not depend on one another. May call each layer of
            `dreamer.nn.layers.LINEAR` in ``module`` at most once.
        module: holds the parameters.
        carry: what the first step starts from; any pytree of arrays ``[B, ...]`` of floats.
        inputs: any pytree of arrays ``[T, B, ...]``.
        loops: ``plain`` leaves the loop as it is written.

    Raises:
        ValueError: when differentiated, if ``step`` calls a linear layer twice.
    """
    if loops == "plain":
        return plain(step, module, carry, inputs)
    fast_scan = late_kernels.scan if backend.on_cpu() else lean_scan.scan
    return fast_scan(step, module, carry, inputs)


def reuse_pays(loops: Loops) -> bool:
    """Whether to evaluate a network of a loop again, after the loop, for its gradient; see `dreamer.nn.reuse`."""
    return loops == "auto" and not backend.on_cpu()


__all__ = ["LoopStep", "Loops", "plain", "reuse_pays", "scan"]
