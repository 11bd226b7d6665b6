"""LaProp with adaptive gradient clipping and warm-up, as one optax chain; or Muon for matrices; or Adam in groups.

Only what optax does not have is written here: its `adaptive_grad_clip` works per unit, the published one per whole
tensor; and its `adam` adds epsilon to the root of the corrected second moment.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int
from optax import contrib

from dreamer.agent import guard
from dreamer.config import AdamConfig, OptimizerConfig
from dreamer.types import Number


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clip, divide by the root mean square of gradients, average, scale: ``clip -> RMS -> momentum -> -lr``.

    LaProp applies the momentum to normalised gradients (Adam normalises the momentum). Both moments are bias-corrected
    and start at 0. Source: Ziyin et al. 2020, "LaProp: Separating Momentum and Adaptivity in Adam".

    With ``config.kind`` "muon", this is what vectors get; see `muon` for matrices. With "adam" or "keras_adam", all is
    different: see `adam_in_groups`.
    """
    if config.kind in ("adam", "keras_adam"):
        return adam_in_groups(config)
    scale = optax.scale_by_learning_rate(lambda step: learning_rate(config, step))
    laprop = optax.chain(
        clip_by_tensor_norm(config.clip, config.clip_min),
        optax.scale_by_rms(decay=config.beta2, eps=config.eps, eps_in_sqrt=False, bias_correction=True),
        optax.ema(decay=config.beta1, debias=True),
        scale,
    )
    if config.kind == "laprop":
        return laprop

    def kinds(params: optax.Params) -> Any:
        return jax.tree.map(lambda x: "laprop" if matrix_axes(x) is None else "muon", params)

    return optax.partition({"muon": optax.chain(muon(config), scale), "laprop": laprop}, kinds)


def adam_in_groups(config: OptimizerConfig) -> optax.GradientTransformation:
    """Adam in groups, each with a rate, an epsilon, a weight decay and a limit for its global norm: see `adam_group`.

    Order: the gradients of a group are clipped by their global norm; every parameter is multiplied by ``1 - decay``;
    then it takes Adam's step. Warm-up and annealing are as for LaProp. Source: the released code of Dreamer V1, V2, and
    V3 of 2023.
    """
    scale = scale_by_keras_adam if config.kind == "keras_adam" else optax.scale_by_adam

    def chain(group: AdamConfig) -> optax.GradientTransformation:
        def rate(step: Int[Array, ""]) -> Float32[Array, ""]:
            return group.lr * schedule(config, step)

        return optax.chain(
            clip_by_global_norm(group.clip),
            scale(config.beta1, config.beta2, group.eps),
            optax.scale_by_learning_rate(rate),
            decay_weights(group.decay),
        )

    groups = {"model": config.model, "bonus": config.bonus, "actor": config.actor, "critic": config.critic}
    # An explorer's actor and critic share the settings of the task's, but are clipped separately.
    groups |= {"explorer actor": config.actor, "explorer critic": config.critic}
    return optax.partition({name: chain(group) for name, group in groups.items()}, adam_group)


