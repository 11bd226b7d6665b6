"""The axis of the batch: what several devices make of their rows is what one makes of all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dreamer.devices import batch_axis
from dreamer.equations import distributions
from dreamer.equations.alignment import barlow_twins, info_nce
from dreamer.equations.unexplained import unexplained_reward
from dreamer.nn.fork import fork
from tests.small import same_tree

ROWS = 12


def on(count, function, arguments, results):
    """The function of a batch, as a program for this many devices."""
    mesh = Mesh(np.array(jax.devices()[:count]), (batch_axis.AXIS,), axis_types=(AxisType.Auto,))

    def program(*args):
        return batch_axis.on_each_device(function, arguments, results)(*args)

    where = [NamedSharding(mesh, PartitionSpec(batch_axis.AXIS) if rows else PartitionSpec()) for rows in arguments]
    return jax.jit(batch_axis.for_devices(mesh, program), in_shardings=tuple(where))


def alone(function, arguments, results):
    return jax.jit(batch_axis.on_each_device(function, arguments, results))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_gradient_is_that_of_all_rows(count, backend, rng, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, w = rng.normal(size=(ROWS, 5)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)

    def gradient(w, x):
        seen.append(x.shape)

        def loss(w):
            y = jnp.tanh(x @ w["kernel"]) * w["scale"]
            return jnp.square(y).mean(), y

        (value, y), gradient = jax.value_and_grad(loss, has_aux=True)(w)
        return batch_axis.mean((value, gradient, {"step": jnp.int32(7)})), y

    weights = {"kernel": w, "scale": np.float32(0.7)}
    seen: list[tuple[int, ...]] = []
    together = on(count, gradient, (False, True), (False, True))(weights, x)
    assert set(seen) == {(ROWS // count, 5)} and len(together[1].sharding.device_set) == count
    seen.clear()
    expected = alone(gradient, (False, True), (False, True))(weights, x)
    assert set(seen) == {(ROWS, 5)}
    assert together[0][2]["step"] == 7 and together[0][2]["step"].dtype == jnp.int32
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_a_fork_scales_by_the_norms_of_all_rows(count, rng):
    """Rows whose gradients differ in scale: each device alone would find another ratio."""
    x = rng.normal(size=(ROWS, 5)).astype(np.float32) * np.arange(1, ROWS + 1, dtype=np.float32)[:, None]
    w = rng.normal(size=5).astype(np.float32)

    def gradient(w, x):
        def loss(w):
            loud, faint = fork(x * w[None], 1.5)
            return 100 * jnp.square(loud).mean() + jnp.sin(faint).mean()

        return (batch_axis.mean(jax.grad(loss)(w)),)

    together, expected = (run(gradient, (False, True), (False,))(w, x) for run in (lambda *a: on(count, *a), alone))
    np.testing.assert_allclose(together[0], expected[0], rtol=1e-5)


def test_all_rows_come_in_order(rng):
    x = rng.normal(size=(ROWS, 3)).astype(np.float32)

    def function(x):
        whole = batch_axis.all_rows(x.T, 1)
        return whole, x - jnp.percentile(whole, 90.0)

    together, expected = (run(function, (True,), (False, True))(x) for run in (lambda *a: on(4, *a), alone))
    np.testing.assert_array_equal(together[0], x.T)
    np.testing.assert_allclose(together[1], expected[1], rtol=1e-6)


def test_the_best_constant_guess_is_that_for_all_rows(rng):
    """Most devices see rewards of 0 alone, for which they would guess right."""
    logits = rng.normal(size=(ROWS, 20, 41)).astype(np.float32)
    reward = np.zeros((ROWS, 20), np.float32)
    reward[-2:] = rng.normal(size=(2, 20))

    def function(logits, reward):
        return batch_axis.mean(unexplained_reward(distributions.SymexpTwoHot(logits), reward))

    together, expected = (
        run(function, (True, True), (False, False))(logits, reward) for run in (lambda *a: on(4, *a), alone)
    )
    np.testing.assert_allclose(together, expected, rtol=1e-5)
    assert expected[1] > 0.1


@pytest.mark.parametrize("count", [2, 4])
def test_embeddings_are_compared_with_those_of_all_rows(count, rng):
    """Rows that do not count are not spread evenly, so each device alone would weigh its own differently."""
    x, target = (rng.normal(size=(ROWS, 5)).astype(np.float32) for _ in range(2))
    w = rng.normal(size=(5, 5)).astype(np.float32)
    valid = np.arange(ROWS) != 1

    def gradient(w, x, target, valid):
        def loss(w):
            return barlow_twins(x @ w, target, 0.1, valid) + info_nce(x @ w, target).mean()

        return (batch_axis.mean(jax.value_and_grad(loss)(w)),)

    flags = (False, True, True, True), (False,)
    together, expected = (run(gradient, *flags)(w, x, target, valid) for run in (lambda *a: on(count, *a), alone))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), together, expected)


def draws(key, logits):
    """One of each kind that an update has."""
    rows = len(logits)
    categorical = distributions.Categorical(distributions.unimix_log_probs(logits, 0.01))
    normal = distributions.bounded_normal(logits, logits, 0.1, 1.0, 1)
    keys = jax.random.split(key, 3)
    uniform = jax.vmap(lambda key: batch_axis.draw(jax.random.uniform, key, (rows, 2)))(keys)
    return categorical.sample(seed=keys[0]), normal.sample(seed=keys[1]), uniform.swapaxes(0, 1)


@pytest.mark.parametrize("count", [2, 4])
def test_each_row_draws_the_same_wherever_it_is(count, key, rng):
    logits = rng.normal(size=(ROWS, 4)).astype(np.float32)
    flags = (False, True), (True, True, True)
    together, expected = on(count, draws, *flags)(key, logits), alone(draws, *flags)(key, logits)
    assert same_tree(jax.device_get(together[::2]), jax.device_get(expected[::2]))
    np.testing.assert_allclose(together[1], expected[1], rtol=1e-5)
    # Rows differ from one another: devices that drew for themselves would repeat each other.
    assert len(np.unique(np.asarray(expected[2])[:, 0, 0])) == ROWS
