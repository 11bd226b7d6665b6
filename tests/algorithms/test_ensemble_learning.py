"""Learning an ensemble from batches: what reaches it, what it keeps, and where tasks end."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer import config as configs
from dreamer.algorithms.ensemble import ensemble_learner, follow_inputs
from dreamer.algorithms.transitions import Transitions
from dreamer.config import ConfigError
from dreamer.types import Space
from dreamer.world_models.ensemble import Normalizer
from tests.small import same_tree

OBS_SPACES = {"vector": Space("vector", (2,))}
ACTION_SPACES = {"push": Space("continuous", (1,))}
ROWS = 64


def make_learner(*overrides, ends="learned"):
    sizes = ["nets.dtype=float32", "ensemble={members: 2, elites: 1, layers: 1, units: 16}", f"ensemble.ends={ends}"]
    return ensemble_learner(configs.load([], [*sizes, *overrides]), OBS_SPACES, ACTION_SPACES)


def draw(seed):
    """Steps of ``x' = x + 0.5 v``, ``v' = v + a``, which end above x = 1 and earn ``x - a``."""
    rng = np.random.default_rng(seed)
    obs = rng.uniform(-2, 2, (ROWS, 2)).astype(np.float32)
    action = rng.uniform(-1, 1, (ROWS, 1)).astype(np.float32)
    following = np.stack([obs[:, 0] + 0.5 * obs[:, 1], obs[:, 1] + action[:, 0]], -1)
    reward = obs[:, 0] - action[:, 0]
    arrays = obs, action, reward, following[:, 0] > 1, following, np.ones(ROWS, bool)
    return Transitions(*map(jnp.asarray, arrays))


def updater(learner):
    return jax.jit(lambda model, moments, seen, number: learner.step(model, moments, seen, number=number))


def never_above_two(obs):
    return obs[:, 0] < -2


@functools.cache
def learned():
    """A learner, its update, what it has learned after 600 updates, moments, and the first and the last report."""
    learner = make_learner("ensemble.lr=3e-3")
    update = updater(learner)
    model, moments = learner.begin(nnx.Rngs(params=0))
    reports = []
    for number in range(600):
        model, moments, report = update(model, moments, draw(number % 20), jnp.int32(number))
        reports.append(report)
    return learner, update, model, moments, reports


def test_it_learns_what_follows_and_what_it_earns():
    learner, _, model, _, reports = learned()
    assert reports[-1].metrics["ensemble/error"] < 0.02
    seen = draw(1000)
    dynamics = learner.dynamics(model, "e")
    state = dynamics.start(seen.obs, jax.random.key(0))
    after = dynamics.step(state, {"push": seen.action}, dynamics.noise(jax.random.key(0), ROWS))
    np.testing.assert_allclose(after.obs, seen.next_obs, atol=0.4)
    np.testing.assert_allclose(after.reward, seen.reward, atol=0.4)
    assert (after.is_terminal == seen.is_terminal).mean() > 0.9


def test_members_that_get_worse_imagine_no_more_than_before():
    """After updates with nonsense, they predict as badly; those that imagine stay, and so do their errors."""
    _, update, model, moments, _ = learned()
    before = model
    nonsense = draw(0)._replace(next_obs=100 * draw(1).next_obs)
    model, moments, _ = update(model, moments, nonsense, jnp.int32(600))
    for number in range(5):
        model, moments, _ = update(model, moments, draw(number), jnp.int32(601 + number))
    assert not same_tree(model.learning.ensemble.members, before.learning.ensemble.members)
    assert (model.kept_error <= model.learning_error).all()


def test_what_did_not_happen_teaches_nothing():
    _, update, model, moments, _ = learned()
    seen = draw(0)
    happened = jnp.arange(ROWS) < ROWS // 2
    nonsense = jnp.where(happened, seen.reward, 1e3)
    one, other = (
        update(model, moments, seen._replace(reward=reward, happened=happened), jnp.int32(600))
        for reward in (seen.reward, nonsense)
    )
    assert same_tree(one, other)


def test_held_out_steps_teach_nothing():
    learner = make_learner("ensemble.holdout=0.999999", ends="never")
    model, moments = learner.begin(nnx.Rngs(params=0))
    after, _, report = updater(learner)(model, moments, draw(0), jnp.int32(0))
    # What is left is the pull on the bounds, and the decay, which Adam's first step takes for as much.
    assert all((np.asarray(x) == 0).all() for x in jax.tree.leaves(report.gradients.learning.ensemble.members))
    assert (after.kept_error > 0).all()


def test_inputs_are_averaged_over_batches():
    """The first batch counts alone; two alike leave mean and deviation as they are."""
    x = jnp.array([[0.0, 5.0], [4.0, 5.0]])
    start = Normalizer(jnp.zeros(2), jnp.ones(2))
    once = follow_inputs(start, x, jnp.ones(2, bool), jnp.int32(0))
    np.testing.assert_allclose(once.mean, [2, 5])
    np.testing.assert_allclose(once.std[0], 2)
    np.testing.assert_allclose(once(x)[:, 1], 0, atol=1e-5)
    twice = follow_inputs(once, x, jnp.ones(2, bool), jnp.int32(1))
    np.testing.assert_allclose(twice.mean, once.mean)
    np.testing.assert_allclose(twice.std[0], once.std[0])


@pytest.mark.parametrize(
    ("ends", "expected"),
    [("never", [False, False]), ("tests.algorithms.test_ensemble_learning:never_above_two", [True, False])],
)
def test_ends_may_be_given(ends, expected):
    learner = make_learner(ends=ends)
    model, _ = learner.begin(nnx.Rngs(params=0))
    assert model.learning.ends == ()
    assert learner.dynamics(model, "e").ends(jnp.array([[-3.0, 0.0], [3.0, 0.0]])).tolist() == expected


@pytest.mark.parametrize(
    ("obs", "ends", "message"),
    [
        ({"camera": Space("image", (64, 64, 3))}, "never", "the observations camera are images"),
        ({"mask": Space("discrete", (2,), 2)}, "always", r"ensemble\.ends=always cannot be used"),
        ({"action_mask": Space("discrete", (3,), 2)}, "never", "the observation action_mask is a mask"),
    ],
)
def test_what_an_ensemble_cannot_do_is_refused_in_one_sentence(obs, ends, message):
    config = configs.load([], ["algorithm=dyna_q", f"ensemble.ends={ends}"])
    with pytest.raises(ConfigError, match=message):
        ensemble_learner(config, obs, {"move": Space("discrete", (), 3)})
