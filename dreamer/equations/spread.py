"""How much vectors vary within groups, and in how many directions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32


def deviations(
    x: Float[Array, "N D"], group: Int32[Array, "N"], groups: int
) -> tuple[Float32[Array, "N D"], Int32[Array, ""]]:
    """Differences of vectors from the mean of their group, and how many of them are independent.

    Args:
        x: N vectors.
        group: the group of each, from 0 to ``groups - 1``.
        groups: how many groups there may be; some may be empty.

    Returns:
        The differences, and N less the number of groups that are not empty: the divisor of an unbiased variance.
    """
    x = x.astype(jnp.float32)
    count = jax.ops.segment_sum(jnp.ones(len(x)), group, groups)
    means = jax.ops.segment_sum(x, group, groups) / jnp.maximum(count, 1)[:, None]
    return x - means[group], len(x) - (count > 0).sum()


def effective_rank(x: Float32[Array, "N D"]) -> Float32[Array, ""]:
    """In how many directions N vectors with mean 0 vary: 1 to min(N, D); 0 if they do not vary at all.

    ``exp(-sum_i p_i log p_i)``, where p_i is the share of the i-th eigenvalue of the covariance in the sum of all.

    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    """
    # Both products have the same eigenvalues except for zeros.
    one, other = (x, x.T) if len(x) < x.shape[1] else (x.T, x)
    # Full precision, since accelerators would otherwise round the factors to ten bits.
    product = jnp.matmul(one, other, precision=jax.lax.Precision.HIGHEST)
    values = jnp.maximum(jnp.linalg.eigvalsh(product), 0)
    total = values.sum()
    shares = values / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, jnp.exp(jax.scipy.special.entr(shares).sum()), 0)


__all__ = ["deviations", "effective_rank"]
