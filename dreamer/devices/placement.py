"""Which devices train, and which array lies where on them.

The batch is sharded over the devices; parameters are replicated on each of them, so that acting needs one device only.
The update is one program for all devices, the same function that one device runs, see `batch_axis`. The numbers are
those of one device, up to the order of summation, and so are the random draws.

Agents trained on one device have the plain `Placement`, which leaves everything to JAX.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from dreamer.config import Config, ConfigError
from dreamer.devices import backend, batch_axis
from dreamer.devices.memory import host_memory
from dreamer.types import Batch

_LARGE = 2**20
"""Numbers in an array that is worth sharding; for smaller ones, waiting costs more than memory is saved."""

_OPERATIONS_PER_SECOND = 5e13
"""What an accelerator is assumed to compute in matrix products of our sizes; like the next two, for `expectation`."""

_SECONDS_PER_STEP = 1e-4
"""What a step of a scan is assumed to take, however little it computes: about twenty kernels."""

_BYTES_PER_SECOND = 1e11
"""What is assumed to pass between two devices."""

_LAUNCHER = ThreadPoolExecutor(1, "launcher")

LeafUpdate = Callable[[list[Array], list[Array], Batch, Array], tuple[list[Array], Any, Any]]
"""``(networks, other leaves of the state, batch, key) -> (all leaves, latents [B, T, ...], metrics)``."""


def launch(program: Callable[..., Any], *args: Any) -> Any:
    """``program(*args)`` for a compiled program that takes long, during which the caller wants to run short ones.

    On CPUs, JAX runs what one thread has started in that order, and what several threads have started concurrently. On
    accelerators there is one queue anyway. Processes that talk to each other also need one order: otherwise the message
    of an update on one host can meet that of another program on the other.
    """
    concurrent = backend.on_cpu() and jax.process_count() == 1
    return _LAUNCHER.submit(program, *args).result() if concurrent else program(*args)


def launch_early(program: Callable[..., Any], *args: Any) -> Future[Any]:
    """Compile and launch a program while the caller goes on, before anything that `launch` is called for later."""
    if jax.process_count() == 1:
        return _LAUNCHER.submit(program, *args)
    done: Future[Any] = Future()
    done.set_result(program(*args))  # See `launch` for why processes need one order.
    return done


def compiler_options() -> dict[str, Any] | None:
    """Options of `jax.jit` for programs that compute a lot."""
    # Left to itself, LLVM uses vectors of 256 bits. With 512, gates take half as long in imagination on processors that
    # have them; the option does nothing on others.
    return {"xla_cpu_prefer_vector_width": 512} if backend.on_cpu() else None


def rare_options() -> dict[str, Any] | None:
    """Options of the compiler for programs that run every few minutes, and take longer to compile than to run."""
    # Without optimization, LLVM takes half as long, and a prediction a few milliseconds more.
    return {"xla_backend_optimization_level": 0} if backend.on_cpu() else None


class Placement:
    """Everything on one device, JAX's default."""

    count = 1

    def compile_init(self, init: Callable[[Array], list[Array]], shapes: Sequence[Any], moments: int) -> Any:
        """Compile a function from a key to the leaves of the training state.

        Args:
            init: the function.
            shapes: what it returns, with ``shape`` and ``dtype``.
            moments: how many of the last leaves are moments of the optimizer, which only an update needs.
        """
        return jax.jit(init)

    def compile_update(self, update: LeafUpdate, nets: slice) -> Any:
        """Compile an update of the state that `compile_init` makes, in which networks are the leaves ``nets``.

        The networks are not donated: the policy may still act with those from before the update.
        """
        return jax.jit(update, donate_argnums=1, compiler_options=compiler_options())

    def key(self, key: Array) -> Array:
        """A random key where `compile_init` and `compile_update` want it."""
        return key

    def own_key(self, key: Array) -> Array:
        """A random key for what every host does on its own."""
        return key

    def spread(self, batch: Batch) -> Batch:
        """A batch of this host, put where an update wants it."""
        return batch

    def place(self, leaves: Sequence[Any], part: slice = slice(None)) -> list[Array]:
        """A part of the leaves of a state, from wherever they are, put where an update wants them."""
        # A copy, because updates overwrite what they are given.
        return [jnp.array(x) if isinstance(x, np.ndarray) else x for x in leaves]

    def near(self, leaves: Sequence[Array]) -> list[Array]:
        """Parameters on the one device that acts."""
        return list(leaves)

    def fetch_rows(self, tree: Any) -> Any:
        """What an update returned for each sequence of the batch, on the host that sampled it, as NumPy arrays."""
        return jax.device_get(tree)

    def fetch_state(self, leaves: Sequence[Array]) -> list[np.ndarray]:
        """Whole leaves of the state as NumPy arrays. All hosts must call it together."""
        return [np.asarray(x) for x in jax.device_get(list(leaves))]


