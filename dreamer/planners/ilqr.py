"""Iterative linear-quadratic regulator: follow the gradient and the curvature of the return along one sequence.

Source: Li and Todorov 2004, "Iterative linear quadratic regulator design for nonlinear biological movement systems";
Tassa et al. 2012, "Synthesis and stabilization of complex behaviors through online trajectory optimization", for
regularisation and line search; Tassa et al. 2014, "Control-limited differential dynamic programming", for bounds.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from dreamer.config import Config, ConfigError, PlannerConfig
from dreamer.equations.distributions import Gaussian
from dreamer.planners.base import Leaf, Prior
from dreamer.types import Action, Masks, Metrics, Spaces, State
from dreamer.world_models.base import Dynamics, LatentVariableModel, Noise
from dreamer.world_models.imagine import draw_noise

STEP_SIZES = tuple(0.5**n for n in range(8))
"""Shares of the step that the line search tries, the largest first."""

LEAST_SHARE = 0.1
"""A step is accepted if it lowers the cost by more than this share of what the quadratic model promises."""

LEAST_MU = 1e-6
"""A regularisation below this counts as none."""

FACTOR = 2.0
"""The regularisation grows by powers of this with every step that fails in a row, and falls as it grew."""


class Expansion(NamedTuple):
    """Dynamics and cost of one step around a state ``[X]`` and an action ``[A]``, derived by both together."""

    dynamics: Float32[Array, "X XA"]
    """Jacobian of the next state."""
    slope: Float32[Array, "XA"]
    """Gradient of the cost."""
    curvature: Float32[Array, "XA XA"]
    """Hessian of the cost, without negative eigenvalues."""


class Gains(NamedTuple):
    """Change of the actions of H steps: ``step size * offset + feedback @ (x - nominal x)``."""

    offset: Float32[Array, "H A"]
    feedback: Float32[Array, "H A X"]


class Nominal(NamedTuple):
    """The sequence that is improved, and the regularisation."""

    action: Float32[Array, "H A"]
    mu: Float32[Array, ""]
    growth: Float32[Array, ""]


@dataclasses.dataclass(frozen=True)
class ILQR:
    """Iterative LQR over continuous actions of H steps, for models whose step has a gradient.

    Each iteration expands ``-J`` of `dreamer.planners.shooting.CEM` around the sequence, the dynamics to first and the
    cost to second order, solves that problem backwards, and searches along the solution. Of a model that draws normal
    variables, the means are followed. The first action is taken; the next step begins with the sequence shifted by one.

    Attributes:
        config: horizon and iterations.
        name: key of the action.
        shape: its shape.
        discount: factor per step beside the model's ``cont``.
    """

    config: PlannerConfig
    name: str
    shape: tuple[int, ...]
    discount: float

    def init(self, batch: int) -> Float32[Array, "batch H A"]:
        """Zeros."""
        return jnp.zeros((batch, self.config.horizon, math.prod(self.shape)))

    def plan(
        self,
        model: Dynamics,
        leaf: Leaf,
        prior: Prior,
        start: State,
        plan: Float32[Array, "N H A"],
        is_first: Bool[Array, "N"],
        key: Array,
        masks: Masks | None = None,
    ) -> tuple[Action, Float32[Array, "N H A"], Metrics]:
        """See `dreamer.planners.base.Planner`; this one asks no prior.

        Raises:
            ConfigError: the model's latent variables are not normal.
        """
        if isinstance(model, LatentVariableModel) and not isinstance(model.expectation(start), Gaussian):
            raise ConfigError(
                "planner.kind=ilqr cannot be used: it follows gradients through the model, and categorical latents "
                "have none: use Gaussian latents, as world_model.kind=gaussian_rssm has, or planner.kind=cem."
            )
        noise = draw_noise(model, jax.random.split(key, self.config.horizon), len(is_first))
        # Normal numbers of 0 are means. What is not a number of that kind, such as a key, stays.
        noise = jax.tree.map(lambda x: 0 * x if jnp.issubdtype(x.dtype, jnp.floating) else x, noise)
        before = jnp.where(is_first[:, None, None], 0.0, plan)

        def solve(start: State, action: Array, noise: Noise) -> tuple[Array, Array]:
            problem = Problem(self, model, leaf, start, noise)
            return problem.improve(action)

        action, total = jax.vmap(solve, in_axes=(0, 0, 1))(start, before, noise)
        following = jnp.concatenate([action[:, 1:], 0 * action[:, :1]], 1) if self.config.warm_start else 0 * action
        taken: Action = {self.name: action[:, 0].reshape(-1, *self.shape)}
        return taken, following, {"planner/return": total.mean()}


@dataclasses.dataclass(frozen=True)
class Problem:
    """The best actions of H steps from one state.

    Attributes:
        planner: what is searched for.
        model: what is asked.
        leaf: value of the last state.
        start: state without a batch axis.
        noise: of the H steps, ``[H, ...]``.
    """

    planner: ILQR
    model: Dynamics
    leaf: Leaf
    start: State
    noise: Noise

    def improve(self, action: Float32[Array, "H A"]) -> tuple[Float32[Array, "H A"], Float32[Array, ""]]:
        """The sequence after all iterations, and its return."""
        begin = Nominal(action, jnp.zeros(()), jnp.ones(()))
        iterations = self.planner.config.iterations
        nominal = jax.lax.fori_loop(0, iterations, lambda _, nominal: self._iterate(nominal), begin)
        _, _, cost = self._roll(lambda step, state: nominal.action[step])
        return nominal.action, -cost

    def _iterate(self, nominal: Nominal) -> Nominal:
        action, mu, growth = nominal
        states, weight, cost = self._roll(lambda step, state: action[step])
        gains, linear, quadratic = self._backward(states, action, weight, mu)
        points = jax.vmap(_numbers)(states)

        def attempt(size: Array) -> tuple[Array, Array]:
            def act(step: Array, state: State) -> Array:
                off = _numbers(state) - points[step]
                return jnp.clip(action[step] + size * gains.offset[step] + gains.feedback[step] @ off, -1, 1)

            followed, _, cost = self._roll(act)
            return jax.vmap(act)(jnp.arange(len(action)), jax.tree.map(lambda x: x[:-1], followed)), cost

        sizes = jnp.asarray(STEP_SIZES)
        tried, costs = jax.vmap(attempt)(sizes)
        promised = -(sizes * linear + sizes**2 / 2 * quadratic)
        is_good = (cost - costs > LEAST_SHARE * promised) & (costs < cost)
        choice = is_good.argmax()  # The largest that is good.
        is_better = is_good.any()
        growth = jnp.where(is_better, jnp.minimum(1.0, growth) / FACTOR, jnp.maximum(1.0, growth) * FACTOR)
        mu = jnp.where(is_better, mu * growth, jnp.maximum(LEAST_MU, mu * growth))
        return Nominal(jnp.where(is_better, tried[choice], action), jnp.where(mu < LEAST_MU, 0.0, mu), growth)

    def _roll(self, act: Any) -> tuple[State, Float32[Array, "H_plus_1"], Float32[Array, ""]]:
        """Follow ``act(step, state) -> action [A]``.

        Returns:
            The states ``[H+1, ...]``, the weight of what each of the H steps and the leaf bring, and the cost ``-J``.
        """

        def step(carry: tuple[State, Array, Array], inputs: tuple[Array, Noise]) -> tuple[tuple, tuple]:
            state, weight, cost = carry
            number, noise = inputs
            following = self._step(state, act(number, state), noise)
            cost = cost - weight * self._reward(following)
            later = weight * self.model.cont(_one_row(following))[0] * self.planner.discount
            return (following, later, cost), (state, weight)

        horizon = self.planner.config.horizon
        carry = self.start, jnp.ones(()), jnp.zeros(())
        (last, weight, cost), (states, weights) = jax.lax.scan(step, carry, (jnp.arange(horizon), self.noise))
        states = jax.tree.map(lambda rest, last: jnp.concatenate([rest, last[None]]), states, last)
        return states, jnp.append(weights, weight), cost - weight * self._value(last)

    def _backward(
        self, states: State, action: Array, weight: Array, mu: Array
    ) -> tuple[Gains, Float32[Array, ""], Float32[Array, ""]]:
        """Gains, and the change of the cost that they promise: linear and quadratic in the step size."""
        last = jax.tree.map(lambda x: x[-1], states)
        point = _numbers(last)
        size = len(point)

        def leaf_cost(point: Array) -> Array:
            return -weight[-1] * self._value(_with_numbers(last, point))

        expansions = jax.vmap(self._expand)(jax.tree.map(lambda x: x[:-1], states), action, weight[:-1], self.noise)
        value = jax.grad(leaf_cost)(point), _convex(_hessian(leaf_cost)(point))

        def step(value: tuple[Array, Array], inputs: tuple[Expansion, Array]) -> tuple[tuple, tuple]:
            slope, curvature = value
            expansion, action = inputs
            q = expansion.slope + expansion.dynamics.T @ slope
            qq = expansion.curvature + expansion.dynamics.T @ curvature @ expansion.dynamics
            q_x, q_u = q[:size], q[size:]
            q_xx, q_ux = qq[:size, :size], qq[size:, :size]
            q_uu = qq[size:, size:] + mu * jnp.eye(len(q_u))
            # An action at a bound that the cost pushes against stays there.
            is_free = ~((action >= 1) & (q_u < 0) | (action <= -1) & (q_u > 0))
            inner = jnp.where(is_free[:, None] & is_free[None], q_uu, jnp.eye(len(q_u)))
            solved = -jnp.linalg.solve(inner, is_free[:, None] * jnp.concatenate([q_u[:, None], q_ux], 1))
            offset, feedback = solved[:, 0], solved[:, 1:]
            slope = q_x + feedback.T @ (q_uu @ offset + q_u) + q_ux.T @ offset
            curvature = q_xx + feedback.T @ (q_uu @ feedback + q_ux) + q_ux.T @ feedback
            promised = q_u @ offset, offset @ q_uu @ offset
            return (slope, (curvature + curvature.T) / 2), (Gains(offset, feedback), promised)

        _, (gains, (linear, quadratic)) = jax.lax.scan(step, value, (expansions, action), reverse=True)
        return gains, linear.sum(), quadratic.sum()

    def _expand(self, state: State, action: Array, weight: Array, noise: Noise) -> Expansion:
        point = jnp.concatenate([_numbers(state), action])
        size = len(point) - len(action)

        def follow(point: Array) -> State:
            return self._step(_with_numbers(state, point[:size]), point[size:], noise)

        def cost(point: Array) -> Array:
            return -weight * self._reward(follow(point))

        # Reverse mode: some layers define a custom gradient, which forward mode cannot pass through.
        dynamics = jax.jacrev(lambda point: _numbers(follow(point)))(point)
        return Expansion(dynamics, jax.grad(cost)(point), _convex(_hessian(cost)(point)))

    # The model, asked about one row

    def _step(self, state: State, action: Array, noise: Noise) -> State:
        taken: Action = {self.planner.name: action.reshape(1, *self.planner.shape)}
        following = self.model.step(_one_row(state), taken, _one_row(noise))
        return jax.tree.map(lambda x: x[0], following)

    def _reward(self, state: State) -> Float32[Array, ""]:
        return self.model.reward(_one_row(state)).mean()[0]

    def _value(self, state: State) -> Float32[Array, ""]:
        return self.leaf(_one_row(state))[0] if self.planner.config.leaf else jnp.zeros(())


def _hessian(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Second derivatives, backward twice."""
    return jax.jacrev(jax.grad(function))


