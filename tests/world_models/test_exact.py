"""An environment in JAX as its own model."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.envs.native import NativeEnv, build
from dreamer.envs.native.observed import STATE, ObservedState, observe_state
from dreamer.types import Action, Space
from dreamer.world_models import Dynamics
from dreamer.world_models.exact import ExactDynamics


class Counter:
    """Counts up to 3, where it ends; a mask forbids class 1 at odd counts. Its state has all kinds of numbers."""

    obs_spaces: ClassVar = {"action_mask": Space("discrete", (2,), 2), "count": Space("vector", (1,))}
    action_spaces: ClassVar = {"action": Space("discrete", (), 2)}

    def reset(self, key):
        state = {"count": jnp.int32(0), "key": key, "far": jnp.uint32(2**32 - 5), "half": jnp.float32(0.1), "on": True}
        return state, self.see(state)

    def step(self, state, action, key):
        count = state["count"] + action["action"]
        state = {**state, "count": count, "half": state["half"] * 0.5}
        return state, self.see(state), count.astype(jnp.float32), count == 3, jnp.bool_(False)

    def see(self, state):
        mask = jnp.stack([jnp.int32(1), 1 - state["count"] % 2])
        return {"count": state["count"][None].astype(jnp.float32), "action_mask": mask}


@pytest.fixture(scope="module")
def env():
    return ObservedState(Counter())


def begin(env, rows=2):
    return jax.vmap(env.reset)(jax.random.split(jax.random.key(0), rows))


def test_the_state_is_an_observation_without_loss(env):
    state, obs = begin(env)
    assert isinstance(env, NativeEnv)
    assert obs[STATE].shape == (2, *env.obs_spaces[STATE].shape)
    assert obs[STATE].dtype == jnp.float32
    as_shown: Any = env
    read = jax.vmap(as_shown.read)(obs[STATE])
    for name in ("count", "far", "half", "on"):
        np.testing.assert_array_equal(read[name], state[name])
        assert read[name].dtype == state[name].dtype
    np.testing.assert_array_equal(jax.random.key_data(read["key"]), jax.random.key_data(state["key"]))


def test_the_rules_are_a_model(env):
    model = ExactDynamics(env)
    assert isinstance(model, Dynamics)
    state = model.start(begin(env)[1])
    rewards, goes_on, allowed = [], [], []
    for action in ([1, 0], [1, 1], [1, 0], [1, 0]):
        state = model.step(state, {"action": jnp.array(action)}, model.noise(jax.random.key(0), 2))
        rewards.append(model.reward(state).mean().tolist())
        goes_on.append(model.cont(state).tolist())
        allowed.append(model.masks(state)["action"][:, 1].tolist())
    # After the end nothing changes, and nothing is received.
    assert rewards == [[1, 0], [2, 1], [3, 1], [0, 1]]
    assert goes_on == [[1, 1], [1, 1], [0, 1], [0, 1]]
    assert allowed == [[False, True], [True, False], [False, False], [False, False]]
    np.testing.assert_array_equal(model.features(state), [[1, 0, 3], [1, 0, 1]])


def test_a_model_begins_where_the_environment_is():
    env = observe_state(build("Pendulum-v1"))
    model = ExactDynamics(env)
    state, _ = env.reset(jax.random.key(1))
    for push in (0.5, -1.5):
        action: Action = {"action": jnp.array([push])}
        before = model.start({key: value[None] for key, value in env.step(state, action, jax.random.key(0))[1].items()})
        clipped: Action = {"action": jnp.clip(action["action"], -1, 1)}
        state, *_ = env.step(state, clipped, jax.random.key(0))
        after = env.step(state, clipped, jax.random.key(0))
        if push == 0.5:
            ours = model.step(before, {"action": action["action"][None]}, model.noise(jax.random.key(0), 1))
            np.testing.assert_allclose(ours.obs["vector"][0], after[1]["vector"], rtol=1e-6)
            np.testing.assert_allclose(ours.reward[0], after[2], rtol=1e-6)
