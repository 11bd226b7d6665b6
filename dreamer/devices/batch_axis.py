"""The axis of the batch: one update on several devices, each of which computes the gradient of its own sequences.

A function that is traced `for_devices` of a mesh is one program for all of them. XLA shards what it finds there on its
own, and would make devices exchange sums wherever a loop adds to the gradient of a kernel, at every step. Therefore
`on_each_device` shards the gradient by hand: within it, each device does what it would do alone for a smaller batch,
and whatever concerns all rows is explicit: `mean`, `all_rows` and `draw`. Outside it, and on one device, these do
nothing, and the numbers are the same up to the order of summation.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxtyping import Array

from dreamer.devices import backend

AXIS = "batch"
"""Name of the axis in a mesh of devices."""


def for_devices(mesh: Mesh, function: Callable) -> Callable:
    """A function that is traced for all devices of a mesh, which is what `on_each_device` looks for."""

    def call_in_mesh(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return call_in_mesh


def on_each_device(
    function: Callable[..., tuple], arguments: Sequence[bool], results: Sequence[bool]
) -> Callable[..., tuple]:
    """A function of a batch, called by each device with its own rows if it is traced `for_devices`.

    Args:
        function: takes and returns pytrees.
        arguments: for each argument, whether its arrays have a leading axis of rows; the others are the same for all.
        results: the same for each result; the others must be made the same, by `mean` or from `all_rows`.
    """
    if _type() != AxisType.Auto:
        return function
    # Nothing checks that the results that have no rows are the same on all devices: `mean` and `all_rows` see to it.
    return jax.shard_map(function, in_specs=_specs(arguments), out_specs=_specs(results), check_vma=False)


def _specs(has_rows: Sequence[bool]) -> tuple[PartitionSpec, ...]:
    """The first axis is sharded where there are rows, and nothing where there are not."""
    return tuple(PartitionSpec(AXIS) if rows else PartitionSpec() for rows in has_rows)


def mean(tree: Any) -> Any:
    """Averages over all devices of arrays that each of them has averaged over its own rows."""
    if not _within():
        return tree
    if not backend.on_cpu():
        # The mean of integers is a float; here it stays what it is on one device.
        return jax.tree.map(lambda x: jax.lax.pmean(x, AXIS).astype(x.dtype), tree)
    # Devices of a CPU wait for one another once per array, so all arrays go in one; on accelerators, XLA joins what is
    # sent at the same time.
    leaves, structure = jax.tree.flatten(tree)
    flat = jnp.concatenate([x.astype(jnp.float32).ravel() for x in leaves])
    parts = jnp.split(jax.lax.pmean(flat, AXIS), _offsets(leaves))
    averages = [part.reshape(x.shape).astype(x.dtype) for part, x in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, averages)


def all_rows(x: Array, axis: int) -> Array:
    """An array with the rows of all devices along ``axis``, in the order of the batch."""
    return jax.lax.all_gather(x, AXIS, axis=axis, tiled=True) if _within() else x


def draw(
    sampler: Callable[[Array, tuple[int, ...]], Array], key: Array, shape: tuple[int, ...], axis: int = 0
) -> Array:
    """``sampler(key, shape)`` with rows along ``axis``: what one device with all rows would draw for these."""
    if not _within():
        return sampler(key, shape)
    # Every device draws for all rows, and takes its own.
    rows = shape[axis]
    whole = sampler(key, (*shape[:axis], rows * jax.lax.axis_size(AXIS), *shape[axis + 1 :]))
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(AXIS) * rows, rows, axis)


def _type() -> AxisType | None:
    """How the batch is sharded in the function that is being traced: by XLA (Auto), by hand (Manual), or not at all."""
    mesh = jax.sharding.get_abstract_mesh()
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get(AXIS)


def _within() -> bool:
    """Whether the function that is being traced is within `on_each_device`."""
    return _type() == AxisType.Manual


def _offsets(leaves: Sequence[Array]) -> list[int]:
    """Where in the joined array each leaf except the first begins."""
    return list(itertools.accumulate(x.size for x in leaves[:-1]))


__all__ = ["AXIS", "all_rows", "draw", "for_devices", "mean", "on_each_device"]
