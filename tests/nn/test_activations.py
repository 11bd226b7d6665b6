"""Activations and norms by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.nn.activations import LayerNorm, activate, make_norm
from dreamer.nn.layers import RMSNorm


@pytest.mark.parametrize(("name", "expected"), [("silu", -1 / (1 + np.e)), ("elu", np.exp(-1.0) - 1), ("relu", 0.0)])
def test_activations_of_minus_one(name, expected):
    np.testing.assert_allclose(activate(name)(jnp.array(-1.0)), expected, rtol=1e-6)


def test_layer_norm_by_hand():
    norm = LayerNorm(2)
    norm.scale[...] = jnp.array([2.0, 3.0])
    norm.offset[...] = jnp.array([0.5, 1.0])
    # The mean of 3 and 7 is 5, their variance 4.
    unit = 2 / np.sqrt(4.001)
    np.testing.assert_allclose(norm(jnp.array([[3.0, 7.0]])), [[0.5 - 2 * unit, 1 + 3 * unit]], rtol=1e-6)


def test_layer_norm_is_computed_in_float32():
    x = jnp.tile(jnp.array([300.0, 304.0], jnp.bfloat16), 2048)[None]
    out = LayerNorm(4096)(x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(jnp.abs(out.astype(jnp.float32)), 1, rtol=1e-2)


def test_norms_by_name():
    x = jnp.array([[3.0, 4.0]])
    assert isinstance(make_norm("rms", 2), RMSNorm)
    assert isinstance(make_norm("layer", 2), LayerNorm)
    none = make_norm("none", 2)
    assert none(x) is x
    assert jax.tree.leaves(none) == []
