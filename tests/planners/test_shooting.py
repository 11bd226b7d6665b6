"""The cross-entropy method on a model whose best plan is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.planners import Planner, Prior, shooting
from dreamer.planners.shooting import CEM, cem, colored_noise
from dreamer.types import Space
from tests.planners.worlds import Target, no_prior, no_value
from tests.small import small_config

SPACES = {"move": Space("discrete", (), 3), "push": Space("continuous", (2,))}
CONFIG = "planner={kind: cem, horizon: 4, candidates: 256, elites: 24, iterations: 10}"


def start(rows):
    return {"reward": jnp.zeros(rows), "time": jnp.zeros(rows, jnp.int32)}


def plan(planner, model, rows=2, before=None, first=True, masks=None, leaf=no_value, seed=0):
    before = planner.init(rows) if before is None else before
    is_first = jnp.full(rows, first)
    return jax.jit(
        lambda key: planner.plan(model, leaf, no_prior, start(rows), before, is_first, key, masks),
    )(jax.random.key(seed))


@pytest.fixture(scope="module")
def planner():
    return cem(small_config(CONFIG), SPACES)


def test_it_is_a_planner(planner):
    assert isinstance(planner, Planner)
    assert isinstance(planner, CEM)


def test_it_finds_the_best_action(planner):
    action, _, metrics = plan(planner, Target())
    np.testing.assert_array_equal(action["move"], [2, 2])
    np.testing.assert_allclose(action["push"], [[0.5, -0.25]] * 2, atol=0.1)
    assert action["move"].dtype == jnp.int32
    assert -0.5 < float(metrics["planner/return"]) <= 0


def test_nothing_counts_after_the_end(planner):
    """Rewards beyond an end would be won by the worst actions."""
    action, _, metrics = plan(planner, Target(end=1))
    np.testing.assert_array_equal(action["move"], [2, 2])
    assert float(metrics["planner/return"]) <= 0


def test_the_leaf_counts_where_the_plan_ends(planner):
    _, _, plain = plan(planner, Target())
    _, _, valued = plan(planner, Target(), leaf=lambda state: 10.0 + no_value(state))
    np.testing.assert_allclose(
        float(valued["planner/return"] - plain["planner/return"]), 10 * planner.discount**4, rtol=1e-3
    )


def test_a_forbidden_class_is_not_taken(planner):
    masks = {"move": jnp.array([[True, True, False], [False, True, True]])}
    action, _, _ = plan(planner, Target(), masks=masks)
    assert int(action["move"][0]) in (0, 1)
    assert int(action["move"][1]) == 2


def test_an_elite_whose_first_class_is_forbidden_now_is_not_taken():
    planner = make("icem", "planner.iterations=1")
    elites = {"move": jnp.full((2, 5, 2), 2), "push": jnp.broadcast_to(jnp.array([0.5, -0.25]), (2, 5, 2, 2))}
    before = planner.init(2)._replace(elites=elites)
    masks = {"move": jnp.array([[True, True, False], [True, True, True]])}
    action, _, _ = plan(planner, Target(), before=before, first=False, masks=masks)
    assert int(action["move"][0]) in (0, 1)
    assert int(action["move"][1]) == 2


def test_the_next_step_begins_with_the_plan_shifted_by_one(planner):
    _, following, _ = plan(planner, Target())
    fresh = planner.init(2)
    # What was found for the second step is now first, and the last step is open again.
    np.testing.assert_allclose(following.mean["push"][:, 0], [[0.5, -0.25]] * 2, atol=0.2)
    np.testing.assert_array_equal(following.mean["push"][:, -1], fresh.mean["push"][:, -1])
    np.testing.assert_array_equal(following.probs["move"][:, -1], fresh.probs["move"][:, -1])


def test_a_plan_of_another_episode_is_forgotten(planner):
    fresh = planner.init(2)
    spoilt = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), fresh)
    action, _, _ = plan(planner, Target(), before=spoilt, first=True)
    assert np.isfinite(action["push"]).all()


def test_elites_are_the_best_candidates(planner):
    before = planner.init(1)
    score = jnp.arange(256.0)[None]
    moves = jnp.broadcast_to((jnp.arange(256) % 3)[None, :, None], (1, 256, 4))
    pushes = jnp.broadcast_to(jnp.arange(256.0)[None, :, None, None], (1, 256, 4, 2))
    found = planner._refit(before, {"move": moves, "push": pushes}, score)
    elites = np.arange(232, 256)
    np.testing.assert_allclose(found.mean["push"], 0.9 * elites.mean(), rtol=1e-6)
    np.testing.assert_allclose(found.std["push"], 0.1 + 0.9 * elites.std(), rtol=1e-5)
    shares = [np.mean(elites % 3 == c) for c in range(3)]
    np.testing.assert_allclose(found.probs["move"][0, 0], 0.1 / 3 + 0.9 * np.array(shares), rtol=1e-5)


SMALL = "planner={horizon: 2, candidates: 128, elites: 16, iterations: 3}"


def make(kind, *overrides):
    return getattr(shooting, kind)(small_config(SMALL, "planner.prior=0", *overrides), SPACES)


@pytest.mark.parametrize("kind", ["random", "icem", "mppi"])
def test_every_search_finds_the_best_action(kind):
    planner = make(kind, "planner.temperature=5")
    assert isinstance(planner, Planner)
    action, following, metrics = plan(planner, Target())
    np.testing.assert_array_equal(action["move"], [2, 2])
    np.testing.assert_allclose(action["push"], [[0.5, -0.25]] * 2, atol=0.5 if kind == "random" else 0.2)
    assert -1.0 < float(metrics["planner/return"]) <= 0
    assert float(metrics["planner/spread"]) > 0
    assert jax.tree.map(jnp.shape, following) == jax.tree.map(jnp.shape, planner.init(2))


def test_mppi_takes_candidates_of_the_policy():
    planner = make("mppi", "planner={prior: 0.5, elites: 1, momentum: 0}")
    push = jnp.array([[0.5, -0.25]])

    def draw(state, key):
        rows = len(state["reward"])
        return {"move": jnp.full(rows, 2, jnp.int32), "push": jnp.broadcast_to(push, (rows, 2))}

    is_first = jnp.ones(2, bool)
    prior = Prior(draw, no_prior.log_probs)
    action, _, metrics = planner.plan(
        Target(), no_value, prior, start(2), planner.init(2), is_first, jax.random.key(0), None
    )
    np.testing.assert_allclose(action["push"], [[0.5, -0.25]] * 2, atol=1e-6)
    np.testing.assert_allclose(float(metrics["planner/return"]), 0, atol=1e-6)


def test_without_a_leaf_and_a_warm_start_neither_counts():
    planner = make("cem", "planner={leaf: false, warm_start: false, iterations: 1}")
    _, following, metrics = plan(planner, Target(), leaf=lambda state: 1e6 + no_value(state))
    assert float(metrics["planner/return"]) <= 0
    fresh = planner.init(2)
    jax.tree.map(np.testing.assert_array_equal, following, fresh)


def test_a_row_whose_actions_are_settled_is_not_searched_further():
    planner = make("cem", "planner.epsilon=0.04")
    narrow = planner.init(2)
    narrow.std["push"] = jnp.full_like(narrow.std["push"], 0.1).at[1, 1, 0].set(0.5)
    np.testing.assert_array_equal(planner._is_wide(narrow), [False, True])


def test_colored_noise_has_variance_one_and_is_correlated_in_time():
    for beta, least, most in ((0.0, -0.2, 0.0), (2.0, 0.5, 1.0)):
        noise = np.asarray(colored_noise(jax.random.key(0), (4000, 16), beta))
        np.testing.assert_allclose(np.square(noise).mean(), 1, atol=0.3)
        assert least < (noise[:, 1:] * noise[:, :-1]).mean() / np.square(noise).mean() < most
