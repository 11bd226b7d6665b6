"""A world model in some thirty lines: one hidden vector, moved by observations and actions through two layers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dreamer.equations.distributions import SymexpTwoHot, binary_cross_entropy
from dreamer.nn.layers import Linear
from dreamer.nn.observations import Encoder

SIZE = 8


class Seen(NamedTuple):
    states: Any


class ToyModel(nnx.Module):
    """Deterministic: no noise, nothing to decode."""

    feature_size = SIZE

    def __init__(self, config, obs_spaces, action_spaces, rngs):
        self.actions, dtype = tuple(sorted(action_spaces.items())), "float32"
        self.encoder = Encoder(config.nets, obs_spaces, rngs=rngs)
        classes = sum(space.classes for space in action_spaces.values())
        self.move = Linear(SIZE + classes, SIZE, dtype=dtype, rngs=rngs)
        self.see = Linear(SIZE + self.encoder.outputs, SIZE, dtype=dtype, rngs=rngs)
        self.reward_head = Linear(SIZE, config.nets.bins, dtype=dtype, rngs=rngs)
        self.cont_head = Linear(SIZE, 1, dtype=dtype, rngs=rngs)

    def initial(self, batch):
        return {"hidden": jnp.zeros((batch, SIZE))}

    def noise(self, key, batch):
        return ()

    def step(self, state, action, noise):
        flat = [jax.nn.one_hot(action[key], space.classes) for key, space in self.actions]
        return {"hidden": jnp.tanh(self.move(jnp.concatenate([state["hidden"], *flat], -1)))}

    def filter(self, state, prev_action, obs, is_first, noise):
        expected = self.step(state, prev_action, noise)["hidden"] * ~is_first[:, None]
        return {"hidden": jnp.tanh(self.see(jnp.concatenate([expected, self.encoder(obs)], -1)))}

    def observe(self, batch, key):
        inputs = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (batch.prev_action, batch.obs, batch.is_first))

        def body(state, now):
            prev_action, obs, is_first = now
            state = self.filter(state, prev_action, obs, is_first, ())
            return state, state

        states = jax.lax.scan(body, self.unpack(batch.stored), inputs)[1]
        return Seen(jax.tree.map(lambda x: x.swapaxes(0, 1), states))

    def features(self, state):
        return state["hidden"]

    def reward(self, state):
        return SymexpTwoHot(self.reward_head(state["hidden"]))

    def cont(self, state):
        return jax.nn.sigmoid(self.cont_head(state["hidden"])[..., 0])

    def masks(self, state):
        return {}

    def decode(self, state):
        return None

    def pack(self, state):
        return state

    def unpack(self, stored):
        return jax.tree.map(jnp.asarray, stored)

    def loss(self, seen, batch, config):
        goes_on = binary_cross_entropy(self.cont_head(seen.states["hidden"])[..., 0], 1.0 - batch.is_terminal)
        return {"reward": (1.0, -self.reward(seen.states).log_prob(batch.reward)), "cont": (1.0, goes_on)}, {}
