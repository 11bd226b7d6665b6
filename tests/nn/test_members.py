"""Networks side by side are the same networks one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer.devices import backend
from dreamer.nn.members import PlainMLP, make_members, map_members


def make(rngs):
    return PlainMLP(3, 5, 2, "relu", dtype="float32", rngs=rngs)


@pytest.fixture
def networks():
    return make_members(make, 4, nnx.Rngs(params=0))


def test_members_have_a_leading_axis_and_differ(networks):
    kernel = networks.layers[0].kernel[...]
    assert kernel.shape == (4, 3, 5)
    assert len({member.tobytes() for member in np.asarray(kernel)}) == 4


@pytest.mark.parametrize("on_cpu", [True, False])
def test_each_member_reads_its_own_rows(networks, on_cpu, monkeypatch):
    monkeypatch.setattr(backend, "on_cpu", lambda: on_cpu)
    x = jax.random.normal(jax.random.key(1), (4, 7, 3))
    found = map_members(lambda network, x: network(x), networks, x)
    for k in range(4):
        hidden = np.asarray(x[k])
        for layer in networks.layers:
            hidden = np.maximum(hidden @ np.asarray(layer.kernel[...][k]) + np.asarray(layer.bias[...][k]), 0)
        np.testing.assert_allclose(found[k], hidden, rtol=1e-4, atol=1e-5)


def test_what_a_function_closes_over_is_shared(networks):
    x = jnp.ones((7, 3))
    assert map_members(lambda network: network(x), networks).shape == (4, 7, 5)


def test_a_network_without_layers_is_the_identity():
    network = PlainMLP(3, 5, 0, "silu", dtype="float32", rngs=nnx.Rngs(params=0))
    assert network.outputs == 3
    np.testing.assert_array_equal(network(jnp.ones((2, 3))), jnp.ones((2, 3)))
