"""Soft actor-critic: its update number by number, and what it refuses."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import checkpoints
from dreamer import config as configs
from dreamer.algorithms import sac as module
from dreamer.algorithms.adam import adam_rate
from dreamer.algorithms.sac import SACMemory, SACNets, sac
from dreamer.checkpoints import transfer
from dreamer.config import ConfigError
from dreamer.types import Batch, Parts, Space
from tests import golden_values as golden
from tests.small import same_tree

OBS_SPACES = {"vector": Space("vector", (3,))}
ACTION_SPACES = {"push": Space("continuous", (2,))}
SCALE = jnp.array([[2.0, 1.0]])
"""The largest actions of the golden task; here, all actions lie in [-1, 1]."""
FIRST_TEMPERATURE = 0.2
"""That code takes 0.2 in the first update, although the logarithm that it learns starts at 0."""


def layers(prefix, data, heads):
    """Official arrays in the order of our leaves: by name of the attribute."""
    names = [f"{prefix}/{head}" for head in heads] + [f"{prefix}/dense{i}" for i in range(2)]
    return [data[f"{name}/{kind}"] for name in names for kind in ("bias", "kernel")]


def actor_leaves(data, prefix):
    # Attributes in alphabetical order: log_std, mean, mlp.
    return layers(f"{prefix}/policy", data, ["log_std", "mean"])


def critic_leaves(data, prefix):
    both = [layers(f"{prefix}/{name}", data, ["out"]) for name in ("q1", "q2")]
    return [np.stack(pair) for pair in zip(*both, strict=True)]


def fill(tree, leaves):
    assert [x.shape for x in jax.tree.leaves(tree)] == [x.shape for x in leaves]
    return jax.tree.unflatten(jax.tree.structure(tree), [jnp.asarray(x) for x in leaves])


def close(ours, theirs, tolerance=2e-6):
    """Equal to ``tolerance`` of the largest magnitude."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * (np.abs(theirs).max() + 1e-8))


def all_close(tree, leaves, tolerance=2e-6):
    for ours, theirs in zip(jax.tree.leaves(tree), leaves, strict=True):
        close(ours, theirs, tolerance)


@pytest.fixture(scope="module")
def data():
    return golden.load("sac")


