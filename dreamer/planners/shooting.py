"""Planning by shooting: draw sequences of actions, roll them out in the model, and draw again around the best.

Four searches share one rollout. All plan for discrete, continuous and mixed actions, and for N rows at once:

* `RandomShooting` takes the best of sequences drawn evenly.
* `CEM` moves a distribution to the elites of each iteration. With ``fit: variance`` it is the planner of PlaNet, with
  ``fit: truncated`` that of PETS.
* `ICEM` draws noise that is correlated in time, keeps elites between iterations and steps, and draws fewer each time.
* `MPPI` weights the elites by the exponential of their returns, and lets a policy draw some of the candidates.

Sources: Rubinstein 1997 for the cross-entropy method; Hafner et al. 2019, "Learning latent dynamics for planning from
pixels", algorithm 2; Chua et al. 2018, "Deep reinforcement learning in a handful of trials using probabilistic dynamics
models"; Pinneri et al. 2020, "Sample-efficient cross-entropy method for real-time planning"; Hansen et al. 2024,
"TD-MPC2", for MPPI with policy and value; Nagabandi et al. 2019, "Deep dynamics models for learning dexterous
manipulation", for its smoothing.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32

from dreamer.config import Config, ConfigError, PlannerConfig
from dreamer.planners.base import Leaf, Prior
from dreamer.types import Action, Masks, Metrics, Spaces, State
from dreamer.world_models.base import Dynamics, Noise
from dreamer.world_models.imagine import draw_noise, imagine

Objective = Callable[[Action], Float32[Array, "N K"]]
"""``candidates [N, K, H, ...] -> expected returns [N, K]``."""


class ActionSequences(NamedTuple):
    """Distribution of action sequences, by action key; all arrays ``[N, H, ...]``."""

    probs: dict[str, Float32[Array, "N H *shape C"]]
    """Of each class of discrete actions."""
    mean: dict[str, Float32[Array, "N H *shape"]]
    """Of continuous actions."""
    std: dict[str, Float32[Array, "N H *shape"]]


@dataclasses.dataclass(frozen=True)
class CEM:
    """Cross-entropy method over the actions of H steps.

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

    def init(self, batch: int) -> Any:
        """Equal classes, and normal distributions of mean 0 and standard deviation ``init_std``."""
        return self._fresh(batch)

    def plan(
        self,
        model: Dynamics,
        leaf: Leaf,
        prior: Prior,
        start: State,
        plan: Any,
        is_first: Bool[Array, "N"],
        key: Array,
        masks: Masks | None = None,
    ) -> tuple[Action, Any, Metrics]:
        """See `dreamer.planners.base.Planner`; this one asks no prior."""
        fresh = self._fresh(len(is_first))
        begin = _allow(_choose(is_first, fresh, plan), masks or {})
        noise_key, keys = self._keys(key)
        objective = self._objective(model, leaf, start, noise_key, len(is_first))
        extra = self._suggest(model, prior, start, noise_key)

        def refine(carry: tuple[Array, ActionSequences, Array]) -> tuple[Array, ActionSequences, Array]:
            iteration, plan, _ = carry
            candidates = _join(self._draw(plan, begin, keys[iteration], self._own_candidates()), extra)
            score = objective(candidates)
            refined = _allow(self._refit(plan, candidates, score), masks or {})
            return iteration + 1, _choose(self._is_wide(plan), refined, plan), score

        def goes_on(carry: tuple[Array, ActionSequences, Array]) -> Array:
            iteration, plan, _ = carry
            return (iteration < len(keys)) & self._is_wide(plan).any()

        score = jnp.full((len(is_first), self.config.candidates), -jnp.inf)
        _, plan, score = jax.lax.while_loop(goes_on, refine, (jnp.int32(0), begin, score))
        return _first(plan), self._following(plan, fresh), _metrics(score.max(1), score)

    def _fresh(self, batch: int) -> ActionSequences:
        """The distribution that knows nothing."""
        lead = (batch, self.config.horizon)
        probs, mean, std = {}, {}, {}
        for key, space in self.action_spaces.items():
            if space.kind == "discrete":
                probs[key] = jnp.full((*lead, *space.shape, space.classes), 1 / space.classes, jnp.float32)
            else:
                mean[key] = jnp.zeros((*lead, *space.shape), jnp.float32)
                std[key] = jnp.full((*lead, *space.shape), self.config.init_std, jnp.float32)
        return ActionSequences(probs, mean, std)

    def _keys(self, key: Array) -> tuple[Array, Array]:
        """A key for the noise of the model, and one for each iteration."""
        keys = jax.random.split(key, 1 + self.config.iterations)
        return keys[0], keys[1:]

    def _own_candidates(self) -> int:
        """How many candidates of an iteration are drawn from the distribution."""
        return self.config.candidates

    def _suggest(self, model: Dynamics, prior: Prior, start: State, key: Array) -> Action:
        """Candidates ``[N, ..., H, ...]`` that take part in every iteration; ``{}``: none."""
        return {}

    def _is_wide(self, plan: ActionSequences) -> Bool[Array, "N"]:
        """Whether the search is to go on: some action still varies by more than ``epsilon``."""
        rows = len(jax.tree.leaves(plan)[0])
        if not self.config.epsilon or not plan.std:
            return jnp.ones(rows, bool)
        widest = [jnp.square(std).reshape(rows, -1).max(1) for std in plan.std.values()]
        return jnp.stack(widest).max(0) > self.config.epsilon

    def _draw(self, plan: ActionSequences, begin: ActionSequences, key: Array, count: int) -> Action:
        """Candidates ``[N, count, H, ...]``; ``begin`` is the plan before the first iteration."""
        actions: Action = {}
        for name, own in zip(self.action_spaces, jax.random.split(key, len(self.action_spaces)), strict=True):
            if name in plan.probs:
                logits = jnp.log(plan.probs[name])[:, None]
                shape = (logits.shape[0], count, *logits.shape[2:-1])
                actions[name] = jax.random.categorical(own, logits, shape=shape).astype(jnp.int32)
            else:
                mean = plan.mean[name][:, None]
                std = plan.std[name][:, None]
                actions[name] = self._draw_values(mean, std, begin.mean[name][:, None, 0], own, count)
        return actions

    def _draw_values(self, mean: Array, std: Array, before: Array, key: Array, count: int) -> Array:
        """Continuous actions ``[N, count, H, *shape]`` within [-1, 1].

        Args:
            mean: ``[N, 1, H, *shape]``.
            std: of the same shape.
            before: ``[N, 1, *shape]``, what was planned for the first step before the search.
            key: random key.
            count: candidates.
        """
        shape = (mean.shape[0], count, *mean.shape[2:])
        if self.config.fit == "truncated":
            # The mean is at least two standard deviations away from both bounds, and no draw is further away than that.
            room = jnp.minimum(mean + 1, 1 - mean) / 2
            return mean + jnp.minimum(std, room) * jax.random.truncated_normal(key, -2.0, 2.0, shape)
        return jnp.clip(mean + std * jax.random.normal(key, shape), -1, 1)

    def _objective(self, model: Dynamics, leaf: Leaf, start: State, key: Array, rows: int) -> Objective:
        """What candidates are worth.

        The noise is the same for all candidates of all iterations: what differs between two of them is their actions.
        """
        noise = draw_noise(model, jax.random.split(key, self.config.horizon), rows)

        def objective(candidates: Action) -> Array:
            count = jax.tree.leaves(candidates)[0].shape[1]
            # Candidates of one row lie side by side: [N, K, H, ...] becomes H steps of N * K rows.
            action = {name: x.reshape(-1, *x.shape[2:]).swapaxes(0, 1) for name, x in candidates.items()}

            def step(carry: tuple[State, Array, Array], inputs: tuple[Action, Noise]) -> tuple[tuple, None]:
                state, weight, total = carry
                state = model.step(state, *inputs)
                total = total + weight * model.reward(state).mean()
                return (state, weight * model.cont(state) * self.discount, total), None

            ones = jnp.ones(rows * count)
            carry = _repeat(start, count, axis=0), ones, 0 * ones
            (state, weight, total), _ = jax.lax.scan(step, carry, (action, _repeat(noise, count, axis=1)))
            return (total + weight * leaf(state) if self.config.leaf else total).reshape(rows, count)

        return objective

    def _refit(self, plan: ActionSequences, candidates: Action, score: Array) -> ActionSequences:
        """The distribution of the elites, mixed with the one before."""
        c = self.config
        top, best = jax.lax.top_k(score, c.elites)
        elites = _take(candidates, best)
        weights = self._weigh(top)

        def average(x: Array) -> Array:
            return x.mean(1) if weights is None else (_along(weights, x) * x).sum(1)

        def blend(old: Array, new: Array) -> Array:
            return c.momentum * old + (1 - c.momentum) * new

        def share(name: str) -> Array:
            return average(jax.nn.one_hot(elites[name], self.action_spaces[name].classes))

        def spread(name: str) -> Array:
            old = plan.std[name]
            x = jnp.asarray(elites[name])
            variance = average(jnp.square(x - average(x)[:, None]))
            if c.fit == "std":
                return jnp.maximum(blend(old, jnp.sqrt(variance)), c.min_std)
            return jnp.sqrt(blend(jnp.square(old), variance) + c.min_std**2)

        return ActionSequences(
            {name: blend(old, share(name)) for name, old in plan.probs.items()},
            {name: blend(old, average(jnp.asarray(elites[name]))) for name, old in plan.mean.items()},
            {name: spread(name) for name in plan.std},
        )

    def _weigh(self, top: Float32[Array, "N E"]) -> Float32[Array, "N E"] | None:
        """Weights of the elites with these returns; None: all count the same."""
        return None

    def _following(self, plan: ActionSequences, fresh: ActionSequences) -> ActionSequences:
        """Where the search of the next step begins: the sequence shifted by one step, after which nothing is known."""
        if not self.config.warm_start:
            return fresh
        shifted = jax.tree.map(lambda old, new: jnp.concatenate([old[:, 1:], new[:, -1:]], 1), plan, fresh)
        return shifted._replace(std=fresh.std)


