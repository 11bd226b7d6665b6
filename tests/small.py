"""The smallest agent that has every part, shared by tests so that it compiles once per shape."""

import json
from collections.abc import Iterator

import jax
import numpy as np
import yaml

from dreamer import config as configs
from dreamer.agent import Agent
from dreamer.agent.learning import weighted_total
from dreamer.types import Batch, Space
from dreamer.world_models.rssm import StoredLatent

OBS_SPACES = {"label": Space("discrete", (), 3), "vector": Space("vector", (4,))}
ACTION_SPACES = {"move": Space("discrete", (), 3), "push": Space("continuous", (2,))}

OVERRIDES = (
    "env.count=2",
    "rssm={deter: 16, hidden: 8, stoch: 3, classes: 4, blocks: 2, prior_layers: 1}",
    "nets={units: 8, depth: 2, encoder_layers: 1, decoder_layers: 1, actor_layers: 1, critic_layers: 1, bins: 41}",
    "nets.dtype=float32",
    "behavior.horizon=3",
    "optimizer={lr: 1e-3, warmup: 0}",
    "replay={batch_size: 2, batch_length: 4, capacity: 400}",
    "logger={tensorboard: false, pictures_every: 0}",
)


def small_config(*overrides: str) -> configs.Config:
    """Config of the small agent, with further overrides."""
    return configs.load([], [*OVERRIDES, *overrides])


def small_agent(*overrides: str) -> Agent:
    """The small agent on `OBS_SPACES` and `ACTION_SPACES`."""
    return Agent(small_config(*overrides), OBS_SPACES, ACTION_SPACES)


def small_batch(seed: int = 0, rows: int = 2, steps: int = 4, dtype=np.float32) -> Batch:
    """Random data in the shapes of the small agent."""
    rng = np.random.default_rng(seed)
    shape = (rows, steps)
    return Batch(
        obs={
            "label": rng.integers(0, 3, shape, dtype=np.int32),
            "vector": rng.normal(size=(*shape, 4)).astype(np.float32),
        },
        prev_action={
            "move": rng.integers(0, 3, shape, dtype=np.int32),
            "push": rng.uniform(-1.5, 1.5, (*shape, 2)).astype(np.float32),
        },
        reward=rng.normal(size=shape).astype(np.float32),
        is_first=rng.random(shape) < 0.2,
        is_last=rng.random(shape) < 0.2,
        is_terminal=rng.random(shape) < 0.1,
        stored=StoredLatent(rng.normal(size=(rows, 16)).astype(dtype), rng.integers(0, 4, (rows, 3)).astype(np.uint8)),
    )


def same_tree(one, two) -> bool:
    """Whether two pytrees hold exactly the same bits."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def run_config(logdir, *overrides: str) -> configs.Config:
    """Config of a run of the small agent that is over in seconds and writes metrics at every turn."""
    run = "run={env_steps: 60, train_ratio: 4, eval_episodes: 2, log_every: 0}"
    return small_config("task=probe_action", run, f"logdir={logdir}", *overrides)


def total_loss(agent: Agent):
    """``(nets, memory, batch, key, config) -> (what the update minimises, output of the loss)``."""
    assert agent.algorithm.loss is not None
    return weighted_total(agent.algorithm.loss)


def latent_spec(deter: int, stoch: int, classes: int, dtype=np.float32) -> StoredLatent:
    """Shapes and dtypes of what the world model of these sizes stores with each step."""
    index = np.uint8 if classes <= 256 else np.uint16
    return StoredLatent(jax.ShapeDtypeStruct((deter,), dtype), jax.ShapeDtypeStruct((stoch,), index))


def of_preset(name: str) -> Iterator[str]:
    """Overrides that make the smallest agent a member of the family: all that its preset says, except sizes."""
    sizes = {"deter", "hidden", "stoch", "classes", "units", "depth", "mults", "convolutions", "horizon"}
    preset = yaml.safe_load((configs.preset_directory() / f"{name}.yaml").read_text())
    for section in ("world_model", "rssm", "nets", "loss", "behavior", "planner", "optimizer", "exploration"):
        values = preset.get(section, {}).items()
        chosen = {key: value for key, value in values if key not in sizes and not key.endswith("_layers")}
        yield f"{section}={json.dumps(chosen)}"
