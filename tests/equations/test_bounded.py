"""Distributions of bounded actions against the numbers of the released code of V1 and V2, and against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dreamer.equations.bounded import TanhNormal, TruncatedNormal, tanh_normal, truncated_normal
from tests.family_golden import load


def close(ours, theirs, tolerance=1e-5):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def of_raw(function, *raw):
    """A function of the distribution, summed, with its gradient by the raw outputs."""
    return jax.grad(lambda mean, std: function(truncated_normal(mean, std, 0.1, 1)).sum(), argnums=(0, 1))(*raw)


def test_a_truncated_normal_is_that_of_v2():
    data = {key.removeprefix("trunc_normal/"): value for key, value in load("v2_pieces").items()}
    raw = jnp.asarray(data["raw_mean"]), jnp.asarray(data["raw_std"])
    found = truncated_normal(*raw, 0.1, 1)
    share = jnp.full(raw[0].shape, 0.37)
    draw = lambda d: d.distribution.transform(share)  # noqa: E731
    close(draw(found), data["sample"])
    close(found.entropy(), data["entropy"])
    close(found.log_prob(draw(found)), data["log_prob"])
    close(found.mode(), data["mode"])
    functions = {
        "grad_sample": draw,
        "grad_entropy": lambda d: d.entropy(),
        "grad_log_prob_fixed_action": lambda d: d.log_prob(jnp.asarray(data["sample"])),
        "grad_log_prob_through_action": lambda d: d.log_prob(draw(d)),
    }
    for name, function in functions.items():
        for ours, part in zip(of_raw(function, *raw), ("raw_mean", "raw_std"), strict=True):
            close(ours, data[f"{name}/{part}"], 2e-5)


def test_a_squashed_normal_is_that_of_v1():
    data = {key.removeprefix("tanh_normal/"): value for key, value in load("v1_pieces").items()}
    made = lambda raw: tanh_normal(raw[:, :2], raw[:, 2:], 1)  # noqa: E731
    draw = lambda raw: made(raw).distribution.transform(0.5 * jnp.ones((8, 2)))  # noqa: E731
    raw = jnp.asarray(data["raw"])
    found = made(raw)
    close(found.distribution.loc, data["mean"])
    close(found.distribution.scale, data["std"])
    close(draw(raw), data["sample"])
    close(jax.grad(lambda raw: draw(raw).sum())(raw), data["grad_sample"])
    close(found.log_prob(jnp.asarray(data["action"])), data["log_prob"], 1e-4)


@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.5), (-0.9, 0.1), (0.0, 2.0)])
def test_a_truncated_normal_is_scipys(mean, std):
    twin = scipy.stats.truncnorm((-1 - mean) / std, (1 - mean) / std, mean, std)
    found = TruncatedNormal(jnp.float32(mean), jnp.float32(std))
    for value in (-0.7, 0.2, 0.95):
        np.testing.assert_allclose(found.log_prob(jnp.float32(value)), twin.logpdf(value), rtol=2e-4)
    np.testing.assert_allclose(found.entropy(), twin.entropy(), rtol=2e-4, atol=1e-5)
    draws = found.sample(seed=jax.random.key(0), sample_shape=(20_000,))
    assert abs(np.asarray(draws)).max() < 1
    assert scipy.stats.kstest(np.asarray(draws), twin.cdf).pvalue > 0.01


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.3), (1.0, 1.0), (-4.0, 5.0)])
def test_the_entropy_of_a_squashed_normal_is_the_mean_of_minus_its_log_probability(mean, std):
    found = TanhNormal(jnp.float32(mean), jnp.float32(std))
    noise = jax.random.normal(jax.random.key(0), (200_000,))
    # Where tanh rounds to 1, the density of a draw is out of reach; the formula is not.
    before = np.asarray(mean + std * noise, np.float64)
    slope = 2 * (np.log(2) - before - np.logaddexp(0, -2 * before))
    expected = scipy.stats.norm(0, std).entropy() + slope.mean()
    np.testing.assert_allclose(found.entropy(), expected, atol=0.03)