class RandomShooting(CEM):
    """The best of sequences drawn evenly, and the first of its actions; nothing is remembered for the next step."""

    def init(self, batch: int) -> tuple[()]:
        """Nothing."""
        return ()

    def plan(
        self,
        model: Dynamics,
        leaf: Leaf,
        prior: Prior,
        start: State,
        plan: tuple[()],
        is_first: Bool[Array, "N"],
        key: Array,
        masks: Masks | None = None,
    ) -> tuple[Action, tuple[()], Metrics]:
        """See `dreamer.planners.base.Planner`; this one asks no prior."""
        noise_key, draw_key = jax.random.split(key)
        even = _allow(self._fresh(len(is_first)), masks or {})
        candidates = self._draw(even, even, draw_key, self.config.candidates)
        score = self._objective(model, leaf, start, noise_key, len(is_first))(candidates)
        best = _take(candidates, score.argmax(1)[:, None])
        return {name: x[:, 0, 0] for name, x in best.items()}, (), _metrics(score.max(1), score)

    def _draw_values(self, mean: Array, std: Array, before: Array, key: Array, count: int) -> Array:
        return jax.random.uniform(key, (mean.shape[0], count, *mean.shape[2:]), minval=-1.0, maxval=1.0)


class KeptElites(NamedTuple):
    """What `ICEM` remembers for the next step."""

    sequences: ActionSequences
    elites: Action
    """Some of the last elites, ``[N, E, H, ...]`` by key, not yet shifted."""


