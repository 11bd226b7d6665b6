"""Several networks of one shape side by side, as one module whose parameters have a leading axis of members."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dreamer.devices import backend
from dreamer.nn.activations import activate
from dreamer.nn.layers import Linear

Network = TypeVar("Network")

Activation = Literal["relu", "silu"]


class PlainMLP(nnx.Module):
    """``layers`` times linear and activation, without norms: what SAC, DQN and probabilistic ensembles are made of.

    Args:
        inputs: size of the last axis of the argument.
        units: size of the last axis of the result.
        layers: how many; with 0, it is the identity.
        activation: see `dreamer.nn.activations.activate`.
        dtype: dtype of the computation and of the result.
        rngs: source of the initial kernels.
    """

    def __init__(self, inputs: int, units: int, layers: int, activation: Activation, *, dtype: str, rngs: nnx.Rngs):
        sizes = [inputs] + [units] * layers
        self.layers = nnx.List([Linear(sizes[i], units, dtype=dtype, rngs=rngs) for i in range(layers)])
        self.activation = activation
        self.outputs = sizes[-1]

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch units"]:
        """Apply all layers over the last axis."""
        for layer in self.layers:
            x = activate(self.activation)(layer(x))
        return x


def make_members(make: Callable[[nnx.Rngs], Network], members: int, rngs: nnx.Rngs) -> Network:
    """K modules with different initial parameters, as one whose parameters are ``[K, ...]``."""
    return jax.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), members))


def map_members(function: Callable[..., Any], networks: Any, *arrays: Any) -> Any:
    """``function(network, *arrays)`` of each of K members; results are ``[K, ...]``.

    Args:
        function: of one member, to a pytree. What it closes over, all members share.
        networks: modules whose parameters are ``[K, ...]``.
        arrays: pytrees ``[K, ...]``, a slice for each member.
    """
    if not backend.on_cpu():
        return jax.vmap(function)(networks, *arrays)
    # XLA's CPU backend runs a batched product several times slower than the same products one by one.
    members = len(jax.tree.leaves(networks)[0])
    results = [function(*jax.tree.map(lambda x, k=k: x[k], (networks, *arrays))) for k in range(members)]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *results)


__all__ = ["Activation", "PlainMLP", "make_members", "map_members"]
