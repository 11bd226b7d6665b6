"""Two uses of one array: what the second one's gradient is multiplied by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.nn.fork import LOUDEST, fork


def gradients(first, second, power):
    """Of ``first . a + second . b`` by x, where ``a, b = fork(x)``; and by the power."""

    def total(x, power):
        a, b = fork({"one": x[:2], "two": x[2:]}, power)
        a, b = (jnp.concatenate([y["one"], y["two"]]) for y in (a, b))
        return a @ first + b @ second

    return jax.jit(jax.grad(total, argnums=(0, 1)))(jnp.ones(4), jnp.float32(power))


LOUD = np.array([3, 0, 0, 4], np.float32)
FAINT = np.array([0, 0.03, 0.04, 0], np.float32)


def test_both_copies_are_what_was_given(rng):
    x = rng.normal(size=(3, 2)).astype(np.float32)
    for copy in fork((x,), 2.0):
        np.testing.assert_array_equal(copy[0], x)


@pytest.mark.parametrize(("power", "factor"), [(0, 1), (0.5, 5), (1, 25), (2, 625), (3, LOUDEST)])
def test_the_faint_gradient_is_multiplied_by_hand(power, factor):
    by_x, by_power = gradients(LOUD, FAINT, power)
    np.testing.assert_allclose(by_x, LOUD + factor * FAINT, rtol=1e-5)
    assert by_power == 0


@pytest.mark.parametrize("times", [0.01, 1, 3.9])
def test_a_gradient_that_is_not_faint_is_left_alone(times):
    loud = times * np.flip(LOUD)
    np.testing.assert_array_equal(gradients(loud, LOUD, 2)[0], loud + LOUD)


@pytest.mark.parametrize("power", [0.0, 2.0, 3.0])
def test_no_gradient_is_none_whatever_it_is_multiplied_by(power):
    np.testing.assert_array_equal(gradients(LOUD, 0 * FAINT, power)[0], LOUD)
    np.testing.assert_array_equal(gradients(0 * LOUD, FAINT, power)[0], FAINT)
    np.testing.assert_array_equal(gradients(0 * LOUD, 0 * FAINT, power)[0], 0 * LOUD)
