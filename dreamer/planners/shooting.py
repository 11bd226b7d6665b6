"""Planning by shooting: draw sequences of actions, roll them out in the model, and draw again around the best.

Source: Rubinstein 1997 for the cross-entropy method; Hafner et al. 2019, "Learning latent dynamics for planning from
pixels", algorithm 2, for its use in a latent model.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from dreamer.config import Config, PlannerConfig
from dreamer.planners.base import Leaf, Prior
from dreamer.types import Action, Masks, Metrics, Spaces, State
from dreamer.world_models.base import Dynamics
from dreamer.world_models.imagine import draw_noise


class ActionSequences(NamedTuple):
    """Distribution of action sequences, by action key; all arrays ``[N, H, ...]``."""

    probs: dict[str, Float32[Array, "N H *shape C"]]
    """Of each class of discrete actions."""
    mean: dict[str, Float32[Array, "N H *shape"]]
    """Of continuous actions."""
    std: dict[str, Float32[Array, "N H *shape"]]


@dataclasses.dataclass(frozen=True)
class CEM:
    """Cross-entropy method over the actions of H steps, for discrete, continuous and mixed actions.

    ``J = sum_{h=1..H} w[h] r[h] + w[H] c[H] V(s[H])``, where ``w[h]`` is the probability that the model gives to
    reaching step h, times the discount if ``cont`` holds none. Each iteration draws candidates, keeps the elites, and
    moves the distribution to them. The first action of the last mean (or most probable classes) is taken; the next
    step begins with the sequence shifted by one.

    Attributes:
        config: sizes.
        action_spaces: spaces of the action keys.
        discount: factor per step beside the model's ``cont``.
    """

    config: PlannerConfig
    action_spaces: Spaces
    discount: float

    def init(self, batch: int) -> ActionSequences:
        """Equal classes, and normal distributions of mean 0 and standard deviation 1."""
        lead = (batch, self.config.horizon)
        probs, mean, std = {}, {}, {}
        for key, space in self.action_spaces.items():
            if space.kind == "discrete":
                probs[key] = jnp.full((*lead, *space.shape, space.classes), 1 / space.classes, jnp.float32)
            else:
                mean[key] = jnp.zeros((*lead, *space.shape), jnp.float32)
                std[key] = jnp.ones((*lead, *space.shape), jnp.float32)
        return ActionSequences(probs, mean, std)

    def plan(
        self,
        model: Dynamics,
        leaf: Leaf,
        prior: Prior,
        start: State,
        plan: ActionSequences,
        is_first: Bool[Array, "N"],
        key: Array,
        masks: Masks | None = None,
    ) -> tuple[Action, ActionSequences, Metrics]:
        """See `dreamer.planners.base.Planner`; this one asks no prior."""
        rows = len(is_first)
        fresh = self.init(rows)
        plan = jax.tree.map(lambda new, old: jnp.where(_along(is_first, old), new, old), fresh, plan)
        plan = _allow(plan, masks or {})
        noise_key, *keys = jax.random.split(key, 1 + self.config.iterations)
        # The same noise for all candidates of all iterations: what differs between two of them is their actions.
        noise = draw_noise(model, jax.random.split(noise_key, self.config.horizon), rows)
        score = jnp.zeros((rows, self.config.candidates))
        for iteration_key in keys:
            candidates = self._draw(plan, iteration_key)
            score = self._score(model, leaf, start, candidates, noise)
            plan = _allow(self._refit(plan, candidates, score), masks or {})
        action: Action = {name: probs[:, 0].argmax(-1).astype(jnp.int32) for name, probs in plan.probs.items()}
        action |= {name: mean[:, 0] for name, mean in plan.mean.items()}
        # Shifted by one step, the sequence goes on where this step ends; what follows it is not known.
        following = jax.tree.map(lambda old, new: jnp.concatenate([old[:, 1:], new[:, :1]], 1), plan, fresh)
        following = following._replace(std=fresh.std)
        metrics = {"planner/return": score.max(1).mean(), "planner/spread": score.std(1).mean()}
        return action, following, metrics

    def _draw(self, plan: ActionSequences, key: Array) -> Action:
        """Candidates ``[N, K, H, ...]`` by key."""
        count = self.config.candidates
        actions: Action = {}
        for name, own in zip(self.action_spaces, jax.random.split(key, len(self.action_spaces)), strict=True):
            if name in plan.probs:
                logits = jnp.log(plan.probs[name])[:, None]
                shape = (logits.shape[0], count, *logits.shape[2:-1])
                actions[name] = jax.random.categorical(own, logits, shape=shape).astype(jnp.int32)
            else:
                mean = plan.mean[name][:, None]
                std = plan.std[name][:, None]
                normal = jax.random.normal(own, (mean.shape[0], count, *mean.shape[2:]))
                actions[name] = jnp.clip(mean + std * normal, -1, 1)
        return actions

    def _score(self, model: Dynamics, leaf: Leaf, start: State, candidates: Action, noise: object) -> Array:
        """Expected return of each candidate, ``[N, K]``."""
        count = self.config.candidates

        def repeat(x: Array, axis: int) -> Array:
            return jnp.repeat(x, count, axis)

        # Candidates of one row lie side by side: [N, K, H, ...] becomes H steps of N * K rows.
        action = {name: x.reshape(-1, *x.shape[2:]).swapaxes(0, 1) for name, x in candidates.items()}
        noise = jax.tree.map(lambda x: repeat(x, 1), noise)
        state = jax.tree.map(lambda x: repeat(x, 0), start)

        def step(carry: tuple[State, Array, Array], inputs: tuple[Action, object]) -> tuple[tuple, None]:
            state, weight, total = carry
            state = model.step(state, *inputs)
            total = total + weight * model.reward(state).mean()
            return (state, weight * model.cont(state) * self.discount, total), None

        ones = jnp.ones(action[next(iter(action))].shape[1])
        (state, weight, total), _ = jax.lax.scan(step, (state, ones, 0 * ones), (action, noise))
        return (total + weight * leaf(state)).reshape(-1, count)

    def _refit(self, plan: ActionSequences, candidates: Action, score: Array) -> ActionSequences:
        """The distribution of the elites, mixed with the one before."""
        c = self.config
        best = jax.lax.top_k(score, c.elites)[1]
        elites = {name: jax.vmap(lambda x, i: x[i])(x, best) for name, x in candidates.items()}

        def blend(old: Array, new: Array) -> Array:
            return c.momentum * old + (1 - c.momentum) * new

        def share(name: str) -> Array:
            return jax.nn.one_hot(elites[name], self.action_spaces[name].classes).mean(1)

        return ActionSequences(
            {name: blend(old, share(name)) for name, old in plan.probs.items()},
            {name: blend(old, elites[name].mean(1)) for name, old in plan.mean.items()},
            {name: jnp.maximum(blend(old, elites[name].std(1)), c.min_std) for name, old in plan.std.items()},
        )


def _allow(plan: ActionSequences, masks: Masks) -> ActionSequences:
    """The plan with no share of the first action left to classes that are not allowed."""
    probs = dict(plan.probs)
    for name, mask in masks.items():
        # Where all shares went to forbidden classes, the allowed ones are equal.
        share = jnp.where(mask, jnp.maximum(probs[name][:, 0], 1e-6), 0.0)
        probs[name] = probs[name].at[:, 0].set(share / share.sum(-1, keepdims=True))
    return plan._replace(probs=probs)


def _along(flag: Array, like: Array) -> Array:
    """``flag [N]`` with trailing axes of size 1, to choose between arrays like this one."""
    return flag.reshape(-1, *[1] * (like.ndim - 1))


def cem(config: Config, action_spaces: Spaces) -> CEM:
    """The cross-entropy method with the discount of the behaviour."""
    behavior = config.behavior
    # With cont_discount, the model's continuation holds the discount.
    discount = 1.0 if behavior.cont_discount else 1 - 1 / behavior.return_horizon
    return CEM(config.planner, dict(sorted(action_spaces.items())), discount)


__all__ = ["CEM", "ActionSequences", "cem"]
