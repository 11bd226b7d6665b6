"""The agent: one state, four pure verbs (`init`, `policy`, `update`, `report`), and the jit boundary around them.

The verbs are plain functions of pytrees, so `jax.vmap(update)` over a leading axis trains a population. `Agent`
compiles them and passes parameters as flat lists of arrays, because flattening module objects at every call costs more
than a small network does.
"""

import copy
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int32, UInt32

from dreamer.agent import guard
from dreamer.agent.optimizer import learning_rate, make_optimizer
from dreamer.behaviors.actor_critic import (
    Actor,
    Critic,
    actor_loss,
    critic_loss,
    evaluate_trajectory,
    imagination_metrics,
    imagine_trajectory,
    replay_critic_loss,
)
from dreamer.config import Config, ConfigError
from dreamer.devices import batch_axis
from dreamer.devices.memory import compiled, tree_bytes
from dreamer.devices.placement import Placement, available_bytes, launch
from dreamer.equations import returns
from dreamer.logs import averages
from dreamer.types import (
    Action,
    Batch,
    Latent,
    Metrics,
    Number,
    Observation,
    ReturnRange,
    Scalars,
    Spaces,
    StoredLatent,
)
from dreamer.world_models.latent import WorldModel, observe_batch, reconstruction_losses, world_model_loss
from dreamer.world_models.rssm import action_size, features


class Networks(NamedTuple):
    """All parameters that are trained."""

    world_model: WorldModel
    actor: Actor
    critic: Critic


class TrainState(NamedTuple):
    """Everything that changes during training."""

    step: Int32[Array, ""]
    """Updates done."""
    nets: Networks
    slow_critic: Critic
    return_range: ReturnRange
    skipped_in_row: Int32[Array, ""]
    """How many of the latest updates were skipped, see `dreamer.agent.guard`; 0 after one that was done."""
    opt_state: Any


class PolicyState(NamedTuple):
    """What the acting policy remembers between steps of N environments."""

    latent: Latent
    prev_action: Float[Array, "N A"]


class Keys(NamedTuple):
    """The random keys of an agent, all from its seed; each use folds in the number of the update or of the step."""

    init: Array
    update: Array
    policy: Array
    report: Array

    @classmethod
    def of(cls, seed: int | Int32[Array, ""]) -> "Keys":
        """The keys of a seed."""
        return cls(*jax.random.split(jax.random.key(seed), 4))


Mode = Literal["sample", "mode"]


# --------------------------------------------------------------------------------------------------------------------
# The four verbs


def init(config: Config, obs_spaces: Spaces, action_spaces: Spaces, key: Array) -> TrainState:
    """Fresh parameters and optimizer state; the slow critic starts as a copy of the critic."""
    rngs = nnx.Rngs(params=key)
    model = WorldModel(config, obs_spaces, action_spaces, rngs=rngs)
    inputs = config.rssm.deter + config.rssm.stoch * config.rssm.classes
    nets = Networks(model, Actor(config, inputs, action_spaces, rngs=rngs), Critic(config, inputs, rngs=rngs))
    slow = jax.tree.map(jnp.copy, nets.critic)
    span = ReturnRange(jnp.zeros(()), jnp.zeros(()))
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, nets, slow, span, jnp.copy(zero), make_optimizer(config.optimizer).init(nets))


def initial(config: Config, action_spaces: Spaces, batch: int) -> PolicyState:
    """Memory of the policy at the start of ``batch`` episodes."""
    c, dtype = config.rssm, config.nets.dtype
    latent = Latent(jnp.zeros((batch, c.deter), dtype), jnp.zeros((batch, c.stoch, c.classes), dtype))
    return PolicyState(latent, jnp.zeros((batch, action_size(action_spaces)), dtype))


def policy(
    nets: Networks, state: PolicyState, obs: Observation, is_first: Array, key: Array, mode: Mode
) -> tuple[Action, PolicyState, StoredLatent]:
    """Update the latent with an observation and choose an action that it allows, for N environments.

    Args:
        nets: parameters.
        state: memory from the step before; ignored where ``is_first``.
        obs: observations ``[N, ...]``.
        is_first: bool ``[N]``, the observation comes from a reset.
        key: random key.
        mode: draw actions from the policy, or take its mode.

    Returns:
        Actions ``[N, ...]``, new memory, and the latent as replay keeps it.
    """
    latent_key, action_key = jax.random.split(key)
    model = nets.world_model
    embed = model.encoder(obs)
    latent, _ = model.rssm.observe_step(state.latent, state.prev_action, embed, is_first, latent_key)
    distribution = nets.actor(features(latent), model.observed_masks(obs))
    action = distribution.sample(seed=action_key) if mode == "sample" else distribution.mode()
    return action, PolicyState(latent, model.rssm.flatten_action(action)), model.rssm.pack(latent)


