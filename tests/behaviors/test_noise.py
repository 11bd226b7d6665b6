"""Noise for exploration: its distribution, its bounds, and masks."""

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.behaviors.noise import add_noise, random_action
from dreamer.types import Action, Space

SPACES = {"move": Space("discrete", (), 4), "push": Space("continuous", (2,))}
ACTION: Action = {"move": jnp.zeros(4000, jnp.int32), "push": jnp.full((4000, 2), 0.5)}
KEY = jax.random.key(0)


def test_noise_has_its_size_and_stays_within_bounds():
    found = add_noise(ACTION, 0.1, SPACES, {}, KEY)
    np.testing.assert_allclose(found["push"].mean(), 0.5, atol=0.01)
    np.testing.assert_allclose(found["push"].std(), 0.1, atol=0.01)
    assert abs(np.asarray(add_noise(ACTION, 1.0, SPACES, {}, KEY)["push"])).max() == 1
    # A tenth is random, and a quarter of that is the class it was.
    np.testing.assert_allclose((found["move"] != 0).mean(), 0.1 * 3 / 4, atol=0.02)


def test_random_actions_are_uniform_among_those_allowed():
    masks = {"move": jnp.tile(jnp.array([True, False, True, True]), (3000, 1))}
    found = random_action(SPACES, (3000,), masks, KEY)
    np.testing.assert_allclose(np.bincount(found["move"], minlength=4) / 3000, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.03)
    np.testing.assert_allclose(found["push"].mean(), 0, atol=0.03)
    np.testing.assert_allclose(found["push"].std(), 1 / np.sqrt(3), atol=0.02)
