"""What several members say together, worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.equations.targets import conservative

# Five members (down), two states (across).
VALUES = jnp.array([[3.0, 10.0], [1.0, 10.0], [2.0, 10.0], [9.0, 10.0], [5.0, 10.0]])


@pytest.mark.parametrize(
    ("kind", "quantile", "beta", "expected"),
    [
        ("mean", 0.5, 1.0, [4.0, 10.0]),
        ("min", 0.5, 1.0, [1.0, 10.0]),
        # In order: 1, 2, 3, 5, 9. A quarter of the way is the second, a tenth 0.4 of the way from the first to it.
        ("quantile", 0.25, 1.0, [2.0, 10.0]),
        ("quantile", 0.1, 1.0, [1.4, 10.0]),
        ("quantile", 0.0, 1.0, [1.0, 10.0]),
        ("quantile", 0.5, 1.0, [3.0, 10.0]),
        # Squared deviations from 4 are 1, 9, 4, 25, 1: a variance of 8.
        ("lcb", 0.5, 1.0, [4 - 8**0.5, 10.0]),
        ("lcb", 0.5, 0.5, [4 - 0.5 * 8**0.5, 10.0]),
        ("lcb", 0.5, 0.0, [4.0, 10.0]),
    ],
)
def test_one_value_of_five(kind, quantile, beta, expected):
    value = conservative(VALUES, kind, quantile, beta)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "min", "quantile", "lcb"])
def test_one_member_is_believed(kind):
    np.testing.assert_allclose(conservative(VALUES[:1], kind, 0.1, 2.0), VALUES[0], rtol=1e-5)


@pytest.mark.parametrize("kind", ["mean", "min", "quantile", "lcb"])
def test_members_that_agree_have_a_finite_gradient(kind):
    gradient = jax.grad(lambda values: conservative(values, kind, 0.25, 1.0).sum())(jnp.ones((5, 2)))
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient.sum(0), 1.0, rtol=1e-5)


def test_the_bound_is_the_quantile_of_many_normal_values():
    values = jax.random.normal(jax.random.key(0), (100_000, 1))
    # Of a normal variable, 10 % are more than 1.2816 standard deviations below the mean.
    low = conservative(values, "quantile", 0.1, 0.0)
    bound = conservative(values, "lcb", 0.0, 1.2816)
    np.testing.assert_allclose(low, bound, atol=0.02)
