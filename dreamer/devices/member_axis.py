"""The axis of members: one program for a whole population, divided over devices.

Members never need one another, so each device runs the program of its own members, and nothing is exchanged. A CPU
shows its cores as devices (`show_cores`): two programs on a core each are faster than one program on both, since small
operations keep a second core waiting.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dreamer.config import Config, ConfigError
from dreamer.devices import backend
from dreamer.devices import cores as own_cores
from dreamer.devices import placement as devices

_AXIS = "member"


def show_cores(members: int) -> None:
    """Make JAX show the cores of a CPU as devices: as many of them as it takes to be done soonest.

    Does nothing if JAX has been used in this process already, or was told how many devices a CPU has.

    Args:
        members: number of members.
    """
    told = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ
    if told or _useful(members, own_cores.count()) == 1:
        return
    try:
        jax.config.update("jax_num_cpu_devices", _useful(members, own_cores.count()))
    except RuntimeError:  # Its devices have been counted.
        return


def member_devices(config: Config, members: int) -> list[jax.Device]:
    """The devices that share a population: of those of ``config.devices``, as many as it takes to be done soonest.

    On a CPU, all are there by default.

    Raises:
        ConfigError: there are not so many devices, or fewer members.
    """
    chosen = jax.local_devices() if _cores(config) else devices.chosen(config)
    if config.devices.isdecimal() and len(chosen) > members and not _cores(config):
        raise ConfigError(
            f"devices={config.devices} cannot be used: there are {members} member(s), and none is divided over "
            f"devices. Choose a number up to {members}, all, or more members."
        )
    return chosen[: _useful(members, len(chosen))]


def _cores(config: Config) -> bool:
    return backend.on_cpu() and config.devices == "1"


def _useful(members: int, available: int) -> int:
    """The smallest number of devices on which the fullest has as few members as on all."""
    each = -(-members // available)
    return -(-members // each)


class MemberAxis:
    """Functions of one member as functions of all, and arrays of all on the devices that they belong to.

    Args:
        shared: devices that share the members; each has the same number of them, see `padded`.
    """

    def __init__(self, shared: Sequence[jax.Device]):
        self.count = len(shared)
        self._mesh = Mesh(np.array(shared), (_AXIS,), axis_types=(AxisType.Auto,))

    def padded(self, members: Sequence[Any]) -> list[Any]:
        """Members, and the last of them again until all devices have the same number."""
        return [*members, *[members[-1]] * (-len(members) % self.count)]

    def compile(
        self, function: Callable[..., Any], arguments: Sequence[bool], results: Sequence[bool], **jit: Any
    ) -> Any:
        """`jax.jit` of a function of one member, made one of all.

        Args:
            function: takes and returns pytrees.
            arguments: for each argument, whether it has an axis of members in front; the others are the same for all.
            results: the same for each result.
            jit: options of `jax.jit`.
        """
        mapped = jax.vmap(function, self._axes(arguments), self._axes(results))
        if self.count == 1:
            return jax.jit(mapped, **jit)
        specs, out_specs = self._specs(arguments), self._specs(results)
        divided = jax.shard_map(mapped, mesh=self._mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
        where = [tuple(NamedSharding(self._mesh, spec) for spec in part) for part in (specs, out_specs)]
        return jax.jit(divided, in_shardings=where[0], out_shardings=where[1], **jit)

    def place(self, tree: Any, members: bool = True) -> Any:
        """A copy of arrays, which may be NumPy's, where `compile` wants them.

        Args:
            tree: any pytree.
            members: whether its arrays have an axis of members in front.
        """
        if self.count == 1:
            return jax.tree.map(jnp.array, tree)
        sharding = NamedSharding(self._mesh, PartitionSpec(_AXIS) if members else PartitionSpec())

        def put(x: Any) -> jax.Array:
            values = np.asarray(x)
            return jax.make_array_from_callback(values.shape, sharding, lambda index: np.array(values[index]))

        return jax.tree.map(put, tree)

    @staticmethod
    def _axes(members: Sequence[bool]) -> tuple[int | None, ...]:
        return tuple(0 if own else None for own in members)

    @staticmethod
    def _specs(members: Sequence[bool]) -> tuple[PartitionSpec, ...]:
        return tuple(PartitionSpec(_AXIS) if own else PartitionSpec() for own in members)


def member_of(tree: Any, index: int) -> Any:
    """The arrays of one member, on the first device, from those of all."""

    def pick(x: Any) -> Any:
        if not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1:
            return x[index]
        for shard in x.addressable_shards:
            rows = shard.index[0]
            if rows.start <= index < rows.stop:
                return jax.device_put(shard.data[index - rows.start], jax.local_devices()[0])
        raise IndexError(f"There is no member {index} in an array of shape {list(x.shape)}.")

    return jax.tree.map(pick, tree)


def on_first(tree: Any) -> Any:
    """What the first device holds of every array: the first members, or all of what is the same for all. No copy."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


__all__ = ["MemberAxis", "member_devices", "member_of", "on_first", "show_cores"]
