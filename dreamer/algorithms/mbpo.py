"""Model-based policy optimization: SAC on short rollouts of an ensemble, which branch off from replayed states.

See `dreamer.algorithms.dyna` for the update. Differs from the paper: rollouts begin at every update, from its batch, in
place of many every 250 env steps; how the ensemble is trained, see `dreamer.algorithms.ensemble`.

Source: Janner et al. 2019, "When to trust your model: model-based policy optimization".
"""

from jaxtyping import Array

from dreamer.algorithms.base import Algorithm
from dreamer.algorithms.dyna import ModelFree, dyna
from dreamer.algorithms.sac import SACNets, sac, sac_step
from dreamer.config import Config, ConfigError
from dreamer.nn.vectors import unflatten
from dreamer.types import Action, Spaces


def mbpo(config: Config, obs_spaces: Spaces, action_spaces: Spaces) -> Algorithm:
    """The algorithm for one task.

    Args:
        config: the run's config.
        obs_spaces: observation spaces: vectors and classes.
        action_spaces: action spaces, all continuous.

    Raises:
        ConfigError: an observation is an image or a mask, an action is discrete, or `dyna.buffer` does not fit a batch.
    """
    discrete = sorted(key for key, space in action_spaces.items() if space.kind == "discrete")
    if discrete:
        raise ConfigError(
            f"algorithm=mbpo cannot be used: the actions {', '.join(discrete)} are discrete, expected continuous ones. "
            "Use algorithm=dyna_q, or algorithm=dreamer."
        )

    def act(nets: SACNets, obs: Array, key: Array) -> Action:
        return unflatten(nets.actor(obs).sample_and_log_prob(key)[0], action_spaces)

    behavior = ModelFree(sac(config, obs_spaces, action_spaces), act, sac_step)
    return dyna(config, obs_spaces, action_spaces, behavior)


__all__ = ["mbpo"]
