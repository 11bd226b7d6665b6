"""Reads the golden numbers of Dreamer V1, V2 and PlaNet, and gives their parameters to the real agents."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer import config as configs
from dreamer.agent import Agent
from dreamer.types import Batch, Space, named_leaves
from dreamer.world_models.gaussian_rssm import GaussianLatent
from dreamer.world_models.rssm import StoredLatent

GOLDEN = pathlib.Path(__file__).parent / "golden"
OBS_SPACES = {"vector": Space("vector", (5,))}

SIZES = (
    "rssm={deter: 16, hidden: 16, stoch: 4, classes: 4, prior_layers: 1, posterior_layers: 1, unimix: 0}",
    "nets={units: 16, activation: elu, norm: none, init: glorot, symlog: false, dtype: float32}",
    "nets={reward_head: normal, critic_head: normal}",
    "loss={reconstruction: 0.5, replay_critic: 0}",
    "behavior={horizon: 4, return_horizon: 100, actor_unimix: 0, actor_scale: 1, slow_regularizer: 0}",
    "behavior.return_norm=false",
    "optimizer={kind: keras_adam, warmup: 0}",
    "replay={batch_size: 3, batch_length: 6, capacity: 1000}",
)
"""What V1 and V2 share."""

V2 = (
    *SIZES,
    "rssm={cell: norm_gru, free_nats_over: mean, std: sigmoid}",
    "nets={encoder_layers: 2, decoder_layers: 2, reward_layers: 2, cont_layers: 2, actor_layers: 2, critic_layers: 2}",
    "behavior={returns: v2, target: slow, actor: truncated_normal, entropy: 0.01, mix: 0.1, slow_every: 2}",
    "optimizer.order=model_first",
)
V1 = (
    *SIZES,
    "world_model.kind=gaussian_rssm",
    "rssm={cell: gru, free_nats_over: mean, free_nats: 3}",
    "nets={encoder_layers: 0, decoder_layers: 1, reward_layers: 2, cont_layers: 3, actor_layers: 4, critic_layers: 3}",
    "loss={dyn: 1, rep: 1, cont: 10}",
    "behavior={returns: v1, gradient: dynamics, actor: tanh_normal, entropy: 0}",
    "optimizer={model: {lr: 6e-4, eps: 1e-7}, actor: {lr: 8e-5, eps: 1e-7}, critic: {lr: 8e-5, eps: 1e-7}}",
)
PLANET = (
    "world_model={kind: gaussian_rssm, cont: none}",
    "rssm={cell: early_reset_gru, deter: 8, hidden: 8, stoch: 3, prior_layers: 1, posterior_layers: 1}",
    "nets={units: 8, activation: relu, norm: none, init: glorot, symlog: false, dtype: float32}",
    "nets={encoder_layers: 0, decoder_layers: 1, reward_layers: 3, reward_head: normal}",
    "loss={reconstruction: 0.5, reward: 10, dyn: 1, rep: 1}",
    "behavior={kind: none, cont_discount: false}",
    "planner.kind=cem",
    "optimizer={kind: keras_adam, warmup: 0, model: {lr: 1e-3, eps: 1e-4, clip: 1000}}",
    "replay={batch_size: 3, batch_length: 5, capacity: 1000}",
)


def load(name: str) -> dict[str, np.ndarray]:
    """Arrays of ``golden/NAME.npz`` by name."""
    with np.load(GOLDEN / f"{name}.npz") as data:
        return dict(data)


def v2_agent(name: str, *overrides: str) -> tuple[dict[str, np.ndarray], Agent, Batch]:
    """The numbers ``v2_categorical`` or ``v2_gaussian``, an agent with their parameters, and their batch."""
    data = load(name)
    number = lambda key: float(data[f"config/{key}"])  # noqa: E731
    scale = number("loss_scale_kl")
    rates = data["config/lr"]
    clips = data["config/clip"]
    groups = [
        f"optimizer.{group}={{lr: {float(rates[i])}, clip: {float(clips[i])}, eps: 1e-5, decay: 1e-6}}"
        for i, group in enumerate(("model", "actor", "critic"))
    ]
    gaussian = name == "v2_gaussian"
    config = configs.load(
        [],
        [
            *V2,
            *groups,
            f"rssm.free_nats={number('kl_free')}",
            f"loss={{dyn: {0.8 * scale}, rep: {0.2 * scale}, cont: {number('loss_scale_discount')}}}",
            f"behavior.slow_rate={number('slow_target_fraction')}",
            f"world_model={{kind: {'gaussian_rssm' if gaussian else 'rssm'}}}",
            f"world_model.reward_squash={'none' if gaussian else 'tanh'}",
            *overrides,
        ],
    )
    space = Space("continuous", (2,)) if gaussian else Space("discrete", (), 3)
    agent = Agent(config, OBS_SPACES, {"action": space})
    names = v2_names(gaussian)
    nets = fill(agent.state.nets, data, "params", names)
    slow = {ours: theirs.replace("critic/", "slow_critic/") for ours, theirs in names.items()}
    slow_critic = fill(agent.state.memory.behavior.slow_critic, data, "params", slow, "behavior.critic.")
    behavior = agent.state.memory.behavior._replace(slow_critic=slow_critic)
    agent.state = agent.state._replace(nets=nets, memory=agent.state.memory._replace(behavior=behavior))
    get = lambda key: data[f"batch/{key}"]  # noqa: E731
    stoch = data["state/stoch"]
    stored: Any = (
        GaussianLatent(jnp.asarray(data["state/deter"]), jnp.asarray(stoch))
        if gaussian
        else StoredLatent(data["state/deter"], stoch.argmax(-1).astype(np.uint8))
    )
    action = get("action") if gaussian else get("action").argmax(-1).astype(np.int32)
    first, last, terminal = (get(key).astype(bool) for key in ("is_first", "is_last", "is_terminal"))
    batch = Batch({"vector": get("vector")}, {"action": action}, get("reward"), first, last, terminal, stored)
    return data, agent, jax.tree.map(jnp.asarray, batch)


def v1_agent(name: str, *overrides: str) -> tuple[dict[str, np.ndarray], Agent, Batch]:
    """The numbers ``v1_plain`` or ``v1_pcont``, an agent with their parameters, and their batch."""
    data = load(name)
    pcont = name == "v1_pcont"
    cont = () if pcont else ("world_model.cont=none", "behavior.cont_discount=false")
    agent = Agent(configs.load([], [*V1, *cont, *overrides]), OBS_SPACES, {"action": Space("continuous", (2,))})
    nets = fill(agent.state.nets, data, "params", v1_names(pcont))
    agent.state = agent.state._replace(nets=nets)
    return data, agent, zero_start_batch(data, 16, 4)


def planet_agent(*overrides: str) -> tuple[dict[str, np.ndarray], Agent, Batch]:
    """The numbers ``planet_update``, an agent with their parameters, and their batch."""
    data = load("planet_update")
    free = float(data["config/free_nats"])
    config = configs.load([], [*PLANET, f"rssm.free_nats={free}", *overrides])
    agent = Agent(config, OBS_SPACES, {"action": Space("continuous", (2,))})
    agent.state = agent.state._replace(nets=fill(agent.state.nets, data, "params", planet_names()))
    return data, agent, zero_start_batch(data, 8, 3)


def zero_start_batch(data: dict[str, np.ndarray], deter: int, stoch: int) -> Batch:
    """A batch whose rows go on from a state of zeros, and have no resets."""
    reward = data["batch/reward"]
    never = np.zeros(reward.shape, bool)
    terminal = data["batch/discount"] == 0 if "batch/discount" in data else never
    rows = len(reward)
    zeros = GaussianLatent(jnp.zeros((rows, deter)), jnp.zeros((rows, stoch)))
    batch = Batch(
        {"vector": data["batch/vector"]},
        {"action": data["batch/action"]},
        reward,
        never,
        never,
        terminal,
        zeros,
    )
    return jax.tree.map(jnp.asarray, batch)


def v2_names(gaussian: bool) -> dict[str, str]:
    """Official name of each parameter by its path here."""
    names: dict[str, str] = {}

    def linear(ours: str, theirs: str) -> None:
        names[f"{ours}.kernel"], names[f"{ours}.bias"] = f"{theirs}/kernel", f"{theirs}/bias"

    def mlp(ours: str, theirs: str, layers: int = 2) -> None:
        for i in range(layers):
            linear(f"{ours}.layers.{i}.linear", f"{theirs}/dense{i}")

    rssm = "world_model.rssm"
    mlp("world_model.encoder.mlp", "encoder")
    linear(f"{rssm}.input.linear", "rssm/img_in")
    linear(f"{rssm}.cell.gates", "rssm/gru")
    names[f"{rssm}.cell.norm.scale"], names[f"{rssm}.cell.norm.offset"] = "rssm/gru_norm/scale", "rssm/gru_norm/offset"
    linear(f"{rssm}.prior_mlp.layers.0.linear", "rssm/img_out")
    linear(f"{rssm}.prior_logits", "rssm/img_dist")
    linear(f"{rssm}.posterior_mlp.layers.0.linear", "rssm/obs_out")
    linear(f"{rssm}.posterior_logits", "rssm/obs_dist")
    mlp("world_model.decoder.mlp", "decoder")
    linear("world_model.decoder.heads.vector", "decoder/vector")
    for ours, theirs in (("reward", "reward"), ("cont", "discount")):
        mlp(f"world_model.{ours}_mlp", theirs)
        linear(f"world_model.{ours}_head", f"{theirs}/out")
    mlp("behavior.actor.mlp", "actor")
    linear("behavior.actor.heads.action", "actor/out")
    if gaussian:
        linear("behavior.actor.stds.action", "actor/std")
    mlp("behavior.critic.mlp", "critic")
    linear("behavior.critic.head", "critic/out")
    return names


def v1_names(pcont: bool) -> dict[str, str]:
    """The same; a suffix ``[0]``, ``[:h]`` or ``[h:]`` takes a part: the first row, or half of the columns."""
    names: dict[str, str] = {}

    def linear(ours: str, theirs: str) -> None:
        names[f"{ours}.kernel"], names[f"{ours}.bias"] = f"{theirs}/kernel", f"{theirs}/bias"

    def mlp(ours: str, theirs: str, layers: int) -> None:
        for i in range(layers):
            linear(f"{ours}.layers.{i}.linear", f"{theirs}/dense{i}")

    rssm = "world_model.rssm"
    linear(f"{rssm}.input.linear", "rssm/img1")
    names[f"{rssm}.cell.from_input.kernel"] = "rssm/gru/kernel"
    names[f"{rssm}.cell.from_input.bias"] = "rssm/gru/bias[0]"
    names[f"{rssm}.cell.from_state.kernel"] = "rssm/gru/recurrent_kernel"
    names[f"{rssm}.cell.from_state.bias"] = "rssm/gru/bias[1]"
    linear(f"{rssm}.prior_mlp.layers.0.linear", "rssm/img2")
    linear(f"{rssm}.prior_logits", "rssm/img3")
    linear(f"{rssm}.posterior_mlp.layers.0.linear", "rssm/obs1")
    linear(f"{rssm}.posterior_logits", "rssm/obs2")
    mlp("world_model.decoder.mlp", "decoder", 1)
    linear("world_model.decoder.heads.vector", "decoder/out")
    mlp("world_model.reward_mlp", "reward", 2)
    linear("world_model.reward_head", "reward/out")
    if pcont:
        mlp("world_model.cont_mlp", "pcont", 3)
        linear("world_model.cont_head", "pcont/out")
    mlp("behavior.actor.mlp", "actor", 4)
    for ours, part in (("heads", "[:h]"), ("stds", "[h:]")):
        names[f"behavior.actor.{ours}.action.kernel"] = f"actor/out/kernel{part}"
        names[f"behavior.actor.{ours}.action.bias"] = f"actor/out/bias{part}"
    mlp("behavior.critic.mlp", "value", 3)
    linear("behavior.critic.head", "value/out")
    return names


def planet_names() -> dict[str, str]:
    """The same; two names joined by ``+`` lie side by side here."""
    names: dict[str, str] = {}

    def linear(ours: str, theirs: str) -> None:
        names[f"{ours}.kernel"], names[f"{ours}.bias"] = f"{theirs}/kernel", f"{theirs}/bias"

    rssm = "world_model.rssm"
    linear(f"{rssm}.input.linear", "img1")
    names[f"{rssm}.cell.gates.kernel"], names[f"{rssm}.cell.gates.bias"] = "gru/w_ru", "gru/b_ru"
    names[f"{rssm}.cell.candidate.kernel"], names[f"{rssm}.cell.candidate.bias"] = "gru/w_c", "gru/b_c"
    linear(f"{rssm}.prior_mlp.layers.0.linear", "img2")
    linear(f"{rssm}.posterior_mlp.layers.0.linear", "obs1")
    for ours, theirs in (("prior", "img"), ("posterior", "obs")):
        for kind in ("kernel", "bias"):
            names[f"{rssm}.{ours}_logits.{kind}"] = f"{theirs}_mean/{kind}+{theirs}_std/{kind}"
    linear("world_model.decoder.mlp.layers.0.linear", "decoder/dense0")
    linear("world_model.decoder.heads.vector", "decoder/out")
    for i in range(3):
        linear(f"world_model.reward_mlp.layers.{i}.linear", f"reward/dense{i}")
    linear("world_model.reward_head", "reward/out")
    return names


READ_FEATURES = (
    "decoder.mlp.layers.0",
    "reward_mlp.layers.0",
    "cont_mlp.layers.0",
    "actor.mlp.layers.0",
    "critic.mlp.layers.0",
)
"""Layers that read features: sample first there, recurrent state first here."""


def official(data: dict[str, np.ndarray], prefix: str, theirs: str, path: str) -> np.ndarray:
    """The official array for a parameter, in the layout that it has here."""
    name, _, part = theirs.partition("[")
    value = np.concatenate([data[f"{prefix}/{each}"] for each in name.split("+")], -1)
    half = value.shape[-1] // 2
    value = {"": value, "0]": value[0], "1]": value[-1], ":h]": value[..., :half], "h:]": value[..., half:]}[part]
    if path.endswith("kernel") and any(layer in path for layer in READ_FEATURES):
        sample = len(value) - (8 if len(value) == 11 else 16)
        value = np.concatenate([value[sample:], value[:sample]])
    return value


def fill(tree, data: dict[str, np.ndarray], prefix: str, names: dict[str, str], root: str = ""):
    """``tree`` with every leaf replaced by the official array of its name under ``prefix``."""
    paths = list(named_leaves(tree))
    leaves, treedef = jax.tree.flatten(tree)
    filled = []
    for path, leaf in zip(paths, leaves, strict=True):
        value = official(data, prefix, names[root + path], root + path)
        assert value.shape == leaf.shape, (path, value.shape, leaf.shape)
        filled.append(jnp.asarray(value))
    return jax.tree.unflatten(treedef, filled)
