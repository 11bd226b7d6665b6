"""MuZero: search a model that was learned for nothing but rewards, values and policies, and learn from the search.

Every real action is found by tree search. What the search saw, the value of the state and a better policy than before,
is kept by replay; the model is unrolled along real actions, and learns to predict rewards, n-step returns that end in
such values, and such policies.

Differs from the paper: replay is uniform, without priorities, and nothing is searched again later (no reanalysis); the
optimizer is that of the config, without weight decay; `behavior.actor_unimix` may smooth the policy.

Source: Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned model"; Danihelka
et al. 2022, "Policy improvement by planning with Gumbel", for ``planner.kind=gumbel_muzero``.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float32

from dreamer import planners
from dreamer.agent.learning import LossOutput, begin, gradient_step
from dreamer.algorithms.base import Algorithm, View
from dreamer.behaviors.heads import Actor, Critic
from dreamer.config import Config, ConfigError
from dreamer.equations.returns import n_step_return
from dreamer.planners.tree import TreeSearch
from dreamer.types import Action, Batch, Metrics, Mode, Number, Observation, Parts, Spaces, State, TrainState, mask_keys
from dreamer.world_models.base import observed_masks
from dreamer.world_models.value_equivalent import ValueEquivalentModel, ValueEquivalentState


class PredictionNets(NamedTuple):
    """What is expected in a state of the model. The optimizer may treat each as a group."""

    actor: Actor
    critic: Critic


class SearchRecord(NamedTuple):
    """What a search found in a step, for replay."""

    value: Float32[Array, "*batch"]
    policy: Float32[Array, "*batch C"]


class MuZeroMemory(NamedTuple):
    """What the policy remembers: only what the log and videos ask for."""

    value: Float32[Array, "N"]
    search: Metrics
    """By the names of `dreamer.planners.base.SEARCH_METRICS`."""


class Targets(NamedTuple):
    """What N unrolled sequences of K steps are to predict, ``[K + 1, N, ...]``, the first state included."""

    reward: Float32[Array, "K_plus_1 N"]
    """Received on arriving; that of the first state is not predicted."""
    value: Float32[Array, "K_plus_1 N"]
    policy: Float32[Array, "K_plus_1 N C"]
    is_known: Bool[Array, "K_plus_1 N"]
    """Whether reward and value are: in the same episode, and after the end of a task, where both are 0."""
    is_played: Bool[Array, "K_plus_1 N"]
    """Whether an action was taken there, so that the policy is known."""


def muzero(config: Config, obs_spaces: Spaces, action_spaces: Spaces) -> Algorithm:
    """The algorithm for one task.

    Args:
        config: the run's config.
        obs_spaces: observation spaces.
        action_spaces: one discrete action of one number.

    Raises:
        ConfigError: the planner is no tree search or cannot act here, or sequences are too short to unroll.
    """
    planner = planners.make(config, action_spaces)
    if not isinstance(planner, TreeSearch):
        raise ConfigError(
            f"planner.kind={config.planner.kind} cannot be used with algorithm=muzero, which learns from trees: "
            "expected gumbel_muzero or muzero."
        )
    if config.replay.batch_length <= config.muzero.unroll:
        raise ConfigError(
            f"replay.batch_length={config.replay.batch_length} cannot be used with algorithm=muzero: expected more "
            f"than muzero.unroll={config.muzero.unroll}, the steps that follow each first state."
        )
    # The model's continuation holds no discount, whatever `behavior.cont_discount` says.
    evaluating = dataclasses.replace(planner, discount=1 - 1 / config.behavior.return_horizon)
    playing = dataclasses.replace(evaluating, explores=True)
    name, space = next(iter(action_spaces.items()))
    masked = mask_keys(obs_spaces, action_spaces)

    @jax.jit
    def build(key: Array) -> Parts:
        rngs = nnx.Rngs(params=key)
        model = ValueEquivalentModel(config, obs_spaces, action_spaces, rngs=rngs)
        size = model.feature_size
        nets = PredictionNets(Actor(config, size, action_spaces, rngs=rngs), Critic(config, size, rngs=rngs))
        return Parts(model, nets)

    def init(key: Array) -> TrainState:
        return begin(config, build(key), Parts())

    def initial(batch: int) -> MuZeroMemory:
        return MuZeroMemory(jnp.zeros(batch), planners.search_metrics({}, batch))

    def policy(
        nets: Parts, memory: MuZeroMemory, obs: Observation, is_first: Array, key: Array, mode: Mode
    ) -> tuple[Action, MuZeroMemory, SearchRecord]:
        """Search from an observation."""
        model: ValueEquivalentModel = nets.world_model
        predict: PredictionNets = nets.behavior

        def log_probs(state: State) -> dict[str, Array]:
            return {name: predict.actor(model.features(state)).distributions[name].log_probs}

        found = (playing if mode == "sample" else evaluating).search(
            model,
            leaf=lambda state: predict.critic(model.features(state)).mean(),
            prior=planners.Prior(lambda state, key: predict.actor(model.features(state)).sample(seed=key), log_probs),
            start=model.represent(obs),
            key=key,
            masks=observed_masks(obs, masked),
        )
        search = planners.search_metrics(found.metrics(), len(is_first))
        return {name: found.action}, MuZeroMemory(found.value, search), SearchRecord(found.value, found.policy)

    def loss(nets: Parts, memory: Parts, batch: Batch, key: Array, config: Config) -> LossOutput:
        """Unroll the model from every step that enough others follow; nothing is drawn."""
        model: ValueEquivalentModel = nets.world_model
        predict: PredictionNets = nets.behavior
        unroll = config.muzero.unroll
        starts = batch.reward.shape[1] - unroll
        first = jax.tree.map(lambda x: x[:, :starts].reshape(-1, *x.shape[2:]), batch.obs)
        # The action that leads from step k of a sequence to the next is the previous action of that one.
        actions = jax.tree.map(lambda x: windows(x, unroll)[1:], batch.prev_action)
        states = follow(model, model.represent(first), actions)
        targets = make_targets(batch, unroll, config.muzero.td_steps, 1 - 1 / config.behavior.return_horizon)
        feature = model.features(states)
        values = predict.critic(feature)
        chosen = predict.actor(feature).distributions[name].log_probs
        rewards = model.reward(jax.tree.map(lambda x: x[1:], states))
        # Together, the K steps that follow weigh as much as the first state.
        weight = jnp.full((unroll + 1, 1), 1 / unroll).at[0].set(1.0)
        known = weight * targets.is_known
        entropy = -(targets.policy * jnp.log(jnp.maximum(targets.policy, 1e-9))).sum(-1)
        return LossOutput(
            losses={
                "reward": (config.loss.reward, -(known[1:] * rewards.log_prob(targets.reward[1:])).sum(0)),
                "critic": (config.loss.critic, -(known * values.log_prob(targets.value)).sum(0)),
                "actor": (
                    config.loss.actor,
                    -(weight * targets.is_played * (targets.policy * chosen).sum(-1)).sum(0),
                ),
            },
            memory=memory,
            stored=(),
            metrics={
                "muzero/value": values.mean()[0].mean(),
                "muzero/target": targets.value[0].mean(),
                "muzero/entropy": entropy[0].mean(),
            },
        )

    def view(nets: Parts, memory: MuZeroMemory) -> View:
        return View({}, memory.value)

    def acting(memory: MuZeroMemory) -> Metrics:
        return {key: value.mean() for key, value in memory.search.items()}

    stored = jax.eval_shape(lambda: SearchRecord(jnp.zeros(()), jnp.zeros(space.classes)))
    return Algorithm(
        init,
        initial,
        policy,
        gradient_step(loss),
        stored,
        stored_span="sequence",
        view=view,
        loss=loss,
        acting=acting,
    )


def windows(x: Array, unroll: int) -> Array:
    """Every K + 1 consecutive steps of ``[B, T, ...]``, as ``[K + 1, B (T - K), ...]``."""
    count = x.shape[1] - unroll
    parts = [x[:, step : step + count].reshape(-1, *x.shape[2:]) for step in range(unroll + 1)]
    return jnp.stack(parts)


def follow(model: ValueEquivalentModel, first: ValueEquivalentState, actions: Action) -> ValueEquivalentState:
    """The states ``[K + 1, N, ...]`` along actions ``[K, N, ...]``, the first included.

    Each step halves the gradient that reaches the state before it, so that early states do not learn mostly from what
    follows much later.
    """

    def step(state: ValueEquivalentState, action: Action) -> tuple[ValueEquivalentState, ValueEquivalentState]:
        latent = (state.latent + jax.lax.stop_gradient(state.latent)) / 2
        state = model.step(state._replace(latent=latent), action, ())
        return state, state

    _, following = jax.lax.scan(step, first, actions)
    return jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest]), first, following)


def make_targets(batch: Batch, unroll: int, td_steps: int, discount: Number) -> Targets:
    """What every ``unroll`` steps of a batch teach.

    Args:
        batch: B sequences of T steps, with `SearchRecord` ``[B, 1 + T, ...]``.
        unroll: steps K after each first one; N = B (T - K).
        td_steps: rewards in a value's target.
        discount: factor per step.
    """
    reward, is_first, is_last, is_terminal = (
        jnp.asarray(x) for x in (batch.reward, batch.is_first, batch.is_last, batch.is_terminal)
    )
    searched: SearchRecord = jax.tree.map(lambda x: jnp.asarray(x)[:, 1:], batch.stored)
    goes_on = 1.0 - is_terminal
    value = n_step_return(reward.T, discount * goes_on.T, is_last.T, (goes_on * searched.value).T, td_steps).T
    first, last, terminal = (windows(x, unroll) for x in (is_first, is_last, is_terminal))
    # Whether no episode began after the first step, and whether the task of the first step is over since before.
    is_same = jnp.cumprod(jnp.concatenate([jnp.ones_like(first[:1]), ~first[1:]]), 0).astype(bool)
    ended = jnp.cumsum(is_same & terminal, 0) > 0
    is_over = jnp.concatenate([jnp.zeros_like(ended[:1]), ended[:-1]])
    return Targets(
        reward=jnp.where(is_over, 0.0, windows(reward, unroll)),
        value=jnp.where(is_over, 0.0, windows(value, unroll)),
        policy=windows(searched.policy, unroll),
        is_known=is_same | is_over,
        is_played=is_same & ~last,
    )


__all__ = ["MuZeroMemory", "PredictionNets", "SearchRecord", "Targets", "follow", "make_targets", "muzero", "windows"]
