"""Hidden activations by name, and the normalisation before them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"silu": jax.nn.silu, "elu": jax.nn.elu, "relu": jax.nn.relu}


def activate(name: str) -> Callable[[Array], Array]:
    """The function that ``nets.activation`` names, element by element."""
    return _ACTIVATIONS[name]


class RMSNorm(nnx.Module):
    """``x / sqrt(mean(x^2) + 1e-4) * scale`` over the last axis, in float32, without offset."""

    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones(size, jnp.float32))

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """Normalise over the last axis, in the dtype of ``x``."""
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + 1e-4)
        return (wide * inverse * as_row(self.scale[...], x)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """``(x - mean(x)) / sqrt(var(x) + 1e-3) * scale + offset`` over the last axis, in float32."""

    def __init__(self, size: int):
        self.scale = nnx.Param(jnp.ones(size, jnp.float32))
        self.offset = nnx.Param(jnp.zeros(size, jnp.float32))

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """Normalise over the last axis, in the dtype of ``x``."""
        wide = x.astype(jnp.float32)
        centred = wide - wide.mean(-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-3)
        return (centred * inverse * as_row(self.scale[...], x) + as_row(self.offset[...], x)).astype(x.dtype)


class NoNorm(nnx.Module):
    """``x`` as it is: no parameters."""

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """Return ``x``."""
        return x


def make_norm(kind: str, size: int) -> Callable[[Array], Array]:
    """The module that ``nets.norm`` names, for a last axis of ``size``."""
    return {"rms": RMSNorm, "layer": LayerNorm, "none": lambda size: NoNorm()}[kind](size)


def as_row(values: Float[Array, "size"], like: Array) -> Array:
    """``values`` with leading axes of size 1 so that its rank equals that of ``like``."""
    return values.reshape((1,) * (like.ndim - 1) + (-1,))


__all__ = ["LayerNorm", "NoNorm", "RMSNorm", "activate", "as_row", "make_norm"]
