"""MuZero: its targets by hand, what its gradient passes through, how it acts, and what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer import config as configs
from dreamer.algorithms.muzero import SearchRecord, follow, make_targets, muzero
from dreamer.config import ConfigError
from dreamer.types import Action, Batch, Space
from dreamer.world_models.base import Dynamics
from dreamer.world_models.value_equivalent import ValueEquivalentModel

OBS_SPACES = {"vector": Space("vector", (2,))}
MASKED_SPACES = {"action_mask": Space("discrete", (3,), 2), **OBS_SPACES}
ACTION_SPACES = {"move": Space("discrete", (), 3)}
SMALL = ("nets={units: 8, bins: 21}", "muzero={latent: 6, unroll: 2, td_steps: 2}", "planner.simulations=7")


def make_batch(rows=1, steps=5, **fields):
    zeros = np.zeros((rows, steps), bool)
    values = {"reward": np.zeros((rows, steps), np.float32), "is_first": zeros, "is_last": zeros, "is_terminal": zeros}
    values |= {name: np.array(value, values[name].dtype) for name, value in fields.items() if name in values}
    return Batch(
        obs={"vector": np.ones((rows, steps, 2), np.float32)},
        prev_action={"move": np.zeros((rows, steps), np.int32)},
        stored=SearchRecord(
            jnp.array(fields.get("value", np.zeros((rows, 1 + steps))), jnp.float32),
            jnp.full((rows, 1 + steps, 3), 1 / 3),
        ),
        **values,
    )


@jax.jit
def targets_of(batch):
    return make_targets(batch, unroll=2, td_steps=2, discount=0.5)


def test_targets_by_hand():
    """The task ends at step 2, and another episode begins at step 3."""
    batch = make_batch(
        reward=[[9, 1, 2, 0, 4]],
        is_first=[[0, 0, 0, 1, 0]],
        is_last=[[0, 0, 1, 0, 0]],
        is_terminal=[[0, 0, 1, 0, 0]],
        value=[[100, 10, 20, 30, 40, 50]],
    )
    # | step                      | 0           | 1 | 2 (end) | 3           | 4  |
    # | two rewards and the value | 1 + 2/2 + 0 | 2 | 0       | 4 + 50 / 2  | 50 |
    # A start for each column, the steps that follow it below.
    found = targets_of(batch)
    np.testing.assert_array_equal(found.value, [[2, 2, 0], [2, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(found.reward, [[9, 1, 2], [1, 2, 0], [2, 0, 0]])
    np.testing.assert_array_equal(found.is_known, np.ones((3, 3), bool))
    np.testing.assert_array_equal(found.is_played, [[1, 1, 0], [1, 0, 0], [0, 0, 0]])


def test_targets_stop_where_a_time_limit_cuts():
    batch = make_batch(
        reward=[[9, 1, 2, 0, 4]],
        is_first=[[0, 0, 0, 1, 0]],
        is_last=[[0, 0, 1, 0, 0]],
        value=[[100, 10, 20, 30, 40, 50]],
    )
    found = targets_of(batch)
    # What the search expected of the last state counts: 1 + (2 + 30 / 2) / 2 at step 0.
    np.testing.assert_array_equal(found.value[0], [9.5, 17, 30])
    np.testing.assert_array_equal(found.is_known, [[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(found.is_played, [[1, 1, 0], [1, 0, 0], [0, 0, 0]])


@pytest.fixture(scope="module")
def model():
    config = configs.load(["muzero"], SMALL)
    make = jax.jit(lambda key: ValueEquivalentModel(config, OBS_SPACES, ACTION_SPACES, rngs=nnx.Rngs(params=key)))
    return make(jax.random.key(0))


def test_states_are_within_bounds_and_begin_from_what_is_seen(model):
    dynamics: Any = model
    assert isinstance(dynamics, Dynamics)
    state = model.represent({"vector": jnp.array([[0.0, 1.0], [3.0, -2.0]])})
    np.testing.assert_allclose(state.latent.min(-1), 0)
    np.testing.assert_allclose(state.latent.max(-1), 1)
    assert not np.allclose(state.latent[0], state.latent[1])
    following = [model.step(state, {"move": jnp.full(2, move)}, ()) for move in range(2)]
    assert not np.allclose(following[0].latent, following[1].latent)
    np.testing.assert_array_equal(model.cont(state), [1, 1])


def test_every_step_halves_the_gradient(model):
    """Values are those of the model alone, and the gradient through k steps is theirs times 1 / 2^k."""
    first = model.represent({"vector": jnp.array([[0.3, -1.0]])})
    actions: Action = {"move": jnp.array([[0], [2]])}
    weights = jnp.arange(6.0)[None]

    def last(latent, unrolled):
        start = first._replace(latent=latent)
        if unrolled:
            return (follow(model, start, actions).latent[-1] * weights).sum()
        for step in range(2):
            start = model.step(start, {"move": actions["move"][step]}, ())
        return (start.latent * weights).sum()

    differentiate = jax.jit(jax.value_and_grad(last), static_argnums=1)
    value, gradient = differentiate(first.latent, True)
    plain_value, plain_gradient = differentiate(first.latent, False)
    np.testing.assert_allclose(value, plain_value, rtol=1e-6)
    np.testing.assert_allclose(gradient, plain_gradient / 4, rtol=1e-5, atol=1e-7)
    assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("kind", ["gumbel_muzero", "muzero"])
def test_replay_keeps_what_the_search_saw_and_no_masked_action_is_taken(kind):
    pytest.importorskip("mctx", reason="needs the extra search")
    config = configs.load(["muzero"], [*SMALL, f"planner.kind={kind}"])
    algorithm = muzero(config, MASKED_SPACES, ACTION_SPACES)
    nets = algorithm.init(jax.random.key(0)).nets
    obs = {"vector": np.zeros((4, 2), np.float32), "action_mask": np.tile(np.array([1, 0, 1], np.int32), (4, 1))}

    def act(nets, key, mode):
        return algorithm.policy(nets, algorithm.initial(4), obs, jnp.ones(4, bool), key, mode)

    act = jax.jit(act, static_argnums=2)
    action, memory, stored = act(nets, jax.random.key(1), "sample")
    assert jax.tree.map(lambda x: (x.shape[1:], x.dtype), stored) == jax.tree.map(
        lambda x: (x.shape, x.dtype), algorithm.stored
    )
    np.testing.assert_allclose(stored.policy.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(stored.policy[:, 1], 0)
    np.testing.assert_array_equal(memory.value, stored.value)
    assert set(algorithm.acting(memory)) == {"planner/return", "planner/spread"}
    drawn = np.concatenate([np.asarray(act(nets, jax.random.key(k), "sample")[0]["move"]) for k in range(8)])
    assert set(drawn) == {0, 2}  # It explores.
    best = np.concatenate([np.asarray(act(nets, jax.random.key(k), "mode")[0]["move"]) for k in range(4)])
    assert len(set(best)) == 1
    assert 1 not in best
    assert action["move"].dtype == jnp.int32


def test_an_update_learns_all_that_a_search_asks_for():
    pytest.importorskip("mctx", reason="needs the extra search")
    config = configs.load(["muzero"], [*SMALL, "optimizer.lr=1e-2", "optimizer.warmup=0"])
    algorithm = muzero(config, OBS_SPACES, ACTION_SPACES)
    batch = jax.tree.map(jnp.asarray, make_batch(rows=2, reward=np.ones((2, 5)), value=np.full((2, 6), 10.0)))
    state = algorithm.init(jax.random.key(0))
    update = jax.jit(lambda state: algorithm.update(state, batch, jax.random.key(0), config))
    losses = []
    for _ in range(30):
        state, stored, metrics = update(state)
        losses.append({name: float(value) for name, value in metrics.items()})
    assert stored == ()
    for name in ("loss/reward", "loss/critic"):
        assert losses[-1][name] < 0.7 * losses[0][name]
    assert losses[-1]["muzero/target"] == pytest.approx(1 + 0.99 + 0.99**2 * 10, rel=1e-2)
    assert losses[-1]["muzero/value"] > 0
    assert losses[-1]["muzero/entropy"] == pytest.approx(np.log(3))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("planner.kind=cem", "planner.kind=cem cannot be used with algorithm=muzero, .* expected gumbel_muzero"),
        ("planner.kind=none", "planner.kind=none cannot be used with algorithm=muzero"),
        ("replay.batch_length=5", "replay.batch_length=5 cannot be used .* expected more than muzero.unroll=5"),
    ],
)
def test_what_cannot_be_learned_is_refused(override, message):
    pytest.importorskip("mctx", reason="needs the extra search")
    with pytest.raises(ConfigError, match=message):
        muzero(configs.load(["muzero"], [override]), OBS_SPACES, ACTION_SPACES)


def test_continuous_actions_are_refused():
    with pytest.raises(ConfigError, match=r"the actions are push .* expected one discrete action of one number"):
        muzero(configs.load(["muzero"], []), OBS_SPACES, {"push": Space("continuous", (1,))})
