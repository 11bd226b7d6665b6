"""An ensemble of probabilistic networks: how a step changes an observation, and what it earns.

Each member predicts a normal distribution of the change and of the reward. What all members leave open is chance
(aleatoric); what they disagree about is unknown (epistemic). Members differ in their first parameters and in their
share of the data.

Source: Chua et al. 2018, "Deep reinforcement learning in a handful of trials using probabilistic dynamics models"
(PETS); Janner et al. 2019, "When to trust your model: model-based policy optimization" (MBPO).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float32, Int32

from dreamer.config import EnsembleConfig
from dreamer.nn.layers import Linear
from dreamer.nn.members import PlainMLP, make_members, map_members
from dreamer.nn.vectors import flatten
from dreamer.types import Action, Masks, Number, Spaces

Propagation = Literal["e", "ds", "ts1", "tsinf"]
"""How members make one prediction of the next step, by the names of PETS.

* ``e``, expectation: the average of all members, and no chance: its noise is 0.
* ``ds``, distribution sampling: a draw from the normal distribution that has mean and variance of their mixture.
* ``ts1``, trajectory sampling with one step: each row draws from one member, dealt again at each step.
* ``tsinf``, trajectory sampling: each row draws from one member, the same for the whole rollout. Its rows spread with
  the horizon where members disagree; those of ``ts1`` with its root, as errors of different members cancel.
"""


class GaussianPrediction(NamedTuple):
    """Normal distributions of D numbers."""

    mean: Float32[Array, "*batch D"]
    log_var: Float32[Array, "*batch D"]

    def draw(self, noise: Float32[Array, "*batch D"]) -> Float32[Array, "*batch D"]:
        """The number that standard normal noise stands for."""
        return self.mean + jnp.exp(0.5 * self.log_var) * noise


class Spread(NamedTuple):
    """Variances of a prediction; their sum is that of the mixture of all members."""

    aleatoric: Float32[Array, "*batch D"]
    """Mean of the variances that members predict: what is left to chance, however much is known."""
    epistemic: Float32[Array, "*batch D"]
    """Variance of the means that members predict: what more data would tell."""


def average(members: GaussianPrediction) -> GaussianPrediction:
    """Mean of means and of log-variances over the first axis."""
    return GaussianPrediction(members.mean.mean(0), members.log_var.mean(0))


def spread(members: GaussianPrediction) -> Spread:
    """Spreads of predictions ``[K, *batch, D]`` of K members, ``[*batch, D]``."""
    return Spread(aleatoric=jnp.exp(members.log_var).mean(0), epistemic=members.mean.var(0))


def mixture(members: GaussianPrediction) -> GaussianPrediction:
    """The normal distribution with the mean and the variance of the mixture of members in equal shares."""
    return GaussianPrediction(members.mean.mean(0), jnp.log(sum(spread(members))))


class GaussianMLP(nnx.Module):
    """One member: an input to the mean and the unbounded log-variance of D numbers."""

    def __init__(self, inputs: int, outputs: int, *, units: int, layers: int, dtype: str, rngs: nnx.Rngs):
        self.mlp = PlainMLP(inputs, units, layers, "silu", dtype=dtype, rngs=rngs)
        self.head = Linear(self.mlp.outputs, 2 * outputs, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float32[Array, "N I"]) -> GaussianPrediction:
        """Predictions ``[N, D]``."""
        return GaussianPrediction(*jnp.split(self.head(self.mlp(x)).astype(jnp.float32), 2, -1))


class Ensemble(nnx.Module):
    """K members, parameters ``[K, ...]``, and the bounds of log-variances, which they share and which are learned.

    Args:
        config: number, width and depth of the networks.
        inputs: size I of their input.
        outputs: how many numbers D they predict.
        dtype: dtype of the computation.
        rngs: source of the initial parameters.
    """

    def __init__(self, config: EnsembleConfig, inputs: int, outputs: int, *, dtype: str, rngs: nnx.Rngs):
        self.members = make_members(
            lambda rngs: GaussianMLP(inputs, outputs, units=config.units, layers=config.layers, dtype=dtype, rngs=rngs),
            config.members,
            rngs,
        )
        self.min_log_var = nnx.Param(jnp.full(outputs, -10.0, jnp.float32))
        self.max_log_var = nnx.Param(jnp.full(outputs, 0.5, jnp.float32))

    def __call__(self, x: Float32[Array, "K N I"]) -> GaussianPrediction:
        """Predictions ``[K, N, D]``, of each member for the rows that it is given."""
        mean, raw = map_members(lambda member, x: member(x), self.members, x)
        low, high = self.min_log_var[...][None, None], self.max_log_var[...][None, None]
        # Soft bounds: without them, a variance where there are no data could be anything.
        log_var = high - jax.nn.softplus(high - raw)
        return GaussianPrediction(mean, low + jax.nn.softplus(log_var - low))

    def of_shared(self, x: Float32[Array, "N I"]) -> GaussianPrediction:
        """Predictions ``[K, N, D]`` of all members for the same rows."""
        return self(jnp.broadcast_to(x, (self.size, *x.shape)))

    @property
    def size(self) -> int:
        """Number of members K."""
        return len(jax.tree.leaves(self.members)[0])

    def only(self, members: Int32[Array, "E"]) -> "Ensemble":
        """The ensemble of some members, by number."""
        graph, state = nnx.split(self)
        state["members"] = jax.tree.map(lambda x: x[members], state["members"])
        return nnx.merge(graph, state)

    def replace(self, chosen: Bool[Array, "K"], other: "Ensemble") -> "Ensemble":
        """The ensemble with some members of another, and with its bounds."""
        graph, state = nnx.split(self)
        _, new = nnx.split(other)

        def choose(old: Array, new: Array) -> Array:
            return jnp.where(chosen.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        members = jax.tree.map(choose, state["members"], new["members"])
        new["members"] = members
        return nnx.merge(graph, new)


def ensemble_loss(
    ensemble: Ensemble,
    x: Float32[Array, "K N I"],
    target: Float32[Array, "K N D"],
    weight: Float32[Array, "K N"] | None = None,
) -> Float32[Array, ""]:
    """Negative log-likelihood of each member's rows, without its constants, and a pull on the bounds.

    ``sum_k mean((m - y)^2 exp(-l) + l) + 0.01 sum(max - min)``, where rows count by their weight, or all the same.
    """
    mean, log_var = ensemble(x)
    rows = (jnp.square(mean - target) * jnp.exp(-log_var) + log_var).mean(2)
    likelihood = rows.mean(1) if weight is None else (weight * rows).sum(1) / weight.sum(1).clip(1)
    return likelihood.sum() + 0.01 * (ensemble.max_log_var[...].sum() - ensemble.min_log_var[...].sum())


def ensemble_optimizer(lr: float, weight_decay: float) -> optax.GradientTransformation:
    """Adam with the decay of every parameter added to its gradient."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(lr))


