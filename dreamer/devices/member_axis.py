"""The axis of members: one program for a whole population, sharded over devices.

Members do not depend on one another, so each device runs the program of its own members, and nothing is exchanged. A
CPU shows its cores as devices (`show_cores`): two programs on a core each are faster than one program on both, since
small operations keep a second core waiting.
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
    """Make JAX show the cores of a CPU as devices, the fewest that give the shortest run.

    Does nothing if JAX has been used in this process already, or if the user has set the number of devices of a CPU.

    Args:
        members: number of members.
    """
    set_by_user = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ
    if set_by_user or _useful_devices(members, own_cores.count()) == 1:
        return
    try:
        jax.config.update("jax_num_cpu_devices", _useful_devices(members, own_cores.count()))
    except RuntimeError:  # JAX has created its devices already.
        return


def member_devices(config: Config, members: int) -> list[jax.Device]:
    """The devices that share a population: of those of ``config.devices``, the fewest that give the shortest run.

    On a CPU, the default is to choose from all of them.

    Raises:
        ConfigError: there are not enough devices, or fewer members than devices.
    """
    chosen = jax.local_devices() if _on_cores(config) else devices.choose_devices(config)
    if config.devices.isdecimal() and len(chosen) > members and not _on_cores(config):
        raise ConfigError(
            f"devices={config.devices} cannot be used: there are {members} member(s), and none is divided over "
            f"devices. Choose a number up to {members}, all, or more members."
        )
    return chosen[: _useful_devices(members, len(chosen))]


def _on_cores(config: Config) -> bool:
    """Whether the devices are the cores of a CPU; ``devices=1``, the default, means all of them then."""
    return backend.on_cpu() and config.devices == "1"


def _useful_devices(members: int, available: int) -> int:
    """The smallest number of devices on which the fullest has as few members as it would have on all of them."""
    # -(-a // b) rounds a / b up: first the members of the fullest device, then the devices that these fill.
    each = -(-members // available)
    return -(-members // each)


class MemberAxis:
    """Turns functions of one member into functions of all, and places the arrays of all members on devices.

    Args:
        shared: devices that share the members; each has the same number of them, see `pad`.
    """

    def __init__(self, shared: Sequence[jax.Device]):
        self.count = len(shared)
        self._mesh = Mesh(np.array(shared), (_AXIS,), axis_types=(AxisType.Auto,))

    def pad(self, members: Sequence[Any]) -> list[Any]:
        """Members, with the last one repeated until all devices have the same number."""
        # -n % count is what n lacks to the next multiple of count.
        return [*members, *[members[-1]] * (-len(members) % self.count)]

    def compile(
        self, function: Callable[..., Any], arguments: Sequence[bool], results: Sequence[bool], **jit: Any
    ) -> Any:
        """`jax.jit` of a function of one member, mapped over all.

        Args:
            function: takes and returns pytrees.
            arguments: for each argument, whether it has a leading axis of members; the others are the same for all.
            results: the same for each result.
            jit: options of `jax.jit`.
        """
        mapped = jax.vmap(function, self._axes(arguments), self._axes(results))
        if self.count == 1:
            return jax.jit(mapped, **jit)
        in_specs = self._specs(arguments)
        out_specs = self._specs(results)
        # Each device maps the function over its own members; nothing is checked, as nothing crosses devices.
        divided = jax.shard_map(mapped, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        in_shardings = tuple(NamedSharding(self._mesh, spec) for spec in in_specs)
        out_shardings = tuple(NamedSharding(self._mesh, spec) for spec in out_specs)
        return jax.jit(divided, in_shardings=in_shardings, out_shardings=out_shardings, **jit)

    def place(self, tree: Any, members: bool = True) -> Any:
        """A copy of arrays, which may be NumPy's, on the devices where `compile` expects them.

        Args:
            tree: any pytree.
            members: whether its arrays have a leading axis of members.
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
    """The arrays of one member, on the first device, from those of all members."""

    def pick(x: Any) -> Any:
        if not isinstance(x, jax.Array) or len(x.sharding.device_set) == 1:
            return x[index]
        for shard in x.addressable_shards:
            rows = shard.index[0]  # The members that this shard holds, as a slice.
            if rows.start <= index < rows.stop:
                return jax.device_put(shard.data[index - rows.start], jax.local_devices()[0])
        raise IndexError(f"There is no member {index} in an array of shape {list(x.shape)}.")

    return jax.tree.map(pick, tree)


def on_first(tree: Any) -> Any:
    """The first device's part of every array, without a copy: the first members, or all of what members share."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


__all__ = ["MemberAxis", "member_devices", "member_of", "on_first", "show_cores"]
