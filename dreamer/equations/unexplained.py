"""How much of the reward a model leaves unexplained: its cross-entropy beside that of the best constant guess."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from dreamer.devices import batch_axis
from dreamer.equations import transforms
from dreamer.equations.distributions import SymexpTwoHot

LEAST_NATS = 1e-5
"""Below this excess of the constant guess, rewards are all the same except for rounding."""


def unexplained_reward(
    distribution: SymexpTwoHot, reward: Float32[Array, "*batch"]
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """Mean cross-entropy of rewards in nats, of a model and of a constant guess, less what no guess can go below.

    A reward between two bins has the target y with weights on both, whose entropy H(y) is the least cross-entropy that
    there is. With the means over the batch: ``excess = mean(H(y, p)) - mean(H(y))`` for the distribution p, and
    ``blind_excess = H(mean(y)) - mean(H(y))``, because the best constant guess is the mean of the targets. Both are
    divergences, so at least 0 up to rounding. The gradient of ``excess`` by the logits is that of the mean
    cross-entropy; ``blind_excess`` has none, and no gradient reaches ``reward``.

    Args:
        distribution: what the model predicts, ``[*batch]``.
        reward: what came, ``[*batch]``.

    Returns:
        ``excess``, over the rows of this device, and ``blind_excess``, whose guess is that for the rows of all devices
        that share the batch.
    """
    reward = jax.lax.stop_gradient(jnp.asarray(reward, jnp.float32))
    below, weight = transforms.neighbours(reward, distribution.bins)
    # entr(w) = -w log(w), and 0 for w = 0.
    entropy = (jax.scipy.special.entr(weight) + jax.scipy.special.entr(1 - weight)).mean()
    targets = transforms.two_hot(below, weight, len(distribution.bins))
    guess = batch_axis.mean(targets.mean(tuple(range(targets.ndim - 1))))
    excess = -distribution.log_prob(reward).mean() - entropy
    return excess, jax.scipy.special.entr(guess).sum() - batch_axis.mean(entropy)


def unexplained_by_group(
    distribution: SymexpTwoHot, reward: Float32[Array, "N"], group: Int32[Array, "N"], groups: int
) -> tuple[Float32[Array, ""], Float32[Array, ""]]:
    """As `unexplained_reward`, for measurements, with a guess that may be another one in each group.

    If the groups are the steps since a reset, the guess knows when rewards come, and a model must know more than that.
    The best guess for n rewards has seen them, which lowers its mean excess by about a factor of ``(n - 1) / n``; that
    is corrected. A reward that is alone in its group is left out on both sides, as it says nothing of a guess.

    Args:
        distribution: what the model predicts, ``[N]``.
        reward: what came.
        group: the group of each reward, from 0 to ``groups - 1``.
        groups: how many groups there may be; some may be empty.
    """
    below, weight = transforms.neighbours(reward, distribution.bins)
    entropy = jax.scipy.special.entr(weight) + jax.scipy.special.entr(1 - weight)
    targets = transforms.two_hot(below, weight, len(distribution.bins))
    count = jax.ops.segment_sum(jnp.ones_like(reward), group, groups)
    guess = jax.ops.segment_sum(targets, group, groups) / jnp.maximum(count, 1)[:, None]
    blind = count * jax.scipy.special.entr(guess).sum(-1) - jax.ops.segment_sum(entropy, group, groups)
    blind = jnp.where(count > 1, blind * count / jnp.maximum(count - 1, 1), 0)
    compared = count[group] > 1
    total = jnp.maximum(compared.sum(), 1)
    return jnp.where(compared, -distribution.log_prob(reward) - entropy, 0).sum() / total, blind.sum() / total


def unexplained_share(excess: Float32[Array, ""], blind_excess: Float32[Array, ""]) -> Float32[Array, ""]:
    """``excess / blind_excess`` of either function: 0 if all is explained, 1 if no more than by a constant guess.

    A model can also do worse than that. Where nothing varies, there is nothing to explain: 0.
    """
    varies = blind_excess > LEAST_NATS
    return jnp.where(varies, jnp.maximum(excess, 0) / jnp.where(varies, blind_excess, 1), 0)


__all__ = ["LEAST_NATS", "unexplained_by_group", "unexplained_reward", "unexplained_share"]