@pytest.fixture(scope="module")
def updates(data):
    """State and metrics after each of the three official updates."""
    config = configs.load(["sac"], ["nets.units=8"])
    algorithm = sac(config, OBS_SPACES, ACTION_SPACES)

    def pair(first, second):
        """Two steps of each row."""
        return jnp.stack([first, second], 1)

    nothing = jnp.zeros((6, 2), bool)
    batch = Batch(
        obs={"vector": pair(data["batch/obs"], data["batch/next_obs"])},
        prev_action={"push": pair(np.zeros((6, 2), np.float32), data["batch/action"])},
        reward=pair(np.zeros(6, np.float32), data["batch/reward"]),
        is_first=nothing,
        is_last=nothing,
        is_terminal=pair(np.zeros(6, bool), data["batch/done"]),
        stored=(),
    )
    start = algorithm.init(jax.random.key(0))
    nets = SACNets(
        actor=fill(start.nets.behavior.actor, actor_leaves(data, "params")),
        critics=fill(start.nets.behavior.critics, critic_leaves(data, "params/critic")),
        log_temperature=jnp.log(FIRST_TEMPERATURE),
    )
    slow = fill(start.memory.behavior.slow_critics, critic_leaves(data, "params/critic_target"))
    state = start._replace(nets=Parts(behavior=nets), memory=Parts(behavior=SACMemory(slow)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SquashedNormal", functools.partial(module.SquashedNormal, scale=SCALE))

        @jax.jit
        def update(state, noise):
            draws = iter(noise)
            patch.setattr(jax.random, "normal", lambda key, shape: next(draws))
            return algorithm.update(state, batch, jax.random.key(0), config)

        found = []
        for noise in data["noise"]:
            state, _, metrics = update(state, jnp.asarray(noise))
            found.append((state, metrics))
            nets = state.nets.behavior
            if len(found) == 1:
                # From here on, the temperature is that of the logarithm.
                nets = nets._replace(log_temperature=jnp.asarray(data["update_1/log_alpha"][0]))
            state = state._replace(nets=Parts(behavior=nets))
    return found


@pytest.mark.parametrize("number", [1, 2, 3])
def test_losses(data, updates, number):
    _, metrics = updates[number - 1]
    theirs = {name: data[f"update_{number}/{name}_loss"] for name in ("q1", "q2", "policy", "alpha")}
    close(metrics["loss/critic"], theirs["q1"] + theirs["q2"])
    close(metrics["loss/actor"], theirs["policy"])
    if number > 1:
        close(metrics["loss/temperature"], theirs["alpha"], 1e-5)
        close(metrics["sac/temperature"], data[f"update_{number - 1}/alpha"])


def test_gradients(data, updates):
    """After one update, Adam's first moment is a tenth of the gradient."""
    state, _ = updates[0]
    moments = SACNets(*(adam[0].mu for adam in state.opt_state))
    all_close(moments.critics, [0.1 * x for x in critic_leaves(data, "grads/critic")])
    all_close(moments.actor, [0.1 * x for x in actor_leaves(data, "grads")])
    close(moments.log_temperature, 0.1 * data["grads/log_alpha"][0])


@pytest.mark.parametrize("number", [1, 3])
def test_parameters(data, updates, number):
    state, _ = updates[number - 1]
    nets = state.nets.behavior
    all_close(nets.critics, critic_leaves(data, f"after_{number}/critic"))
    all_close(nets.actor, actor_leaves(data, f"after_{number}"))
    all_close(state.memory.behavior.slow_critics, critic_leaves(data, f"after_{number}/critic_target"))
    start = jnp.log(FIRST_TEMPERATURE) if number == 1 else 0.0
    np.testing.assert_allclose(nets.log_temperature - start, data[f"update_{number}/log_alpha"][0], atol=2e-7)


def test_slow_critics_start_as_copies_of_those_of_another_run():
    algorithm = sac(configs.load(["sac"], ["nets.units=8"]), OBS_SPACES, ACTION_SPACES)
    other = algorithm.init(jax.random.key(1))
    arrays = jax.device_get(checkpoints.named_arrays(other.nets))
    taken = transfer.Taken(pathlib.Path(), arrays, {}, ())
    state = transfer.begin_with(algorithm.init(jax.random.key(0)), taken)
    assert same_tree(state.nets.behavior.critics, other.nets.behavior.critics)
    assert same_tree(state.memory.behavior.slow_critics, other.nets.behavior.critics)


@pytest.mark.parametrize("kind", ["laprop", "adam"])
def test_the_rate_is_that_of_the_preset_whatever_other_algorithms_would_take(kind):
    config = configs.load(["sac"], [f"optimizer.kind={kind}"])
    np.testing.assert_allclose(adam_rate(config.optimizer, 0), 3e-4, rtol=1e-6)


def test_an_update_that_is_not_finite_changes_nothing_but_the_counters(data):
    config = configs.load(["sac"], ["nets.units=8"])
    algorithm = sac(config, OBS_SPACES, ACTION_SPACES)
    state = algorithm.init(jax.random.key(0))
    nothing = jnp.zeros((1, 2), bool)
    batch = Batch(
        obs={"vector": jnp.ones((1, 2, 3))},
        prev_action={"push": jnp.zeros((1, 2, 2))},
        reward=jnp.array([[0.0, jnp.nan]]),
        is_first=nothing,
        is_last=nothing,
        is_terminal=nothing,
        stored=(),
    )
    after, _, metrics = algorithm.update(state, batch, jax.random.key(0), config)
    assert metrics["guard/skipped"] == 1
    assert (int(after.step), int(after.skipped_in_row)) == (1, 1)
    for before, now in zip(jax.tree.leaves(state[1:3]), jax.tree.leaves(after[1:3]), strict=True):
        np.testing.assert_array_equal(before, now)


@pytest.mark.parametrize(
    ("obs", "actions", "message"),
    [
        ({"camera": Space("image", (64, 64, 3))}, ACTION_SPACES, "the observations camera are images"),
        (OBS_SPACES, {"move": Space("discrete", (), 3)}, "the actions move are discrete"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_sentence(obs, actions, message):
    with pytest.raises(ConfigError, match=message):
        sac(configs.load(["sac"]), obs, actions)
