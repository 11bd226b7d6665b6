"""N native environments side by side that reset at the step after an episode ended, as on the host.

The rows are those of `dreamer.envs.VectorEnv`: the final observation of an episode is a row, and the reset after it is
one that is ``is_first``, whose action was ignored.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dreamer.envs.native import NativeEnv
from dreamer.types import Action, Step


class Instances(NamedTuple):
    """N environments at one instant: their states ``[N, ...]``, and what they answered last.

    The log of the step is always an empty dict: an environment in JAX has no ``info``.
    """

    state: Any
    step: Step


def begin(env: NativeEnv, num_envs: int, key: Array) -> Instances:
    """First observations of N new environments."""
    state, obs = jax.vmap(env.reset)(jax.random.split(key, num_envs))
    # Python numbers in a state are weakly typed; a loop needs the dtype that they really have.
    state, obs = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), (state, dict(obs)))
    no, zero = jnp.zeros(num_envs, bool), jnp.zeros(num_envs, jnp.float32)
    answer: Any = (obs, zero, ~no, no, no, zero.astype(jnp.int32), {})
    return Instances(state, Step(*answer))


def advance(env: NativeEnv, instances: Instances, action: Action, key: Array, clip_reward: float = 0.0) -> Instances:
    """Step every environment whose episode goes on, and reset the others.

    Args:
        env: the environment.
        instances: the environments before the step.
        action: actions ``[N, ...]``; continuous ones are clipped to [-1, 1] here and nowhere else.
        key: random key.
        clip_reward: rewards are cut off at plus and minus this; 0: not.
    """
    over = jnp.asarray(instances.step.is_last)
    action = {
        name: jnp.clip(action[name], -1, 1) if space.kind == "continuous" else action[name]
        for name, space in env.action_spaces.items()
    }

    def one(state: Any, action: Action, key: Array, over: Array) -> tuple[Any, Any, Array, Array, Array]:
        step_key, reset_key = jax.random.split(key)
        fresh = env.reset(reset_key)
        *stepped, reward, terminated, truncated = env.step(state, action, step_key)
        state, obs = jax.tree.map(lambda new, old: jnp.where(over, new, old), fresh, tuple(stepped))
        return state, obs, jnp.where(over, 0.0, reward), terminated & ~over, (terminated | truncated) & ~over

    state, obs, reward, terminal, last = jax.vmap(one)(instances.state, action, jax.random.split(key, len(over)), over)
    state = jax.tree.map(lambda new, old: new.astype(old.dtype), state, instances.state)
    reward = reward.astype(jnp.float32)
    if clip_reward:
        reward = jnp.clip(reward, -clip_reward, clip_reward)
    answer: Any = (dict(obs), reward, over, last, terminal, (~over).astype(jnp.int32), {})
    return Instances(state, Step(*answer))


__all__ = ["Instances", "advance", "begin"]
