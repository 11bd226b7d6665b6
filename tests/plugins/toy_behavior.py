"""A behaviour in some thirty lines: a softmax policy that learns from the reward of one imagined step."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from dreamer.config import ConfigError
from dreamer.nn.layers import Linear
from dreamer.world_models import imagine


class ToyBehavior:
    def __init__(self, config, action_spaces, feature_size):
        if any(space.kind != "discrete" or space.shape for space in action_spaces.values()):
            raise ConfigError("The toy behaviour takes single discrete actions only.")
        self.spaces, self.feature_size = action_spaces, feature_size

    def init(self, rngs):
        heads = {
            key: Linear(self.feature_size, s.classes, dtype="float32", rngs=rngs) for key, s in self.spaces.items()
        }
        return heads, {"mean": jnp.zeros(())}

    def act(self, nets, feature, masks, key, mode):
        logits = {name: head(feature) for name, head in nets.items()}
        if mode == "mode":
            return {name: x.argmax(-1).astype(jnp.int32) for name, x in logits.items()}
        return {name: jax.random.categorical(key, x).astype(jnp.int32) for name, x in logits.items()}

    def value(self, nets, model, state):
        return jnp.zeros(model.features(state).shape[:-1])

    def loss(self, nets, memory, model, seen, batch, key, config, reward=None):
        stop = jax.lax.stop_gradient
        model, start = stop((model, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen.states)))

        def policy(state, key):
            return self.act(nets, model.features(state), {}, key, "sample"), None

        dream: Any = imagine(model, start, policy, 1, key)
        gained = (reward or model.reward)(dream.states).mean()[1]
        likelihood = jnp.zeros(gained.shape)
        for name, head in nets.items():
            logits = head(model.features(start))
            likelihood += jnp.take_along_axis(logits, dream.action[name][0][:, None], -1)[:, 0] - logsumexp(logits, -1)
        losses = {"policy": (1.0, -likelihood * stop(gained - memory["mean"]))}
        return losses, {"mean": stop(0.9 * memory["mean"] + 0.1 * gained.mean())}, {"policy/reward": gained.mean()}

    def after_update(self, nets, memory, config):
        return memory