class ICEM(CEM):
    """`CEM` with noise that is correlated in time, with elites that stay, and with a population that shrinks.

    The best candidate of all iterations is taken. In the last iteration, the mean is a candidate, too.
    """

    def init(self, batch: int) -> KeptElites:
        """Elites are zeros, which are never asked for."""
        lead = (batch, self._survivors, self.config.horizon)
        zeros: Action = {
            name: jnp.zeros((*lead, *space.shape), space.dtype) for name, space in self.action_spaces.items()
        }
        return KeptElites(self._fresh(batch), zeros)

    def plan(
        self,
        model: Dynamics,
        leaf: Leaf,
        prior: Prior,
        start: State,
        plan: KeptElites,
        is_first: Bool[Array, "N"],
        key: Array,
        masks: Masks | None = None,
    ) -> tuple[Action, KeptElites, Metrics]:
        """See `dreamer.planners.base.Planner`; this one asks no prior."""
        fresh = self._fresh(len(is_first))
        begin = _allow(_choose(is_first, fresh, plan.sequences), masks or {})
        noise_key, keys = self._keys(key)
        objective = self._objective(model, leaf, start, noise_key, len(is_first))
        sequences = begin
        best = _most_probable(begin)
        most = jnp.full(len(is_first), -jnp.inf)
        kept = plan.elites
        score = jnp.zeros(0)
        for iteration, own in enumerate(keys):  # Populations differ in size, so each iteration is a program.
            draw_key, end_key, keep_key = jax.random.split(own, 3)
            drawn = self._draw(sequences, begin, draw_key, self._population(iteration))
            if iteration == 0:
                kept = self._shift(kept, begin, end_key)
            elif iteration == self.config.iterations - 1:
                kept = {name: x[:, None] for name, x in _most_probable(sequences).items()}
            candidates = _join(drawn, kept)
            score = objective(candidates)
            if iteration == 0:
                # The elites of another episode mean nothing.
                is_old = jnp.arange(score.shape[1]) >= self._population(0)
                is_strange = is_first | (not self.config.warm_start)
                score = jnp.where(is_old[None] & is_strange[:, None], -jnp.inf, score)
            # What an elite of the step before does first may be forbidden now.
            score = jnp.where(_is_forbidden(candidates, masks or {}), -jnp.inf, score)
            # The best candidate up to now stands beside the new ones.
            leader = jax.tree.map(lambda x: x[:, None], best)
            rank = jnp.concatenate([most[:, None], score], 1)
            best = {name: x[:, 0] for name, x in _take(_join(leader, candidates), rank.argmax(1)[:, None]).items()}
            most = rank.max(1)
            elites = _take(candidates, jax.lax.top_k(score, self.config.elites)[1])
            some = jax.random.permutation(keep_key, self.config.elites)[: self._survivors]
            kept = {name: x[:, some] for name, x in elites.items()}
            sequences = _allow(self._refit(sequences, candidates, score), masks or {})
        action = {name: x[:, 0] for name, x in best.items()}
        return action, KeptElites(self._following(sequences, fresh), kept), _metrics(most, score)

    @property
    def _survivors(self) -> int:
        """How many elites stay."""
        return round(self.config.keep * self.config.elites)

    def _population(self, iteration: int) -> int:
        """How many candidates are drawn in an iteration, counted from 0."""
        c = self.config
        return max(math.ceil(c.candidates * c.decay**-iteration), 2 * c.elites)

    def _shift(self, kept: Action, begin: ActionSequences, key: Array) -> Action:
        """Elites of the step before, shifted by one, with a last action that is drawn."""
        last = jax.tree.map(lambda x: x[:, -1:], begin)
        end = self._draw(last, last, key, self._survivors)
        return {name: jnp.concatenate([x[:, :, 1:], end[name]], 2) for name, x in kept.items()}

    def _draw_values(self, mean: Array, std: Array, before: Array, key: Array, count: int) -> Array:
        steps, *shape = mean.shape[2:]
        noise = colored_noise(key, (mean.shape[0], count, *shape, steps), self.config.noise_beta)
        return jnp.clip(mean + std * jnp.moveaxis(noise, -1, 2), -1, 1)


