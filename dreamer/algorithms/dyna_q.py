"""Deep Dyna-Q: DQN on real transitions and on those that an ensemble imagines, for one discrete action.

See `dreamer.algorithms.dyna` for the update, and `dreamer.algorithms.dyna_tabular` for the textbook's tables.

Differs from the paper: values are a network, and the model is an ensemble of probabilistic networks that is rolled out
from replayed states by the policy that acts, in place of a table of single remembered steps.

Source: Sutton 1991, "Dyna, an integrated architecture for learning, planning, and reacting".
"""

import jax.numpy as jnp
from jaxtyping import Array

from dreamer.algorithms.base import Algorithm
from dreamer.algorithms.dqn import DQNNets, dqn, dqn_step, explore, only_action
from dreamer.algorithms.dyna import ModelFree, dyna
from dreamer.config import Config
from dreamer.types import Action, Spaces


def dyna_q(config: Config, obs_spaces: Spaces, action_spaces: Spaces) -> Algorithm:
    """The algorithm for one task.

    Args:
        config: the run's config.
        obs_spaces: observation spaces: vectors and classes.
        action_spaces: one discrete action of one number.

    Raises:
        ConfigError: an observation is an image or a mask, the action is another, or `dyna.buffer` does not fit a batch.
    """
    name, _ = only_action(config, action_spaces, continuous="mbpo")

    def act(nets: DQNNets, obs: Array, key: Array) -> Action:
        return {name: explore(nets, obs, None, key, config).astype(jnp.int32)}

    behavior = ModelFree(dqn(config, obs_spaces, action_spaces), act, dqn_step)
    return dyna(config, obs_spaces, action_spaces, behavior)


__all__ = ["dyna_q"]