def _convex(matrix: Float32[Array, "Z Z"]) -> Float32[Array, "Z Z"]:
    """The nearest symmetric matrix without negative eigenvalues."""
    values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
    return (vectors * jnp.maximum(values, 0)[None]) @ vectors.T


def _one_row(tree: Any) -> Any:
    return jax.tree.map(lambda x: x[None], tree)


def _is_number(leaf: Array) -> bool:
    """Whether a leaf of a state can change by a little."""
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _numbers(state: State) -> Float32[Array, "X"]:
    """All leaves of a state without a batch axis that are real numbers, as one vector."""
    return jnp.concatenate([x.astype(jnp.float32).ravel() for x in jax.tree.leaves(state) if _is_number(x)])


def _with_numbers(state: State, numbers: Float32[Array, "X"]) -> State:
    """The state with its floats replaced by these numbers; classes, counters and flags stay."""
    leaves, tree = jax.tree.flatten(state)
    found = []
    for leaf in leaves:
        if _is_number(leaf):
            own, numbers = jnp.split(numbers, [leaf.size])
            leaf = own.reshape(leaf.shape).astype(leaf.dtype)
        found.append(leaf)
    return jax.tree.unflatten(tree, found)


def ilqr(config: Config, action_spaces: Spaces) -> ILQR:
    """Iterative LQR with the discount of the behaviour.

    Raises:
        ConfigError: the action is not one continuous vector.
    """
    kinds = [space.kind for space in action_spaces.values()]
    if kinds != ["continuous"]:
        raise ConfigError(
            f"planner.kind=ilqr cannot be used: it plans one continuous action, and the actions here are "
            f"{', '.join(f'{name} ({space.kind})' for name, space in action_spaces.items())}: use planner.kind=cem."
        )
    ((name, space),) = action_spaces.items()
    behavior = config.behavior
    # With cont_discount, the model's continuation holds the discount.
    discount = 1.0 if behavior.cont_discount else 1 - 1 / behavior.return_horizon
    return ILQR(config.planner, name, space.shape, discount)


__all__ = ["ILQR", "ilqr"]
