"""The gradient of results that a loop has computed, against that of the network that they came from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer.behaviors import actor_critic
from dreamer.nn import reuse
from dreamer.nn.layers import MLP
from tests.small import small_agent, small_batch, total_loss

H, N, F = 3, 4, 6


def network(mlp, x):
    y = mlp(x)
    return {"both": (y, jnp.tanh(y[..., 0]))}


def gradients(result, mlp, x):
    def loss(mlp, x):
        y, z = result(mlp, x)["both"]
        return (y**2).sum() + (z[1:] ** 3).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1)))(mlp, x)


def test_reused_results_have_the_gradient_of_their_network(rng):
    mlp = MLP(F, 5, 2, dtype="float32", rngs=nnx.Rngs(params=0))
    x = jnp.asarray(rng.normal(size=(H, N, F)), jnp.float32)
    before = network(mlp, x)
    ours, (gradient, none) = gradients(lambda mlp, x: reuse.reuse(network, mlp, x, before), mlp, x)
    plain, (expected, _) = gradients(lambda mlp, x: reuse.plain(network, mlp, x, network(mlp, x)), mlp, x)
    np.testing.assert_allclose(ours, plain, rtol=1e-6)
    assert not none.any()
    for a, b in zip(*map(jax.tree.leaves, (gradient, expected)), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


def test_the_forward_pass_takes_what_is_known(rng):
    mlp = MLP(F, 5, 2, dtype="float32", rngs=nnx.Rngs(params=0))
    x = jnp.asarray(rng.normal(size=(H, N, F)), jnp.float32)
    marked = jax.tree.map(lambda y: y + 100, network(mlp, x))
    np.testing.assert_array_equal(reuse.reuse(network, mlp, x, marked)["both"][0], marked["both"][0])
    assert "dot_general" not in str(jax.make_jaxpr(lambda x: reuse.reuse(network, mlp, x, marked))(x))


@pytest.mark.parametrize(("cpu", "expected"), [(False, 1), (True, 2)])
def test_imagination_has_no_loop_backwards(cpu, expected, monkeypatch):
    """Nothing passes from step to step backwards, so that the gradient of all steps is one batch."""
    monkeypatch.setattr(actor_critic, "reuse_pays", lambda loops: not cpu)
    agent, batch = small_agent(), small_batch()
    state, horizon = agent.state, agent.config.behavior.horizon

    def loss(nets):
        return total_loss(agent)(nets, state.memory, batch, jax.random.key(0), agent.config)[0]

    def loops(function):
        equations = jax.make_jaxpr(function)(state.nets).eqns
        scans = [e.params for e in equations if e.primitive.name == "scan" and e.params["length"] == horizon]
        return sum("dot_general" in str(params["jaxpr"]) for params in scans)

    assert loops(loss) == 1
    assert loops(jax.grad(loss)) == expected
