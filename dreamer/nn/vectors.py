"""Observations and actions as one vector of numbers, and back."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from dreamer.config import ConfigError
from dreamer.types import Action, Spaces


def flatten(
    values: Mapping[str, Array | np.ndarray], spaces: Spaces, dtype: str = "float32"
) -> Float[Array, "*batch V"]:
    """One vector of all keys, in their order: numbers as they are, classes one-hot; class -1 is all zeros.

    Its size is `vector_size`.

    Args:
        values: ``[*batch, ...]`` by key. Classes may be given as one-hot vectors of floats, which pass gradients on.
        spaces: which keys, in which order; no images.
        dtype: of the vector.
    """
    parts = []
    for key, space in spaces.items():
        value = jnp.asarray(values[key])
        onehot = space.kind == "discrete" and jnp.issubdtype(value.dtype, jnp.floating)
        batch = value.shape[: value.ndim - len(space.shape) - onehot]
        if space.kind == "discrete" and not onehot:
            value = jax.nn.one_hot(value, space.classes, dtype=dtype)
        parts.append(value.reshape(*batch, -1).astype(dtype))
    return jnp.concatenate(parts, -1)


def vector_size(spaces: Spaces) -> int:
    """Size V of the vector that `flatten` makes of all keys."""
    return sum(max(1, space.classes) * math.prod(space.shape) for space in spaces.values())


def within_bounds(action: Float[Array, "*batch A"]) -> Float[Array, "*batch A"]:
    """``a / max(1, |a|)``: actions beyond [-1, 1] are possible, since the environment clips and not the policy."""
    return action / jax.lax.stop_gradient(jnp.maximum(1, jnp.abs(action)))


def unflatten(vector: Float32[Array, "*batch V"], spaces: Spaces) -> Action:
    """Inverse of `flatten` for spaces of numbers."""
    sizes = [math.prod(space.shape) for space in spaces.values()]
    parts = jnp.split(vector, np.cumsum(sizes)[:-1], -1)
    return {
        key: part.reshape(*vector.shape[:-1], *space.shape)
        for (key, space), part in zip(spaces.items(), parts, strict=True)
    }


def refuse_images(spaces: Spaces, key: str) -> None:
    """Raise `ConfigError` if observations do not fit into one vector.

    Args:
        spaces: of observations.
        key: the config key and value that ask for vectors, such as ``algorithm=sac``.
    """
    large = sorted(name for name, space in spaces.items() if space.kind == "image" or space.is_grid)
    if large:
        raise ConfigError(
            f"{key} cannot be used: it reads vectors and classes, and the observations {', '.join(large)} are images "
            "or large grids. Use algorithm=dreamer, whose world model encodes them, or leave them out with env.ignore."
        )


__all__ = ["flatten", "refuse_images", "unflatten", "vector_size", "within_bounds"]
