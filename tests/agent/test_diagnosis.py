"""What a diagnosis says where it is known: gradients by hand, blind and perfect heads, states that are alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.agent.diagnosis import gradients_by_loss
from dreamer.agent.learning import LossOutput
from dreamer.config import ConfigError
from dreamer.equations import transforms
from dreamer.equations.distributions import SymexpTwoHot
from dreamer.types import Parts
from dreamer.world_models.diagnosis import MOST_STATES, diagnose_states, steps_since_reset
from tests.small import same_tree, small_agent, small_batch, small_config, total_loss

KEY = jax.random.key(3)
TRUNK = ("encoder", "rssm")


# A toy with two parts


def toy_loss(nets, memory, batch, key, config):
    """``far`` does not reach the encoder, as its input is behind a stop; ``none`` reaches nothing."""
    x = nets.world_model["encoder"] * batch.reward
    fixed = jax.lax.stop_gradient(x)
    losses = {
        "near": (3.0, nets.world_model["rssm"] * x),
        "far": (2.0, nets.world_model["rssm"] * fixed),
        "none": (1.0, fixed),
    }
    return LossOutput(losses, memory, stored=(), metrics={})


def test_gradients_of_a_toy_by_hand():
    nets = Parts({"encoder": jnp.float32(5.0), "rssm": jnp.float32(0.5)})
    parts = gradients_by_loss(toy_loss, lambda nets: nets.world_model)
    batch, config = small_batch()._replace(reward=np.array([[1.0, 3.0]], np.float32)), small_config()
    found, output = jax.jit(lambda nets, batch: parts(nets, Parts(), batch, KEY, config))(nets, batch)
    # The mean of x is 2 e, for the encoder e = 5 and the recurrence r = 0.5: d(3 r 2 e) and d(2 r sg(2 e)).
    expected = {
        "near": {"encoder": 3 * 0.5 * 2 / 5, "rssm": 3 * 10 / 0.5},
        "far": {"encoder": 0.0, "rssm": 2 * 10 / 0.5},
        "none": {"encoder": 0.0, "rssm": 0.0},
    }
    assert found.keys() == {f"diagnose/gradient/{name}/{part}" for name in expected for part in TRUNK}
    for name, by_part in expected.items():
        for part, value in by_part.items():
            assert float(found[f"diagnose/gradient/{name}/{part}"]) == pytest.approx(value, rel=1e-6), (name, part)
    np.testing.assert_allclose(output.losses["near"][1], [[2.5, 7.5]])


# The agent


@pytest.fixture(scope="module")
def trained():
    """After a few updates, so that heads which start at zero let gradients through."""
    agent = small_agent("behavior.replay_gradient=false")
    for seed in range(3):
        agent.update(small_batch(seed))
    return agent


@pytest.fixture(scope="module")
def found(trained):
    return {name: float(value) for name, value in trained.diagnose(small_batch()).items()}


def test_gradients_of_the_agent_are_those_of_its_losses(trained, found):
    """All losses together have the gradient that the update descends; each has the one that `jax.grad` gives."""
    batch, state = small_batch(), trained.state
    key = trained._keys.diagnosis(state.step)

    def losses(nets):
        _, output = total_loss(trained)(nets, state.memory, batch, key, trained.config)
        return {name: weight * value.mean() for name, (weight, value) in output.losses.items()}

    gradients = jax.jit(jax.jacrev(losses))(state.nets)
    assert {name.split("gradient/")[1] for name in found if "gradient" in name} == {
        f"{loss}/{part}" for loss in gradients for part in TRUNK
    }
    for loss, gradient in gradients.items():
        for part in TRUNK:
            norm, size = (
                np.sqrt(sum(float(jnp.square(x).sum()) for x in jax.tree.leaves(getattr(nets.world_model, part))))
                for nets in (gradient, state.nets)
            )
            assert found[f"diagnose/gradient/{loss}/{part}"] == pytest.approx(norm / size, rel=1e-3, abs=1e-9), loss


def test_losses_that_do_not_train_the_model_do_not_pull_on_it(found):
    # Without the gradient of replayed rewards, the critic's losses stop before the world model, as the actor's does.
    silent = {name for name, value in found.items() if "gradient" in name and value == 0}
    losses = ("actor", "critic", "replay_critic")
    assert silent == {f"diagnose/gradient/{loss}/{part}" for loss in losses for part in TRUNK}


def test_diagnosing_changes_nothing_and_repeats_itself(trained, found):
    before = jax.device_get(trained.state), jax.device_get(trained.acting_nets), trained.policy_steps
    again, _ = trained.lower_diagnose(small_batch())()
    assert {name: float(value) for name, value in again(small_batch()).items()} == pytest.approx(found)
    assert same_tree(before[0], trained.state) and same_tree(before[1], trained.acting_nets)
    assert trained.policy_steps == before[2]


def test_gaussian_latents_have_a_diagnosis_too(found):
    agent = small_agent("world_model.kind=gaussian_rssm", "behavior.replay_gradient=false")
    batch = small_batch()
    batch = batch._replace(stored=jax.tree.map(lambda x: np.zeros((2, *x.shape), x.dtype), agent.algorithm.stored))
    other = agent.diagnose(batch)
    assert other.keys() == found.keys() and all(np.isfinite(value) for value in other.values())


def test_an_algorithm_without_a_diagnosis():
    agent = small_agent()
    agent.algorithm = agent.algorithm._replace(diagnose=None)
    with pytest.raises(ConfigError, match="has no diagnosis"):
        agent.diagnose(small_batch())


# States whose spread is known


class Known:
    """A model whose state is its recurrent part, with a head that is told what to predict."""

    encoder = rssm = ()

    def __init__(self, logits):
        self._logits = logits

    def recurrent(self, state):
        return state

    def reward(self, state):
        return SymexpTwoHot(self._logits)


def states_of(recurrent, reward=None, is_first=None, logits=None):
    """The diagnosis of states ``[B, T, D]``."""
    shape = recurrent.shape[:2]
    batch = small_batch(rows=shape[0], steps=shape[1])
    batch = batch._replace(
        reward=np.zeros(shape, np.float32) if reward is None else reward,
        is_first=np.zeros(shape, bool) if is_first is None else is_first,
    )
    logits = jnp.zeros((*shape, 41)) if logits is None else logits
    return {name: float(value) for name, value in diagnose_states(Known(logits), jnp.asarray(recurrent), batch).items()}


def test_spread_and_size_of_states(rng):
    """Three directions of equal variance around a point far away."""
    recurrent = np.zeros((40, 50, 8), np.float32)
    recurrent[..., :3] = 0.2 * rng.normal(size=(40, 50, 3))
    recurrent += 2.0
    found = states_of(recurrent)
    assert found["diagnose/deter_std"] == pytest.approx(3 / 8 * 0.2, rel=0.02)
    assert found["diagnose/deter_rms"] == pytest.approx(np.sqrt(4 + 3 / 8 * 0.04), rel=0.01)
    assert found["diagnose/deter_rank"] == pytest.approx(3, rel=0.02)
    assert recurrent[..., 0].size > MOST_STATES


def test_what_happens_after_every_reset_is_no_spread(rng):
    """States that only count the steps since a reset carry nothing, however much they change."""
    is_first = rng.random((30, 12)) < 0.2
    is_first[:, 0] = True
    since = np.asarray(steps_since_reset(jnp.asarray(is_first)))
    path = rng.normal(size=(13, 5)).astype(np.float32)
    found = states_of(path[since], is_first=is_first)
    assert found["diagnose/deter_std"] == pytest.approx(0, abs=1e-5) and found["diagnose/deter_rms"] > 0.5
    assert states_of(path[since])["diagnose/deter_std"] > 0.5  # The same states, if the resets are not known.


def test_steps_since_a_reset_by_hand():
    is_first = jnp.array([[False, True, False, True, False], [True, False, False, False, False], [False] * 5])
    expected = [[5, 0, 1, 0, 1], [0, 1, 2, 3, 4], [5] * 5]
    np.testing.assert_array_equal(steps_since_reset(is_first), expected)


def test_a_blind_head_and_a_perfect_one(rng):
    reward = rng.choice([0.0, 0.0, 1.0], (4, 60)).astype(np.float32)
    targets = transforms.two_hot(*transforms.neighbours(jnp.asarray(reward), transforms.symexp_bins(41)), 41)
    blind = jnp.broadcast_to(targets.mean((0, 1)), targets.shape)
    for probs, expected in ((targets, 0.0), (blind, 1.0)):
        found = states_of(np.zeros((4, 60, 2)), reward, logits=jnp.log(jnp.maximum(probs, 1e-30)))
        assert found["diagnose/reward_unexplained"] == pytest.approx(expected, abs=1e-4)


def test_a_head_that_knows_when_a_reward_comes_and_not_which(rng):
    """A cue decides whether the last of five steps pays or costs; the head knows the step, but not the cue."""
    reward = np.zeros((12, 20), np.float32)
    reward[:, 4::5] = rng.choice(transforms.symexp_bins(41)[[19, 21]], (12, 4))
    is_first = np.broadcast_to(np.arange(20) % 5 == 0, (12, 20))
    targets = transforms.two_hot(*transforms.neighbours(jnp.asarray(reward), transforms.symexp_bins(41)), 41)
    either = 0.5 * (targets + targets[..., ::-1])  # The bins are symmetric.
    found = states_of(np.zeros((12, 20, 2)), reward, is_first, jnp.log(jnp.maximum(either, 1e-30)))
    # Of the entropy of 0.8, 0.1 and 0.1, a fifth of ln 2 is left.
    assert found["diagnose/reward_unexplained"] == pytest.approx(0.2 * np.log(2) / 0.639, rel=0.05)
    assert found["diagnose/reward_unexplained_by_step"] == pytest.approx(1, rel=0.05)


def test_what_a_model_does_not_offer_is_left_out(rng):
    class NoReward(Known):
        def reward(self, state):
            return None

    batch = small_batch(rows=2, steps=3)
    states = jnp.asarray(rng.normal(size=(2, 3, 4)))
    assert not any("reward" in name for name in diagnose_states(NoReward(None), states, batch))

    class NoRecurrence:
        def reward(self, state):
            return SymexpTwoHot(jnp.zeros((2, 3, 41)))

    found = diagnose_states(NoRecurrence(), states, batch)
    assert found.keys() == {"diagnose/reward_unexplained", "diagnose/reward_unexplained_by_step"}
