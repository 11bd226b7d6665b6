"""Distributions of numbers: means, log-probabilities and gradients, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dreamer.equations.numbers import KINDS, HyperbolicTwoHot, SymlogTwoHot, UnitNormal
from dreamer.equations.transforms import symexp, symlog
from tests.golden_values import load


def test_a_unit_normal_is_scipys():
    found = UnitNormal(jnp.array([[0.5], [-2.0]]))
    np.testing.assert_array_equal(found.mean(), [0.5, -2.0])
    value = np.array([1.0, 0.0], np.float32)
    np.testing.assert_allclose(
        found.log_prob(jnp.asarray(value)), scipy.stats.norm([0.5, -2.0]).logpdf(value), rtol=1e-6
    )


@pytest.mark.parametrize("value", [0.0, 1.0, -3.7, 250.0, 1e9])
def test_bins_of_the_symlog(value):
    """Logits of the two-hot weights of a number have its symlog as their mean."""
    spacing = 40 / 254
    place = min((float(symlog(jnp.float32(value))) + 20) / spacing, 254)
    below = min(int(place), 253)
    weights = np.full(255, 1e-12)
    weights[below], weights[below + 1] = 1 - (place - below) + 1e-12, place - below + 1e-12
    found = SymlogTwoHot(jnp.log(jnp.asarray(weights, jnp.float32)))
    expected = float(symexp(jnp.float32(min(place * spacing - 20, 20))))
    np.testing.assert_allclose(found.mean(), expected, rtol=1e-4, atol=1e-5)
    entropy = -sum(w * np.log(w) for w in weights[below : below + 2])
    np.testing.assert_allclose(found.log_prob(jnp.float32(value)), -entropy, atol=1e-4)


def test_bins_of_muzero_are_the_published_ones():
    data = load("muzero")
    np.testing.assert_allclose(
        HyperbolicTwoHot(jnp.asarray(data["transform/logits"])).mean(), data["transform/scalar_from_logits"], rtol=1e-4
    )
    # The log-probability of a number is linear in the logits: with one logit at 0, it reads one weight.
    logits = jnp.log(jnp.eye(41) * (1 - 1e-6) + 1e-6)
    for value, two_hot in zip(data["transform/x"], data["transform/two_hot"], strict=True):
        found = HyperbolicTwoHot(logits).log_prob(jnp.full(41, value))
        expected = (np.asarray(jax.nn.log_softmax(logits)) * two_hot[None]).sum(-1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_begins_with_zero_and_gives_no_gradient_to_targets(kind):
    outputs = jnp.zeros((3, KINDS[kind].outputs(41)))
    distribution = KINDS[kind].distribution
    np.testing.assert_array_equal(distribution(outputs).mean(), [0, 0, 0])
    target = jnp.array([1.0, -2.0, 30.0])
    by_target = jax.grad(lambda target: distribution(outputs).log_prob(target).sum())(target)
    np.testing.assert_array_equal(by_target, [0, 0, 0])
    by_outputs = jax.grad(lambda outputs: distribution(outputs).log_prob(target).sum())(outputs)
    assert (jnp.abs(by_outputs).sum(-1) > 0).all()