def policy_in_episodes(
    nets: Networks,
    state: PolicyState,
    obs: Observation,
    key: Array,
    episode: UInt32[Array, "N"],
    time: UInt32[Array, "N"],
    mode: Mode,
) -> tuple[Action, PolicyState]:
    """As `policy`, for N environments that are not aware of each other.

    What is drawn for one depends on the number of its episode and the time in it, 0 at a reset, and not on N.
    """

    def alone(*row: Any) -> Any:
        state, obs, episode, time = jax.tree.map(lambda x: x[None], row)
        own = jax.random.fold_in(jax.random.fold_in(key, episode[0]), time[0])
        action, state, _ = policy(nets, state, obs, time == 0, own, mode)
        return jax.tree.map(lambda x: x[0], (action, state))

    return jax.vmap(alone)(state, obs, episode, time)


def update(state: TrainState, batch: Batch, key: Array, config: Config) -> tuple[TrainState, StoredLatent, Metrics]:
    """One gradient step on everything: world model, actor and critic.

    If a loss, a gradient or a new parameter is not finite, the step is skipped: nothing changes but the two counters.
    The next update draws other random numbers. See `dreamer.agent.guard`.

    Args:
        state: parameters, optimizer and statistics.
        batch: B sequences of T steps from replay.
        key: the run's key; the update's own is ``fold_in(key, state.step)``.
        config: the run's config.

    Returns:
        The next state, the refreshed latents ``[B, T, ...]`` for replay, and metrics. If the metric ``guard/skipped``
        is 1, the latents are not fit for replay, and the other metrics may be anything.
    """
    key = jax.random.fold_in(key, state.step)
    (total, gradient, metrics), return_range, latent = _gradient(config)(
        state.nets, state.slow_critic, state.return_range, batch, key
    )
    updates, opt_state = make_optimizer(config.optimizer).update(gradient, state.opt_state, state.nets)
    nets = optax.apply_updates(state.nets, updates)
    slow_critic = optax.incremental_update(nets.critic, state.slow_critic, config.behavior.slow_rate)
    losses = {name: metrics[f"loss/{name}"] for name in loss_scales(config, tuple(batch.obs))} | {"total": total}
    squares = [guard.sums_of_squares(tree) for tree in (gradient, state.nets, updates)]
    checked = guard.Checked(losses, return_range, squares[0], jax.tree.map(jnp.add, *squares[1:]))
    bad = guard.first_bad(checked)
    step, none = state.step + 1, jnp.zeros_like(state.skipped_in_row)
    state = guard.choose(
        bad < 0,
        TrainState(step, nets, slow_critic, return_range, none, opt_state),
        state._replace(step=step, skipped_in_row=state.skipped_in_row + 1),
    )
    metrics |= {
        "loss/total": total,
        "optimizer/learning_rate": learning_rate(config.optimizer, step - 1),
        "optimizer/gradient_norm": guard.norm(squares[0]),
        "optimizer/update_norm": guard.norm(squares[2]),
        "optimizer/parameter_norm": guard.norm(squares[1]),
        averages.SKIPPED: jnp.asarray(bad >= 0, jnp.float32),
        averages.IN_ROW: state.skipped_in_row,
        averages.BAD: bad,
    }
    return state, state.nets.world_model.rssm.pack(latent), metrics


def _gradient(config: Config) -> Callable[..., tuple[tuple[Array, Networks, Metrics], ReturnRange, Latent]]:
    """`loss` with its gradient, averaged over all rows of a batch, of which each device may have its own."""

    def gradient(
        nets: Networks, slow_critic: Critic, span: ReturnRange, batch: Batch, key: Array
    ) -> tuple[tuple[Array, Networks, Metrics], ReturnRange, Latent]:
        value_and_grad = jax.value_and_grad(loss, has_aux=True)
        (total, out), gradient = value_and_grad(nets, slow_critic, span, batch, key, config)
        return batch_axis.mean((total, gradient, out.metrics)), out.return_range, out.latent

    return batch_axis.on_each_device(gradient, (False, False, False, True, False), (False, False, True))


