"""Distributions against distrax, scipy and float64 numpy; how they are drawn, and where gradients go."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dreamer.equations import distributions, transforms


def logits(rng, *shape):
    return jnp.asarray(rng.normal(size=shape) * 2, jnp.float32)


def test_unimix_mixes_probabilities(rng):
    x = logits(rng, 5, 4)
    mixed = jnp.exp(distributions.unimix_log_probs(x, 0.2))
    np.testing.assert_allclose(mixed, 0.8 * jax.nn.softmax(x) + 0.2 / 4, rtol=1e-5)
    extreme = distributions.unimix_log_probs(jnp.array([1000.0, 0.0, 0.0, 0.0]), 0.01)
    np.testing.assert_allclose(jnp.exp(extreme), [0.9925, 0.0025, 0.0025, 0.0025], rtol=1e-5)


def test_unimix_of_zero_is_log_softmax(rng):
    x = logits(rng, 3, 6)
    np.testing.assert_array_equal(distributions.unimix_log_probs(x, 0.0), jax.nn.log_softmax(x))


MASK = jnp.array([[True, False, True, True], [False, True, False, False], [True, True, True, True]])


@pytest.mark.parametrize("unimix", [0.0, 0.2])
def test_a_mask_leaves_the_distribution_over_the_allowed_classes(unimix, rng):
    x = logits(rng, 3, 4)
    masked = distributions.unimix_log_probs(x, unimix, MASK)
    for row in range(3):
        allowed = np.flatnonzero(MASK[row])
        expected = distributions.unimix_log_probs(x[row, allowed], unimix)
        np.testing.assert_allclose(masked[row, allowed], expected, rtol=1e-5, atol=1e-6)
    assert (np.asarray(jnp.exp(masked))[~np.asarray(MASK)] == 0).all()
    entropy = distributions.Categorical(masked).entropy()
    np.testing.assert_allclose(entropy, scipy.stats.entropy(np.exp(masked), axis=-1), rtol=1e-5, atol=1e-6)
    assert float(entropy[1]) == 0


@pytest.mark.parametrize("unimix", [0.0, 0.01])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_no_gradient_of_a_masked_distribution_is_nan(unimix, scale, rng):
    x, y = scale * logits(rng, 3, 4), scale * logits(rng, 3, 4)

    def value(x):
        p, q = (distributions.Categorical(distributions.unimix_log_probs(z, unimix, MASK), mask=MASK) for z in (x, y))
        return jnp.stack([p.log_prob(p.mode()), p.log_prob(jnp.zeros(3, int)), p.entropy(), p.kl_to(q), q.kl_to(p)])

    gradient = jax.jacobian(value)(x)
    assert np.isfinite(value(x)).all() and np.isfinite(gradient).all()
    assert (np.asarray(gradient).sum((0, 1))[~np.asarray(MASK)] == 0).all()
    assert scale > 1 or np.abs(gradient).max() > 0.1


@pytest.mark.parametrize("uniform", [0.0, 1.0])
def test_a_draw_at_the_ends_is_an_allowed_class(uniform, monkeypatch, rng):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, uniform))
    mask = jnp.array([[False, True, True, False]])
    log_probs = distributions.unimix_log_probs(logits(rng, 1, 4), 0.01, mask)
    masked = distributions.Categorical(log_probs, mask=mask)
    assert int(masked.sample(seed=jax.random.key(0))[0]) in (1, 2)
    assert set(np.asarray(masked.sample(seed=jax.random.key(0), sample_shape=(3,))).ravel().tolist()) <= {1, 2}


def test_categorical_agrees_with_distrax(rng, key):
    p, q = logits(rng, 7, 3, 5), logits(rng, 7, 3, 5)
    ours, other = (distributions.Categorical(jax.nn.log_softmax(x), event_ndims=1) for x in (p, q))
    theirs, theirs_other = (distrax.Independent(distrax.Categorical(logits=x), 1) for x in (p, q))
    sample = ours.sample(seed=key)
    assert sample.shape == (7, 3)
    assert ours.batch_shape == (7,)
    assert ours.event_shape == (3,)
    np.testing.assert_allclose(ours.log_prob(sample), theirs.log_prob(sample), rtol=1e-5)
    np.testing.assert_allclose(ours.entropy(), theirs.entropy(), rtol=1e-5)
    np.testing.assert_allclose(ours.kl_to(other), theirs.kl_divergence(theirs_other), rtol=1e-4)
    np.testing.assert_array_equal(ours.mode(), theirs.mode())


def test_kl_of_equal_distributions_is_zero(rng):
    p = distributions.OneHot(distributions.unimix_log_probs(logits(rng, 4, 2, 3), 0.01), event_ndims=1)
    assert (np.asarray(p.kl_to(p)) == 0).all()


def test_draws_have_the_right_frequencies(key):
    probs = jnp.array([0.5, 0.05, 0.3, 0.15])
    draws = distributions.draw_class(key, jnp.broadcast_to(probs, (20_000, 4)))
    counts = np.bincount(np.asarray(draws), minlength=4)
    assert scipy.stats.chisquare(counts, np.asarray(probs) * 20_000).pvalue > 1e-3


def test_draws_invert_the_cumulative_distribution(monkeypatch):
    probs = jnp.array([[0.2, 0.3, 0.5]] * 5)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.array([0.0, 0.19, 0.21, 0.51, 0.9999999]))
    np.testing.assert_array_equal(distributions.draw_class(jax.random.key(0), probs), [0, 0, 1, 2, 2])


@pytest.mark.parametrize("classes", [2, 4, 8, 9, 16])
@pytest.mark.parametrize("leading", [(), (50,), (20, 6)])
def test_draws_against_float64_whatever_the_order_of_axes(classes, leading, rng):
    """Few classes are computed along another axis than many."""
    x = logits(rng, *leading, classes)
    uniform = jnp.asarray(rng.uniform(size=leading), jnp.float32)
    weights = np.exp(np.asarray(x, np.float64))
    probs = 0.9 * weights / weights.sum(-1, keepdims=True) + 0.1 / classes
    np.testing.assert_allclose(distributions.unimix_probs(x, 0.1), probs, rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(distributions.unimix_log_probs(x, 0.1)), probs, rtol=1e-5)
    cumulative = np.cumsum(probs, -1)[..., :-1]
    sure = (np.abs(cumulative - np.asarray(uniform)[..., None]) > 1e-5).all(-1)
    found = jax.jit(lambda u, x: distributions.invert_cdf(u, distributions.unimix_probs(x, 0.1)))(uniform, x)
    expected = (cumulative < np.asarray(uniform)[..., None]).sum(-1)
    assert sure.mean() > 0.9 and found.shape == leading
    np.testing.assert_array_equal(np.asarray(found)[sure], expected[sure])


def test_a_draw_above_the_rounded_sum_is_the_last_class(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.ones(shape))
    assert int(distributions.draw_class(jax.random.key(0), jnp.full(10, 0.0999))) == 9


def test_straight_through(rng, key):
    x = logits(rng, 6, 4)
    direction = logits(rng, 6, 4)

    def through_sample(x):
        return (distributions.OneHot(distributions.unimix_log_probs(x, 0.01)).sample(seed=key) * direction).sum()

    def through_probs(x):
        return (jnp.exp(distributions.unimix_log_probs(x, 0.01)) * direction).sum()

    sample = distributions.OneHot(distributions.unimix_log_probs(x, 0.01)).sample(seed=key)
    np.testing.assert_array_equal(np.sort(sample, -1), np.array([[0, 0, 0, 1]] * 6))
    np.testing.assert_allclose(jax.grad(through_sample)(x), jax.grad(through_probs)(x), rtol=1e-5)

    def known(x):
        log_probs, probs = distributions.unimix_log_probs(x, 0.01), distributions.unimix_probs(x, 0.01)
        return (distributions.OneHot(log_probs, probs=probs).sample(seed=key) * direction).sum()

    np.testing.assert_allclose(jax.grad(known)(x), jax.grad(through_probs)(x), rtol=1e-5)


@pytest.mark.parametrize("classes", [4, 16])
def test_a_sample_from_no_numbers_is_no_number(classes, rng):
    x = logits(rng, 3, 2, classes).at[1, 0, 2].set(jnp.nan)
    log_probs, probs = distributions.unimix_log_probs(x, 0.01), distributions.unimix_probs(x, 0.01)

    def draw(probs):
        return distributions.OneHot(log_probs, 1, probs=probs).invert(jnp.full((3, 2), 0.5))

    for sample in (draw(probs), jax.jvp(draw, (probs,), (probs,))[0]):
        assert np.isnan(sample[1, 0]).all() and np.isnan(sample).sum() == classes
        assert (np.nansum(sample, -1)[~np.isnan(sample).any(-1)] == 1).all()


def test_one_hot_log_prob_is_that_of_its_class(rng, key):
    one_hot = distributions.OneHot(jax.nn.log_softmax(logits(rng, 5, 2, 3)), event_ndims=1)
    classes = distributions.Categorical(one_hot.log_probs, event_ndims=1)
    sample = one_hot.sample(seed=key)
    np.testing.assert_allclose(one_hot.log_prob(sample), classes.log_prob(sample.argmax(-1)), rtol=1e-6)


def test_two_hot_loss_against_float64(rng):
    x = logits(rng, 9, 255)
    target = jnp.asarray(rng.normal(size=9) * 30, jnp.float32)
    log_probs = np.asarray(x, np.float64) - np.log(np.exp(np.asarray(x, np.float64)).sum(-1, keepdims=True))
    weights = transforms.two_hot(*transforms.neighbours(target, transforms.symexp_bins(255)), 255)
    expected = (np.asarray(weights, np.float64) * log_probs).sum(-1)
    np.testing.assert_allclose(distributions.SymexpTwoHot(x).log_prob(target), expected, rtol=1e-5)


def test_two_hot_loss_is_least_at_the_target():
    target = jnp.float32(3.7)
    loss = lambda x: -distributions.SymexpTwoHot(x[None]).log_prob(target[None])[0]  # noqa: E731
    x = jax.lax.fori_loop(0, 200, lambda _, x: x - 5.0 * jax.grad(loss)(x), jnp.zeros(255))
    np.testing.assert_allclose(distributions.SymexpTwoHot(x).mean(), target, rtol=0.05)


def test_no_gradient_reaches_the_target():
    grad = jax.grad(lambda y: distributions.SymexpTwoHot(jnp.ones((1, 255))).log_prob(y)[0])(jnp.array([1.5]))
    assert float(grad[0]) == 0


def test_bounded_normal_agrees_with_scipy(rng, key):
    mean, std = logits(rng, 6, 3), logits(rng, 6, 3)
    ours = distributions.bounded_normal(mean, std, 0.1, 1.0, event_ndims=1)
    scale = 0.9 / (1 + np.exp(-(np.asarray(std, np.float64) + 2))) + 0.1
    sample = ours.sample(seed=key)
    expected = scipy.stats.norm.logpdf(np.asarray(sample, np.float64), np.tanh(np.asarray(mean, np.float64)), scale)
    np.testing.assert_allclose(ours.log_prob(sample), expected.sum(-1), rtol=1e-4)
    np.testing.assert_allclose(ours.entropy(), scipy.stats.norm.entropy(scale=scale).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(ours.mode(), jnp.tanh(mean), rtol=1e-6)


@pytest.mark.parametrize(
    "make", [lambda x: distributions.unimix_log_probs(x, 0.01), lambda x: distributions.SymexpTwoHot(x).logits]
)
def test_arithmetic_is_float32_for_bfloat16_input(make):
    assert make(jnp.ones((2, 5), jnp.bfloat16)).dtype == jnp.float32
