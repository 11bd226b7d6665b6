"""Packed metrics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.types import Scalars

METRICS = {"loss": jnp.float32(0.1), "guard/bad": jnp.int32(-1), "many": jnp.int32(2**24)}


def test_packed_metrics_are_the_metrics():
    packed = Scalars.of(METRICS)
    assert list(packed) == list(METRICS) and len(packed) == 3
    assert dict(packed) == {name: np.float32(value) for name, value in METRICS.items()}
    assert "loss" in packed and "other" not in packed
    with pytest.raises(KeyError, match="other"):
        packed["other"]


def test_packed_metrics_are_one_array_of_a_program():
    program = jax.jit(lambda x: Scalars.of({name: value * x for name, value in METRICS.items()}))
    packed = program(2)
    assert isinstance(packed, Scalars) and [x.shape for x in jax.tree.leaves(packed)] == [(3,)]
    assert packed["guard/bad"] == -2 and jax.device_get(packed)["loss"] == np.float32(0.2)
    assert float(jax.jit(lambda packed: packed["loss"] + 1)(packed)) == pytest.approx(1.2)
    with pytest.raises(ValueError, match=r"names|metadata|mismatch"):
        jax.tree.map(jnp.add, packed, Scalars(("a", "b", "c"), jnp.zeros(3)))
