"""LaProp with adaptive gradient clipping and warm-up, as one optax chain.

Only the clipping is written here: optax's `adaptive_grad_clip` works per unit, the published one per whole tensor.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int

from dreamer.agent import guard
from dreamer.config import OptimizerConfig
from dreamer.types import Number


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clip, divide by the root mean square of gradients, average, scale: ``clip -> RMS -> momentum -> -lr``.

    LaProp applies the momentum to normalised gradients (Adam normalises the momentum). Both moments are bias-corrected
    and start at 0. Source: Ziyin et al. 2020, "LaProp: Separating Momentum and Adaptivity in Adam".
    """
    return optax.chain(
        clip_by_tensor_norm(config.clip, config.clip_min),
        optax.scale_by_rms(decay=config.beta2, eps=config.eps, eps_in_sqrt=False, bias_correction=True),
        optax.ema(decay=config.beta1, debias=True),
        optax.scale_by_learning_rate(lambda step: learning_rate(config, step)),
    )


def learning_rate(config: OptimizerConfig, step: Int[Array, ""] | int) -> Float32[Array, ""]:
    """Learning rate of update ``step`` (from 0): rises linearly from 0 over ``warmup`` updates, then constant.

    With ``anneal``, it falls linearly after the warm-up, and is a tenth of ``lr`` from update ``anneal`` on.
    """
    # Without branches on the config, whose numbers may be arrays.
    now, warmup, anneal = (jnp.asarray(x, jnp.float32) for x in (step, config.warmup, config.anneal))
    rising = now / jnp.maximum(1, warmup)
    fallen = jnp.clip((now - warmup) / jnp.maximum(1, anneal - warmup), 0, 1)
    after = jnp.where(anneal > 0, 1 - 0.9 * fallen, 1.0)
    return config.lr * jnp.where(now < warmup, rising, after)


def clip_by_tensor_norm(clip: Number, smallest: Number) -> optax.GradientTransformation:
    """Adaptive gradient clipping over whole tensors: ``g min(1, clip max(smallest, ||p||) / ||g||)``.

    Args:
        clip: largest ratio of the norm of a gradient to that of its parameter; 0 switches clipping off.
        smallest: parameters of a smaller norm count as having this one, so that zeros can leave zero.

    Source: Brock et al. 2021, "High-performance large-scale image recognition without normalization", with one unit per
    tensor as in the official DreamerV3.
    """

    def clip_one(gradient: Array, squares: Array, parameter_squares: Array) -> Array:
        limit = clip * jnp.maximum(smallest, jnp.sqrt(parameter_squares))
        limit = jnp.where(clip > 0, limit, jnp.inf)
        return gradient / jnp.maximum(1.0, jnp.sqrt(squares) / limit)

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        if params is None:
            raise ValueError("clip_by_tensor_norm needs the parameters: call update(gradients, state, parameters).")
        squares = guard.sums_of_squares(updates), guard.sums_of_squares(params)
        return jax.tree.map(clip_one, updates, *squares), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
