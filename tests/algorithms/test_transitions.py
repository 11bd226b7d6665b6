"""Which pairs of steps are transitions, and of what."""

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.algorithms.transitions import transitions
from dreamer.types import Batch


def test_a_transition_is_an_observation_and_what_arrived_with_the_next():
    """Two sequences of three steps; the second one is reset at step 1 and ends in a terminal at step 2."""
    batch = Batch(
        obs={"x": np.array([[10, 11, 12], [20, 21, 22]])},
        prev_action={"move": np.array([[9, 0, 1], [9, 9, 2]])},
        reward=np.array([[0.5, 1.0, 2.0], [3.0, 0.0, 4.0]], np.float32),
        is_first=np.array([[True, False, False], [False, True, False]]),
        is_last=np.array([[False, False, True], [True, False, True]]),
        is_terminal=np.array([[False, False, False], [True, False, True]]),
        stored=(),
    )
    found = transitions(jax.tree.map(jnp.asarray, batch))
    assert found.obs["x"].tolist() == [10, 11, 20, 21]
    assert found.next_obs["x"].tolist() == [11, 12, 21, 22]
    assert found.action["move"].tolist() == [0, 1, 9, 2]
    assert found.reward.tolist() == [1.0, 2.0, 0.0, 4.0]
    # The first sequence was cut by a time limit, which ends nothing.
    assert found.is_terminal.tolist() == [False, False, False, True]
    assert found.happened.tolist() == [True, True, False, True]
    assert found.mean(jnp.array([1.0, 2.0, 100.0, 6.0])) == 3.0


def test_without_a_transition_the_mean_is_zero():
    nothing = np.zeros((1, 2), bool)
    batch = Batch({}, {}, np.zeros((1, 2), np.float32), ~nothing, nothing, nothing, stored=())
    assert transitions(jax.tree.map(jnp.asarray, batch)).mean(jnp.ones(1)) == 0
