"""The share of the reward that is not explained, against float64 numpy and for heads whose answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.equations import transforms
from dreamer.equations.distributions import SymexpTwoHot
from dreamer.equations.unexplained import unexplained_by_group, unexplained_reward, unexplained_share

BINS = 41


def weights(reward):
    return transforms.two_hot(*transforms.neighbours(reward, transforms.symexp_bins(BINS)), BINS)


def head(probs):
    return SymexpTwoHot(jnp.log(jnp.maximum(probs, 1e-30)))


def share(distribution, reward):
    return float(unexplained_share(*unexplained_reward(distribution, reward)))


@pytest.fixture
def reward(rng):
    """Mostly 0, sometimes 1 or 2.5: both on a bin and between two."""
    return jnp.asarray(rng.choice([0.0, 0.0, 0.0, 1.0, 2.5], (6, 50)), jnp.float32)


def test_a_perfect_head_explains_all_and_a_blind_one_nothing(reward):
    assert share(head(weights(reward)), reward) == pytest.approx(0, abs=1e-4)
    blind = jnp.broadcast_to(weights(reward).mean((0, 1)), (6, 50, BINS))
    assert share(head(blind), reward) == pytest.approx(1, abs=1e-4)
    # A head that has learned nothing is worse than that.
    assert share(SymexpTwoHot(jnp.zeros((6, 50, BINS))), reward) > 2


def test_a_head_in_between(reward):
    """Half of the targets and half of the mean: between the two, and less than half by the convexity of -log."""
    blind = jnp.broadcast_to(weights(reward).mean((0, 1)), (6, 50, BINS))
    assert 0.1 < share(head(0.5 * weights(reward) + 0.5 * blind), reward) < 0.5


def test_against_float64(rng, reward):
    logits = rng.normal(size=(6, 50, BINS))
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    y = np.asarray(weights(reward), np.float64)

    def entropy(p):
        return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(-1)

    excess, blind = unexplained_reward(SymexpTwoHot(jnp.asarray(logits, jnp.float32)), reward)
    assert (excess.dtype, blind.dtype, excess.shape, blind.shape) == (jnp.float32, jnp.float32, (), ())
    np.testing.assert_allclose(excess, (-(y * log_probs).sum(-1) - entropy(y)).mean(), rtol=1e-5)
    np.testing.assert_allclose(blind, entropy(y.mean((0, 1))) - entropy(y).mean(), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
def test_where_nothing_varies_nothing_is_left(value, rng):
    logits = jnp.asarray(rng.normal(size=(500, BINS)), jnp.float32)
    assert share(SymexpTwoHot(logits), jnp.full(500, value, jnp.float32)) == 0


def test_one_reward_in_a_large_batch_counts():
    reward = jnp.zeros(16_384).at[7].set(1.0)
    _, blind = unexplained_reward(head(weights(reward)), reward)
    assert share(head(weights(reward)), reward) == pytest.approx(0, abs=1e-2) and blind > 1e-4
    constant = jnp.broadcast_to(weights(reward).mean(0), (16_384, BINS))
    assert share(head(constant), reward) == pytest.approx(1, abs=1e-2)


def test_the_gradient_is_that_of_the_cross_entropy(rng, reward):
    logits = jnp.asarray(rng.normal(size=(6, 50, BINS)), jnp.float32)
    excess, blind = (lambda x, i=i: unexplained_reward(SymexpTwoHot(x), reward)[i] for i in (0, 1))
    expected = jax.grad(lambda x: -SymexpTwoHot(x).log_prob(reward).mean())(logits)
    np.testing.assert_array_equal(jax.grad(excess)(logits), expected)
    assert (np.asarray(jax.grad(blind)(logits)) == 0).all()
    to_reward = jax.grad(lambda r: sum(unexplained_reward(SymexpTwoHot(logits), r)))(reward)
    assert (np.asarray(to_reward) == 0).all()


def test_a_guess_for_each_group_against_a_guess_for_each(rng):
    """Large groups are compared as `unexplained_reward` compares each alone, weighted by their sizes."""
    sizes = (300, 500)
    reward = jnp.asarray(np.concatenate([rng.choice([0.0, 1.0], 300), rng.choice([0.0, 5.0, 9.0], 500)]), jnp.float32)
    logits = jnp.asarray(rng.normal(size=(800, BINS)), jnp.float32)
    group = jnp.repeat(jnp.array([1, 3]), np.array(sizes))
    found = unexplained_by_group(SymexpTwoHot(logits), reward, group, 5)
    each = [unexplained_reward(SymexpTwoHot(logits[rows]), reward[rows]) for rows in (slice(300), slice(300, None))]
    expected: np.ndarray = np.average(np.asarray(each), axis=0, weights=sizes)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=5e-3)


def test_small_groups_do_not_favour_the_guess(rng):
    """A fair coin in groups of two: the guess is right in half of them by having seen both, which is corrected."""
    reward = jnp.asarray(rng.choice([0.0, 1.0], 20_000), jnp.float32)
    logits = jnp.zeros((20_000, BINS))
    _, blind = unexplained_by_group(SymexpTwoHot(logits), reward, jnp.arange(20_000) // 2, 10_000)
    # On bins, a coin has an entropy of ln 2; 0 and 1 lie between bins here, which blurs it a little.
    _, whole = unexplained_reward(SymexpTwoHot(logits), reward)
    np.testing.assert_allclose(blind, whole, rtol=0.05)


def test_a_reward_alone_in_its_group_says_nothing(rng):
    logits = jnp.asarray(rng.normal(size=(6, BINS)), jnp.float32)
    reward, group = jnp.array([0.0, 1.0, 0.0, 9.0, 1.0, 1.0]), jnp.array([0, 0, 0, 1, 2, 3])
    found = unexplained_by_group(SymexpTwoHot(logits), reward, group, 4)
    expected = unexplained_by_group(SymexpTwoHot(logits[:3]), reward[:3], group[:3], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    alone = unexplained_by_group(SymexpTwoHot(logits), reward, jnp.arange(6), 6)
    assert [float(x) for x in alone] == [0, 0]