class MPPI(CEM):
    """Model predictive path integral control: elites count by the exponential of their returns.

    ``weight[i] = exp(temperature (J[i] - max J)) / sum``; the distribution moves to the weighted mean and standard
    deviation. A share of the candidates follows the policy. With smoothing ``s``, draws x become actions
    ``a[h] = (1 - s) x[h] + s a[h-1]``, which begin with what was planned for the first step.
    """

    def _own_candidates(self) -> int:
        return self.config.candidates - round(self.config.prior * self.config.candidates)

    def _suggest(self, model: Dynamics, prior: Prior, start: State, key: Array) -> Action:
        count = self.config.candidates - self._own_candidates()
        if not count:
            return {}
        horizon = self.config.horizon
        # The noise of the search has a key for each step, split from this one; another one follows them.
        key = jax.random.fold_in(key, horizon)
        states = _repeat(start, count, axis=0)
        taken = imagine(model, states, lambda state, key: (prior(state, key), None), horizon, key).action
        paths: Action = {}
        for name, space in self.action_spaces.items():
            path = jnp.asarray(taken[name])[:horizon].swapaxes(0, 1)
            path = jnp.clip(path, -1, 1) if space.kind == "continuous" else path
            paths[name] = path.reshape(-1, count, horizon, *space.shape)
        return paths

    def _draw_values(self, mean: Array, std: Array, before: Array, key: Array, count: int) -> Array:
        if not self.config.smoothing:
            return super()._draw_values(mean, std, before, key, count)
        drawn = mean + std * jax.random.normal(key, (mean.shape[0], count, *mean.shape[2:]))

        def step(action: Array, drawn: Array) -> tuple[Array, Array]:
            action = (1 - self.config.smoothing) * drawn + self.config.smoothing * action
            return action, action

        first = jnp.broadcast_to(before, drawn[:, :, 0].shape)
        return jnp.clip(jnp.moveaxis(jax.lax.scan(step, first, jnp.moveaxis(drawn, 2, 0))[1], 0, 2), -1, 1)

    def _weigh(self, top: Float32[Array, "N E"]) -> Float32[Array, "N E"]:
        return jax.nn.softmax(self.config.temperature * top)


