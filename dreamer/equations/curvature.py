"""How sharply the path of a state bends from step to step."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

STANDSTILL = 1e-6
"""A step shorter than this has no direction."""


def curvature(x: Float[Array, "B T D"], is_first: Bool[Array, "B T"]) -> Float32[Array, "B T"]:
    """``1 - cos(x[t-1] - x[t-2], x[t] - x[t-1])``: 0 on a straight line, 1 at a right angle, 2 where a path turns back.

    It is 0, and has no gradient, in the first two steps of a sequence and of an episode, and where one of the two steps
    is shorter than `STANDSTILL`. As only directions count, nothing is gained by making all steps shorter; but a state
    that never changes has no curvature, so another loss has to see to it that the state says something.

    Args:
        x: states of B sequences of T steps.
        is_first: steps at which an episode begins.

    Source: Wang et al. 2026, "Temporal straightening for latent planning", where x are embeddings.
    """
    x = x.astype(jnp.float32)
    velocity = jnp.diff(x, axis=1)
    squares = jnp.square(velocity).sum(-1)
    # The step into a reset leads from one episode to another.
    moves = (squares >= STANDSTILL**2) & ~is_first[:, 1:]
    both = moves[:, :-1] & moves[:, 1:]
    # Where the norm does not count it is 1, because the gradient of a root is infinite at 0.
    norm = jnp.sqrt(jnp.where(moves, squares, 1))
    cosine = (velocity[:, :-1] * velocity[:, 1:]).sum(-1) / (norm[:, :-1] * norm[:, 1:])
    bends = jnp.where(both, 1 - cosine, 0)
    return jnp.pad(bends, ((0, 0), (x.shape[1] - bends.shape[1], 0)))


__all__ = ["STANDSTILL", "curvature"]