def adam_group(params: optax.Params) -> Any:
    """The group of each parameter, by its field of `Parts` and the first name on its path in there that is a group's.

    ``actor`` or ``critic``, of an explorer with that word before it; ``bonus`` for what else an explorer learns;
    ``model`` for everything else. All of a world model is ``model``, whatever its observations are called.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)

    def group(path: tuple[Any, ...]) -> str:
        part, *inside = (str(getattr(entry, "name", getattr(entry, "key", ""))) for entry in path)
        if part == "world_model":
            return "model"
        acts = next((name for name in inside if name in ("actor", "critic")), "")
        if part == "bonus":
            return f"explorer {acts}" if acts else "bonus"
        return acts or "model"

    return jax.tree.unflatten(treedef, [group(path) for path, _ in paths])


def scale_by_keras_adam(beta1: Number, beta2: Number, eps: Number) -> optax.GradientTransformation:
    """TensorFlow's Adam, ``sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)``.

    Epsilon is added to the root of the second moment as it is, and not once its beginning at 0 is corrected: in the
    first steps, it counts for more than in `optax.scale_by_adam`, 32 times more at the first with b2 = 0.999.
    """

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(
        updates: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * jnp.square(g), state.nu, updates)
        factor = jnp.sqrt(1 - beta2**count) / (1 - beta1**count)
        steps = jax.tree.map(lambda m, v: factor * m / (jnp.sqrt(v) + eps), mu, nu)
        return steps, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def clip_by_global_norm(limit: Number) -> optax.GradientTransformation:
    """``g min(1, limit / ||g||)`` with the norm of all gradients together; a limit of 0 switches it off."""

    def clip(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        size = guard.norm(guard.sums_of_squares(updates))
        factor = jnp.where(limit > 0, limit / jnp.maximum(size, limit), 1.0)
        return jax.tree.map(lambda x: x * factor, updates)

    return optax.stateless(clip)


def decay_weights(decay: Number) -> optax.GradientTransformation:
    """Adds ``-decay p`` to the step of every parameter, biases included, whatever the learning rate."""

    def add(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        return jax.tree.map(lambda step, p: step - decay * p, updates, params)

    return optax.stateless(add)


def muon(config: OptimizerConfig) -> optax.GradientTransformation:
    """Momentum of matrices, singular values brought to about 1, times ``muon_rms sqrt(max(inputs, outputs))``.

    If it has full rank, elements have a root mean square of about ``muon_rms``. What is faint in a gradient, but
    consistent, counts as much as what is loud; division element by element cannot tell them apart where each element
    holds some of both.

    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
    scalable for LLM training", for the scale.
    """

    def axes(params: optax.Params) -> Any:
        return jax.tree.map(matrix_axes, params)

    def scale(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        return jax.tree.map(lambda x: config.muon_rms * max(_matrix_shape(x)) ** 0.5 * x, updates)

    return optax.chain(
        contrib.scale_by_muon(beta=config.muon_beta, eps=config.eps, weight_dimension_numbers=axes),
        optax.stateless(scale),
    )


def matrix_axes(parameter: Array) -> contrib.MuonDimensionNumbers | None:
    """The axes of inputs and of outputs of a parameter that multiplies; None for a vector.

    Kernels are ``[inputs, outputs]``, ``[blocks, inputs, outputs]`` with a matrix per block, or those of convolutions,
    ``[height, width, inputs, outputs]``. A matrix with one input or output is a vector.
    """
    if parameter.ndim < 2:
        return None
    *rest, inputs, outputs = range(parameter.ndim)
    axes = contrib.MuonDimensionNumbers((*rest, inputs) if len(rest) == 2 else inputs, outputs)
    return axes if min(_matrix_shape(parameter)) > 1 else None


def _matrix_shape(kernel: Array) -> tuple[int, int]:
    """Numbers of inputs and outputs of a kernel, see `matrix_axes`."""
    inputs, outputs = kernel.shape[-2:]
    return (math.prod(kernel.shape[:-1]), outputs) if kernel.ndim == 4 else (inputs, outputs)


def learning_rate(config: OptimizerConfig, step: Int[Array, ""] | int) -> Float32[Array, ""]:
    """Learning rate of update ``step`` (from 0): rises linearly from 0 over ``warmup`` updates, then constant.

    With ``anneal``, it falls linearly after the warm-up, and is a tenth of ``lr`` from update ``anneal`` on. With Adam,
    it is the model's.
    """
    rate = config.model.lr if config.kind in ("adam", "keras_adam") else config.lr
    return rate * schedule(config, step)


def schedule(config: OptimizerConfig, step: Int[Array, ""] | int) -> Float32[Array, ""]:
    """The factor on every learning rate at update ``step``, see `learning_rate`."""
    # Without branches on the config, whose numbers may be arrays.
    now, warmup, anneal = (jnp.asarray(x, jnp.float32) for x in (step, config.warmup, config.anneal))
    rising = now / jnp.maximum(1, warmup)
    fallen = jnp.clip((now - warmup) / jnp.maximum(1, anneal - warmup), 0, 1)
    after = jnp.where(anneal > 0, 1 - 0.9 * fallen, 1.0)
    return jnp.where(now < warmup, rising, after)


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
