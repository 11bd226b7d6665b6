"""Every preset of the family has the constants of its paper and its released code, one by one."""

import pathlib
import re

import pytest

from dreamer import config as configs

PRESETS = ("dreamer_v1", "dreamer_v2", "dreamer_v3_2023", "dreamer_v3", "planet")
NOT = None
"""A key that means nothing to that method."""

# Sources: danijar/dreamer, dreamer.py and models.py; danijar/dreamerv2, configs.yaml (defaults and dmc), agent.py and
# nets.py; danijar/dreamerv3 at ec526b9, configs.yaml (small) and nets.py; danijar/dreamerv3 at e3f0224, and at 2411f7d
# for the sizes of DeepMind Control from proprioception; google-research/planet, configs.py and models.
TABLE = {
    # key: V1, V2, V3 of 2023, V3 of 2025, PlaNet
    "world_model.kind": ("gaussian_rssm", "rssm", "rssm", "rssm", "gaussian_rssm"),
    "world_model.cont": ("none", "none", "mode", "probability", "none"),
    "rssm.cell": ("gru", "norm_gru", "norm_gru", "block_gru", "early_reset_gru"),
    "rssm.deter": (200, 200, 512, 2048, 200),
    "rssm.hidden": (200, 200, 512, 256, 200),
    "rssm.blocks": (NOT, NOT, NOT, 8, NOT),
    "rssm.stoch": (30, 32, 32, 32, 30),
    "rssm.classes": (NOT, 32, 32, 16, NOT),
    "rssm.std": ("softplus", NOT, NOT, NOT, "softplus"),
    "rssm.unimix": (NOT, 0.0, 0.01, 0.01, NOT),
    "rssm.initial": ("zeros", "zeros", "learned", "zeros", "zeros"),
    "rssm.prior_layers": (1, 1, 1, 2, 1),
    "rssm.posterior_layers": (1, 1, 1, 1, 1),
    "rssm.free_nats": (3.0, 1.0, 1.0, 1.0, 3.0),
    "rssm.free_nats_over": ("mean", "mean", "step", "step", "step"),
    "loss.dyn": (1.0, 0.8, 0.5, 1.0, 1.0),
    "loss.rep": (1.0, 0.2, 0.1, 0.1, 1.0),
    "loss.reconstruction": (0.5, 0.5, 1.0, 1.0, 0.5),
    "loss.reward": (1.0, 1.0, 1.0, 1.0, 10.0),
    "loss.cont": (10.0, 1.0, 1.0, 1.0, NOT),
    "loss.replay_critic": (0.0, 0.0, 0.0, 0.3, NOT),
    "nets.convolutions": ("valid", "valid", "same", "pool", "valid"),
    "nets.depth": (32, 48, 32, 16, 32),
    "nets.mults": ((1, 2, 4, 8), (1, 2, 4, 8), (1, 2, 4, 8), (2, 3, 4, 4), (1, 2, 4, 8)),
    "nets.image_bits": (8, 8, 8, 8, 5),
    "nets.symlog": (False, False, True, True, False),
    "nets.activation": ("elu", "elu", "silu", "silu", "relu"),
    "nets.image_activation": ("relu", "elu", "silu", NOT, "relu"),
    "nets.norm": ("none", "none", "layer", "rms", "none"),
    "nets.init": ("glorot", "glorot", "fan_avg", "fan_in", "glorot"),
    "nets.units": (400, 400, 512, 256, 300),
    "nets.reward_layers": (2, 4, 2, 1, 3),
    "nets.cont_layers": (3, 4, 2, 1, NOT),
    "nets.actor_layers": (4, 4, 2, 3, NOT),
    "nets.critic_layers": (3, 4, 2, 3, NOT),
    "nets.reward_head": ("normal", "normal", "symlog_twohot", "symexp_twohot", "normal"),
    "nets.critic_head": ("normal", "normal", "symlog_twohot", "symexp_twohot", NOT),
    "nets.bins": (NOT, NOT, 255, 255, NOT),
    "behavior.kind": ("actor_critic", "actor_critic", "actor_critic", "actor_critic", "none"),
    "behavior.gradient": ("dynamics", "auto", "auto", "reinforce", NOT),
    "behavior.returns": ("v1", "v2", "v3_2023", "v3", NOT),
    "behavior.target": ("fast", "slow", "fast", "fast", NOT),
    "behavior.actor": ("tanh_normal", "truncated_normal", "bounded_normal", "bounded_normal", NOT),
    "behavior.actor_scale": (1.0, 1.0, 1.0, 0.01, NOT),
    "behavior.actor_unimix": (0.0, 0.0, 0.01, 0.01, NOT),
    "behavior.min_std": (NOT, 0.1, 0.1, 0.1, NOT),
    "behavior.max_std": (NOT, NOT, 1.0, 1.0, NOT),
    "behavior.horizon": (15, 15, 15, 15, NOT),
    "behavior.return_horizon": (100.0, 100.0, 333.0, 333.0, 1e6),
    "behavior.cont_discount": (False, False, False, True, False),
    "behavior.return_lambda": (0.95, 0.95, 0.95, 0.95, NOT),
    "behavior.entropy": (0.0, 1e-4, 3e-4, 3e-4, NOT),
    "behavior.return_norm": (False, False, True, True, NOT),
    "behavior.return_rate": (NOT, NOT, 0.01, 0.01, NOT),
    "behavior.return_limit": (NOT, NOT, 1.0, 1.0, NOT),
    "behavior.slow_rate": (NOT, 1.0, 0.02, 0.02, NOT),
    "behavior.slow_every": (NOT, 100, 1, 1, NOT),
    "behavior.slow_regularizer": (0.0, 0.0, 1.0, 1.0, NOT),
    "behavior.exploration_noise": (0.3, 0.0, 0.0, 0.0, 0.3),
    "planner.kind": ("none", "none", "none", "none", "cem"),
    "planner.horizon": (NOT, NOT, NOT, NOT, 12),
    "planner.candidates": (NOT, NOT, NOT, NOT, 1000),
    "planner.elites": (NOT, NOT, NOT, NOT, 100),
    "planner.iterations": (NOT, NOT, NOT, NOT, 10),
    "planner.warm_start": (NOT, NOT, NOT, NOT, False),
    "planner.leaf": (NOT, NOT, NOT, NOT, False),
    "planner.momentum": (NOT, NOT, NOT, NOT, 0.0),
    "planner.fit": (NOT, NOT, NOT, NOT, "variance"),
    "optimizer.kind": ("keras_adam", "keras_adam", "adam", "laprop", "keras_adam"),
    "optimizer.order": ("together", "model_first", "model_first", "together", "together"),
    "optimizer.warmup": (0, 0, 0, 1000, 0),
    "optimizer.lr": (NOT, NOT, NOT, 4e-5, NOT),
    "optimizer.clip": (NOT, NOT, NOT, 0.3, NOT),
    "optimizer.eps": (NOT, NOT, NOT, 1e-20, NOT),
    "optimizer.model.lr": (6e-4, 3e-4, 1e-4, NOT, 1e-3),
    "optimizer.model.eps": (1e-7, 1e-5, 1e-8, NOT, 1e-4),
    "optimizer.model.clip": (100.0, 100.0, 1000.0, NOT, 1000.0),
    "optimizer.model.decay": (0.0, 1e-6, 0.0, NOT, 0.0),
    "optimizer.actor.lr": (8e-5, 8e-5, 3e-5, NOT, NOT),
    "optimizer.actor.eps": (1e-7, 1e-5, 1e-5, NOT, NOT),
    "optimizer.actor.clip": (100.0, 100.0, 100.0, NOT, NOT),
    "optimizer.actor.decay": (0.0, 1e-6, 0.0, NOT, NOT),
    "optimizer.critic.lr": (8e-5, 8e-5, 3e-5, NOT, NOT),
    "optimizer.critic.eps": (1e-7, 1e-5, 1e-5, NOT, NOT),
    "optimizer.critic.clip": (100.0, 100.0, 100.0, NOT, NOT),
    "optimizer.critic.decay": (0.0, 1e-6, 0.0, NOT, NOT),
    "replay.batch_size": (50, 16, 16, 16, 50),
    "replay.batch_length": (50, 50, 64, 64, 50),
    "replay.online": (False, False, False, True, False),
    "run.train_ratio": (500.0, 160.0, 512.0, 512.0, 500.0),
}

