"""Acting outside training: episodes whose draws do not depend on what else is played beside them."""

from typing import Any

import jax
from jaxtyping import Array, UInt32

from dreamer.algorithms.base import Algorithm, Memory
from dreamer.types import Action, Mode, Observation, Parts


def act_in_episodes(
    algorithm: Algorithm,
    nets: Parts,
    memory: Memory,
    obs: Observation,
    key: Array,
    episode: UInt32[Array, "N"],
    time: UInt32[Array, "N"],
    mode: Mode,
) -> tuple[Action, Memory]:
    """`Algorithm.policy` for N environments that are not aware of each other.

    What is drawn for one depends on the number of its episode and the time in it, 0 at a reset, and not on N.
    """

    def alone(*row: Any) -> Any:
        memory, obs, episode, time = jax.tree.map(lambda x: x[None], row)
        own = jax.random.fold_in(jax.random.fold_in(key, episode[0]), time[0])
        action, memory, _ = algorithm.policy(nets, memory, obs, time == 0, own, mode)
        return jax.tree.map(lambda x: x[0], (action, memory))

    return jax.vmap(alone)(memory, obs, episode, time)


__all__ = ["act_in_episodes"]
