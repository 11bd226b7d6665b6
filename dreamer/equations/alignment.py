"""How well predictions agree with embeddings of observations: what a latent can be learned from without a decoder.

Embeddings are targets, so no gradient reaches them here. The rows are those of all devices that share a batch.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from dreamer.devices import batch_axis
from dreamer.types import Number

LEAST_VARIANCE = 1e-8
"""Added to variances: an entry that does not vary correlates with nothing, and its gradient is finite."""


def barlow_twins(
    x: Float[Array, "N E"],
    target: Float[Array, "N E"],
    redundancy: Number,
    valid: Bool[Array, "N"] | None = None,
) -> Float32[Array, ""]:
    """``sum_i (1 - C[i, i])^2 + redundancy sum_(i != j) C[i, j]^2``, with the correlations C of x and sg(target).

    ``C[i, j] = mean_n (x[n, i] - mean_i) (target[n, j] - mean_j) / (std_i std_j)``, and ``sg`` stops the gradient. The
    first sum asks that each entry follow its own target, the second that it follow no other, so that entries do not all
    say the same. The loss does not change if an entry of x is shifted or scaled.

    Args:
        x: predictions.
        target: what each of them is to follow.
        redundancy: weight of the second sum.
        valid: rows that count; None: all.

    Source: Zbontar et al. 2021, "Barlow Twins: self-supervised learning via redundancy reduction".
    """
    x = x.astype(jnp.float32)
    target = jax.lax.stop_gradient(target.astype(jnp.float32))
    share = jnp.ones(len(x)) if valid is None else valid.astype(jnp.float32)
    # Weights of mean 1 over all devices. If no row counts, all are 0, and so is every correlation.
    weight = (share / jnp.maximum(batch_axis.mean(share.mean()), LEAST_VARIANCE))[:, None]

    def standardize(x: Float32[Array, "N E"]) -> Float32[Array, "N E"]:
        centered = x - batch_axis.mean((weight * x).mean(0, keepdims=True))
        variance = batch_axis.mean((weight * jnp.square(centered)).mean(0, keepdims=True))
        return centered * jax.lax.rsqrt(variance + LEAST_VARIANCE)

    correlation = batch_axis.mean((weight * standardize(x)).T @ standardize(target) / len(x))
    own = jnp.diagonal(correlation)
    others = jnp.square(correlation).sum() - jnp.square(own).sum()
    return jnp.square(1 - own).sum() + redundancy * others


def info_nce(x: Float[Array, "N E"], target: Float[Array, "N E"]) -> Float32[Array, "N"]:
    """``-log(exp(x[n] . sg(target[n])) / sum_m exp(x[n] . sg(target[m])))``: which target belongs to each row, in nats.

    ``sg`` stops the gradient. A guess costs the logarithm of the number of rows, and that logarithm less the loss is a
    lower bound of the mutual information. Rows with equal targets cannot be told apart.

    Source: van den Oord, Li and Vinyals 2018, "Representation learning with contrastive predictive coding", equation 4.
    """
    x = x.astype(jnp.float32)
    target = jax.lax.stop_gradient(target.astype(jnp.float32))
    # Full precision, since accelerators would otherwise round the factors to ten bits.
    logits = jnp.matmul(x, batch_axis.all_rows(target, 0).T, precision=jax.lax.Precision.HIGHEST)
    return jax.nn.logsumexp(logits, -1) - (x * target).sum(-1)


__all__ = ["LEAST_VARIANCE", "barlow_twins", "info_nce"]
