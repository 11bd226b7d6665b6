"""Loads the golden update and translates official parameter names to this project's, for `test_golden.py`."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from dreamer import config as configs
from dreamer.agent import Agent
from dreamer.behaviors.actor_critic import ActorCriticMemory
from dreamer.equations.returns import ReturnRange
from dreamer.types import Batch, Parts, Space
from dreamer.world_models.rssm import StoredLatent

GOLDEN = pathlib.Path(__file__).parent / "golden"

OBS_SPACES = {
    "image": Space("image", (48, 48, 3)),
    "label": Space("discrete", (), 4),
    "vector": Space("vector", (5,)),
}
ACTION_SPACES = {"move": Space("discrete", (), 3), "push": Space("continuous", (2,))}
DETER, STOCH = 32, 16


def golden_config(*overrides: str) -> configs.Config:
    """The golden configuration, with the switches that restore the official choices."""
    return configs.load(
        [],
        [
            "rssm={deter: 32, hidden: 12, stoch: 4, classes: 4, blocks: 8}",
            "nets={units: 16, depth: 2, dtype: float32}",
            "behavior={horizon: 4, actor_unimix: 0.0}",
            "optimizer={lr: 1e-3, warmup: 10}",
            "replay={batch_size: 3, batch_length: 6, capacity: 1000}",
            *overrides,
        ],
    )


def load(name: str) -> dict[str, np.ndarray]:
    """Arrays of ``golden/NAME.npz`` by name."""
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


def golden_batch(data: dict[str, np.ndarray]) -> Batch:
    """The golden batch: step 0 gives the latent and the first previous action, the rest is trained on."""
    get = lambda key: data[f"batch/{key}"]  # noqa: E731
    stoch = get("latent/stoch")[:, 0]
    assert np.array_equal(stoch.max(-1), np.ones_like(stoch.max(-1))), "stored latents are one-hot"
    batch = Batch(
        obs={key: get(key)[:, 1:] for key in OBS_SPACES},
        prev_action={key: get(key)[:, :-1] for key in ACTION_SPACES},
        reward=get("reward")[:, 1:],
        is_first=get("is_first")[:, 1:],
        is_last=get("is_last")[:, 1:],
        is_terminal=get("is_terminal")[:, 1:],
        stored=StoredLatent(get("latent/deter")[:, 0], stoch.argmax(-1).astype(np.uint8)),
    )
    return jax.tree.map(jnp.asarray, batch)


def official_names() -> dict[str, str]:
    """Path of each parameter inside `Networks` (``world_model.rssm.mix.kernel``) to its official name."""
    names: dict[str, str] = {}

    def linear(ours: str, theirs: str) -> None:
        names[f"{ours}.kernel"], names[f"{ours}.bias"] = f"{theirs}/kernel", f"{theirs}/bias"

    def layer(ours: str, theirs: str, norm: str) -> None:
        linear(f"{ours}.linear", theirs)
        names[f"{ours}.norm.scale"] = f"{norm}/scale"

    def mlp(ours: str, theirs: str, layers: int) -> None:
        for i in range(layers):
            layer(f"{ours}.layers.{i}", f"{theirs}/mlp/linear{i}", f"{theirs}/mlp/norm{i}")

    wm = "world_model"
    for i in range(3):
        layer(f"{wm}.encoder.mlp.layers.{i}", f"enc/mlp{i}", f"enc/mlp{i}norm")
    for i in range(4):
        linear(f"{wm}.encoder.images.0.convs.{i}", f"enc/cnn{i}")
        names[f"{wm}.encoder.images.0.norms.{i}.scale"] = f"enc/cnn{i}norm/scale"
    for i, part in enumerate(("deter", "stoch", "action")):
        layer(f"{wm}.rssm.in_{part}", f"dyn/dynin{i}", f"dyn/dynin{i}norm")
    linear(f"{wm}.rssm.mix", "dyn/dynhid0")
    names[f"{wm}.rssm.mix_norm.scale"] = "dyn/dynhid0norm/scale"
    linear(f"{wm}.rssm.gates", "dyn/dyngru")
    for i in range(2):
        layer(f"{wm}.rssm.prior_mlp.layers.{i}", f"dyn/prior{i}", f"dyn/prior{i}norm")
    linear(f"{wm}.rssm.prior_logits", "dyn/priorlogit")
    layer(f"{wm}.rssm.posterior_mlp.layers.0", "dyn/obs0", "dyn/obs0norm")
    linear(f"{wm}.rssm.posterior_logits", "dyn/obslogit")
    mlp(f"{wm}.decoder.mlp", "dec", 3)
    linear(f"{wm}.decoder.heads.label", "dec/vec/label/logits")
    linear(f"{wm}.decoder.heads.vector", "dec/vec/vector/pred")
    image = f"{wm}.decoder.images.0"
    linear(f"{image}.from_recurrent", "dec/sp0")
    layer(f"{image}.from_sample.0", "dec/sp1", "dec/sp1norm")
    linear(f"{image}.from_sample.1", "dec/sp2")
    names[f"{image}.start_norm.scale"] = "dec/spnorm/scale"
    for ours, theirs in enumerate(("conv2", "conv1", "conv0")):
        linear(f"{image}.convs.{ours}", f"dec/{theirs}")
        names[f"{image}.norms.{ours}.scale"] = f"dec/{theirs}norm/scale"
    linear(f"{image}.convs.3", "dec/imgout")
    mlp(f"{wm}.reward_mlp", "rew", 1)
    linear(f"{wm}.reward_head", "rew/head/logits")
    mlp(f"{wm}.cont_mlp", "con", 1)
    linear(f"{wm}.cont_head", "con/head/logit")
    mlp("behavior.actor.mlp", "pol", 3)
    linear("behavior.actor.heads.move", "pol/head/move/logits")
    linear("behavior.actor.heads.push", "pol/head/push/mean")
    linear("behavior.actor.stds.push", "pol/head/push/stddev")
    mlp("behavior.critic.mlp", "val", 3)
    linear("behavior.critic.head", "val/head/logits")
    return names


def from_official(name: str, value: np.ndarray) -> np.ndarray:
    """Official array in this project's layout: the vector decoder reads deter first here, stoch first there."""
    if name == "dec/mlp/linear0/kernel":
        return np.concatenate([value[STOCH:], value[:STOCH]])
    return value