def colored_noise(key: Array, shape: tuple[int, ...], beta: float) -> Float32[Array, "*batch H"]:
    """Normal noise of variance 1 along the last axis, whose power falls with frequency f as ``f^-beta``.

    Normal Fourier coefficients are scaled by ``f^(-beta / 2)``, f at least 1 / H, and transformed back.

    Args:
        key: random key.
        shape: ``(*batch, H)``.
        beta: 0: white; 1: pink; 2: a random walk.

    Source: Timmer and Koenig 1995, "On generating power law noise".
    """
    steps = shape[-1]
    if steps == 1:
        return jax.random.normal(key, shape)
    frequency = np.fft.rfftfreq(steps)
    scale = np.maximum(frequency, 1 / steps) ** (-beta / 2)
    # Each frequency but 0 counts twice, once for the negative one; the highest of an even number of steps once.
    counted = scale[1:].copy()
    if steps % 2 == 0:
        counted[-1] /= 2
    std = 2 * np.sqrt(np.square(counted).sum()) / steps
    real, imaginary = (jax.random.normal(own, (*shape[:-1], len(scale))) for own in jax.random.split(key))
    return jnp.fft.irfft((real + 1j * imaginary) * np.broadcast_to(scale, real.shape), steps) / std


def _first(plan: ActionSequences) -> Action:
    """The first action of the most probable sequence."""
    return {name: x[:, 0] for name, x in _most_probable(plan).items()}


def _most_probable(plan: ActionSequences) -> Action:
    """Most probable classes, and means, ``[N, H, ...]`` by key."""
    action: Action = {name: probs.argmax(-1).astype(jnp.int32) for name, probs in plan.probs.items()}
    return action | plan.mean


def _allow(plan: ActionSequences, masks: Masks) -> ActionSequences:
    """The plan with no share of the first action left to classes that are not allowed."""
    probs = dict(plan.probs)
    for name, mask in masks.items():
        # Where all shares went to forbidden classes, the allowed ones are equal.
        share = jnp.where(mask, jnp.maximum(probs[name][:, 0], 1e-6), 0.0)
        probs[name] = probs[name].at[:, 0].set(share / share.sum(-1, keepdims=True))
    return plan._replace(probs=probs)