def checked_names(config: Config, obs_keys: tuple[str, ...], state: TrainState) -> tuple[str, ...]:
    """Names of the tensors that an update checks, which the metric ``guard/bad`` counts; ``state`` may be shapes."""
    losses = dict.fromkeys([*loss_scales(config, obs_keys), "total"], 0)
    return guard.names(guard.Checked(losses, state.return_range, state.nets, state.nets))


class LossOutput(NamedTuple):
    """By-products of `loss`."""

    losses: dict[str, Array]
    """Every loss per element, unscaled."""
    latent: Latent
    """Posterior latents ``[B, T, ...]``."""
    return_range: ReturnRange
    metrics: Metrics


def loss(
    nets: Networks, slow_critic: Critic, span: ReturnRange, batch: Batch, key: Array, config: Config
) -> tuple[Array, LossOutput]:
    """The one scalar that is minimised: world-model, actor and critic losses, each averaged and scaled.

    All that it returns are averages over rows, or belong to one row each, apart from the range of returns.
    """
    model_key, imagine_key = jax.random.split(key)
    behavior = config.behavior

    # World model: learn from what happened.
    losses, world = world_model_loss(nets.world_model, batch, model_key, config)

    # Imagination: from the last K states of every sequence.
    rows, steps = batch.reward.shape
    starts = behavior.starts or steps
    start = jax.tree.map(lambda x: x[:, -starts:].reshape(rows * starts, *x.shape[2:]), world.latent)
    trajectory = imagine_trajectory(
        nets.world_model, nets.actor, nets.critic, slow_critic, start, behavior.horizon, imagine_key
    )

    # Behaviour: learn from what was imagined.
    imagined = evaluate_trajectory(trajectory, behavior)
    span = returns.update_return_range(span, batch_axis.all_rows(imagined.returns, 1), behavior.return_rate)
    scale = returns.return_scale(span, behavior.return_limit)
    actor_losses, actor_metrics = actor_loss(nets.actor, imagined, scale, behavior)
    losses["actor"] = actor_losses.mean(0).reshape(rows, starts)
    losses["critic"] = critic_loss(nets.critic, imagined, behavior).mean(0).reshape(rows, starts)

    # The critic also learns from real rewards, falling back on the imagined return of each state.
    losses["replay_critic"] = replay_critic_loss(
        nets.critic,
        slow_critic,
        features(jax.tree.map(lambda x: x[:, -starts:], world.latent)),
        batch,
        imagined.returns[0].reshape(rows, starts),
        behavior,
    )

    scales = loss_scales(config, tuple(batch.obs))
    if scales.keys() != losses.keys():
        raise ValueError(f"Losses {sorted(losses)} and scales {sorted(scales)} must have the same names.")
    means = {name: value.mean() for name, value in losses.items()}
    total = sum((scales[name] * mean for name, mean in means.items()), start=jnp.zeros(()))
    metrics = {f"loss/{name}": mean for name, mean in means.items()}
    metrics |= world.metrics | actor_metrics | imagination_metrics(imagined, span, scale)
    return total, LossOutput(losses, world.latent, span, metrics)


def loss_scales(config: Config, obs_keys: tuple[str, ...]) -> dict[str, Number]:
    """Weight of every loss by name."""
    c = config.loss
    scales: dict[str, Number] = {f"obs/{key}": c.reconstruction for key in obs_keys}
    scales |= {
        "reward": c.reward,
        "cont": c.cont,
        "dyn": c.dyn,
        "rep": c.rep,
        "actor": c.actor,
        "critic": c.critic,
        "replay_critic": c.replay_critic,
    }
    return scales


