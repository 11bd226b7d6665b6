"""Adam, for algorithms whose networks have an optimizer each."""

import optax

from dreamer.agent.optimizer import learning_rate
from dreamer.config import OptimizerConfig


def adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam with the learning rate, the decays and the epsilon of a config; nothing is clipped.

    Source: Kingma and Ba 2015, "Adam: a method for stochastic optimization".
    """
    return optax.adam(lambda step: learning_rate(config, step), b1=config.beta1, b2=config.beta2, eps=config.eps)


__all__ = ["adam"]
