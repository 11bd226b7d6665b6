"""Which kind of machine computes. No other file asks JAX for it."""

import jax


def on_cpu() -> bool:
    """Whether programs run on CPUs; otherwise they run on accelerators, where launching an operation costs more."""
    return jax.default_backend() == "cpu"


__all__ = ["on_cpu"]
