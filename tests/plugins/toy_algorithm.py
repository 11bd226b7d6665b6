"""An algorithm without any world model, in some thirty lines: one step of Q learning on replayed sequences."""

import jax
import jax.numpy as jnp
from flax import nnx

from dreamer.agent.learning import LossOutput, begin, gradient_step
from dreamer.algorithms import Algorithm
from dreamer.nn.layers import Linear
from dreamer.nn.observations import Encoder
from dreamer.types import Parts


def q_learning(config, obs_spaces, action_spaces):
    ((name, space),) = action_spaces.items()

    def init(key):
        rngs = nnx.Rngs(params=key)
        encoder = Encoder(config.nets, obs_spaces, rngs=rngs)
        nets = {"encoder": encoder, "q": Linear(encoder.outputs, space.classes, dtype="float32", rngs=rngs)}
        return begin(config, Parts(behavior=nets), Parts())

    def values(nets, obs):
        return nets.behavior["q"](nets.behavior["encoder"](obs).astype(jnp.float32))

    def policy(nets, memory, obs, is_first, key, mode):
        q = values(nets, obs)
        explore = 3.0 * jax.random.gumbel(key, q.shape) if mode == "sample" else 0.0
        return {name: (q + explore).argmax(-1).astype(jnp.int32)}, memory, ()

    def loss(nets, memory, batch, key, config):
        rows, steps = batch.reward.shape
        q = values(nets, jax.tree.map(lambda x: x.reshape(rows * steps, *x.shape[2:]), batch.obs))
        q = q.reshape(rows, steps, -1)
        taken = jnp.take_along_axis(q[:, :-1], batch.prev_action[name][:, 1:, None], -1)[..., 0]
        target = batch.reward[:, 1:] + 0.9 * (1 - batch.is_terminal[:, 1:]) * q[:, 1:].max(-1)
        error = jnp.square(taken - jax.lax.stop_gradient(target)) * ~batch.is_first[:, 1:]
        return LossOutput({"q": (1.0, error)}, memory, (), {"q/mean": q.mean()})

    return Algorithm(init, lambda batch: (), policy, gradient_step(loss))
