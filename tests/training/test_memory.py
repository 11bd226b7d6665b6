"""Learning probes of memory, with the setting for small tasks: a cue of one step decides a choice one step later."""

import pathlib

import numpy as np
import pytest

from dreamer import config as configs
from dreamer.logs.logger import read_metrics
from dreamer.train import train
from dreamer.world_models.rssm import RSSM

pytestmark = [pytest.mark.slow, pytest.mark.shipped]

BEFORE = ("loss.reward_lift=0", "optimizer.lr=1e-3", "behavior.replay_gradient=true")
"""What the presets for small tasks had until rewards were lifted."""


def score(logdir: pathlib.Path, *overrides: str) -> float:
    """Mean return of the last 100 training episodes, whose actions are sampled; 1 at best, 0 without memory."""
    words = [
        "env.count=1",
        "behavior.horizon=3",
        "run={env_steps: 3000, eval_episodes: 0}",
        "logger={tensorboard: false, pictures_every: 0}",
        f"logdir={logdir}",
        *overrides,
    ]
    train(config=configs.load(["memory/cue1"], words), quiet=True)
    scores = [line["episode/score"] for line in read_metrics(logdir / "metrics.jsonl") if "episode/score" in line]
    return float(np.mean(scores[-100:]))


def test_a_cue_is_remembered(tmp_path):
    assert score(tmp_path) > 0.7


def test_a_reward_that_is_not_lifted_drowns(tmp_path):
    assert score(tmp_path, *BEFORE) < 0.4


def test_no_cue_is_remembered_by_a_recurrent_state_that_carries_nothing(tmp_path, monkeypatch):
    intact = RSSM.recurrence
    monkeypatch.setattr(RSSM, "recurrence", lambda self, latent, action: 0 * intact(self, latent, action))
    assert score(tmp_path) < 0.4