class ShardedPlacement(Placement):
    """Batch and large moments sharded over a mesh of devices, everything else replicated on each.

    Only the optimizer needs moments. With sharded ones, each device updates its part of them and of the parameters, and
    sends the result to the others. That is as much to send as a sum of whole gradients, and moments take 8 bytes per
    parameter divided by the number of devices (stage 1 of Rajbhandari et al. 2020, "ZeRO: memory optimizations toward
    training trillion parameter models"). Parameters are not sharded: acting would have to collect them at every step.

    Args:
        devices: of all hosts, host by host.
        moments: ``config.optimizer.moments``.
    """

    def __init__(self, devices: Sequence[jax.Device], moments: str = "auto"):
        self.count = len(devices)
        self.mesh = Mesh(np.array(devices), (batch_axis.AXIS,), axis_types=(AxisType.Auto,))
        self._smallest = {"auto": _LARGE, "sharded": 1, "replicated": math.inf}[moments]
        self._whole = NamedSharding(self.mesh, PartitionSpec())
        self._rows = NamedSharding(self.mesh, PartitionSpec(batch_axis.AXIS))
        self._layout: list[NamedSharding] = []

    def compile_init(self, init: Callable[[Array], list[Array]], shapes: Sequence[Any], moments: int) -> Any:
        """See `Placement.compile_init`."""
        replicated = len(shapes) - moments
        self._layout = [self._whole] * replicated + [self._by_size(x.shape) for x in shapes[replicated:]]
        return jax.jit(init, out_shardings=self._layout)

    def compile_update(self, update: LeafUpdate, nets: slice) -> Any:
        """See `Placement.compile_update`."""
        rest = self._layout[: nets.start] + self._layout[nets.stop :]
        return jax.jit(
            batch_axis.for_devices(self.mesh, update),
            donate_argnums=1,
            compiler_options=compiler_options(),
            in_shardings=(self._layout[nets], rest, self._rows, self._whole),
            out_shardings=(self._layout, self._rows, self._whole),
        )

    def key(self, key: Array) -> Array:
        """See `Placement.key`."""
        # Every host makes the same key from its data, so nothing has to be sent.
        data = np.asarray(jax.random.key_data(key))
        return jax.jit(lambda: jax.random.wrap_key_data(jnp.asarray(data)), out_shardings=self._whole)()

    def own_key(self, key: Array) -> Array:
        """See `Placement.own_key`; that of host 0 is the one that a single host has."""
        host = jax.process_index()
        return jax.random.fold_in(key, host) if host else key

    def spread(self, batch: Batch) -> Batch:
        """See `Placement.spread`."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self._rows, np.asarray(x)), batch)

    def place(self, leaves: Sequence[Any], part: slice = slice(None)) -> list[Array]:
        """See `Placement.place`; every host gives the same numbers."""
        return [self._place(x, sharding) for x, sharding in zip(leaves, self._layout[part], strict=True)]

    def near(self, leaves: Sequence[Array]) -> list[Array]:
        """See `Placement.near`; nothing is copied."""
        return [x.addressable_data(0) for x in leaves]

    def fetch_rows(self, tree: Any) -> Any:
        """See `Placement.fetch_rows`."""
        return jax.tree.map(_rows_here, tree)

    def fetch_state(self, leaves: Sequence[Array]) -> list[np.ndarray]:
        """See `Placement.fetch_state`; arrays that are sharded over hosts are collected by all of them."""
        elsewhere = [i for i, x in enumerate(leaves) if not (x.is_fully_replicated or x.is_fully_addressable)]
        leaves = list(leaves)
        if elsewhere:
            collect = jax.jit(lambda parts: parts, out_shardings=self._whole)
            for i, x in zip(elsewhere, collect([leaves[i] for i in elsewhere]), strict=True):
                leaves[i] = x
        return [np.asarray(x) for x in leaves]

    def _by_size(self, shape: Sequence[int]) -> NamedSharding:
        """How to place an array: if large, sharded along the longest axis that divides evenly, if there is one."""
        divisible = [axis for axis, size in enumerate(shape) if size % self.count == 0]
        if math.prod(shape) < self._smallest or not divisible:
            return self._whole
        longest = max(divisible, key=lambda axis: shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * longest, batch_axis.AXIS))

    def _place(self, leaf: Any, sharding: NamedSharding) -> Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def available_bytes() -> int:
    """Memory that is free where a program will run: on the first device, or on the host if that is a CPU."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else host_memory().available


