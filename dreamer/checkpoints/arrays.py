"""Arrays in files, through orbax: the only file that knows it.

What is read is data and nothing else. Shapes and dtypes can be looked at before any memory is asked for.
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

for _noisy in ("absl", "orbax"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)


def write(path: pathlib.Path, items: Mapping[str, Mapping[str, np.ndarray]], hosts: Hosts) -> None:
    """Write trees of arrays into a new directory, ``path/ITEM``; one without arrays leaves nothing.

    Raises:
        OSError, ValueError: the file system refused.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _write(path, items, hosts)
        except TimeoutError:
            # Orbax waits for its own threads by the wall clock: one that is set forward meanwhile ends its patience.
            if attempt == _ATTEMPTS:
                raise
            for begun in path.parent.glob(f"{path.name}*"):
                shutil.rmtree(begun, ignore_errors=True)


def _write(path: pathlib.Path, items: Mapping[str, Mapping[str, np.ndarray]], hosts: Hosts) -> None:
    alone = _alone(hosts)
    items = {name: arrays for name, arrays in items.items() if arrays}  # Orbax writes no empty trees.
    # Handlers that are made on demand do not hear of these options.
    handlers: dict[str, Any] = {name: ocp.StandardCheckpointHandler(multiprocessing_options=alone) for name in items}
    options = ocp.CompositeOptions(multiprocessing_options=alone)
    handler = ocp.CompositeCheckpointHandler(composite_options=options, **handlers)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as writer:
        args = {name: ocp.args.StandardSave(dict(arrays)) for name, arrays in items.items()}
        writer.save(path, args=ocp.args.Composite(**args))


def shapes(path: pathlib.Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the arrays that were written into a directory, read without the arrays.

    Raises:
        OSError, ValueError, TypeError, AttributeError: it holds something else.
    """
    found = {}
    for name, described in dict(ocp.PyTreeCheckpointHandler().metadata(path)).items():
        shape = tuple(described.shape)
        # Arrays are read in chunks, and a chunk is as large as it says.
        if any(chunk > max(size, 1) for size, chunk in zip(shape, described.storage.chunk_shape, strict=True)):
            raise ValueError(f"'{name}' has chunks that are larger than itself")
        found[name] = jax.ShapeDtypeStruct(shape, np.dtype(described.dtype))
    return found


def read(
    path: pathlib.Path, only: Mapping[str, jax.ShapeDtypeStruct] | None = None, hosts: Hosts | None = None
) -> dict[str, np.ndarray]:
    """Arrays that orbax has written into a directory: all, or some of `shapes`."""
    item = dict(shapes(path) if only is None else only)
    if not item:
        return {}
    alone = _alone(hosts or Hosts())
    # As arrays of NumPy whatever the files say of their type, so that nothing they say of devices is followed.
    kinds = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in item}
    args = ocp.args.PyTreeRestore(item, restore_args=kinds, partial_restore=True)
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        return {name: np.asarray(value) for name, value in reader.restore(path, args=args).items()}


def _alone(hosts: Hosts) -> ocp.options.MultiprocessingOptions:
    """Tells orbax that a host reads or writes alone: by itself it would wait for the others, who do something else."""
    if hosts.count == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        primary_host=hosts.index, active_processes={hosts.index}, barrier_sync_key_prefix=f"host{hosts.index}"
    )
