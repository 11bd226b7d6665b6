"""Layers: linear, block-linear, and multilayer perceptron.

Modules only hold parameters (Flax NNX, built in ``__init__`` and never assigned afterwards). Parameters are float32;
each layer computes in its own explicit ``dtype``. Norms are computed in float32.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dreamer.config import NetsConfig
from dreamer.devices import backend
from dreamer.nn.activations import RMSNorm, activate, as_row, make_norm

INIT_SCALE = 1.1368
"""Makes the truncated normal below have the variance of a normal of standard deviation ``1 / sqrt(fan_in)``."""


def fan_in_init(key: Array, shape: Sequence[int], fan_in: int | float, scale: float = 1.0) -> Float[Array, "*shape"]:
    """Normal of standard deviation ``scale * 1.1368 / sqrt(fan_in)``, truncated at two of them; float32."""
    if scale == 0:
        return jnp.zeros(shape, jnp.float32)
    # Drawn without axes, the same numbers take the compiler half as long: arrays of one size share their loops.
    draw = jax.random.truncated_normal(key, -2, 2, (math.prod(shape),), jnp.float32)
    return draw.reshape(shape) * (scale * INIT_SCALE / math.sqrt(fan_in))


def initial_kernel(key: Array, inputs: int, outputs: int, init: str, scale: float = 1.0) -> Float[Array, "i o"]:
    """The kernel of a linear layer as ``nets.init`` names it, float32.

    ``fan_in``: see `fan_in_init`. ``fan_avg``: the same with the mean of inputs and outputs. ``glorot``: uniform with
    that variance. ``orthogonal``: orthonormal rows or columns.
    """
    if init == "fan_in" or scale == 0:
        return fan_in_init(key, (inputs, outputs), inputs, scale)
    if init == "fan_avg":
        return fan_in_init(key, (inputs, outputs), (inputs + outputs) / 2, scale)
    initializers = jax.nn.initializers
    draw = initializers.orthogonal() if init == "orthogonal" else initializers.glorot_uniform()
    return scale * draw(key, (inputs, outputs), jnp.float32)


class Linear(nnx.Module):
    """``x W + b``.

    Args:
        inputs: size of the last axis of the argument.
        outputs: size of the last axis of the result.
        scale: factor on the initial kernel; 0 makes the initial output exactly 0.
        init: see `initial_kernel`.
        bias: whether there is a ``b``; it is 0 at first.
        dtype: dtype of the computation and of the result.
        rngs: source of the initial kernel.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        scale: float = 1.0,
        init: str = "fan_in",
        bias: bool = True,
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.kernel = nnx.Param(initial_kernel(rngs.params(), inputs, outputs, init, scale))
        self.bias: Any = nnx.Param(jnp.zeros(outputs, jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        """Apply the layer over the last axis."""
        return self.prepare()(x)

    def prepare(self) -> Partial:
        """For loops: the layer as a function, a pytree, in which all that does not depend on its argument is done."""
        kernel = self.kernel[...].astype(self.dtype)
        return Partial(_linear, kernel, None if self.bias is None else self.bias[...])


def _linear(kernel: Array, bias: Array | None, x: Array) -> Array:
    result = matmul(x.astype(kernel.dtype), kernel)
    return result if bias is None else add_bias(result, bias)


def matmul(x: Float[Array, "*batch inputs"], kernel: Float[Array, "inputs outputs"]) -> Float[Array, "*batch outputs"]:
    """``x @ kernel``, with a gradient that is fast on CPUs too."""
    inputs, outputs = kernel.shape
    narrow = backend.on_cpu() and inputs >= 2 * outputs
    return _narrow_matmul(x, kernel) if narrow else x @ kernel


@jax.custom_vjp
def _narrow_matmul(x: Array, kernel: Array) -> Array:
    """``x @ kernel`` for a kernel with few outputs."""
    return x @ kernel


def _narrow_matmul_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = saved
    # The kernel's gradient is x.T @ rows. XLA's CPU backend multiplies with a transposed matrix at less than half its
    # speed, so what is computed is (rows.T @ x).T: the smaller factor is transposed before the product, and the small
    # result after it. Without the barriers, XLA would fuse both transposes with the product again.
    rows = gradient.reshape(-1, kernel.shape[1])
    transposed = jax.lax.optimization_barrier(rows.T) @ x.reshape(-1, kernel.shape[0])
    return gradient @ kernel.T, jax.lax.optimization_barrier(transposed).T


_narrow_matmul.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _narrow_matmul_backward)


class BlockLinear(nnx.Module):
    """Block-diagonal linear layer: G blocks, each with its own kernel over its own slice of the input.

    With ``shared > 0`` every block also reads the same extra input. That is the first layer of the block GRU, whose
    kernel sees ``concat([own slice, shared])``. Here the two parts are multiplied separately: the shared part of all
    blocks is one large matrix product, and no block needs a copy of the shared input next to its slice.

    Args:
        inputs: size of the sliced input, a multiple of ``blocks``.
        outputs: size of the result, a multiple of ``blocks``.
        blocks: number of blocks G.
        shared: size of the input that every block reads, 0 for none.
        dtype: dtype of the computation and of the result.
        rngs: source of the initial kernel.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, *, shared: int = 0, dtype: str, rngs: nnx.Rngs):
        self.blocks = blocks
        self.own = inputs // blocks
        self.shared = shared
        self.dtype = dtype
        shape = (blocks, self.own + shared, outputs // blocks)
        # The official initializer counts the input of all blocks as the fan-in, not that of one.
        self.kernel = nnx.Param(fan_in_init(rngs.params(), shape, blocks * (self.own + shared)))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))

    def __call__(
        self, x: Float[Array, "batch inputs"], shared: Float[Array, "batch shared"] | None = None
    ) -> Float[Array, "batch outputs"]:
        """Apply every block to its slice of ``x`` (and to all of ``shared``); results lie side by side."""
        return self.prepare()(x, *[] if shared is None else [shared])

    def prepare(self) -> Partial:
        """See `Linear.prepare`."""
        kernel = self.kernel[...].astype(self.dtype)
        bias = self.bias[...]
        if not self.shared:
            return Partial(_blocks, kernel, bias)
        # The rows of all blocks that read the shared input, [G, shared, o], side by side as [shared, G * o].
        common = kernel[:, self.own :].transpose(1, 0, 2).reshape(self.shared, -1)
        return Partial(_blocks_with_shared, kernel[:, : self.own], common, bias)


def _blocks(kernel: Array, bias: Array, x: Array) -> Array:
    return block_matmul(x.astype(kernel.dtype), kernel, bias)


def _blocks_with_shared(own: Array, common: Array, bias: Array, x: Array, shared: Array) -> Array:
    return add_bias(block_matmul(x.astype(own.dtype), own) + shared.astype(common.dtype) @ common, bias)


LINEAR = (Linear, BlockLinear)
"""Linear layers over the last axis."""


def replace_linear(modules: Any, stand_in: Callable[[int, Any], Any]) -> Any:
    """A pytree of modules with ``stand_in(index, layer)`` in place of each layer of `LINEAR`."""
    leaves, structure = jax.tree.flatten(modules, is_leaf=lambda x: isinstance(x, LINEAR))
    return jax.tree.unflatten(structure, [stand_in(i, x) if isinstance(x, LINEAR) else x for i, x in enumerate(leaves)])


def prepare(modules: Any) -> Any:
    """Modules for a loop: what their linear layers do with their parameters alone is done, see `Linear.prepare`."""
    return replace_linear(modules, lambda _, layer: layer.prepare())


def block_matmul(
    x: Float[Array, "batch inputs"], kernel: Float[Array, "G k o"], bias: Float[Array, "outputs"] | None = None
) -> Float[Array, "batch outputs"]:
    """``concat_g(x_g W_g + b_g)`` for the G equal slices of the last axis of ``x``."""
    blocks, size, _ = kernel.shape
    if not backend.on_cpu():
        result = jnp.einsum("ngk,gko->ngo", x.reshape(x.shape[0], blocks, size), kernel).reshape(x.shape[0], -1)
        return result if bias is None else add_bias(result, bias)
    # XLA's CPU backend runs a batched product several times slower than the same products one by one.
    parts = [x[:, g * size : (g + 1) * size] @ kernel[g] for g in range(blocks)]
    # Each gets its own part of the bias, so that nothing stands between a product and what reads single blocks, see
    # `map_blocks`.
    if bias is not None:
        parts = [add_bias(part, part_bias) for part, part_bias in zip(parts, jnp.split(bias, blocks), strict=True)]
    return jnp.concatenate(parts, -1)


def map_blocks(function: Callable[..., Array], blocks: int, *xs: Float[Array, "batch _"]) -> Float[Array, "batch size"]:
    """Apply ``function`` to each of the equal slices of the last axis of all ``xs``; results lie side by side.

    ``function`` works along the last axis, over any leading ones.
    """
    if not backend.on_cpu():
        result = function(*(x.reshape(x.shape[0], blocks, -1) for x in xs))
        return result.reshape(result.shape[0], -1)
    # Over an axis of blocks, XLA's CPU backend computes indices for every element and does not vectorise.
    slices = zip(*(jnp.split(x, blocks, -1) for x in xs), strict=True)
    return jnp.concatenate([function(*each) for each in slices], -1)


@jax.checkpoint
def norm_silu(norm: RMSNorm, x: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
    """``silu(norm(x))``, computed again for its gradient: only ``x`` is saved, and not five arrays of its size."""
    return jax.nn.silu(norm(x))


class Layer(nnx.Module):
    """Linear, normalisation, activation: the block from which everything is built. V3's are RMSNorm and SiLU.

    Args:
        inputs: size of the last axis of the argument.
        units: size of the last axis of the result.
        activation: see `dreamer.nn.activations.activate`.
        norm: see `dreamer.nn.activations.make_norm`. Before a layer norm, which has an offset, there is no bias.
        init: see `initial_kernel`.
        dtype: dtype of the computation and of the result.
        rngs: source of the initial kernel.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        *,
        activation: str = "silu",
        norm: str = "rms",
        init: str = "fan_in",
        dtype: str,
        rngs: nnx.Rngs,
    ):
        self.linear = Linear(inputs, units, init=init, bias=norm != "layer", dtype=dtype, rngs=rngs)
        self.norm = make_norm(norm, units)
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch units"]:
        """Apply the three over the last axis."""
        x = self.linear(x)
        if self.activation == "silu" and isinstance(self.norm, RMSNorm):
            return norm_silu(self.norm, x)
        return activate(self.activation)(self.norm(x))


