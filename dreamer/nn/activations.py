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
        row = (1,) * (x.ndim - 1) + (-1,)
        return (centred * inverse * self.scale[...].reshape(row) + self.offset[...].reshape(row)).astype(x.dtype)


class NoNorm(nnx.Module):
    """``x`` as it is: no parameters."""

    def __call__(self, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """Return ``x``."""
        return x


def make_norm(kind: str, size: int) -> Callable[[Array], Array]:
    """The module that ``nets.norm`` names, for a last axis of ``size``."""
    # Layers are built from this module, so it cannot import theirs first.
    from dreamer.nn.layers import RMSNorm

    return {"rms": RMSNorm, "layer": LayerNorm, "none": lambda size: NoNorm()}[kind](size)


__all__ = ["LayerNorm", "NoNorm", "activate", "make_norm"]
