"""N native environments side by side that reset in the step after an episode ended, as on the host.

The rows are those of `dreamer.envs.VectorEnv`: the final observation of an episode is a row, and the reset after it is
another, marked ``is_first``; the action given for it is ignored.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from dreamer.envs.native import NativeEnv
from dreamer.types import Action, Step


class Instances(NamedTuple):
    """N environments at one instant: their states ``[N, ...]``, and their latest answers.

    The log of the step is always an empty dict: what an environment in JAX reports about an episode is in `logs`.
    """

    state: Any
    step: Step


def begin(env: NativeEnv, num_envs: int, key: Array) -> Instances:
    """First observations of N new environments."""
    state, obs = jax.vmap(env.reset)(jax.random.split(key, num_envs))
    # Python numbers in a state are weakly typed; a compiled loop needs their definite dtypes.
    state, obs = jax.tree.map(lambda x: jnp.asarray(x, x.dtype), (state, dict(obs)))
    no = jnp.zeros(num_envs, bool)
    step: dict[str, Any] = {
        "obs": obs,
        "reward": jnp.zeros(num_envs, jnp.float32),
        "is_first": ~no,
        "is_last": no,
        "is_terminal": no,
        "env_steps": jnp.zeros(num_envs, jnp.int32),
        "log": {},
    }
    return Instances(state, Step(**step))


def advance(env: NativeEnv, instances: Instances, action: Action, key: Array, clip_reward: float = 0.0) -> Instances:
    """Step every environment whose episode continues, and reset the others.

    Args:
        env: the environment.
        instances: the environments before the step.
        action: actions ``[N, ...]``; continuous ones are clipped to [-1, 1] here and nowhere else.
        key: random key.
        clip_reward: rewards are clipped to plus and minus this; 0: not at all.
    """
    over = jnp.asarray(instances.step.is_last)
    action = {
        name: jnp.clip(action[name], -1, 1) if space.kind == "continuous" else action[name]
        for name, space in env.action_spaces.items()
    }
    keys = jax.vmap(jax.random.split)(jax.random.split(key, len(over)))
    state, obs, reward, terminated, truncated = jax.vmap(env.step)(instances.state, action, keys[:, 0])
    stepped = jax.tree.map(lambda new, old: new.astype(old.dtype), state, instances.state), dict(obs)

    def reset_where_over(stepped: Any) -> Any:
        """Begin an episode in every environment whose last one is over."""
        state, obs = jax.vmap(env.reset)(keys[:, 1])
        choose = jax.vmap(lambda over, new, old: jnp.where(over, new, old).astype(old.dtype))
        return jax.tree.map(lambda new, old: choose(over, new, old), (state, dict(obs)), stepped)

    # A reset can take several times as long as a step, and in most steps no environment needs one.
    state, obs = jax.lax.cond(_any(over), reset_where_over, lambda stepped: stepped, stepped)
    reward = jnp.where(over, 0.0, reward).astype(jnp.float32)
    if clip_reward:
        reward = jnp.clip(reward, -clip_reward, clip_reward)
    step: dict[str, Any] = {
        "obs": obs,
        "reward": reward,
        "is_first": over,
        "is_last": (terminated | truncated) & ~over,
        "is_terminal": terminated & ~over,
        "env_steps": (~over).astype(jnp.int32),
        "log": {},
    }
    return Instances(state, Step(**step))


def logs(env: NativeEnv, instances: Instances) -> Float32[Array, "N names"]:
    """What each environment would report if its episode ended now, in the order of its ``log_names``."""
    names = getattr(env, "log_names", ())
    native: Any = env
    return jax.vmap(native.log)(instances.state) if names else jnp.zeros((len(instances.step.is_last), 0), jnp.float32)


@jax.custom_batching.custom_vmap
def _any(over: Bool[Array, "*batch"]) -> Bool[Array, ""]:
    """Whether any entry is true, over all members of a population together.

    `jax.vmap` would turn a condition per member into a selection, which computes both branches. The rule below answers
    with one number for all members, so that the condition stays a branch.
    """
    return over.any()


@_any.def_vmap
def _any_of_members(members: int, batched: Any, over: Array) -> tuple[Array, bool]:
    # The second value says that the result has no axis of members.
    return _any(over), False


__all__ = ["Instances", "advance", "begin", "logs"]