def holdout_scores(
    ensemble: Ensemble,
    x: Float32[Array, "N I"],
    target: Float32[Array, "N D"],
    weight: Float32[Array, "N"] | None = None,
) -> Float32[Array, "K"]:
    """Mean squared error of each member on data that none has learned from; rows count by their weight."""
    rows = jnp.square(ensemble.of_shared(x).mean - target[None]).mean(2)
    return rows.mean(1) if weight is None else (weight[None] * rows).sum(1) / weight.sum().clip(1)


def best_members(scores: Float32[Array, "K"], count: int) -> Int32[Array, "E"]:
    """The members with the lowest scores, the best first: the elites."""
    return jnp.argsort(scores)[:count]


class Shares(NamedTuple):
    """What becomes of N transitions."""

    counts: Float32[Array, "K N"]
    """How many times each is in the data of each member: 0 of those that are held out."""
    is_held_out: Bool[Array, "N"]


def bootstrap(x: Float32[Array, "N I"], members: int, holdout: Number) -> Shares:
    """Which rows each member learns from, of data that are seen a batch at a time, again and again.

    What becomes of a row follows from its numbers alone: so a member has a bootstrap sample of all data without a list
    of them, and none ever learns from what is held out. In a large sample drawn with replacement, each row is found
    Poisson(1) times (Oza and Russell 2001, "Online bagging and boosting").

    Args:
        x: the rows; equal ones share their fate.
        members: K.
        holdout: share that is held out.
    """
    # A sum of the bits of all numbers, each times a random odd one, is a key for each row.
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    factors = jax.random.bits(jax.random.key(0), (x.shape[1],), jnp.uint32) | 1
    keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(1), number))((bits * factors[None]).sum(1))
    draws = jax.vmap(lambda key: jax.random.uniform(key, (1 + members,)))(keys)
    is_held_out = draws[:, 0] < holdout
    # The distribution function at 0 to 6: a draw has passed it as many times as the row is found.
    passed = np.exp(-1) * np.cumsum([1 / math.factorial(n) for n in range(7)])
    counts = (draws[:, 1:, None] >= passed[None, None]).sum(-1)
    return Shares(jnp.where(is_held_out, 0.0, counts.T), is_held_out)


class Normalizer(NamedTuple):
    """Inputs with mean 0 and standard deviation 1."""

    mean: Float32[Array, "I"]
    std: Float32[Array, "I"]

    @classmethod
    def of(cls, x: Float32[Array, "N I"]) -> "Normalizer":
        """That of some data; what never varies is not scaled."""
        std = x.std(0)
        return cls(x.mean(0), jnp.where(std < 1e-6, 1.0, std))

    def __call__(self, x: Float32[Array, "N I"]) -> Float32[Array, "N I"]:
        """``(x - mean) / std``."""
        return (x - self.mean[None]) / self.std[None]


class EnsembleState(NamedTuple):
    """Where N rows of a rollout are."""

    obs: Float32[Array, "N V"]
    member: Int32[Array, "N"]
    """The one that ``tsinf`` asks."""
    reward: Float32[Array, "N"]
    """On arriving here."""
    is_terminal: Bool[Array, "N"]


