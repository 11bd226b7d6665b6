"""Operations of a program, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from dreamer import algorithms
from dreamer.devices import flops
from tests.small import ACTION_SPACES, OBS_SPACES, small_batch, small_config


def counted(function, *shapes):
    return flops.count_flops(jax.make_jaxpr(function)(*[jnp.zeros(shape) for shape in shapes]).jaxpr)


def test_products_and_convolutions_are_counted():
    assert counted(lambda a, b: a @ b, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert counted(lambda a, b: jnp.einsum("bik,bkj->bij", a, b), (2, 3, 5), (2, 5, 7)) == 2 * 2 * 3 * 5 * 7

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert counted(convolve, (2, 8, 8, 3), (5, 5, 3, 4)) == 2 * (2 * 8 * 8 * 4) * (5 * 5 * 3)
    assert counted(lambda a: jnp.tanh(a) + 1, (3, 5)) == 0


def test_loops_count_as_often_as_they_run():
    def scanned(a, b):
        return jax.lax.scan(lambda x, _: (jax.jit(jnp.matmul)(x, b), None), a, length=6)[0]

    assert counted(scanned, (3, 5), (5, 5)) == 6 * 2 * 3 * 5 * 5


@pytest.mark.slow
def test_an_update_has_three_times_the_operations_of_its_losses():
    """Forwards once, backwards twice, apart from the model in imagination and what takes no gradient."""
    config = small_config()
    algorithm, batch = algorithms.make(config, OBS_SPACES, ACTION_SPACES), small_batch()
    shapes = jax.eval_shape(algorithm.init, jax.random.key(0))

    def gflop(state, config):
        update = algorithm.update
        return flops.program_gflop(lambda s, b, key: update(s, b, key, config), state, batch, jax.random.key(0))

    whole = gflop(shapes, config)
    assert whole == gflop(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), config)
    parameters = sum(x.size for x in jax.tree.leaves(shapes.nets))
    assert whole * 1e9 > 6 * parameters * batch.reward.size
    # Each further step of imagination costs the same.
    longer, longest = (gflop(shapes, small_config(f"behavior.horizon={steps}")) for steps in (6, 9))
    assert longer - whole == pytest.approx(longest - longer, rel=1e-9)
    assert longer > 1.2 * whole


def test_a_gradient_counts_the_products_that_it_needs():
    """Two layers: forwards two products; backwards one for each kernel, and one for what is between them."""

    def loss(kernels, x):
        return jnp.tanh(jnp.tanh(x @ kernels[0]) @ kernels[1]).sum()

    kernels, x = (jnp.zeros((5, 7)), jnp.zeros((7, 2))), jnp.zeros((3, 5))
    first, second = 2 * 3 * 5 * 7, 2 * 3 * 7 * 2
    found = flops.program_gflop(jax.value_and_grad(loss), kernels, x) * 1e9
    assert found == pytest.approx(2 * first + 3 * second, rel=1e-9)


def test_the_ceiling_is_that_of_the_fastest_product(monkeypatch):
    """A dozen products that take 5, 4, 3, 2, 1, 2, 3, ... seconds by this clock."""
    seconds = [5, 4, 3, 2, 1, *range(2, 9)]
    clock = iter([time for begin, length in enumerate(seconds) for time in (100 * begin, 100 * begin + length)])
    monkeypatch.setattr(flops.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(flops.jax, "jit", lambda function: lambda a, b: a)
    assert flops.matmul_ceiling("float32") == pytest.approx(2 * 2048**3 / 1e9)
    assert next(clock, None) is None
