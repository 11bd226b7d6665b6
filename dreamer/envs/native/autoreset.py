"""N native environments side by side that reset at the step after an episode ended, as on the host.

The rows are those of `dreamer.envs.VectorEnv`: the final observation of an episode is a row, and the reset after it is
one that is ``is_first``, whose action was ignored.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from dreamer.envs.native import NativeEnv
from dreamer.types import Action, Step


class Instances(NamedTuple):
    """N environments at one instant: their states ``[N, ...]``, and what they answered last.

    The log of the step is always an empty dict: what an environment in JAX tells of an episode is in `logs`.
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
    keys = jax.vmap(jax.random.split)(jax.random.split(key, len(over)))
    state, obs, reward, terminated, truncated = jax.vmap(env.step)(instances.state, action, keys[:, 0])
    stepped = jax.tree.map(lambda new, old: new.astype(old.dtype), state, instances.state), dict(obs)

    def renew(stepped: Any) -> Any:
        """Begin an episode where the last one is over."""
        state, obs = jax.vmap(env.reset)(keys[:, 1])
        choose = jax.vmap(lambda over, new, old: jnp.where(over, new, old).astype(old.dtype))
        return jax.tree.map(lambda new, old: choose(over, new, old), (state, dict(obs)), stepped)

    # To make a world takes several times as long as a step in it, and at most steps nobody needs one.
    state, obs = jax.lax.cond(_any(over), renew, lambda stepped: stepped, stepped)
    reward = jnp.where(over, 0.0, reward).astype(jnp.float32)
    if clip_reward:
        reward = jnp.clip(reward, -clip_reward, clip_reward)
    last, terminal = (terminated | truncated) & ~over, terminated & ~over
    answer: Any = (obs, reward, over, last, terminal, (~over).astype(jnp.int32), {})
    return Instances(state, Step(*answer))


def logs(env: NativeEnv, instances: Instances) -> Float32[Array, "N names"]:
    """What each environment would tell if its episode ended now, in the order of its ``log_names``."""
    names = getattr(env, "log_names", ())
    told: Any = env
    return jax.vmap(told.log)(instances.state) if names else jnp.zeros((len(instances.step.is_last), 0), jnp.float32)


@jax.custom_batching.custom_vmap
def _any(over: Bool[Array, "*batch"]) -> Bool[Array, ""]:
    """Whether anything is true, in all members of a population together: a condition that `jax.vmap` leaves one."""
    return over.any()


@_any.def_vmap
def _any_of_members(members: int, batched: Any, over: Array) -> tuple[Array, bool]:
    return _any(over), False


__all__ = ["Instances", "advance", "begin", "logs"]