class MLP(nnx.Module):
    """``layers`` times `Layer`; with 0 layers the identity. Further arguments are those of `Layer`."""

    def __init__(self, inputs: int, units: int, layers: int, *, dtype: str, rngs: nnx.Rngs, **style: str):
        sizes = [inputs] + [units] * layers
        self.layers = nnx.List([Layer(sizes[i], units, dtype=dtype, rngs=rngs, **style) for i in range(layers)])
        self.outputs = sizes[-1]

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch units"]:
        """Apply all layers over the last axis."""
        # On a matrix, XLA fuses what follows each product into it; it does not if the result has to be reshaped first.
        batch = x.shape[:-1]
        x = x.reshape(math.prod(batch), x.shape[-1])
        for layer in self.layers:
            x = layer(x)
        return x.reshape(*batch, x.shape[-1])


def hidden_layers(nets: NetsConfig, inputs: int, layers: int, *, units: int = 0, rngs: nnx.Rngs) -> MLP:
    """Hidden layers in the style of the config, of ``nets.units`` units or the number given."""
    style = {"activation": nets.activation, "norm": nets.norm, "init": nets.init}
    return MLP(inputs, units or nets.units, layers, dtype=nets.dtype, rngs=rngs, **style)


def output_layer(nets: NetsConfig, inputs: int, outputs: int, *, scale: float = 1.0, rngs: nnx.Rngs) -> Linear:
    """A linear layer that ends a network, in the style of the config."""
    return Linear(inputs, outputs, scale=scale, init=nets.init, dtype=nets.dtype, rngs=rngs)


def add_bias(x: Float[Array, "*batch size"], bias: Float[Array, "size"]) -> Float[Array, "*batch size"]:
    """``x + bias`` over the last axis, in the dtype of ``x``."""
    return x + as_row(bias, x).astype(x.dtype)
