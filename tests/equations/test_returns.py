"""Lambda-returns, survival weights and the return scale, by hand and against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dreamer.equations import returns
from dreamer.equations.returns import ReturnRange
from tests.golden_values import load


@pytest.fixture(params=["cpu", "gpu"])
def _backend(request, monkeypatch):
    """As on a CPU, step by step, and as on an accelerator, in rounds."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)


either = pytest.mark.usefixtures("_backend")


def numpy_lambda_return(reward, discount, lambda_, value):
    """The recursion, written backwards step by step in float64."""
    result, following = [], np.asarray(value[-1], np.float64)
    for t in range(len(reward) - 2, -1, -1):
        mixed = (1 - lambda_[t + 1]) * value[t + 1] + lambda_[t + 1] * following
        following = reward[t + 1] + discount[t + 1] * mixed
        result.append(following)
    return np.array(result[::-1])


@either
def test_by_hand():
    reward = jnp.array([9.0, 1.0, 2.0])  # The first is never used.
    value = jnp.array([9.0, 10.0, 20.0])
    # R1 = 2 + 0.5 * 20 = 12;  R0 = 1 + 0.5 (0.75 * 10 + 0.25 * 12) = 6.25
    ours = returns.lambda_return(reward, jnp.array([9.0, 0.5, 0.5]), 0.25, value)
    np.testing.assert_allclose(ours, [6.25, 12.0])


@either
def test_against_float64(rng):
    reward, value = rng.normal(size=(2, 12, 5))
    discount, lambda_ = rng.uniform(size=(2, 12, 5))
    ours = jax.jit(lambda *xs: returns.lambda_return(*xs))(
        *(jnp.asarray(x, jnp.float32) for x in (reward, discount, lambda_, value))
    )
    np.testing.assert_allclose(ours, numpy_lambda_return(reward, discount, lambda_, value), rtol=2e-5, atol=1e-5)


@either
def test_lambda_0_is_temporal_difference_and_1_is_monte_carlo(rng):
    reward, discount, value = (jnp.asarray(x, jnp.float32) for x in rng.uniform(size=(3, 6)))
    one_step = returns.lambda_return(reward, discount, 0.0, value)
    np.testing.assert_allclose(one_step, reward[1:] + discount[1:] * value[1:], rtol=1e-6)
    total, weight = jnp.zeros(()), jnp.ones(())
    for t in range(1, 6):
        total, weight = total + weight * reward[t], weight * discount[t]
    monte_carlo = returns.lambda_return(reward, discount, 1.0, value)
    np.testing.assert_allclose(monte_carlo[0], total + weight * value[5], rtol=1e-5)


@either
def test_nothing_flows_past_a_terminal_state():
    reward, value = jnp.array([0.0, 1.0, 5.0, 7.0]), jnp.full(4, 100.0)
    ours = returns.lambda_return(reward, jnp.array([1.0, 0.0, 1.0, 1.0]), 0.95, value)
    np.testing.assert_allclose(ours[0], 1.0)


@either
def test_a_truncated_episode_bootstraps_at_its_last_state():
    reward, value = jnp.array([0.0, 1.0, 5.0]), jnp.array([0.0, 10.0, 1000.0])
    mixing = jnp.array([0.95, 0.0, 0.95])  # State 1 is the last of its episode: the future belongs to another.
    ours = returns.lambda_return(reward, jnp.array([1.0, 0.9, 0.9]), mixing, value)
    np.testing.assert_allclose(ours[0], 1 + 0.9 * 10)


@either
def test_gradient(rng):
    args = tuple(jnp.asarray(x, jnp.float32) for x in rng.uniform(0.2, 0.9, size=(4, 5)))
    check_grads(
        lambda *xs: returns.lambda_return(*map(jnp.asarray, xs)), args, order=1, modes=["rev"], atol=1e-2, rtol=1e-2
    )


def test_survival_weights_by_hand():
    cont = jnp.array([0.5, 1.0, 0.25])
    np.testing.assert_allclose(returns.survival_weights(cont, 1.0), [0.5, 0.5, 0.125])
    np.testing.assert_allclose(returns.survival_weights(cont, 0.9), [0.5, 0.45, 0.10125], rtol=1e-6)


def test_return_range_moves_towards_the_percentiles(rng):
    values = rng.normal(size=(15, 40)).astype(np.float32)
    low, high = np.percentile(values.astype(np.float64), [5, 95])
    span = returns.update_return_range(ReturnRange(jnp.float32(-1), jnp.float32(1)), jnp.asarray(values), 0.01)
    np.testing.assert_allclose(span.low, -1 + 0.01 * (low + 1), rtol=1e-5)
    np.testing.assert_allclose(span.high, 1 + 0.01 * (high - 1), rtol=1e-5)


@pytest.mark.parametrize(("low", "high", "expected"), [(0.0, 0.0, 1.0), (-0.2, 0.3, 1.0), (-5.0, 15.0, 20.0)])
def test_small_returns_are_never_scaled_up(low, high, expected):
    assert float(returns.return_scale(ReturnRange(jnp.float32(low), jnp.float32(high)), 1.0)) == expected


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_n_step_returns_are_the_published_ones(steps):
    data = load("muzero")
    # There, index i belongs to what follows state i; here, to the state that was arrived in.
    reward, discount, value = (
        jnp.asarray(np.insert(data[f"n_step/{name}"], 0, np.nan if name == "value" else 0))
        for name in ("reward", "discount", "value")
    )
    found = returns.n_step_return(reward, discount, jnp.zeros(13, bool), value, steps)
    np.testing.assert_allclose(found[:-1], data[f"n_step/target_n{steps}"], rtol=2e-6)


def test_n_step_returns_end_with_their_episode():
    # | t                   | 0                       | 1           | 2 (cut) | 3 (reset)   | 4 (end) |
    # | reward, value       | -, 1                    | 1, 2        | 2, 10   | 0, 5        | 4, 7    |
    # | two steps, half off | 1 + (2 + 10 / 2) / 2    | 2 + 10 / 2  | 10      | 4 + 0       | 7       |
    found = returns.n_step_return(
        reward=jnp.array([0.0, 1.0, 2.0, 0.0, 4.0]),
        discount=jnp.array([0.5, 0.5, 0.5, 0.5, 0.0]),
        is_last=jnp.array([False, False, True, False, True]),
        value=jnp.array([1.0, 2.0, 10.0, 5.0, 7.0]),
        steps=2,
    )
    np.testing.assert_array_equal(found, [4.5, 7, 10, 4, 7])
