"""The KL losses that tie what a model expects to what it sees."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32


def kl_balance(
    distribution: Callable[[Any], Any], posterior: Any, prior: Any, free_nats: float
) -> tuple[Float32[Array, "*batch"], Float32[Array, "*batch"]]:
    """KL from posterior to prior, once to train the prior (``dyn``) and once to train the posterior (``rep``).

    ``dyn = max(free, KL(sg(q) || p))`` and ``rep = max(free, KL(q || sg(p)))``, in nats, where ``sg`` stops the
    gradient. The maximum is taken at every step, after summing over the variables of a state.

    Args:
        distribution: makes a distribution with ``kl_to`` from parameters.
        posterior: parameters of q, any pytree.
        prior: parameters of p.
        free_nats: KL below this has no gradient.

    Returns:
        ``dyn`` and ``rep``, one number per state.

    Source: Hafner et al. 2025, equation 4.
    """
    stop = jax.lax.stop_gradient
    q = distribution(posterior)
    p = distribution(prior)
    q_fixed = distribution(stop(posterior))
    p_fixed = distribution(stop(prior))
    return jnp.maximum(q_fixed.kl_to(p), free_nats), jnp.maximum(q.kl_to(p_fixed), free_nats)


__all__ = ["kl_balance"]