def _is_forbidden(candidates: Action, masks: Masks) -> Bool[Array, "N K"]:
    """Whether a class of the first action is not allowed."""
    rows, count = jax.tree.leaves(candidates)[0].shape[:2]
    found = jnp.zeros((rows, count), bool)
    for name, mask in masks.items():
        taken = jax.nn.one_hot(candidates[name][:, :, 0], mask.shape[-1], dtype=bool)
        found |= (taken & ~mask[:, None]).reshape(rows, count, -1).any(-1)
    return found


def _metrics(best: Float32[Array, "N"], score: Float32[Array, "N K"]) -> Metrics:
    """Return of the best candidate, and standard deviation of those of the last iteration that count."""
    return {"planner/return": best.mean(), "planner/spread": score.std(1, where=jnp.isfinite(score)).mean()}


def _join(*actions: Action) -> Action:
    """Candidates of several kinds side by side."""
    given = [action for action in actions if action]
    return {name: jnp.concatenate([action[name] for action in given], 1) for name in given[0]}


def _take(candidates: Action, index: Array) -> Action:
    """Those candidates of each row with the indices ``[N, E]``."""
    return {name: jax.vmap(lambda x, i: x[i])(x, index) for name, x in candidates.items()}


def _repeat(tree: Any, count: int, axis: int) -> Any:
    """Every row as often as there are candidates, side by side."""
    return jax.tree.map(lambda x: jnp.repeat(x, count, axis), tree)


def _choose(flag: Bool[Array, "N"], yes: Any, no: Any) -> Any:
    """Rows of one tree where the flag is set, and of another elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(_along(flag, a), a, b), yes, no)


def _along(rows: Array, like: Array) -> Array:
    """``rows`` with further axes of size 1, to be combined with an array that begins with the same axes."""
    return rows.reshape(*rows.shape, *[1] * (like.ndim - rows.ndim))


def _make(kind: type[CEM], config: Config, action_spaces: Spaces) -> CEM:
    behavior = config.behavior
    # With cont_discount, the model's continuation holds the discount.
    discount = 1.0 if behavior.cont_discount else 1 - 1 / behavior.return_horizon
    return kind(config.planner, dict(sorted(action_spaces.items())), discount)


def random(config: Config, action_spaces: Spaces) -> CEM:
    """Random shooting with the discount of the behaviour."""
    return _make(RandomShooting, config, action_spaces)


def cem(config: Config, action_spaces: Spaces) -> CEM:
    """The cross-entropy method with the discount of the behaviour."""
    return _make(CEM, config, action_spaces)


def icem(config: Config, action_spaces: Spaces) -> CEM:
    """The cross-entropy method with correlated noise and kept elites, with the discount of the behaviour.

    Raises:
        ConfigError: correlated noise is to be truncated.
    """
    if config.planner.fit == "truncated":
        raise ConfigError(
            "planner.fit=truncated cannot be used with planner.kind=icem, whose noise is drawn for all steps together: "
            "use planner.fit=std or variance."
        )
    return _make(ICEM, config, action_spaces)


def mppi(config: Config, action_spaces: Spaces) -> CEM:
    """Model predictive path integral control with the discount of the behaviour.

    Raises:
        ConfigError: smooth actions are to be truncated.
    """
    if config.planner.fit == "truncated" and config.planner.smoothing:
        raise ConfigError(
            f"planner.fit=truncated cannot be used with planner.smoothing={config.planner.smoothing}: use "
            "planner.fit=std or variance."
        )
    return _make(MPPI, config, action_spaces)


__all__ = [
    "CEM",
    "ICEM",
    "MPPI",
    "ActionSequences",
    "KeptElites",
    "RandomShooting",
    "cem",
    "colored_noise",
    "icem",
    "mppi",
    "random",
]
