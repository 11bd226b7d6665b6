"""Deep Q network: its targets by hand, which actions it takes, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import config as configs
from dreamer.algorithms.dqn import DQNMemory, dqn, exploration
from dreamer.config import ConfigError
from dreamer.types import Batch, Parts, Space

OBS_SPACES = {"vector": Space("vector", (2,))}
MASKED_SPACES = {"action_mask": Space("discrete", (3,), 2), **OBS_SPACES}
ACTION_SPACES = {"move": Space("discrete", (), 3)}
# Without hidden layers, values are x W + b.
OVERRIDES = ("nets.critic_layers=0", "behavior.return_horizon=10", "dqn={epsilon: 0.2, epsilon_updates: 4}")
KERNEL = np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.5]], np.float32)
SLOW_KERNEL = np.array([[0.5, 1.0, 0.0], [3.0, -1.0, 1.0]], np.float32)


def make(*overrides, obs_spaces=OBS_SPACES, kernels=(KERNEL,), slow_kernels=()):
    """The algorithm, its config, and a state whose critics have the given kernels."""
    config = configs.load(["dqn"], [*OVERRIDES, f"q.critics={len(kernels)}", *overrides])
    algorithm = dqn(config, obs_spaces, ACTION_SPACES)
    state = algorithm.init(jax.random.key(0))

    def with_kernels(critics, kernels):
        # Biases, [K, 3], are 0.
        leaves = [
            jnp.zeros(x.shape) if x.ndim == 2 else jnp.float32(np.stack(kernels)) for x in jax.tree.leaves(critics)
        ]
        return jax.tree.unflatten(jax.tree.structure(critics), leaves)

    nets = state.nets.behavior._replace(critics=with_kernels(state.nets.behavior.critics, kernels))
    memory = DQNMemory(with_kernels(nets.critics, slow_kernels or kernels))
    return algorithm, config, state._replace(nets=Parts(behavior=nets), memory=Parts(behavior=memory))


def make_batch():
    """One pair in each row: one that goes on, one that ends, one cut by a time limit, one that is a reset."""
    return Batch(
        obs={
            "vector": jnp.array([[[1, 0], [0, 1]], [[1, 1], [2, 0]], [[0, 1], [1, 0]], [[5, 5], [1, 1]]], jnp.float32)
        },
        prev_action={"move": jnp.array([[0, 0], [0, 1], [0, 2], [0, 0]])},
        reward=jnp.array([[0, 1], [0, 2], [0, 3], [0, 0]], jnp.float32),
        is_first=jnp.array([[False, False], [False, False], [False, False], [False, True]]),
        is_last=jnp.array([[False, False], [False, True], [False, True], [False, False]]),
        is_terminal=jnp.array([[False, False], [False, True], [False, False], [False, False]]),
        stored=(),
    )


def test_the_loss_by_hand():
    """The newest network chooses the next action, the slow one values it; a time limit ends nothing."""
    algorithm, config, state = make(slow_kernels=(SLOW_KERNEL,))
    _, _, metrics = algorithm.update(state, make_batch(), jax.random.key(0), config)
    # | obs    | action | value | reward | next   | its values | best | slow value | target           | error | Huber |
    # | (1, 0) | 0      | 1     | 1      | (0, 1) | 0, 2, 0.5  | 1    | -1         | 1 - 0.9 = 0.1    | 0.9   | 0.405 |
    # | (1, 1) | 1      | 2     | 2      | (2, 0) |            |      |            | 2                | 0     | 0     |
    # | (0, 1) | 2      | 0.5   | 3      | (1, 0) | 1, 0, -1   | 0    | 0.5        | 3 + 0.45 = 3.45  | -2.95 | 2.45  |
    np.testing.assert_allclose(metrics["loss/critic"], (0.405 + 0 + 2.45) / 3, rtol=1e-5)


def test_an_update_moves_the_networks_the_slow_copy_and_epsilon():
    algorithm, config, state = make(slow_kernels=(SLOW_KERNEL,))
    after, stored, _ = algorithm.update(state, make_batch(), jax.random.key(0), config)
    assert stored == ()
    assert after.step == 1
    (_, kernel), (_, slow) = (
        sorted(jax.tree.leaves(x), key=lambda x: x.ndim)
        for x in (
            after.nets.behavior.critics,
            after.memory.behavior,
        )
    )
    # Adam's first step is the learning rate in each direction; the slow copy goes 0.005 of the way to the new network.
    np.testing.assert_allclose(np.abs(kernel[0] - KERNEL)[0, 0], config.optimizer.lr, rtol=1e-3)
    np.testing.assert_allclose(slow[0], 0.995 * SLOW_KERNEL + 0.005 * kernel[0], rtol=1e-6)
    # From 1 to 0.2 in four updates.
    np.testing.assert_allclose(after.nets.behavior.epsilon, 0.8, rtol=1e-6)


def test_epsilon_falls_and_stays():
    config = configs.load(["dqn"], OVERRIDES)
    found = [float(exploration(step, config)) for step in (0, 1, 2, 4, 100)]
    np.testing.assert_allclose(found, [1.0, 0.8, 0.6, 0.2, 0.2], rtol=1e-6)


def act(algorithm, state, mode, obs, epsilon, seed=0):
    nets = state.nets._replace(behavior=state.nets.behavior._replace(epsilon=jnp.float32(epsilon)))
    count = len(obs["vector"])
    action, _, _ = algorithm.policy(nets, (), obs, jnp.zeros(count, bool), jax.random.key(seed), mode)
    assert action["move"].dtype == jnp.int32
    return np.asarray(action["move"])


def test_it_explores_in_training_and_not_in_evaluation():
    algorithm, _, state = make()
    obs = {"vector": jnp.tile(jnp.array([[0.0, 1.0]]), (3000, 1))}  # Values 0, 2, 0.5: the best action is 1.
    assert (act(algorithm, state, "mode", obs, epsilon=1.0) == 1).all()
    assert (act(algorithm, state, "sample", obs, epsilon=0.0) == 1).all()
    shares = np.bincount(act(algorithm, state, "sample", obs, epsilon=0.6), minlength=3) / 3000
    np.testing.assert_allclose(shares, [0.2, 0.6, 0.2], atol=0.03)


def test_forbidden_actions_are_neither_drawn_nor_best():
    algorithm, _, state = make(obs_spaces=MASKED_SPACES, kernels=[np.concatenate([np.zeros((6, 3)), KERNEL])])
    mask = jnp.tile(jnp.array([[1, 0, 1]]), (1000, 1))
    obs = {"action_mask": mask, "vector": jnp.tile(jnp.array([[0.0, 1.0]]), (1000, 1))}
    assert (act(algorithm, state, "mode", obs, epsilon=0.0) == 2).all()
    assert set(act(algorithm, state, "sample", obs, epsilon=1.0)) == {0, 2}


# Values of three actions in (1, 0), by member: the data have seen the first two; of the third, one member hopes for 9.
CHAIN = [np.array([[1.0, 0.5, third], [0, 0, 0]]) for third in (9.0, 0.0, 0.0, 0.0, 0.0)]


@pytest.mark.parametrize(
    ("overrides", "action"),
    [
        (("q.target=mean",), 2),  # 9 / 5 = 1.8 > 1
        (("q.target=quantile", "q.quantile=0.1"), 0),
        (("q.target=min",), 0),
        (("q.target=lcb", "q.beta=1"), 0),  # 1.8 - 3.6 < 1
    ],
)
def test_an_action_that_one_member_overvalues_is_picked_by_the_mean_alone(overrides, action):
    algorithm, _, state = make(*overrides, kernels=CHAIN)
    assert act(algorithm, state, "mode", {"vector": jnp.array([[1.0, 0.0]])}, epsilon=0.0) == [action]


@pytest.mark.parametrize(
    ("obs", "actions", "message"),
    [
        ({"camera": Space("image", (64, 64, 3))}, ACTION_SPACES, "the observations camera are images"),
        (OBS_SPACES, {"push": Space("continuous", (2,))}, r"push \(continuous, shape \[2\]\), expected one discrete"),
        (OBS_SPACES, {"a": ACTION_SPACES["move"], "b": ACTION_SPACES["move"]}, "a .*, b .*, expected one discrete"),
        (
            OBS_SPACES,
            {"keys": Space("discrete", (2,), 2)},
            r"shape \[2\]\), expected one discrete action of one number",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_sentence(obs, actions, message):
    with pytest.raises(ConfigError, match=message):
        dqn(configs.load(["dqn"]), obs, actions)
