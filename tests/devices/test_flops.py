"""Operations of a program, against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import pytest

from dreamer.agent import Agent
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
    agent, batch = Agent(config, OBS_SPACES, ACTION_SPACES), small_batch()

    def gflop(state, config):
        update = agent.algorithm.update
        return flops.program_gflop(lambda s, b, key: update(s, b, key, config), state, batch, jax.random.key(0))

    whole = gflop(agent.state, config)
    assert whole == gflop(jax.eval_shape(lambda: agent.state), config)
    parameters = agent.parameter_count
    assert whole * 1e9 > 6 * parameters * batch.reward.size
    longer = gflop(agent.state, small_config("behavior.horizon=6"))
    assert longer > 1.2 * whole


def test_the_ceiling_is_that_of_a_product():
    assert 1 < flops.matmul_ceiling("float32") < 1e5