ATARI = {
    "rssm.deter": 600,
    "rssm.hidden": 600,
    "rssm.free_nats": 0.0,
    "loss.dyn": 0.8 * 0.1,
    "loss.rep": 0.2 * 0.1,
    "loss.cont": 5.0,
    "world_model.cont": "probability",
    "world_model.reward_squash": "tanh",
    "behavior.gradient": "reinforce",
    "behavior.return_horizon": 1000.0,
    "behavior.cont_discount": True,
    "behavior.entropy": 1e-3,
    "optimizer.model.lr": 2e-4,
    "optimizer.actor.lr": 4e-5,
    "optimizer.critic.lr": 1e-4,
    "run.train_ratio": 50.0,
}
"""What V2 has on Atari, where it differs from its column above."""

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "family.md"


def resolved(config, key):
    for name in key.split("."):
        config = getattr(config, name)
    return config


@pytest.mark.parametrize(("preset", "column"), list(zip(PRESETS, range(5), strict=True)), ids=PRESETS)
def test_a_preset_has_the_constants_of_its_paper(preset, column):
    config = configs.load([preset], [])
    got = {key: resolved(config, key) for key, row in TABLE.items() if row[column] is not NOT}
    assert got == {key: row[column] for key, row in TABLE.items() if row[column] is not NOT}


def test_v2_on_atari():
    config = configs.load(["dreamer_v2_atari"], [])
    assert {key: resolved(config, key) for key in ATARI} == pytest.approx(ATARI)


@pytest.mark.parametrize("key", TABLE)
def test_the_page_shows_the_same_constants(key):
    (line,) = [line for line in PAGE.read_text().splitlines() if f"`{key}`" in line.split("|")[1:2].__str__()]
    cells = [cell.strip() for cell in line.strip("| \n").split(" | ")]
    assert cells[1:6] == [shown(value) for value in TABLE[key]]
    assert re.search(r"`tests/\S+\.py`", cells[6])


def shown(value):
    if value is NOT:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
