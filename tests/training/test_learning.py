"""Learning probes: a task with a known answer that takes world model, critic and actor, each of them, and one batch.

The first observation shows a cue. Only the first action counts; whether it equalled the cue is visible from then on,
and pays +1 or -1 five steps later. Imagination looks two steps ahead, so the payment is out of its reach: the actor
learns only from a critic that has carried it back, and only if the model predicts what the first action does.
"""

import pathlib

import gymnasium
import jax
import numpy as np
import pytest

from dreamer import config as configs
from dreamer.agent import Agent
from dreamer.logs.logger import read_metrics
from dreamer.nn.observations import Encoder
from dreamer.train import train
from dreamer.types import Batch, Space
from dreamer.world_models.rssm import RSSM, StoredLatent

pytestmark = [pytest.mark.slow, pytest.mark.shipped]


class DelayedChoice(gymnasium.Env):
    """Observation: cue (first step only), outcome so far, time. Best return 1, of a random policy 0."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    length = 6

    def _observation(self) -> np.ndarray:
        cue = self.cue if self.time == 0 else 0
        return np.array([cue, self.outcome, self.time / self.length], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cue = int(self.np_random.choice([-1, 1]))
        self.outcome, self.time = 0, 0
        return self._observation(), {}

    def step(self, action):
        if self.time == 0:
            self.outcome = 1 if 2 * action - 1 == self.cue else -1
        self.time += 1
        over = self.time == self.length
        return self._observation(), float(self.outcome if over else 0), over, False, {}


def score(logdir: pathlib.Path, *overrides: str) -> float:
    """Mean return of the last 100 training episodes, whose actions are sampled, after a short training."""
    config = configs.load(
        [],
        [
            "env.count=4",
            "replay={batch_size: 8, batch_length: 16, capacity: 10000}",
            "rssm={deter: 32, hidden: 32, stoch: 4, classes: 4, blocks: 2, prior_layers: 1}",
            "nets={units: 32, encoder_layers: 1, decoder_layers: 1, actor_layers: 1, critic_layers: 1, dtype: float32}",
            "behavior={horizon: 2, starts: 8}",
            "optimizer={lr: 2e-3, warmup: 20}",
            "run={env_steps: 3000, train_ratio: 32, eval_episodes: 0}",
            f"logdir={logdir}",
            *overrides,
        ],
    )
    train(env=DelayedChoice, config=config, quiet=True)
    scores = [line["episode/score"] for line in read_metrics(logdir / "metrics.jsonl") if "episode/score" in line]
    return float(np.mean(scores[-100:]))


def test_the_agent_learns(tmp_path):
    assert score(tmp_path) > 0.7


@pytest.mark.parametrize("broken", ["loss.actor=0", "loss={critic: 0, replay_critic: 0}"], ids=["actor", "critic"])
def test_it_does_not_learn_without_a_loss(broken, tmp_path):
    assert score(tmp_path, broken) < 0.4


@pytest.mark.parametrize("part", ["encoder", "action"])
def test_it_does_not_learn_with_a_broken_world_model(part, tmp_path, monkeypatch):
    """Blind to the observation, or to the action: the reward head and the replay loss make up for smaller faults."""
    owner, name = (Encoder, "__call__") if part == "encoder" else (RSSM, "flatten_action")
    intact = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda self, *args: 0 * intact(self, *args))
    assert score(tmp_path, "seed=1") < 0.4


def drifting(rows: int = 8, steps: int = 16) -> Batch:
    """Sequences of place and speed of carts that drift, each to the step on which its place is first beyond 1."""
    rng = np.random.default_rng(0)
    speed, side = rng.uniform(0.02, 0.1, (rows, 1)), rng.choice([-1, 1], (rows, 1))
    place = 1.01 + speed * np.arange(1 - steps, 1)
    shape, step = (rows, steps), np.broadcast_to(np.arange(steps), (rows, steps))
    return Batch(
        obs={"vector": np.stack([place * side, np.broadcast_to(speed * side, shape)], -1).astype(np.float32)},
        prev_action={"action": rng.integers(0, 2, shape).astype(np.int32)},
        reward=np.ones(shape, np.float32),
        is_first=step == 0,
        is_last=step == steps - 1,
        is_terminal=step == steps - 1,
        stored=StoredLatent(np.zeros((rows, 32), np.float32), np.zeros((rows, 4), np.uint8)),
    )


def test_one_batch_teaches_where_episodes_end():
    """The check that found why carts drifted: a model that does not keep the ends of one batch learns no rare ones."""
    overrides = [
        "replay={batch_size: 8, batch_length: 16}",
        "rssm={deter: 32, hidden: 32, stoch: 4, classes: 4, blocks: 2, prior_layers: 1}",
        "nets={units: 32, encoder_layers: 1, decoder_layers: 1, actor_layers: 1, critic_layers: 1, dtype: float32}",
        "behavior={horizon: 5, starts: 8, replay_gradient: false}",
        "optimizer={lr: 2e-3, warmup: 20, anneal: 400}",
        "seed=1",
    ]
    batch, spaces = drifting(), ({"vector": Space("vector", (2,))}, {"action": Space("discrete", (), 2)})
    agent = Agent(configs.load([], overrides), *spaces)
    for _ in range(500):
        agent.update(batch)
    model = agent.state.nets.world_model
    going_on = np.asarray(model.cont(model.observe(batch, jax.random.key(0)).states)).mean(0)
    assert going_on[-1] < 0.2 and going_on[:-3].min() > 0.9