def report(state: TrainState, batch: Batch, key: Array, context: int) -> tuple[dict[str, Array], Metrics]:
    """Open-loop prediction: see the first ``context`` steps of each sequence, then imagine the rest blindly.

    The model is given the recorded actions but no observation after the context. Sequences that cross a reset after the
    context count only up to it.

    Args:
        state: parameters.
        batch: B sequences of T steps.
        key: random key.
        context: steps that are seen, less than T.

    Returns:
        Predicted observations ``[B, T, ...]`` (context reconstructed, rest imagined), and their errors: the loss of
        each key averaged over the imagined steps, and the same for the prediction "as in the last step seen".
    """
    observe_key, imagine_key = jax.random.split(key)
    model = state.nets.world_model
    observed = observe_batch(model, batch, observe_key)
    seen = jax.tree.map(lambda x: x[:context], observed.latent)
    actions = model.rssm.flatten_action({k: jnp.swapaxes(v, 0, 1) for k, v in batch.prev_action.items()})

    def body(latent: Latent, inputs: tuple[Array, Array]) -> tuple[Latent, Latent]:
        following = model.rssm.imagine_step(latent, *inputs)
        return following, following

    keys = jax.random.split(imagine_key, len(actions) - context)
    _, dreamt = jax.lax.scan(body, jax.tree.map(lambda x: x[-1], seen), (actions[context:], keys))
    latent = jax.tree.map(lambda a, b: jnp.concatenate([a, b]).swapaxes(0, 1), seen, dreamt)
    rows, steps = batch.reward.shape
    flat = jax.tree.map(lambda x: x.reshape(rows * steps, *x.shape[2:]), latent)
    predictions = jax.tree.map(lambda x: x.reshape(rows, steps, *x.shape[1:]), model.decoder(flat))
    spaces = dict(model.decoder.spaces)
    valid = jnp.cumprod(1.0 - jnp.asarray(batch.is_first, jnp.float32)[:, context:], 1)
    repeated = jax.tree.map(lambda x: jnp.repeat(x[:, context - 1 : context], steps, 1), predictions)
    metrics = {}
    for name, guess in (("open_loop", predictions), ("repeat_last", repeated)):
        for key_, error in reconstruction_losses(guess, batch.obs, spaces).items():
            average = (error[:, context:] * valid).sum() / jnp.maximum(1, valid.sum())
            metrics[f"report/{name}/{key_.removeprefix('obs/')}"] = average
    return predictions, metrics


# --------------------------------------------------------------------------------------------------------------------
# The jit boundary


def refuse_absurd(shapes: TrainState, devices: int, available: int) -> None:
    """Raise `ConfigError` if a state cannot fit into memory, whatever else there is.

    Args:
        shapes: the state, or shapes and dtypes of its arrays.
        devices: among which moments may be divided.
        available: bytes on each device.
    """
    nets, moments = tree_bytes(shapes.nets), tree_bytes(shapes.opt_state)
    needed = 2 * nets + tree_bytes(shapes.slow_critic) + moments // devices
    if needed > available:
        raise ConfigError(
            f"An agent of this size needs at least {needed / 1e9:,.1f} GB of memory: {nets / 1e9:,.1f} GB of "
            f"parameters, as much again for a gradient, and {moments / 1e9:,.1f} GB of moments. "
            f"{available / 1e9:,.1f} GB are available. Choose a smaller preset size/..., or lower rssm.deter, "
            "rssm.hidden or nets.units."
        )


