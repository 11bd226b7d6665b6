"""The KL losses that tie what a model expects to what it sees."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from dreamer.devices import batch_axis


def kl_balance(
    distribution: Callable[[Any], Any],
    posterior: Any,
    prior: Any,
    free_nats: float,
    *,
    over: Literal["step", "mean"] = "step",
) -> tuple[Float32[Array, "*batch"], Float32[Array, "*batch"]]:
    """KL from posterior to prior, once to train the prior (``dyn``) and once to train the posterior (``rep``).

    ``dyn = max(free, KL(sg(q) || p))`` and ``rep = max(free, KL(q || sg(p)))``, in nats, where ``sg`` stops the
    gradient. The maximum is taken at every step, after summing over the variables of a state; or once, of the mean over
    all steps of a batch.

    Every Dreamer's KL is a weighted sum of the two. V2 balances them, 0.8 dyn + 0.2 rep. The single KL(q || p) of V1
    and PlaNet has the gradient of dyn + rep, each of which trains one of the distributions.

    Args:
        distribution: makes a distribution with ``kl_to`` from parameters.
        posterior: parameters of q, any pytree.
        prior: parameters of p.
        free_nats: KL below this has no gradient.
        over: where the maximum is taken: ``step``, or ``mean``.

    Returns:
        ``dyn`` and ``rep``, one number per state.

    Source: Hafner et al. 2025, equation 4, for steps; the released code of Dreamer V1 and V2 for means.
    """
    stop = jax.lax.stop_gradient
    q = distribution(posterior)
    p = distribution(prior)
    q_fixed = distribution(stop(posterior))
    p_fixed = distribution(stop(prior))
    dyn = q_fixed.kl_to(p)
    rep = q.kl_to(p_fixed)
    if over == "step":
        return jnp.maximum(dyn, free_nats), jnp.maximum(rep, free_nats)
    return _at_least_on_average(dyn, free_nats), _at_least_on_average(rep, free_nats)


def _at_least_on_average(kl: Float32[Array, "*batch"], free_nats: float) -> Float32[Array, "*batch"]:
    """The KL if its mean over the batch, on all devices, is above ``free_nats``; that number everywhere if not."""
    mean = batch_axis.mean(jax.lax.stop_gradient(kl.mean()))
    return jnp.where(mean > free_nats, kl, free_nats)


__all__ = ["kl_balance"]
