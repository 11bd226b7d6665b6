"""PETS: what it refuses, and that its plans follow the ensemble."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import algorithms
from dreamer import config as configs
from dreamer.config import ConfigError
from dreamer.types import Space
from tests.world_models.test_ensemble import with_outputs

OBS_SPACES = {"vector": Space("vector", (1,))}
PUSH = {"push": Space("continuous", (1,))}


def make(*overrides, obs=OBS_SPACES, actions=PUSH):
    small = ["ensemble={members: 2, elites: 2, layers: 0, units: 8, ends: never}", "pets.particles=2"]
    return algorithms.make(configs.load(["pets"], [*small, *overrides]), obs, actions)


@pytest.mark.parametrize("way", [-1.0, 1.0])
def test_it_does_what_the_ensemble_says_is_worth_most(way):
    """The reward is the action, or its opposite: the best one is at the bound."""
    algorithm = make("planner={candidates: 64, iterations: 4, elites: 8, horizon: 3}")
    nets = algorithm.init(jax.random.key(0)).nets
    kernels = np.zeros((2, 2, 2))
    kernels[:, 1, 1] = way
    model = nets.world_model._replace(kept=with_outputs(kernels, np.zeros((2, 2))))
    obs = {"vector": jnp.zeros((2, 1))}
    policy = jax.jit(algorithm.policy, static_argnums=5)
    action, _, _ = policy(
        nets._replace(world_model=model), algorithm.initial(2), obs, jnp.ones(2, bool), jax.random.key(0), "mode"
    )
    np.testing.assert_allclose(action["push"], way, atol=0.25)


@pytest.mark.parametrize(
    ("override", "obs", "message"),
    [
        ("pets.particles=3", OBS_SPACES, "expected a multiple of ensemble.elites=2"),
        ("planner.kind=none", OBS_SPACES, "planner.kind=none cannot be used with algorithm=pets"),
        ("seed=1", {"camera": Space("image", (64, 64, 3))}, "algorithm=pets .* the observations camera are images"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_sentence(override, obs, message):
    with pytest.raises(ConfigError, match=message):
        make(override, obs=obs)