class Agent:
    """Compiled verbs and the state they work on.

    Args:
        config: the run's config.
        obs_spaces: observation spaces.
        action_spaces: action spaces.
        placement: where arrays lie; without it, everything is on one device.
        state: state to start from; None: a fresh one.

    Raises:
        ConfigError: parameters, moments and a gradient cannot fit into memory; nothing was allocated.
    """

    def __init__(
        self,
        config: Config,
        obs_spaces: Spaces,
        action_spaces: Spaces,
        placement: Placement | None = None,
        state: TrainState | None = None,
    ):
        self.config = config
        self.placement = placement or Placement()
        self.obs_spaces = dict(sorted(obs_spaces.items()))
        self.action_spaces = dict(sorted(action_spaces.items()))
        self._keys = Keys.of(config.seed)
        build = jax.jit(functools.partial(init, config, self.obs_spaces, self.action_spaces))  # Traced once.
        shapes = jax.eval_shape(build, self._keys.init)
        self._treedef = jax.tree.structure(shapes)
        self._nets_treedef = jax.tree.structure(shapes.nets)
        offset = len(jax.tree.leaves(shapes.step))
        self._nets_slice = slice(offset, offset + len(jax.tree.leaves(shapes.nets)))
        self.parameter_count = sum(x.size for x in jax.tree.leaves(shapes.nets))
        leaves, moments = jax.tree.leaves(shapes), len(jax.tree.leaves(shapes.opt_state))
        if state is None:
            refuse_absurd(shapes, self.placement.count, available_bytes())
        start = self.placement.compile_init(lambda key: jax.tree.leaves(build(key)), leaves, moments)
        self._leaves = start(self.placement.key(self._keys.init)) if state is None else jax.tree.leaves(state)
        self._acting = self._leaves[self._nets_slice]
        self._near = self._acting[0], self.placement.near(self._acting)
        self._update_key = self.placement.key(self._keys.update)
        self._policy_key = self.placement.own_key(self._keys.policy)
        self.policy_steps = 0
        self._update = self._jit_update = self.placement.compile_update(self._flat_update, self._nets_slice)
        self._policy = jax.jit(self._flat_policy, static_argnames="mode")
        self._policy_in_episodes = jax.jit(self._flat_policy_in_episodes, static_argnames="mode")
        self._report = jax.jit(self._flat_report, static_argnames="context")

    def twin(self, config: Config, state: TrainState) -> "Agent":
        """An agent of the same architecture with another state and another config; acting is compiled once for both."""
        other = copy.copy(self)
        other.config, other._keys, other.policy_steps = config, Keys.of(config.seed), 0
        other._update_key = other.placement.key(other._keys.update)
        other._policy_key = other.placement.own_key(other._keys.policy)
        other.state = state
        other._update = other._jit_update = other.placement.compile_update(other._flat_update, other._nets_slice)
        other._report = jax.jit(other._flat_report, static_argnames="context")
        return other

    @property
    def latent_dtype(self) -> np.dtype:
        """Dtype of the recurrent state, in networks and in replay."""
        return jnp.dtype(self.config.nets.dtype)

    @property
    def state(self) -> TrainState:
        """The training state as a typed pytree."""
        return jax.tree.unflatten(self._treedef, self._leaves)

    @state.setter
    def state(self, state: TrainState) -> None:
        self._leaves = self.placement.place(jax.tree.leaves(state))
        self._acting = self._leaves[self._nets_slice]

    @property
    def acting_nets(self) -> Networks:
        """The networks that `explore` acts with: those from before the latest update."""
        return jax.tree.unflatten(self._nets_treedef, self._acting)

    @acting_nets.setter
    def acting_nets(self, nets: Networks) -> None:
        self._acting = self.placement.place(jax.tree.leaves(nets), self._nets_slice)

    def initial(self, batch: int) -> PolicyState:
        """Memory of the policy at the start of ``batch`` episodes."""
        return initial(self.config, self.action_spaces, batch)

    def policy(
        self, state: PolicyState, obs: Observation, is_first: Array | np.ndarray, mode: Mode = "sample"
    ) -> tuple[Action, PolicyState, StoredLatent]:
        """See `policy`; draws a fresh key at every call. Returns device arrays without waiting for them."""
        return self._run_policy(self._leaves[self._nets_slice], state, obs, is_first, mode)

    def explore(
        self, state: PolicyState, obs: Observation, is_first: Array | np.ndarray
    ) -> tuple[Action, PolicyState, StoredLatent]:
        """As `policy`, with the networks from before the latest update, whose results need not be waited for.

        So environments are stepped while an update computes. That the policy is one update old, and never more or
        less, keeps runs reproducible.
        """
        return self._run_policy(self._acting, state, obs, is_first, "sample")

    def _run_policy(
        self, nets: list[Array], state: PolicyState, obs: Observation, is_first: Array | np.ndarray, mode: Mode
    ) -> tuple[Action, PolicyState, StoredLatent]:
        self.policy_steps += 1
        nets = self._near_nets(nets)
        return self._policy(nets, state, obs, is_first, self._policy_key, np.uint32(self.policy_steps), mode=mode)

    def _near_nets(self, nets: list[Array]) -> list[Array]:
        # Finding them on the device that acts takes time, so it is done once after each update.
        if self._near[0] is not nets[0]:
            self._near = nets[0], self.placement.near(nets)
        return self._near[1]

    def act(
        self, obs: Observation, state: PolicyState, mode: Mode = "mode"
    ) -> tuple[dict[str, np.ndarray], PolicyState]:
        """Choose actions for a batch of observations, for use outside training.

        Args:
            obs: observations by key, ``[N, ...]``, as the environment adapter gives them.
            state: memory from the last call, or `initial` at the start of an episode.
            mode: take the mode of the policy, or draw from it.

        Returns:
            Actions by key, ``[N, ...]`` on the host, as the environment adapter takes them; and the new memory.

        Raises:
            ValueError: keys or shapes of ``obs`` are not those the agent was trained on.
        """
        count = len(state.prev_action)
        got = {key: np.shape(value) for key, value in obs.items()}
        expected = {key: (count, *space.shape) for key, space in self.obs_spaces.items()}
        if got != expected:
            raise ValueError(
                f"act() got observations of shapes {got}, expected {expected}. Make the environment with "
                "dreamer.make_env, add a leading batch axis, and use agent.initial(batch) of the same batch."
            )
        action, state, _ = self.policy(state, obs, np.zeros(count, bool), mode)
        return jax.device_get(action), state

    def act_in_episodes(
        self, obs: Observation, state: PolicyState, seed: int, episode: np.ndarray, time: np.ndarray, mode: Mode
    ) -> tuple[Action, PolicyState]:
        """See `policy_in_episodes`; draws the same whatever the agent did before, and does not change what it will do.

        Args:
            obs: observations ``[N, ...]``.
            state: memory from the step before.
            seed: decides what is drawn, with ``episode`` and ``time``.
            episode: number of each environment's episode, uint32 ``[N]``.
            time: agent steps since its reset, uint32 ``[N]``.
            mode: draw actions from the policy, or take its mode.
        """
        nets = self._near_nets(self._leaves[self._nets_slice])
        return self._policy_in_episodes(
            nets, state, dict(obs), self._policy_key, np.uint32(seed), episode, time, mode=mode
        )

    def update(self, batch: Batch) -> tuple[StoredLatent, Scalars]:
        """See `update`; replaces the state. Returns device arrays without waiting for them.

        Several hosts call it together, each with its own share of the batch.
        """
        self._acting, rest = self._split(self._leaves)
        batch = self.placement.spread(batch)
        self._leaves, latents, metrics = launch(self._update, self._acting, rest, batch, self._update_key)
        return latents, metrics

    def report(self, batch: Batch, context: int) -> tuple[dict[str, Array], Metrics]:
        """See `report`. Every host may call it by itself."""
        return self._report(self.placement.near(self._leaves), batch, self._keys.report, context=context)

    def compile_report(
        self, batch: Batch, context: int
    ) -> tuple[Callable[[Batch], tuple[dict[str, Array], Metrics]], Any]:
        """Compile `report` now; returns it for batches of this shape, and JAX's compiled object, for inspection."""
        leaves = self.placement.near(self._leaves)
        program = compiled(self._report, leaves, batch, self._keys.report, context=context)
        return lambda batch: program(self.placement.near(self._leaves), batch, self._keys.report), program

    def compile_update(self, batch: Batch) -> Any:
        """Compile the update now, for batches of this shape, which all later ones must have.

        Returns:
            JAX's compiled object, for inspection.
        """
        batch = self.placement.spread(batch)
        self._update = compiled(self._jit_update, *self._split(self._leaves), batch, self._update_key)
        return self._update

    def _split(self, leaves: list[Array]) -> tuple[list[Array], list[Array]]:
        """The networks, and the rest of the state."""
        nets = self._nets_slice
        return leaves[nets], leaves[: nets.start] + leaves[nets.stop :]

    def _flat_update(
        self, nets: list[Array], rest: list[Array], batch: Batch, key: Array
    ) -> tuple[list[Array], StoredLatent, Scalars]:
        start = self._nets_slice.start
        state = jax.tree.unflatten(self._treedef, rest[:start] + nets + rest[start:])
        state, latents, metrics = update(state, batch, key, self.config)
        return jax.tree.leaves(state), latents, Scalars.of(metrics)

    def _flat_policy(
        self,
        nets: list[Array],
        state: PolicyState,
        obs: Observation,
        is_first: Array,
        key: Array,
        step: Array,
        mode: Mode,
    ) -> tuple[Action, PolicyState, StoredLatent]:
        networks = jax.tree.unflatten(self._nets_treedef, nets)
        return policy(networks, state, obs, is_first, jax.random.fold_in(key, step), mode)

    def _flat_policy_in_episodes(
        self,
        nets: list[Array],
        state: PolicyState,
        obs: Observation,
        key: Array,
        seed: Array,
        episode: Array,
        time: Array,
        mode: Mode,
    ) -> tuple[Action, PolicyState]:
        networks = jax.tree.unflatten(self._nets_treedef, nets)
        # The keys of steps in training count up from 1 and do not get that far.
        key = jax.random.fold_in(jax.random.fold_in(key, np.uint32(2**32 - 1)), seed)
        return policy_in_episodes(networks, state, obs, key, episode, time, mode)

    def _flat_report(
        self, leaves: list[Array], batch: Batch, key: Array, context: int
    ) -> tuple[dict[str, Array], Metrics]:
        state = jax.tree.unflatten(self._treedef, leaves)
        return report(state, batch, jax.random.fold_in(key, state.step), context)
