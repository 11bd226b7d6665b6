"""Arrays in files, through orbax, which no other file imports.

Only data is read, never code. Shapes and dtypes can be inspected before any memory is allocated.
"""

import logging
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from dreamer.devices.hosts import Hosts

_ATTEMPTS = 3

for _library in ("absl", "orbax"):
    logging.getLogger(_library).setLevel(logging.ERROR)


def write(path: pathlib.Path, items: Mapping[str, Mapping[str, np.ndarray]], hosts: Hosts) -> None:
    """Write trees of arrays into a new directory, ``path/ITEM``; one without arrays leaves nothing.

    Raises:
        OSError, ValueError: the file system refused.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _write(path, items, hosts)
        except TimeoutError:
            # Orbax waits for its own threads by the wall clock: setting that forward makes the wait time out.
            if attempt == _ATTEMPTS:
                raise
            for partial in path.parent.glob(f"{path.name}*"):
                shutil.rmtree(partial, ignore_errors=True)


def _write(path: pathlib.Path, items: Mapping[str, Mapping[str, np.ndarray]], hosts: Hosts) -> None:
    options = _single_host(hosts)
    items = {name: arrays for name, arrays in items.items() if arrays}  # Orbax writes no empty trees.
    # Handlers that orbax makes on demand do not get these options.
    handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler(multiprocessing_options=options) for name in items}
    composite = ocp.CompositeOptions(multiprocessing_options=options)
    handler = ocp.CompositeCheckpointHandler(composite_options=composite, **handlers)
    with ocp.Checkpointer(handler, multiprocessing_options=options) as writer:
        args = {name: ocp.args.StandardSave(dict(arrays)) for name, arrays in items.items()}
        writer.save(path, args=ocp.args.Composite(**args))


def shapes(path: pathlib.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the arrays in a directory, without reading the arrays.

    Raises:
        OSError, ValueError, TypeError, AttributeError: it holds something else.
    """
    found = {}
    for name, described in dict(ocp.PyTreeCheckpointHandler().metadata(path)).items():
        shape = tuple(described.shape)
        # Arrays are read in chunks, and each chunk is allocated at the size that the file claims.
        if any(chunk > max(size, 1) for size, chunk in zip(shape, described.storage.chunk_shape, strict=True)):
            raise ValueError(f"'{name}' has chunks that are larger than itself")
        found[name] = jax.ShapeDtypeStruct(shape, np.dtype(described.dtype))
    return found


def read(
    path: pathlib.Path, only: Mapping[str, jax.ShapeDtypeStruct] | None = None, hosts: Hosts | None = None
) -> dict[str, np.ndarray]:
    """Arrays that orbax has written into a directory: all, or those of ``only``, a part of `shapes`."""
    item = dict(shapes(path) if only is None else only)
    if not item:
        return {}
    options = _single_host(hosts or Hosts())
    # As NumPy arrays, whatever type the files claim, so that nothing they say about devices is followed.
    kinds = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in item}
    args = ocp.args.PyTreeRestore(item, restore_args=kinds, partial_restore=True)
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    with ocp.Checkpointer(handler, multiprocessing_options=options) as reader:
        return {name: np.asarray(value) for name, value in reader.restore(path, args=args).items()}


def _single_host(hosts: Hosts) -> ocp.options.MultiprocessingOptions:
    """Options by which orbax reads or writes on this host only: by default it would wait for the others."""
    if hosts.count == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        primary_host=hosts.index, active_processes={hosts.index}, barrier_sync_key_prefix=f"host{hosts.index}"
    )