def choose_devices(config: Config) -> list[jax.Device]:
    """The devices of this host that ``config.devices`` asks for.

    Raises:
        ConfigError: there are fewer.
    """
    here = backend.local_devices()
    count = len(here) if config.devices == "all" else int(config.devices)
    if count > len(here):
        raise ConfigError(
            f"devices={config.devices} cannot be used: this machine shows JAX {len(here)} of the kind "
            f"{here[0].device_kind}. Choose a number up to {len(here)}, or all."
        )
    return here[:count]


def placement(config: Config) -> Placement:
    """Where the arrays of a run lie: ``config.devices`` of every host.

    Raises:
        ConfigError: there are fewer devices, or they cannot share the batch evenly.
    """
    here = choose_devices(config)
    hosts = jax.process_count() if config.distributed else 1
    count = len(here) * hosts
    rows = config.replay.batch_size
    if rows % count:
        fitting = [n for n in range(1, jax.local_device_count() + 1) if rows % (n * hosts) == 0]
        fewer = f"devices={' or '.join(map(str, fitting))}, or " if fitting else ""
        raise ConfigError(
            f"devices={config.devices} cannot be used: {count} device(s) in all cannot share the replay.batch_size="
            f"{rows} sequences of a batch evenly. Choose {fewer}a batch size that is a multiple of {count}."
        )
    if count == 1:
        return Placement()
    if hosts == 1:
        return ShardedPlacement(here, config.optimizer.moments)
    everywhere = [[d for d in jax.devices() if d.process_index == host][: len(here)] for host in range(hosts)]
    return ShardedPlacement([device for devices in everywhere for device in devices], config.optimizer.moments)


def expectation(config: Config, parameters: int, placement: Placement) -> str:
    """A sentence for users if more devices are not expected to help much; otherwise the empty string.

    Counted, not measured: the arithmetic of an update is shared by the devices, while the steps of its scans follow one
    another however many devices there are, and the sum of gradients has to be sent.
    """
    on_cpu = backend.on_cpu()
    if placement.count == 1 or (on_cpu and jax.process_count() > 1):
        return ""
    if on_cpu:
        return f"These {placement.count} devices share the cores of one CPU: together they are hardly faster than one."
    replay = config.replay
    behavior = config.behavior
    starts = behavior.starts or replay.batch_length
    # Two operations per parameter and state for a forward pass, four for a backward pass. In imagination the actor and
    # the critic have both, everything else has one or is not used; 2.5 gives the count of docs/results/bench.md.
    states = replay.batch_size * (6 * replay.batch_length + 2.5 * starts * behavior.horizon)
    arithmetic = parameters * states / _OPERATIONS_PER_SECOND
    # Forward and backward along the sequence, forward in imagination.
    waiting = (3 * replay.batch_length + behavior.horizon) * _SECONDS_PER_STEP
    sending = 8 * parameters / _BYTES_PER_SECOND
    faster = (arithmetic + waiting) / (arithmetic / placement.count + waiting + sending)
    if faster - 1 > (placement.count - 1) / 2:
        return ""
    return (
        f"{placement.count} devices are expected to update about {faster:.1f} times as fast as one: each has "
        f"{arithmetic / placement.count * 1e3:.2g} ms of arithmetic, and all of them {(waiting + sending) * 1e3:.2g} "
        "ms of steps that wait for one another and of sending gradients. Counted, not measured (docs/devices.md); "
        "larger models and batches gain more."
    )


def dtype_advice(config: Config) -> str:
    """A sentence for users whose dtype is slow where they train; otherwise the empty string."""
    if not backend.on_cpu() or config.nets.dtype == "float32":
        return ""
    return (
        f"nets.dtype={config.nets.dtype} is for accelerators: CPUs take about twice as long with it. "
        "For a new run, add nets.dtype=float32."
    )


def _rows_here(x: Any) -> np.ndarray:
    """The rows of an array ``[B, ...]`` that lie on this host, in order."""
    if not isinstance(x, jax.Array):
        return np.asarray(x)
    shards = sorted(x.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    for shard in shards:
        shard.data.copy_to_host_async()
    return np.concatenate([np.asarray(shard.data) for shard in shards])
