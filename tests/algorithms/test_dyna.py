"""Learning from what is imagined: the ring of transitions, the rollouts, and what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import algorithms
from dreamer import config as configs
from dreamer.algorithms.dyna import ImaginedBuffer, env_steps
from dreamer.algorithms.transitions import Transitions
from dreamer.config import ConfigError
from dreamer.types import Batch, Space
from tests.small import same_tree

OBS_SPACES = {"vector": Space("vector", (2,))}
PUSH = {"push": Space("continuous", (1,))}
MOVE = {"move": Space("discrete", (), 3)}
SMALL = (
    "nets.units=8",
    "ensemble={members: 3, elites: 2, layers: 1, units: 8}",
    "replay={batch_size: 7, batch_length: 2}",
    "dyna={updates: 2, real_ratio: 0.3, buffer: 40}",
)


def numbered(*numbers):
    """Transitions that can be told apart by their rewards."""
    reward = jnp.array(numbers, jnp.float32)
    no = jnp.zeros(len(numbers), bool)
    return Transitions(jnp.ones((len(numbers), 2)), jnp.ones((len(numbers), 1)), reward, no, no[:, None] * 1.0, ~no)


def test_the_newest_transitions_are_kept():
    ring = ImaginedBuffer.empty(6, 2, 1)
    for first in (1, 3, 5, 7):
        ring = ring.write(numbered(first, first + 1)._replace(next_obs=jnp.ones((2, 2))))
    assert ring.transitions.reward.tolist() == [7, 8, 3, 4, 5, 6]
    assert (int(ring.next), int(ring.filled)) == (2, 6)


def test_only_what_was_written_is_drawn():
    ring = ImaginedBuffer.empty(6, 2, 1).write(numbered(1, 2)._replace(next_obs=jnp.ones((2, 2))))
    drawn = ring.draw(jax.random.key(0), 200)
    assert set(drawn.reward.tolist()) == {1, 2}
    assert drawn.happened.all()


def make(preset, actions, *overrides):
    config = configs.load([preset], [*SMALL, *overrides])
    return config, algorithms.make(config, OBS_SPACES, actions)


def make_batch(actions):
    """Seven pairs, of which the second to last is a reset."""
    rng = np.random.default_rng(0)
    ((name, space),) = actions.items()
    no = np.zeros((7, 2), bool)
    first = no.copy()
    first[5, 1] = True
    vector = rng.normal(size=(7, 2, 2)).astype(np.float32)
    reward = rng.normal(size=(7, 2)).astype(np.float32)
    return Batch({"vector": vector}, {name: np.zeros((7, 2, *space.shape), space.dtype)}, reward, first, no, no, ())


@pytest.fixture(scope="module", params=["mbpo", "dyna_q"])
def two_updates(request):
    """States before, after one and after two updates, with rollouts of two steps from the second on."""
    actions = {"mbpo": PUSH, "dyna_q": MOVE}[request.param]
    # The first update is at env step 21, the second at 28: batches of 14 steps are filled first, then one costs 7.
    config, algorithm = make(request.param, actions, "run.train_ratio=2", "dyna.rollout=[14, 28, 1, 2]")
    update = jax.jit(lambda state, batch: algorithm.update(state, batch, jax.random.key(1), config))
    states = [jax.jit(algorithm.init)(jax.random.key(0))]
    for _ in range(2):
        state, stored, metrics = update(states[-1], make_batch(actions))
        assert stored == ()
        assert metrics["guard/skipped"] == 0
        states.append(state)
    # A state is of the same type before and after: an update is compiled once.
    first, last = ([jax.typeof(x) for x in jax.tree.leaves(state)] for state in (states[0], states[2]))
    assert first == last
    return states


def test_rollouts_branch_off_from_the_batch_and_grow(two_updates):
    """Two elites share six of seven rows evenly; the first update imagines one step, the second two."""
    rings = [state.memory.world_model for state in two_updates]
    assert [int(ring.filled) for ring in rings] == [0, 6, 18]
    imagined = rings[2].transitions
    starts = make_batch(PUSH).obs["vector"][:6, 0]
    np.testing.assert_array_equal(imagined.obs[:6], starts)
    np.testing.assert_array_equal(imagined.obs[6:12], starts)
    np.testing.assert_array_equal(imagined.obs[12:18], imagined.next_obs[6:12])
    # Nothing followed the last observation of an episode, and nothing follows an end.
    assert imagined.happened[:6].tolist() == [True] * 5 + [False]
    goes_on = imagined.happened[6:12] & ~imagined.is_terminal[6:12]
    assert imagined.happened[12:18].tolist() == goes_on.tolist()


def test_everything_is_learned_in_each_update(two_updates):
    for before, after in itertools.pairwise(two_updates):
        assert int(after.step) == int(before.step) + 1
        assert not same_tree(before.nets.behavior, after.nets.behavior)
        assert not same_tree(before.memory.behavior, after.memory.behavior)
        assert not same_tree(before.nets.world_model.learning, after.nets.world_model.learning)


def test_env_steps_are_those_that_fill_replay_and_those_that_pay():
    config = configs.load(["mbpo"], ["replay.prefill=1000", "env.repeat=2", "run.train_ratio=256"])
    # Batches of 512 steps at a ratio of 256 cost two agent steps.
    assert [float(env_steps(update, config)) for update in (0, 1, 10)] == [2004, 2008, 2044]


@pytest.mark.parametrize(
    ("preset", "actions", "overrides", "message"),
    [
        ("mbpo", MOVE, (), "the actions move are discrete, expected continuous ones. Use algorithm=dyna_q"),
        ("dyna_q", PUSH, (), "expected one discrete action of one number. Use algorithm=mbpo for continuous"),
        ("mbpo", PUSH, ("dyna.buffer=5",), "the 7 transitions of a batch: .* at most dyna.buffer=5"),
        ("mbpo", PUSH, ("replay.batch_size=1",), "the 1 transitions of a batch: .* at least ensemble.elites=2"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_sentence(preset, actions, overrides, message):
    with pytest.raises(ConfigError, match=message):
        make(preset, actions, *overrides)


@pytest.mark.parametrize("rollout", ["[5, 4, 1, 2]", "[0, 9, 3, 2]", "[0, 9, 0, 2]", "[0, 9, 1]"])
def test_schedules_that_go_backwards_are_refused(rollout):
    with pytest.raises(ConfigError, match=r"dyna\.rollout=.* cannot be used: expected .*(four numbers|first <= last)"):
        configs.load([], [f"dyna.rollout={rollout}"])
