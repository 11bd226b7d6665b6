"""Updates that are not finite: what is noticed, what stays as it was, and what the averages leave out."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.agent import guard
from dreamer.equations.returns import ReturnRange
from dreamer.logs import averages
from tests.small import same_tree, small_agent, small_batch


def checked(**changed):
    """Two losses, and two parameters with their gradients; all finite but what is changed."""
    numbers = {"reward": 1.0, "actor": 2.0, "low": 0.0, "w": 3.0, "b": 4.0, "new_w": 5.0, "new_b": 6.0} | changed
    n = {name: jnp.float32(value) for name, value in numbers.items()}
    return guard.Checked(
        {"reward": n["reward"], "actor": n["actor"]},
        {"range": ReturnRange(n["low"], jnp.float32(1))},
        {"w": n["w"], "b": n["b"]},
        {"w": n["new_w"], "b": n["new_b"]},
    )


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"reward": math.nan}, "losses.reward"),
        ({"low": -math.inf, "w": math.nan}, "memory.range.low"),
        ({"w": math.inf, "new_b": math.nan}, "gradients.w"),
        ({"new_b": math.nan}, "parameters.b"),
        ({"new_w": math.nan, "actor": math.inf}, "losses.actor"),
    ],
)
def test_the_first_tensor_that_is_not_finite_is_named(changed, name):
    found = checked(**changed)
    assert guard.names(found)[int(guard.first_bad(found))] == name


def test_nothing_is_wrong_with_finite_numbers():
    assert int(guard.first_bad(checked())) == -1
    assert int(guard.first_bad(checked(reward=3e38, w=-3e38))) == -1


def test_sums_of_squares_show_any_element_that_is_not_finite():
    tree = {"a": jnp.array([[1.0, 2.0], [2.0, 0.0]]), "b": jnp.array([4.0])}
    squares = guard.sums_of_squares(tree)
    assert {name: float(x) for name, x in squares.items()} == {"a": 9.0, "b": 16.0}
    assert float(guard.norm(squares)) == 5.0
    for value in (math.nan, math.inf, -math.inf, 2e19):
        assert not np.isfinite(guard.sums_of_squares(tree["a"].at[1, 0].set(value))), value


def metrics(loss, skipped=0.0, in_row=0, bad=-1):
    numbers = {"loss": loss, averages.SKIPPED: skipped}
    counts = {averages.IN_ROW: in_row, averages.BAD: bad}
    return {k: jnp.float32(v) for k, v in numbers.items()} | {k: jnp.int32(v) for k, v in counts.items()}


def test_averages_leave_out_what_was_skipped():
    updates = [metrics(2.0), metrics(math.nan, 1.0, 1, 7), metrics(math.nan, 1.0, 2, 3), metrics(4.0)]
    sums = jax.tree.map(jnp.zeros_like, updates[0])
    for update in updates[:3]:
        sums = averages.add(sums, update)
    found = averages.divide(sums, jnp.int32(3))
    assert {k: float(v) for k, v in found.items()} == {
        "loss": 2.0,
        averages.SKIPPED: pytest.approx(2 / 3),
        averages.IN_ROW: 2,
        averages.BAD: 3,
    }
    host = averages.average(jax.device_get(updates))
    assert host == {"loss": 3.0, averages.SKIPPED: 0.5, averages.IN_ROW: 0}
    alone = averages.average(jax.device_get(updates[1:3]))
    assert math.isnan(alone["loss"]) and (alone[averages.SKIPPED], alone[averages.IN_ROW]) == (1.0, 2.0)
    assert averages.average([]) == {} and averages.average([{"a": 1.0}, {"a": 3.0}]) == {"a": 2.0}


def test_sums_of_squares_of_vectors_stay_with_their_vectors(rng):
    """Vectors of one length are added up together."""
    shapes = {"a": (5,), "b": (3, 5), "c": (4,), "d": (5,), "e": (), "f": (4,), "g": (5,), "h": (1,)}
    tree = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    found = jax.jit(guard.sums_of_squares)(tree)
    assert found.keys() == tree.keys()
    for name, values in tree.items():
        np.testing.assert_allclose(found[name], np.square(values, dtype=np.float64).sum(), rtol=1e-6, err_msg=name)
    tree["d"][2] = math.nan
    bad = {name: not np.isfinite(x) for name, x in guard.sums_of_squares(tree).items()}
    assert [name for name in bad if bad[name]] == ["d"]


# ------------------------------------------------------------------------------------------------------- in an update


@pytest.fixture(scope="module")
def agent():
    return small_agent()


def learned(agent):
    """All that an update changes, but for its counters; copied, since the next update writes over it."""
    return jax.tree.map(np.array, agent.state._replace(step=0, skipped_in_row=0))


def spoilt(field, value):
    """A batch with one number replaced, in the second step of the second sequence."""
    batch = small_batch()
    array = batch.reward if field == "reward" else batch.obs["vector"]
    array = array.copy()
    array[1, 1] = value
    return batch._replace(reward=array) if field == "reward" else batch._replace(obs={**batch.obs, "vector": array})


def with_bad_moment(state, kind, value):
    """The state with one number of a moment of the optimizer replaced: ``nu`` the second, ``ema`` the momentum."""
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state.opt_state)
    names = [jax.tree_util.keystr(path) for path, _ in leaves]
    index = next(i for i, name in enumerate(names) if f".{kind}" in name and "critic" in name and "kernel" in name)
    values = [leaf for _, leaf in leaves]
    values[index] = jnp.asarray(values[index]).at[0, 0].set(value)
    return state._replace(opt_state=jax.tree.unflatten(treedef, values))


@pytest.mark.slow
def test_a_bad_update_changes_nothing_and_is_told(agent):
    _, found = agent.update(small_batch(1))
    count = 10 + 2 + 2 * len(jax.tree.leaves(agent.state.nets))
    names = [guard.tensor_name(number, found, agent.state) for number in range(count)]
    assert len(set(names)) == count
    with pytest.raises(IndexError):
        guard.tensor_name(count, found, agent.state)
    before, step = learned(agent), int(agent.state.step)
    # The losses are in alphabetical order. A reward is seen by its head, and by the critic as part of a return.
    cases = [("reward", math.nan, "losses.replay_critic"), ("obs", math.inf, "losses.actor")]
    for number, (field, value, name) in enumerate(cases, 1):
        _, found = agent.update(spoilt(field, value))
        assert same_tree(before, learned(agent))
        assert (int(agent.state.step), int(agent.state.skipped_in_row)) == (step + number, number)
        assert (float(found[averages.SKIPPED]), int(found[averages.IN_ROW])) == (1.0, number)
        assert names[int(found[averages.BAD])] == name
    _, found = agent.update(small_batch(2))
    assert (float(found[averages.SKIPPED]), int(found[averages.IN_ROW]), int(found[averages.BAD])) == (0.0, 0, -1)
    assert int(agent.state.skipped_in_row) == 0 and not same_tree(before, learned(agent))
    for leaf in jax.tree.leaves(agent.state):
        assert np.isfinite(leaf).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nu", "ema"])
def test_a_bad_moment_shows_in_the_parameter(agent, kind):
    good = jax.tree.map(np.array, agent.state)
    agent.state = with_bad_moment(good, kind, math.nan)
    before = learned(agent)
    _, found = agent.update(small_batch(3))
    name = guard.tensor_name(int(found[averages.BAD]), found, agent.state)
    assert name.startswith("parameters.behavior.critic.")
    assert same_tree(before, learned(agent))
    agent.state = good


@pytest.mark.slow
def test_an_absurd_step_is_not_taken(agent):
    """A learning rate that throws parameters out of the range of numbers leaves them where they were."""
    wild = small_agent("optimizer.lr=1e29")
    before = learned(wild)
    _, found = wild.update(small_batch())
    assert guard.tensor_name(int(found[averages.BAD]), found, wild.state).startswith("parameters.")
    assert same_tree(before, learned(wild))
