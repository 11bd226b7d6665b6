"""Several processes, each with its own environments and replay, that train one agent together.

They stay in step because all of them take the same decisions: after every turn they add up their counters, and learn
whether one of them wants to stop or to save. A process is called a host here, and every run has at least one.
"""

import contextlib
import dataclasses
import os
import zlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int32

from dreamer import config as configs
from dreamer.config import Config, ConfigError

_SHUTDOWN_SECONDS = 24 * 3600
"""How long a host that has finished waits for the one that evaluates."""


class HostError(RuntimeError):
    """Another host failed, and this one cannot continue alone."""


class Hosts:
    """The hosts of a run, as one of them sees it. Without arguments, the only one.

    Args:
        index: which one this is, from 0.
        count: how many there are.
    """

    def __init__(self, index: int = 0, count: int = 1):
        self.index = index
        self.count = count
        if count > 1:
            devices = _message_devices()
            firsts = [next(device for device in devices if device.process_index == host) for host in range(count)]
            mesh = Mesh(np.array(firsts), ("host",))
            # Each host puts in its row; the identity with a replicated result is an all-gather of these rows.
            self._by_host = NamedSharding(mesh, PartitionSpec("host"))
            self._gather = jax.jit(lambda table: table, out_shardings=NamedSharding(mesh, PartitionSpec()))

    @property
    def first(self) -> bool:
        """Whether this is the one that reports, saves the agent, and evaluates it."""
        return self.index == 0

    def table(self, values: Sequence[int]) -> Int32[np.ndarray, "hosts values"]:
        """The values of every host, one row each. All must call it together, with equally many numbers below 2^31."""
        row = np.array([values], np.int32)
        if self.count == 1:
            return row
        return np.asarray(self._gather(jax.make_array_from_process_local_data(self._by_host, row)))

    def same(self, what: str, text: str) -> None:
        """Require the same text on all hosts.

        Args:
            what: begins the message, which goes on with the host that differs.
            text: of this host.

        Raises:
            ConfigError: one host has another text; raised on all of them.
        """
        # A checksum in 31 bits, which fits the signed numbers of the table.
        digests = self.table([zlib.crc32(text.encode()) >> 1])[:, 0]
        other = np.flatnonzero(digests != digests[0])
        if len(other):
            raise ConfigError(
                f"{what} host {other[0]} is not that of host 0. Start all hosts with the same command, on a file "
                "system that they share."
            )

    @contextlib.contextmanager
    def together(self, task: str) -> Iterator[None]:
        """A block that every host enters and that succeeds on all of them or on none.

        Args:
            task: what the block does, for the message.

        Raises:
            HostError: it succeeded here and failed on another host.
        """
        failed = 1
        try:
            yield
            failed = 0
        finally:
            failures = self.table([failed])[:, 0]
        if failures.any():
            raise HostError(f"Host {int(failures.argmax())} could not {task}: see what it said.")

    def part(self, config: Config) -> Config:
        """The config of one host's work: its part of environments, batch and replay.

        Raises:
            ConfigError: they cannot be divided evenly.
        """
        if self.count == 1:
            return config
        for key, number in (("env.count", config.env.count), ("replay.batch_size", config.replay.batch_size)):
            if number % self.count:
                raise ConfigError(
                    f"{key}={number} cannot be divided over {self.count} hosts: expected a multiple of {self.count}."
                )
        env = dataclasses.replace(config.env, count=config.env.count // self.count)
        replay = dataclasses.replace(
            config.replay,
            batch_size=config.replay.batch_size // self.count,
            capacity=config.replay.capacity // self.count,
        )
        return dataclasses.replace(config, env=env, replay=replay)


def _message_devices() -> list[jax.Device]:
    """Devices through which hosts talk: the CPUs, so that no message waits for an update on an accelerator."""
    try:
        return jax.devices("cpu")
    except RuntimeError:  # JAX is restricted to other platforms.
        return jax.devices()


def join(config: Config) -> Hosts:
    """Find the other hosts of a run with ``distributed=true``; waits for them. Call it before JAX computes anything.

    `jax.distributed.initialize` gets the address and the number of hosts from the schedulers it knows (Slurm, Open MPI,
    Kubernetes, Cloud TPU). Elsewhere, set JAX_COORDINATOR_ADDRESS (``address:port`` of host 0), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID.

    Raises:
        ConfigError: the hosts are not specified anywhere, do not answer, or have different configs.
    """
    if not config.distributed:
        return Hosts()
    if not config.logdir:
        raise ConfigError("distributed=true needs logdir=DIR, the same on every host, on a file system they share.")
    if not jax.distributed.is_initialized():
        # The run handles SIGTERM itself, and passes it on to the other hosts.
        jax.config.update("jax_enable_preemption_service", False)
        try:
            numbers = [int(os.environ[name]) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if name in os.environ]
            count, index = numbers if len(numbers) == 2 else (None, None)
            jax.distributed.initialize(
                num_processes=count,
                process_id=index,
                cluster_detection_method=None if count is None else "deactivate",
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            )
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"distributed=true: the hosts could not be joined ({str(error).splitlines()[0]}). Start every host "
                "through a scheduler that JAX knows, or set JAX_COORDINATOR_ADDRESS=ADDRESS:PORT of host 0, "
                "JAX_NUM_PROCESSES and JAX_PROCESS_ID, before anything else uses JAX."
            ) from error
    hosts = Hosts(jax.process_index(), jax.process_count())
    hosts.same("The config of", configs.to_yaml(config))
    return hosts
