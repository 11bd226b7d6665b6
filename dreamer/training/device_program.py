"""The device loop: acting, replay, updates and environments of a whole population in one compiled program.

Everything here is pure and written for one member; `DeviceLoop` puts an axis of members in front, see `MemberAxis`. The
program runs a *window* of turns and reports once about all of them. A turn has the order of the host loop: act, add
the row to replay, run the updates that are due, step the environments.

The schedule is the same for all members, and known in advance: a turn adds one row to each ring, and the number of
updates due depends on the number of rows alone. So no member waits for a slower one, and each does the same as in a
population of one.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from dreamer import algorithms
from dreamer.agent import guard
from dreamer.agent.runtime import Keys
from dreamer.algorithms.base import Algorithm, Memory
from dreamer.config import Config
from dreamer.config.population import Member, with_numbers
from dreamer.devices import backend
from dreamer.devices.member_axis import MemberAxis, member_devices, member_of, on_first
from dreamer.devices.memory import lower_program, tree_bytes
from dreamer.devices.placement import available_bytes, compiler_options, rare_options
from dreamer.envs.native import NativeEnv, autoreset
from dreamer.envs.native.autoreset import Instances
from dreamer.logs import averages
from dreamer.logs.watcher import SEQUENCES, context_of
from dreamer.replay import Layout, device, replay_rows
from dreamer.replay.device import Cursor, Place, Ring
from dreamer.training.device_report import Report
from dreamer.types import Batch, Metrics, Parts, Stored, TrainState

Numbers = Mapping[str, Array]
"""Scalars by config key, in which members differ."""


class MemberState(NamedTuple):
    """Everything that one member carries from turn to turn, for N environments and batches ``[B, T]``."""

    train: TrainState
    acting: Parts
    """The networks that act: those from before the latest update, as on the host."""
    memory: Memory
    """What the policy remembers, ``[N, ...]``."""
    instances: Instances
    """The environments, ``[N, ...]``."""
    fields: dict[str, Array]
    """Its rows of replay, ``[N, rows, ...]``."""
    place: Place
    """Rows ``[B]`` to which ``stored`` belongs; it is written back after the next batch is drawn."""
    stored: Stored
    """What the last update returned for replay, ``[B, T, ...]``."""
    score: Float32[Array, "N"]
    """Sum of rewards of the episodes in progress."""
    length: Int32[Array, "N"]
    """Env steps of the episodes in progress."""


class LoopState(NamedTuple):
    """A population between two turns."""

    members: MemberState
    """``[M, ...]``."""
    cursor: Cursor
    """Position in the rings, scalars that all members share."""


class LoopKeys(NamedTuple):
    """The keys of a member, all from its seed; scalars."""

    agent: Keys
    envs: Array
    """Folded with the number of the turn; 0 is the first reset."""
    replay: Array
    """Folded with the number of the update."""

    @classmethod
    def of(cls, seed: int | Int32[Array, ""]) -> "LoopKeys":
        """The keys of a seed; those of the agent are the same as in the host loop."""
        agent = Keys.of(seed)
        # The agent's keys are numbers 0 to 3 of the seed.
        envs, replay = jax.random.split(jax.random.fold_in(jax.random.key(seed), 4))
        return cls(agent, envs, replay)


# --------------------------------------------------------------------------------------------------------------------
# One member


def begin(config: Config, env: NativeEnv, algorithm: Algorithm, layout: Layout, seed: Int32[Array, ""]) -> MemberState:
    """A member that has done nothing yet."""
    keys = LoopKeys.of(seed)
    count = config.env.count
    train = algorithm.init(keys.agent.init)
    ring = device.empty(layout.specs, count, replay_rows(config.replay, count))
    lead = (config.replay.batch_size, config.replay.batch_length)
    return MemberState(
        train=train,
        acting=jax.tree.map(jnp.copy, train.nets),
        memory=algorithm.initial(count),
        instances=autoreset.begin(env, count, jax.random.fold_in(keys.envs, 0)),
        fields=ring.fields,
        place=device.nowhere(config.replay.batch_size),
        stored=jax.tree.map(lambda x: jnp.zeros((*lead, *x.shape), x.dtype), algorithm.stored),
        score=jnp.zeros(count, jnp.float32),
        length=jnp.zeros(count, jnp.int32),
    )


Update = Callable[[TrainState, Batch, Array, Numbers], tuple[TrainState, Stored, Metrics]]
"""`Algorithm.update` with the numbers of a member in place of its config."""


class Fixed(NamedTuple):
    """What stays the same for a member from turn to turn; only ``keys`` and ``numbers`` are arrays, all scalars."""

    config: Config
    env: NativeEnv
    algorithm: Algorithm
    layout: Layout
    update: Update
    keys: LoopKeys
    numbers: Numbers


def learn(
    fixed: Fixed, member: MemberState, cursor: Cursor, due: Int32[Array, ""], sums: Metrics
) -> tuple[MemberState, Cursor, Metrics]:
    """Run the updates that are due, and add their metrics to ``sums``.

    As on the host, what an update returns for replay is written back after the next batch is drawn, unless the update
    was skipped.
    """
    settings = fixed.config.replay
    count = fixed.config.env.count
    keys = fixed.keys
    rows = member.fields["reward"].shape[1]

    def draw(train: TrainState, fields: dict[str, Array], cursor: Cursor) -> tuple[Batch, Place, Cursor]:
        key = jax.random.fold_in(keys.replay, train.step)
        place, cursor = device.choose(cursor, key, settings, count, rows)
        return device.gather(fields, fixed.layout, place, settings.batch_length), place, cursor

    def update(_: Any, carry: tuple[MemberState, Cursor, Metrics, Any]) -> tuple[MemberState, Cursor, Metrics, Any]:
        member, _, sums, (batch, place, cursor) = carry
        # First write back what the update before returned, where its batch came from.
        ring = Ring(cursor, member.fields)
        fields = device.update_stored(ring, fixed.layout, member.place, member.stored, settings.batch_length).fields
        train, stored, metrics = fixed.update(member.train, batch, keys.agent.update, fixed.numbers)
        if not jax.tree.leaves(stored):  # The algorithm leaves replay as it is.
            stored = member.stored
            place = device.nowhere(settings.batch_size)
        # What a skipped update returned is written nowhere.
        place = guard.choose(train.skipped_in_row > 0, device.nowhere(settings.batch_size), place)
        # The networks that act are those that this update began with.
        member = member._replace(train=train, acting=member.train.nets, fields=fields, place=place, stored=stored)
        return member, cursor, averages.add(sums, metrics), draw(train, fields, cursor)

    # Batches are drawn one ahead, and the last is never used: so in each iteration all writes precede all reads.
    # Otherwise the compiler would copy the whole ring to keep what is still to be read.
    ahead = draw(member.train, member.fields, cursor)
    member, cursor, sums, _ = jax.lax.fori_loop(0, due, update, (member, cursor, sums, ahead))
    return member, cursor, sums


def turn(
    fixed: Fixed, member: MemberState, cursor: Cursor, due: Int32[Array, ""], sums: Metrics
) -> tuple[MemberState, Cursor, Metrics, Bool[Array, "N"]]:
    """Act, remember, learn, step.

    Also returns which episodes ended; their scores stay in the member until the next turn, which resets them.
    """
    number = cursor.total + 1
    keys = fixed.keys
    step = member.instances.step
    action, memory, stored = fixed.algorithm.policy(
        member.acting,
        member.memory,
        step.obs,
        jnp.asarray(step.is_first),
        jax.random.fold_in(keys.agent.policy, number),
        "sample",
    )
    ring = device.add(Ring(cursor, member.fields), fixed.layout, step, action, stored)
    member = member._replace(memory=memory, fields=ring.fields)
    member, cursor, sums = learn(fixed, member, ring.cursor, due, sums)
    key = jax.random.fold_in(keys.envs, number)
    instances = autoreset.advance(fixed.env, member.instances, action, key, fixed.config.env.clip_reward)
    step = instances.step
    member = member._replace(
        instances=instances,
        score=jnp.where(step.is_first, 0.0, member.score) + step.reward,
        length=jnp.where(step.is_first, 0, member.length) + step.env_steps,
    )
    return member, cursor, sums, jnp.asarray(step.is_last)


def window(
    seed: Int32[Array, ""],
    numbers: Numbers,
    member: MemberState,
    cursor: Cursor,
    due: Int32[Array, "W"],
    turns: Int32[Array, ""],
    *,
    config: Config,
    env: NativeEnv,
    algorithm: Algorithm,
    layout: Layout,
    update: Update,
) -> tuple[MemberState, Cursor, Report]:
    """Run ``turns`` turns, at most W; ``due`` says how many updates each of them has."""
    keys = LoopKeys.of(seed)
    fixed = Fixed(config=config, env=env, algorithm=algorithm, layout=layout, update=update, keys=keys, numbers=numbers)
    count = config.env.count
    key = keys.agent.update
    # Only an update knows which metrics there are: its shapes are traced, and nothing is computed.
    batch = jax.eval_shape(lambda: device.gather(member.fields, layout, member.place, config.replay.batch_length))
    _, _, metrics = jax.eval_shape(lambda batch: update(member.train, batch, key, numbers), batch)
    names = len(getattr(env, "log_names", ()))
    report = Report.empty(len(due), count, names, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics))

    def report_turn(i: Array, carry: tuple[MemberState, Cursor, Report]) -> tuple[MemberState, Cursor, Report]:
        member, cursor, report = carry
        member, cursor, sums, ended = turn(fixed, member, cursor, due[i], report.metrics)
        logs = autoreset.logs(env, member.instances)
        steps = member.instances.step.env_steps.sum()
        report = report.with_turn(i, ended=ended, score=member.score, length=member.length, steps=steps, logs=logs)
        return member, cursor, report._replace(metrics=sums)

    member, cursor, report = jax.lax.fori_loop(0, turns, report_turn, (member, cursor, report))
    # The rest of ``due`` pads it to W.
    updates = jnp.where(jnp.arange(len(due)) < turns, due, 0).sum()
    return member, cursor, report._replace(metrics=averages.divide(report.metrics, updates))


def next_batch(config: Config, layout: Layout, member: MemberState, cursor: Cursor) -> Batch:
    """The batch that the next update of a member will get."""
    key = jax.random.fold_in(LoopKeys.of(config.seed).replay, member.train.step)
    place, _ = device.choose(cursor, key, config.replay, config.env.count, member.fields["reward"].shape[1])
    return device.gather(member.fields, layout, place, config.replay.batch_length)


# --------------------------------------------------------------------------------------------------------------------
# All members


class RequiredBytes(NamedTuple):
    """Bytes that a population takes."""

    replay: int
    other: int
    """Training states, environments and memories, and the gradients of all networks."""


class DeviceLoop:
    """The compiled program of a population.

    Its arrays have an axis of members in front, which can be longer than the population: see `MemberAxis.pad`.

    Args:
        config: config of the population.
        members: its members, from `dreamer.config.population.members`.
        env: the environment.

    Raises:
        ConfigError: the devices that the config names do not exist, or outnumber the members.
    """

    def __init__(self, config: Config, members: Sequence[Member], env: NativeEnv):
        self._config = config
        self._members = len(members)
        self._first = members[0].config
        self._axis = MemberAxis(member_devices(config, len(members)))
        members = self._axis.pad(members)
        self.places = len(members)
        """Length of the axis of members."""
        self._seeds = np.array([member.config.seed for member in members], np.int32)
        self._numbers = {
            key: np.array([member.numbers[key] for member in members], np.float32) for key in members[0].numbers
        }
        self.algorithm = algorithms.make(config, env.obs_spaces, env.action_spaces)
        self.layout = Layout.of(env.obs_spaces, env.action_spaces, self.algorithm.stored, self.algorithm.stored_span)
        self._begin = self._axis.compile(
            lambda seed: (begin(config, env, self.algorithm, self.layout, seed),), arguments=(True,), results=(True,)
        )
        run = functools.partial(
            window,
            config=config,
            env=env,
            algorithm=self.algorithm,
            layout=self.layout,
            update=member_update(config, self.algorithm),
        )
        # A population has one cursor, number of turns and schedule; all else has an axis of members in front.
        self._jit_run = self._axis.compile(
            run,
            arguments=(True, True, True, False, False, False),
            results=(True, False, True),
            donate_argnums=(2, 3),
            compiler_options=compiler_options(),
        )
        self._run: Callable[..., Any] = self._jit_run

    @property
    def devices(self) -> int:
        """How many devices share the members."""
        return self._axis.count

    def begin(self) -> LoopState:
        """The state before the first turn."""
        (members,) = self._begin(self._seeds)
        return LoopState(members, self._axis.place(device.start(), members=False))

    def place(self, state: LoopState) -> LoopState:
        """A copy of a state, wherever it is, on the devices where `run` expects it."""
        return LoopState(self._axis.place(state.members), self._axis.place(state.cursor, members=False))

    def shapes(self) -> LoopState:
        """Shapes and dtypes of the state, at no cost."""
        (members,) = jax.eval_shape(self._begin, self._seeds)
        return LoopState(members, jax.eval_shape(device.start))

    def required_bytes(self) -> RequiredBytes:
        """Device memory of all members, before the program is compiled."""
        shapes = self.shapes().members
        replay = tree_bytes(shapes.fields)
        gradients = tree_bytes(shapes.train.nets)
        return RequiredBytes(replay, tree_bytes(shapes) - replay + gradients)

    def member(self, state: LoopState, index: int) -> LoopState:
        """The state of one member without an axis of members, on the first device."""
        return LoopState(member_of(state.members, index), on_first(state.cursor))

    def lower(self, state: LoopState, window: int) -> Callable[[], Any]:
        """Trace the program now for windows of at most ``window`` turns.

        Returns:
            A function that compiles it, in any thread, and returns JAX's compiled object.
        """
        due = np.zeros(window, np.int32)
        finish = lower_program(self._jit_run, self._seeds, self._numbers, *state, due, np.int32(0))

        def compile_traced() -> Any:
            self._run = finish()
            return self._run

        return compile_traced

    def compile(self, state: LoopState, window: int) -> Any:
        """Trace and compile the program now; see `lower`."""
        return self.lower(state, window)()

    def lower_predict(
        self, state: LoopState
    ) -> Callable[[], tuple[Callable[[LoopState], tuple[Batch, Any, Metrics]], Any]]:
        """Trace the open-loop prediction of the first member for its newest sequences now.

        Returns:
            A function that compiles it, in any thread, and returns two things: a function from the state to the batch,
            its predictions and metrics, see `Algorithm.predict`; and JAX's compiled object, for inspection.
        """
        config = self._config
        length = config.replay.batch_length
        count = config.env.count

        def predict(members: MemberState, cursor: Cursor) -> tuple[Batch, Any, Metrics]:
            member: MemberState = jax.tree.map(lambda x: x[0], members)
            rows = member.fields["reward"].shape[1]
            place = device.newest(cursor, SEQUENCES, length, count, rows)
            batch = device.gather(member.fields, self.layout, place, length)
            key = jax.random.fold_in(LoopKeys.of(config.seed).agent.report, member.train.step)
            return batch, *self.algorithm.predict(member.train.nets, batch, key, context_of(length))

        finish = lower_program(jax.jit(predict), *on_first(state), options=rare_options())

        def compile_traced() -> tuple[Callable[[LoopState], tuple[Batch, Any, Metrics]], Any]:
            program = finish()
            return lambda state: program(*on_first(state)), program

        return compile_traced

    def lower_diagnose(self, state: LoopState) -> Callable[[], tuple[Callable[[LoopState], Metrics], Any]]:
        """Trace the diagnosis of the first member now, with the batch that its next update will get.

        Returns:
            A function that compiles it, in any thread, and returns two things: a function from the state to the metrics
            of `Algorithm.diagnose`, which must not be None; and JAX's compiled object, for inspection.
        """
        config = self._first  # The numbers in which members differ are its own.
        function = self.algorithm.diagnose
        assert function is not None

        def diagnose(members: MemberState, cursor: Cursor) -> Metrics:
            member: MemberState = jax.tree.map(lambda x: x[0], members)
            batch = next_batch(config, self.layout, member, cursor)
            train = member.train
            key = LoopKeys.of(config.seed).agent.diagnosis(train.step)
            return function(train.nets, train.memory, batch, key, config)

        finish = lower_program(jax.jit(diagnose), *on_first(state))

        def compile_traced() -> tuple[Callable[[LoopState], Metrics], Any]:
            program = finish()
            return lambda state: program(*on_first(state)), program

        return compile_traced

    def run(self, state: LoopState, due: np.ndarray, turns: int) -> tuple[LoopState, Report]:
        """Run a window; the old state is donated. Returns without waiting; see `fetch`.

        Args:
            state: the population.
            due: updates of each turn, ``int32 [W]`` with the same W at every call; those beyond ``turns`` are ignored.
            turns: turns to run, at most W.
        """
        members, cursor, report = self._run(self._seeds, self._numbers, *state, due, np.int32(turns))
        return LoopState(members, cursor), report

    def fetch(self, report: Report) -> Report:
        """Wait for the program; returns what it reports of every member ``[M, ...]``, as NumPy arrays."""
        return jax.tree.map(lambda x: x[: self._members], jax.device_get(report))


def member_update(config: Config, algorithm: Algorithm) -> Update:
    """The update of a member.

    On a CPU the members take turns: there, a batched product of small matrices takes several times as long as the same
    products one after another. Elsewhere they share every operation.
    """

    def update(state: TrainState, batch: Batch, key: Array, numbers: Numbers) -> tuple[TrainState, Stored, Metrics]:
        state, stored, metrics = algorithm.update(state, batch, key, with_numbers(config, numbers))
        return state, stored, averages.complete(metrics)

    return jax.custom_batching.sequential_vmap(update) if backend.on_cpu() else update


__all__ = ["DeviceLoop", "LoopState", "MemberState", "RequiredBytes", "available_bytes"]
