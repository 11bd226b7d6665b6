"""The jit boundary: class `Agent` compiles the functions of an algorithm and holds the state they work on.

Parameters are passed as flat lists of arrays, because flattening module objects at every call costs more than a small
network does.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, get_args

import jax
import numpy as np
from jaxtyping import Array, Int32

from dreamer.agent.acting import act_in_episodes
from dreamer.algorithms import base as algorithms
from dreamer.algorithms.base import Algorithm, Memory
from dreamer.config import Config, ConfigError
from dreamer.devices.memory import lower_program, tree_bytes
from dreamer.devices.placement import Placement, available_bytes, launch, launch_early, rare_options
from dreamer.logs import averages
from dreamer.types import Action, Batch, Metrics, Mode, Observation, Parts, Scalars, Spaces, Stored, TrainState


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

    def diagnosis(self, step: Int32[Array, ""]) -> Array:
        """The key of a diagnosis after so many updates, which no update, policy or report draws from."""
        # Numbers of updates count up from 0 and do not get that far.
        return jax.random.fold_in(jax.random.fold_in(self.report, np.uint32(2**32 - 1)), step)


def refuse_absurd(shapes: TrainState, devices: int, available: int) -> None:
    """Raise `ConfigError` if a state cannot fit into memory, whatever else there is.

    Args:
        shapes: the state, or shapes and dtypes of its arrays.
        devices: among which moments may be divided.
        available: bytes on each device.
    """
    nets, moments = tree_bytes(shapes.nets), tree_bytes(shapes.opt_state)
    needed = 2 * nets + tree_bytes(shapes.memory) + moments // devices
    if needed > available:
        raise ConfigError(
            f"An agent of this size needs at least {needed / 1e9:,.1f} GB of memory: {nets / 1e9:,.1f} GB of "
            f"parameters, as much again for a gradient, and {moments / 1e9:,.1f} GB of moments. "
            f"{available / 1e9:,.1f} GB are available. Choose a smaller preset size/... ."
        )


class Agent:
    """Compiled verbs and the state they work on.

    Args:
        config: the run's config.
        obs_spaces: observation spaces.
        action_spaces: action spaces.
        placement: where arrays lie; without it, everything is on one device.
        state: state to start from; None: a fresh one.
        algorithm: the algorithm; None: the one that the config names.

    Raises:
        ConfigError: the algorithm cannot do what config and spaces ask for; or parameters, moments and a gradient do
            not fit into memory. Nothing was allocated.
    """

    def __init__(
        self,
        config: Config,
        obs_spaces: Spaces,
        action_spaces: Spaces,
        placement: Placement | None = None,
        state: TrainState | None = None,
        algorithm: Algorithm | None = None,
    ):
        self.config = config
        self.placement = placement or Placement()
        self.obs_spaces = dict(sorted(obs_spaces.items()))
        self.action_spaces = dict(sorted(action_spaces.items()))
        self._keys = Keys.of(config.seed)
        self.algorithm = algorithm or algorithms.make(config, self.obs_spaces, self.action_spaces)
        build = jax.jit(self.algorithm.init)  # Traced once.
        shapes = jax.eval_shape(build, self._keys.init)
        self._treedef = jax.tree.structure(shapes)
        self._diagnosed_treedef = jax.tree.structure((shapes.step, shapes.nets, shapes.memory))
        self._nets_treedef = jax.tree.structure(shapes.nets)
        offset = len(jax.tree.leaves(shapes.step))
        self._nets_slice = slice(offset, offset + len(jax.tree.leaves(shapes.nets)))
        self.parameter_count = sum(x.size for x in jax.tree.leaves(shapes.nets))
        leaves, moments = jax.tree.leaves(shapes), len(jax.tree.leaves(shapes.opt_state))
        if state is None:
            refuse_absurd(shapes, self.placement.count, available_bytes())
        self._shapes = leaves
        start = self.placement.compile_init(lambda key: jax.tree.leaves(build(key)), leaves, moments)
        self._start: Future[list[Array]] | None = None
        if state is None:
            key = self.placement.key(self._keys.init)
            finish = lower_program(start, key)
            self._start = launch_early(lambda: finish()(key))
        else:
            self._leaves = jax.tree.leaves(state)
        self._near: tuple[Array | None, list[Array]] = None, []
        self._update_key = self.placement.key(self._keys.update)
        self._policy_key = self.placement.own_key(self._keys.policy)
        self.policy_steps = 0
        self._update = self._jit_update = self.placement.compile_update(self._flat_update, self._nets_slice)
        self._policy = jax.jit(self._flat_policy, static_argnames="mode")
        self._policy_in_episodes = jax.jit(self._flat_policy_in_episodes, static_argnames="mode")
        self._predict = jax.jit(self._flat_predict, static_argnames="context")
        self._diagnose = jax.jit(self._flat_diagnose)

    def twin(self, config: Config, state: TrainState) -> "Agent":
        """An agent of the same architecture with another state and another config; acting is compiled once for both."""
        other = copy.copy(self)
        other.config, other._keys, other.policy_steps = config, Keys.of(config.seed), 0
        other._update_key = other.placement.key(other._keys.update)
        other._policy_key = other.placement.own_key(other._keys.policy)
        other.state = state
        other._update = other._jit_update = other.placement.compile_update(other._flat_update, other._nets_slice)
        other._predict = jax.jit(other._flat_predict, static_argnames="context")
        other._diagnose = jax.jit(other._flat_diagnose)
        return other

    @functools.cached_property
    def _leaves(self) -> list[Array]:
        """Leaves of the state; those that it starts from are computed while other programs compile."""
        assert self._start is not None
        return self._start.result()

    @functools.cached_property
    def _acting(self) -> list[Array]:
        """Leaves of the networks from before the latest update."""
        return self._leaves[self._nets_slice]

    @property
    def state(self) -> TrainState:
        """The training state as a typed pytree."""
        return jax.tree.unflatten(self._treedef, self._leaves)

    @state.setter
    def state(self, state: TrainState) -> None:
        self._leaves = self.placement.place(jax.tree.leaves(state))
        self._acting = self._leaves[self._nets_slice]
        self._start = None  # Frees the memory of the first state.

    @property
    def acting_nets(self) -> Parts:
        """The networks that `explore` acts with: those from before the latest update."""
        return jax.tree.unflatten(self._nets_treedef, self._acting)

    @acting_nets.setter
    def acting_nets(self, nets: Parts) -> None:
        self._acting = self.placement.place(jax.tree.leaves(nets), self._nets_slice)

    def initial(self, batch: int) -> Memory:
        """Memory of the policy at the start of ``batch`` episodes."""
        return self.algorithm.initial(batch)

    def policy(
        self, memory: Memory, obs: Observation, is_first: Array | np.ndarray, mode: Mode = "sample"
    ) -> tuple[Action, Memory, Stored]:
        """See `Algorithm.policy`; draws a fresh key at every call. Returns device arrays without waiting for them."""
        return self._run_policy(self._leaves[self._nets_slice], memory, obs, is_first, mode)

    def explore(self, memory: Memory, obs: Observation, is_first: Array | np.ndarray) -> tuple[Action, Memory, Stored]:
        """As `policy`, with the networks from before the latest update, whose results need not be waited for.

        So environments are stepped while an update computes. That the policy is one update old, and never more or
        less, keeps runs reproducible.
        """
        return self._run_policy(self._acting, memory, obs, is_first, "sample")

    def _run_policy(
        self, nets: list[Array], memory: Memory, obs: Observation, is_first: Array | np.ndarray, mode: Mode
    ) -> tuple[Action, Memory, Stored]:
        self.policy_steps += 1
        nets = self._near_nets(nets)
        return self._policy(nets, memory, obs, is_first, self._policy_key, np.uint32(self.policy_steps), mode=mode)

    def _near_nets(self, nets: list[Array]) -> list[Array]:
        # Finding them on the device that acts takes time, so it is done once after each update.
        if self._near[0] is not _first(nets):
            self._near = _first(nets), self.placement.near(nets)
        return self._near[1]

    def act(self, obs: Any, state: Memory, mode: Mode = "mode") -> tuple[dict[str, np.ndarray], Memory]:
        """Choose actions for a batch of observations, for use outside training.

        Args:
            obs: dictionary of observations by key, ``[N, ...]``, as the environment adapter gives them; if there is one
                key, also its array alone.
            state: memory from the last call, or `initial` at the start of an episode.
            mode: take the mode of the policy, or draw from it.

        Returns:
            Actions by key, ``[N, ...]`` on the host, as the environment adapter takes them; and the new memory.

        Raises:
            ValueError: keys, shapes or dtypes of ``obs`` are not those the agent was trained on, ``state`` is no memory
                of this agent, or there is no such mode.
        """
        if mode not in get_args(Mode):
            raise ValueError(f"act() got mode={mode!r}, expected one of {', '.join(map(repr, get_args(Mode)))}.")
        given = self._arrays(obs)
        remembered, structure = jax.tree.flatten(state)
        if structure != self._memory_treedef:
            got_instead = "None" if state is None else f"a {type(state).__name__}"
            raise ValueError(
                f"act() got {got_instead} as state, expected the memory of this agent: agent.initial(batch) at the "
                "start of an episode, and then what the last call returned."
            )
        count = len(remembered[0]) if remembered else len(next(iter(given.values())))
        got = {key: np.shape(value) for key, value in given.items()}
        expected = {key: (count, *space.shape) for key, space in self.obs_spaces.items()}
        if got != expected:
            raise ValueError(
                f"act() got observations of shapes {got}, expected {expected}. Make the environment with "
                "dreamer.make_env, add a leading batch axis, and use agent.initial(batch) of the same batch."
            )
        action, state, _ = self.policy(state, given, np.zeros(count, bool), mode)
        return jax.device_get(action), state

    def _arrays(self, obs: Any) -> dict[str, Any]:
        """Observations that were given to `act` as arrays by key; raises `ValueError`."""
        if not isinstance(obs, Mapping):
            if len(self.obs_spaces) > 1:
                keys = ", ".join(map(repr, self.obs_spaces))
                raise ValueError(f"act() got a {type(obs).__name__}, expected a dictionary with the keys {keys}.")
            obs = dict.fromkeys(self.obs_spaces, obs)
        arrays = {}
        for key, value in obs.items():
            dtype = self.obs_spaces[key].dtype if key in self.obs_spaces else None
            try:
                arrays[key] = value if hasattr(value, "dtype") else np.asarray(value, dtype)
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(f"act() got no array for key '{key}' ({error}), expected {dtype}.") from None
            if dtype is not None and not np.can_cast(arrays[key].dtype, dtype, "same_kind"):
                raise ValueError(f"act() got {arrays[key].dtype} for key '{key}', expected {np.dtype(dtype)}.")
        return arrays

    @functools.cached_property
    def _memory_treedef(self) -> jax.tree_util.PyTreeDef:
        return jax.tree.structure(jax.eval_shape(lambda: self.algorithm.initial(1)))

    def act_in_episodes(
        self, obs: Observation, memory: Memory, seed: int, episode: np.ndarray, time: np.ndarray, mode: Mode
    ) -> tuple[Action, Memory]:
        """See `dreamer.agent.acting`; what is drawn depends on nothing that the agent did before.

        Args:
            obs: observations ``[N, ...]``.
            memory: from the step before.
            seed: decides what is drawn, with ``episode`` and ``time``.
            episode: number of each environment's episode, uint32 ``[N]``.
            time: agent steps since its reset, uint32 ``[N]``.
            mode: draw actions from the policy, or take its mode.
        """
        nets = self._near_nets(self._leaves[self._nets_slice])
        return self._policy_in_episodes(
            nets, memory, dict(obs), self._policy_key, np.uint32(seed), episode, time, mode=mode
        )

    def update(self, batch: Batch) -> tuple[Stored, Scalars]:
        """See `Algorithm.update`; replaces the state. Returns device arrays without waiting for them.

        Several hosts call it together, each with its own share of the batch.
        """
        self._acting, rest = self._split(self._leaves)
        batch = self.placement.spread(batch)
        self._leaves, stored, metrics = launch(self._update, self._acting, rest, batch, self._update_key)
        self._start = None  # Frees the memory of the first state.
        return stored, metrics

    def predict(self, batch: Batch, context: int) -> tuple[dict[str, Array], Metrics]:
        """See `Algorithm.predict`. Every host may call it by itself."""
        return self._predict(self.placement.near(self._leaves), batch, self._keys.report, context=context)

    def lower_predict(
        self, batch: Batch, context: int
    ) -> Callable[[], tuple[Callable[[Batch], tuple[dict[str, Array], Metrics]], Any]]:
        """Trace `predict` now for batches of this shape. What is returned compiles it, in any thread.

        Returns:
            A function that returns the compiled `predict`, and JAX's compiled object, for inspection.
        """
        arguments = self.placement.near(self._leaves), batch, self._keys.report
        finish = lower_program(self._predict, *arguments, options=rare_options(), context=context)

        def compile_traced() -> tuple[Callable[[Batch], tuple[dict[str, Array], Metrics]], Any]:
            program = finish()
            return lambda batch: program(self.placement.near(self._leaves), batch, self._keys.report), program

        return compile_traced

    def diagnose(self, batch: Batch) -> Metrics:
        """See `Algorithm.diagnose`; changes nothing, and draws nothing that training draws. Every host may call it.

        Raises:
            ConfigError: the algorithm has no diagnosis.
        """
        return self._diagnose(self._diagnosed_leaves(), batch, self._keys)

    def lower_diagnose(self, batch: Batch) -> Callable[[], tuple[Callable[[Batch], Metrics], Any]]:
        """As `lower_predict`, for `diagnose`."""
        finish = lower_program(self._diagnose, self._diagnosed_leaves(), batch, self._keys)

        def compile_traced() -> tuple[Callable[[Batch], Metrics], Any]:
            program = finish()
            return lambda batch: program(self._diagnosed_leaves(), batch, self._keys), program

        return compile_traced

    def _diagnosed_leaves(self) -> list[Array]:
        """Leaves of the state without what the optimizer remembers, on one device."""
        state = self.state
        return self.placement.near(jax.tree.leaves((state.step, state.nets, state.memory)))

    def lower_explore(self, batch: int) -> Callable[[], Any]:
        """Trace `explore` for ``batch`` environments now; what is returned compiles it, in any thread."""
        obs = {key: np.zeros((batch, *space.shape), space.dtype) for key, space in self.obs_spaces.items()}
        nets = self.placement.near(self._acting)
        arguments = nets, self.initial(batch), obs, np.ones(batch, bool), self._policy_key, np.uint32(0)
        return lower_program(self._policy, *arguments, mode="sample")  # JAX keeps it for calls with such arguments.

    def lower_update(self, batch: Batch) -> Callable[[], Any]:
        """Trace the update now, for batches of this shape, which all later ones must have.

        Returns:
            A function that compiles it, in any thread, and returns JAX's compiled object, for inspection.
        """
        batch = self.placement.spread(batch)
        finish = lower_program(self._jit_update, *self._split(self._shapes), batch, self._update_key)

        def compile_traced() -> Any:
            self._update = finish()
            return self._update

        return compile_traced

    def compile_update(self, batch: Batch) -> Any:
        """Trace and compile the update now; see `lower_update`."""
        return self.lower_update(batch)()

    def _split(self, leaves: list[Any]) -> tuple[list[Any], list[Any]]:
        """The networks, and the rest of the state."""
        nets = self._nets_slice
        return leaves[nets], leaves[: nets.start] + leaves[nets.stop :]

    def _flat_update(
        self, nets: list[Array], rest: list[Array], batch: Batch, key: Array
    ) -> tuple[list[Array], Stored, Scalars]:
        start = self._nets_slice.start
        state = jax.tree.unflatten(self._treedef, rest[:start] + nets + rest[start:])
        state, stored, metrics = self.algorithm.update(state, batch, key, self.config)
        return jax.tree.leaves(state), stored, Scalars.of(averages.complete(metrics))

    def _flat_policy(
        self,
        nets: list[Array],
        memory: Memory,
        obs: Observation,
        is_first: Array,
        key: Array,
        step: Array,
        mode: Mode,
    ) -> tuple[Action, Memory, Stored]:
        networks = jax.tree.unflatten(self._nets_treedef, nets)
        return self.algorithm.policy(networks, memory, obs, is_first, jax.random.fold_in(key, step), mode)

    def _flat_policy_in_episodes(
        self,
        nets: list[Array],
        memory: Memory,
        obs: Observation,
        key: Array,
        seed: Array,
        episode: Array,
        time: Array,
        mode: Mode,
    ) -> tuple[Action, Memory]:
        networks = jax.tree.unflatten(self._nets_treedef, nets)
        # The keys of steps in training count up from 1 and do not get that far.
        key = jax.random.fold_in(jax.random.fold_in(key, np.uint32(2**32 - 1)), seed)
        return act_in_episodes(self.algorithm, networks, memory, obs, key, episode, time, mode)

    def _flat_predict(
        self, leaves: list[Array], batch: Batch, key: Array, context: int
    ) -> tuple[dict[str, Array], Metrics]:
        state = jax.tree.unflatten(self._treedef, leaves)
        return self.algorithm.predict(state.nets, batch, jax.random.fold_in(key, state.step), context)

    def _flat_diagnose(self, leaves: list[Array], batch: Batch, keys: Keys) -> Metrics:
        if self.algorithm.diagnose is None:
            raise ConfigError(f"The algorithm '{self.config.algorithm}' has no diagnosis.")
        step, nets, memory = jax.tree.unflatten(self._diagnosed_treedef, leaves)
        return self.algorithm.diagnose(nets, memory, batch, keys.diagnosis(step), self.config)


def _first(arrays: list[Array]) -> Array | None:
    """What tells the networks of one update from those of another; an agent without parameters has none."""
    return arrays[0] if arrays else None


__all__ = ["Agent", "Keys", "refuse_absurd"]
