"""Adam, for algorithms whose networks have an optimizer each."""

import optax
from jaxtyping import Array, Float32, Int

from dreamer.agent.optimizer import schedule
from dreamer.config import OptimizerConfig


def adam(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam with the decays and the epsilon of a config, at the rate of `adam_rate`; nothing is clipped.

    ``optimizer.kind`` and its groups are not read.

    Source: Kingma and Ba 2015, "Adam: a method for stochastic optimization".
    """
    return optax.adam(lambda step: adam_rate(config, step), b1=config.beta1, b2=config.beta2, eps=config.eps)


def adam_rate(config: OptimizerConfig, step: Int[Array, ""] | int) -> Float32[Array, ""]:
    """Learning rate of update ``step`` (from 0): ``optimizer.lr``, with warm-up and annealing."""
    return config.lr * schedule(config, step)


__all__ = ["adam", "adam_rate"]