def path_name(path: tuple) -> str:
    """``world_model.rssm.mix.kernel`` for a pytree path."""
    parts = [str(getattr(p, "name", getattr(p, "key", getattr(p, "idx", p)))) for p in path]
    return ".".join(part for part in parts if part != "value")


def fill(tree, data: dict[str, np.ndarray], prefix: str, root: str = ""):
    """``tree`` with every leaf replaced by the official array of its name under ``prefix``."""
    names = official_names()

    def one(path: tuple, leaf: jax.Array) -> jax.Array:
        official = names[root + path_name(path)]
        theirs = official.replace("val/", "slowval/", 1) if root else official
        value = from_official(official, data[f"{prefix}/{theirs}"])
        assert value.shape == leaf.shape, (official, value.shape, leaf.shape)
        return jnp.asarray(value)

    return jax.tree_util.tree_map_with_path(one, tree)


def golden_agent(data: dict[str, np.ndarray], *overrides: str) -> Agent:
    """An agent that holds the golden parameters."""
    agent = Agent(golden_config(*overrides), OBS_SPACES, ACTION_SPACES)
    state = agent.state
    span = ReturnRange(jnp.asarray(data["params/retnorm/lo/value"]), jnp.asarray(data["params/retnorm/hi/value"]))
    agent.state = state._replace(
        nets=fill(state.nets, data, "params"),
        memory=Parts(
            behavior=ActorCriticMemory(
                slow_critic=fill(state.memory.behavior.slow_critic, data, "params", root="behavior.critic."),
                return_range=span,
            )
        ),
    )
    return agent
