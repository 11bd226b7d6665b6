"""Recurrent cores of other years: one dense GRU, which reads sample and action through one layer.

::

    x        = act(norm(W [stoch[t-1], action[t-1]]))
    deter[t] = cell(x, deter[t-1])

``rssm.cell`` names the cell; see `GRUCell`. Source: the official code of PlaNet, Dreamer V1 and V2, and V3 of 2023.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dreamer.config import Config
from dreamer.nn.activations import LayerNorm
from dreamer.nn.layers import Layer, Linear
from dreamer.nn.vectors import within_bounds
from dreamer.world_models.gaussian_rssm import GaussianRSSM
from dreamer.world_models.rssm import RSSM, gate


class GRUCell(nnx.Module):
    """A gated recurrent unit, in one of three forms.

    ``norm_gru`` (Dreamer V2, and V3 of 2023): ``r, c, u = split(LayerNorm(W [x, h]))`` and `gate`.
    ``gru`` (V1, as in Keras): the reset gate acts after the product. ``u, r, c = split(W x + b)``, the same of
    ``U h + d``, and ``h' = u h + (1 - u) tanh(c_x + r c_h)``, where u and r are sigmoids of the sums.
    ``early_reset_gru`` (PlaNet): it acts before. ``r, u = sigmoid(split(W [x, h] + b))``, b 1 at first, and
    ``h' = u h + (1 - u) tanh(V [x, r h] + d)``.

    Args:
        kind: the form.
        inputs: size of x.
        units: size D of the state h.
        bias: whether the product before the layer norm has a bias; the other forms always have.
        init: see `dreamer.nn.layers.initial_kernel`; recurrent kernels of ``gru`` are orthogonal, as in Keras.
        dtype: dtype of the computation and of the result.
        rngs: source of initial parameters.
    """

    def __init__(self, kind: str, inputs: int, units: int, *, bias: bool, init: str, dtype: str, rngs: nnx.Rngs):
        self.kind = kind
        if kind == "norm_gru":
            self.gates = Linear(inputs + units, 3 * units, init=init, bias=bias, dtype=dtype, rngs=rngs)
            self.norm = LayerNorm(3 * units)
        elif kind == "gru":
            self.from_input = Linear(inputs, 3 * units, init=init, dtype=dtype, rngs=rngs)
            self.from_state = Linear(units, 3 * units, init="orthogonal", dtype=dtype, rngs=rngs)
        else:
            self.gates = Linear(inputs + units, 2 * units, init=init, dtype=dtype, rngs=rngs)
            self.gates.bias[...] = jnp.ones(2 * units)
            self.candidate = Linear(inputs + units, units, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch inputs"], state: Float[Array, "batch D"]) -> Float[Array, "batch D"]:
        """The next state."""
        if self.kind == "norm_gru":
            return gate(state, self.norm(self.gates(jnp.concatenate([x, state], -1))))
        if self.kind == "gru":
            update_x, reset_x, candidate_x = jnp.split(self.from_input(x), 3, -1)
            update_h, reset_h, candidate_h = jnp.split(self.from_state(state), 3, -1)
            reset = jax.nn.sigmoid(reset_x + reset_h)
            update = jax.nn.sigmoid(update_x + update_h)
            candidate = jnp.tanh(candidate_x + reset * candidate_h)
        else:
            reset, update = jnp.split(jax.nn.sigmoid(self.gates(jnp.concatenate([x, state], -1))), 2, -1)
            candidate = jnp.tanh(self.candidate(jnp.concatenate([x, reset * state], -1)))
        return update * state + (1 - update) * candidate


class GRURSSM(RSSM):
    """Dense GRU with categorical latents; ``rssm.blocks`` and ``rssm.longest_memory`` mean nothing here."""

    def _make_recurrence(self, config: Config, actions: int, rngs: nnx.Rngs) -> None:
        sizes = config.rssm
        nets = config.nets
        style = {"activation": nets.activation, "norm": nets.norm, "init": nets.init, "dtype": nets.dtype}
        self.input = Layer(self.sample_size + actions, sizes.hidden, rngs=rngs, **style)
        self.cell = GRUCell(
            sizes.cell,
            sizes.hidden,
            sizes.deter,
            bias=nets.norm != "layer",
            init=nets.init,
            dtype=nets.dtype,
            rngs=rngs,
        )

    def recurrence(self, latent: Any, action: Float[Array, "batch A"]) -> Float[Array, "batch D"]:
        """See `RSSM.recurrence`, and the equations above."""
        deter, stoch = self.parts(latent)
        return self.cell(self.input(jnp.concatenate([stoch, within_bounds(action)], -1)), deter)


class GaussianGRURSSM(GRURSSM, GaussianRSSM):
    """Dense GRU with Gaussian latents."""


__all__ = ["GRURSSM", "GRUCell", "GaussianGRURSSM"]
