"""The preset of R2-Dreamer has the constants of its official code, NM512/r2dreamer, for DeepMind Control."""

import pytest

from dreamer import config as configs

# Keys here, and values there: configs/model/_base_.yaml, size12M.yaml and env/dmc_vision.yaml.
OFFICIAL = {
    "world_model.decoder": False,
    "world_model.representation": "barlow",  # rep_loss: r2dreamer
    "loss.barlow": 0.05,
    "loss.redundancy": 5e-4,  # r2dreamer.lambd
    "loss.infonce": 1.0,
    "loss.reward": 1.0,
    "loss.cont": 1.0,
    "loss.dyn": 1.0,
    "loss.rep": 0.1,
    "loss.actor": 1.0,
    "loss.critic": 1.0,
    "loss.replay_critic": 0.3,
    "loss.straighten": 0.0,
    "rssm.deter": 2048,
    "rssm.hidden": 256,
    "rssm.stoch": 32,
    "rssm.classes": 16,
    "rssm.blocks": 8,
    "rssm.prior_layers": 2,
    "rssm.posterior_layers": 1,
    "rssm.unimix": 0.01,
    "rssm.free_nats": 1.0,
    "nets.units": 256,
    "nets.depth": 16,
    "nets.mults": (2, 3, 4, 4),
    "nets.kernel": 5,
    "nets.reward_layers": 1,
    "nets.cont_layers": 1,
    "nets.actor_layers": 3,
    "nets.critic_layers": 3,
    "nets.bins": 255,
    "behavior.horizon": 15,
    "behavior.return_horizon": 333,
    "behavior.return_lambda": 0.95,
    "behavior.cont_discount": False,
    "behavior.entropy": 3e-4,
    "behavior.actor_unimix": 0.01,
    "behavior.min_std": 0.1,
    "behavior.max_std": 1.0,
    "behavior.slow_rate": 0.02,
    "optimizer.lr": 4e-5,
    "optimizer.warmup": 1000,
    "optimizer.clip": 0.3,
    "optimizer.clip_min": 1e-3,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "optimizer.eps": 1e-20,
    "replay.batch_size": 16,
    "replay.batch_length": 64,
    "replay.capacity": 500_000,
    "env.count": 16,
    "env.repeat": 2,
    "env.dmc.obs": "pixels",
    "env.dmc.size": (64, 64),
    "run.train_ratio": 512,
}


@pytest.mark.parametrize("key", OFFICIAL)
def test_a_constant_is_the_official_one(key):
    assert dict(configs.flatten(configs.load(["decoder_free"])))[key] == OFFICIAL[key]


def test_a_smaller_size_goes_on_top():
    config = configs.load(["decoder_free", "size/tiny"])
    assert (config.rssm.deter, config.world_model.representation) == (128, "barlow")