class EnsembleNoise(NamedTuple):
    """All randomness of one step of N rows."""

    normal: Float32[Array, "N D"]
    member: Int32[Array, "N"]
    """The one that ``ts1`` asks."""


class EnsembleDynamics(NamedTuple):
    """Rollouts inside an ensemble, as `dreamer.world_models.base.Dynamics`.

    Members predict the change of the flat observation, and after it the reward. Rows are dealt to members in equal
    shares, so that each row costs one member; their number is a multiple of the number of members.
    """

    ensemble: Ensemble
    """Its elites, usually."""
    normalizer: Normalizer
    """Of observation and action, side by side."""
    action_spaces: Spaces
    propagation: Propagation
    ends: Callable[[Float32[Array, "N V"]], Bool[Array, "N"]]
    """Whether the task ends in an observation."""

    def start(self, obs: Float32[Array, "N V"], key: Array) -> EnsembleState:
        """States of observations; for ``tsinf``, each is dealt the member that it keeps."""
        member = deal(jax.random.permutation(key, len(obs)), self.ensemble.size)
        return EnsembleState(obs, member, jnp.zeros(len(obs)), jnp.zeros(len(obs), bool))

    def noise(self, key: Array, batch: int) -> EnsembleNoise:
        """All randomness of one step for ``batch`` rows."""
        normal_key, member_key = jax.random.split(key)
        shape = batch, self.ensemble.min_log_var[...].size
        normal = jnp.zeros(shape) if self.propagation == "e" else jax.random.normal(normal_key, shape)
        return EnsembleNoise(normal, deal(jax.random.permutation(member_key, batch), self.ensemble.size))

    def step(self, state: EnsembleState, action: Action, noise: EnsembleNoise) -> EnsembleState:
        """One step. What follows the end of a task is imagined on, and counts for nothing, see `cont`."""
        x = self.normalizer(jnp.concatenate([state.obs, flatten(action, self.action_spaces)], -1))
        if self.propagation in ("e", "ds"):
            members = self.ensemble.of_shared(x)
            combined = average(members) if self.propagation == "e" else mixture(members)
            change = combined.draw(noise.normal)
        else:
            member = state.member if self.propagation == "tsinf" else noise.member
            change = ask(self.ensemble, x, member).draw(noise.normal)
        obs = state.obs + change[:, :-1]
        return EnsembleState(obs, state.member, change[:, -1], self.ends(obs))

    def features(self, state: EnsembleState) -> Float32[Array, "*batch V"]:
        """The observation."""
        return state.obs

    def reward(self, state: EnsembleState) -> distrax.Distribution:
        """The reward that was drawn on arriving in a state."""
        return distrax.Deterministic(state.reward)

    def cont(self, state: EnsembleState) -> Float32[Array, "*batch"]:
        """0 where the task ends, 1 elsewhere."""
        return 1.0 - state.is_terminal

    def masks(self, state: EnsembleState) -> Masks:
        """None are predicted."""
        return {}


def deal(order: Int32[Array, "N"], members: int) -> Int32[Array, "N"]:
    """The member of each row, if rows in this order are dealt to K members in equal consecutive shares.

    Raises:
        ValueError: the rows cannot be divided equally.
    """
    rows = len(order)
    if rows % members:
        raise ValueError(f"{rows} rows were dealt to {members} members, expected a multiple of {members} rows.")
    return jnp.zeros(rows, jnp.int32).at[order].set(jnp.arange(rows) // (rows // members))


def ask(ensemble: Ensemble, x: Float32[Array, "N I"], member: Int32[Array, "N"]) -> GaussianPrediction:
    """The prediction ``[N, D]`` of one member for each row; every member has equally many."""
    # Rows of one member side by side, one product for each, and back.
    order = jnp.argsort(member)
    predictions = ensemble(x[order].reshape(ensemble.size, -1, x.shape[-1]))
    back = jnp.argsort(order)
    return jax.tree.map(lambda values: values.reshape(len(x), -1)[back], predictions)


def rollout_length(schedule: tuple[int, ...], steps: Number) -> Int32[Array, ""]:
    """Steps of a branched rollout: rises evenly over ``(first, last, low, high)``, rounded down.

    Source: Janner et al. 2019; its code counts epochs of 1,000 env steps, from 0.
    """
    first, last, low, high = schedule
    # Where it grows by one. Compared as whole numbers, it is never rounded down to one step too few.
    growth = [first - (low - length) * (last - first) // (high - low) for length in range(low + 1, high + 1)]
    return low + (steps >= np.asarray(growth, np.float32)).sum(dtype=jnp.int32)


__all__ = [
    "Ensemble",
    "EnsembleDynamics",
    "EnsembleNoise",
    "EnsembleState",
    "GaussianMLP",
    "GaussianPrediction",
    "Normalizer",
    "Propagation",
    "Shares",
    "Spread",
    "ask",
    "average",
    "best_members",
    "bootstrap",
    "deal",
    "ensemble_loss",
    "ensemble_optimizer",
    "holdout_scores",
    "mixture",
    "rollout_length",
    "spread",
]
