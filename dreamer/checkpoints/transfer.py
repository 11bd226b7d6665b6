"""Parameters from another run: a new run starts from them, and from nothing else of it.

Every tensor of the wanted part whose path and shape match is taken, so that tasks may have other observations, actions
and rewards; the rest keeps its random initial values. Everything that belongs to the course of training is fresh:
moments of the optimizer and its warm-up, counters, replay, and the range of returns, which belongs to another task. The
slow critic and the networks that act start as copies of the resulting ones, as in any new run.
"""

import pathlib
from typing import NamedTuple, TypeVar

import jax
import numpy as np

from dreamer import checkpoints
from dreamer import config as configs
from dreamer.config import Config, ConfigError
from dreamer.devices.hosts import Hosts
from dreamer.types import Parts, TrainState

PARTS = {
    "all": ("",),
    "world_model": ("world_model.",),
    "encoder": ("world_model.encoder.",),
    "decoder": ("world_model.decoder.",),
    "dynamics": ("world_model.rssm.",),
    "behavior": ("behavior.",),
    "actor": ("behavior.actor.",),
    "critic": ("behavior.critic.",),
}
"""What ``load.only`` names, as prefixes of paths in the networks."""

ENCODER_KIND = ("nets.activation", "nets.conv_activation", "nets.convolutions", "nets.norm", "nets.symlog")
"""Config keys that say what the parameters of an encoder mean, whatever their shapes."""

MODEL_KIND = ("world_model.kind", "rssm.cell", "rssm.std", *ENCODER_KIND, "nets.reward_head")
"""The same of a world model and its parts."""

AGENT_KIND = (*MODEL_KIND, "nets.critic_head", "behavior.actor")
"""The same of what also acts: actor and critic read the features of the model."""

_NETS = "nets."
"""Prefix of the networks in a checkpoint."""

Tree = TypeVar("Tree")


class Taken(NamedTuple):
    """Parameters as read, and why others stay fresh."""

    source: pathlib.Path
    """The checkpoint they are from."""
    arrays: dict[str, np.ndarray]
    """By path in the networks, without an axis of members."""
    fresh: dict[str, str]
    """Reasons by path."""
    damaged: tuple[checkpoints.Damaged, ...]
    """Newer checkpoints that could not be used, the newest first."""

    def summary(self) -> str:
        """One or two sentences for the terminal."""
        count = len(self.arrays) + len(self.fresh)
        text = f"Starts from {self.source}: {len(self.arrays)} of {count} tensors are taken from there"
        if self.fresh:
            some = [f"{name} ({reason})" for name, reason in list(self.fresh.items())[:3]]
            text += f", {len(self.fresh)} stay fresh: {', '.join(some)}{', ...' if len(self.fresh) > 3 else ''}"
        return "\n  ".join([*(f"{one} The one before is taken." for one in self.damaged), f"{text}."])

    def listing(self) -> str:
        """One line for each tensor of the wanted part."""
        lines = [f"taken  {name} {list(array.shape)}" for name, array in self.arrays.items()]
        lines += [f"fresh  {name}: {reason}" for name, reason in self.fresh.items()]
        return "\n".join([f"# from {self.source}", *lines]) + "\n"


def read(config: Config, nets: Parts, hosts: Hosts | None = None) -> Taken:
    """Read what a config asks for.

    Args:
        config: the new run's; its ``load`` has the source, and the part to take.
        nets: the networks that are to get it, or their shapes.
        hosts: all hosts of the run; None: one host.

    Raises:
        CheckpointError: there is no checkpoint that can be used.
        ConfigError: the agent has no such part, parameters mean something else there, or nothing there has the name
            and shape of a wanted tensor.
    """
    load = config.load
    wanted = {
        f"{_NETS}{name}": jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        for name, leaf in checkpoints.named_arrays(nets).items()
        if name.startswith(PARTS[load.only])
    }
    if not wanted:
        raise ConfigError(
            f"load.only={load.only} cannot be used: the agent of this run has no such part. Choose another of "
            f"{', '.join(PARTS)}, or give it one, as world_model.decoder=true gives a decoder."
        )
    found = checkpoints.load_part(load.from_, wanted, hosts)
    _refuse_other_kind(config, found.config)
    fresh = {}
    for name, shape in wanted.items():
        if name not in found.arrays:
            other = found.shapes.get(name)
            there = f"{other.dtype} {list(other.shape)} there" if other else "absent there"
            fresh[name.removeprefix(_NETS)] = f"{there}, {shape.dtype} {list(shape.shape)} here"
    if not found.arrays:
        first, reason = next(iter(fresh.items()))
        raise ConfigError(
            f"load.from={load.from_} has no tensor that load.only={load.only} could take: none of {len(fresh)} has "
            f"the same shape there, for example {first} ({reason}). Use the sizes of that run (rssm.*, nets.*), or "
            "leave out load.from."
        )
    arrays = {name.removeprefix(_NETS): array for name, array in found.arrays.items()}
    return Taken(found.path, arrays, fresh, found.damaged)


def _refuse_other_kind(config: Config, source: Config) -> None:
    """Raise `ConfigError` if parameters of the source mean something else; the message names the first difference."""
    here, there = dict(configs.flatten(config)), dict(configs.flatten(source))
    kinds = {"encoder": ENCODER_KIND, "world_model": MODEL_KIND, "decoder": MODEL_KIND, "dynamics": MODEL_KIND}
    for key in kinds.get(config.load.only, AGENT_KIND):
        if here[key] != there[key]:
            raise ConfigError(
                f"load.from={config.load.from_} cannot be used: {key} is {there[key]} there and {here[key]} here, so "
                f"parameters mean something else. Use {key}={there[key]}, or a run of the same kind."
            )


def begin_with(state: TrainState, taken: Taken) -> TrainState:
    """A fresh training state, or those of several members ``[M, ...]``, with the parameters that were taken."""
    # A slow copy begins equal to its network: `behavior.slow_critic` to `behavior.critic`.
    copies = {
        name: taken.arrays[source]
        for name in checkpoints.named_arrays(state.memory)
        if (source := name.replace(".slow_", ".", 1)) != name and source in taken.arrays
    }
    return state._replace(nets=put(state.nets, taken.arrays), memory=put(state.memory, copies))


def put(tree: Tree, arrays: dict[str, np.ndarray]) -> Tree:
    """A tree with arrays replaced at some paths, each by a copy that is broadcast to the shape there."""
    leaves = [
        np.array(np.broadcast_to(arrays[name], leaf.shape)) if name in arrays else leaf
        for name, leaf in checkpoints.named_arrays(tree).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


__all__ = ["PARTS", "Taken", "begin_with", "put", "read"]
