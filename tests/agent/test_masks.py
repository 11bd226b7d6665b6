"""Action masks from end to end: what is forbidden is neither done, nor imagined, nor learned from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.agent import Agent
from dreamer.behaviors.actor_critic import imagine_trajectory
from dreamer.logs.logger import read_metrics
from dreamer.train import train
from dreamer.types import Space
from tests.small import small_batch, small_config

OBS_SPACES = {
    "action_mask.buttons": Space("discrete", (4, 2), 2),
    "action_mask.move": Space("discrete", (3,), 2),
    "vector": Space("vector", (4,)),
}
ACTION_SPACES = {
    "buttons": Space("discrete", (4,), 2),
    "move": Space("discrete", (), 3),
    "push": Space("continuous", (2,)),
}


def random_masks(rng, *lead):
    """Observations in `OBS_SPACES` whose masks allow a random class and some others."""
    obs = {"vector": rng.normal(size=(*lead, 4)).astype(np.float32)}
    for key in ("action_mask.buttons", "action_mask.move"):
        score = rng.random((*lead, *OBS_SPACES[key].shape))
        obs[key] = ((score > 0.7) | (score == score.max(-1, keepdims=True))).astype(np.int32)
    return obs


def masked_batch(seed):
    """`small_batch` in the spaces above; some masks forbid everything, as they may after the end of an episode."""
    rng = np.random.default_rng(seed)
    batch = small_batch(seed)
    obs = random_masks(rng, 2, 4)
    obs["action_mask.move"][0, -1] = 0
    action = {"buttons": rng.integers(0, 2, (2, 4, 4), dtype=np.int32), **batch.prev_action}
    return batch._replace(obs=obs, prev_action=action)


@pytest.fixture(scope="module")
def opinionated():
    """An agent whose policy all but insists on class 0."""
    agent = Agent(small_config(), OBS_SPACES, ACTION_SPACES)
    state = agent.state
    heads = state.nets.behavior.actor.heads
    for head in (heads["buttons"], heads["move"]):
        bias = head.bias[...]
        classes = 2 if bias.size == 8 else 3
        head.bias[...] = jnp.tile(jnp.eye(classes)[0] * 50, bias.size // classes)
    agent.state = state
    return agent


@pytest.mark.parametrize("mode", ["sample", "mode"])
def test_the_policy_takes_allowed_actions_only(opinionated, mode, rng):
    agent = opinionated
    memory, first = agent.initial(8), np.zeros(8, bool)
    wanted = 0
    for _ in range(50):
        obs = random_masks(rng, 8)
        action, memory, _ = agent.policy(memory, obs, first, mode)
        for key in ("buttons", "move"):
            mask, chosen = obs[f"action_mask.{key}"], np.asarray(action[key])
            assert np.take_along_axis(mask, chosen[..., None], -1).all(), key
            wanted += int((mask[..., 0] == 0).sum())
    assert wanted > 500  # so often it would have liked to take what was forbidden


@pytest.mark.slow
def test_updates_with_masks_are_finite():
    agent = Agent(small_config("optimizer.lr=1e-2"), OBS_SPACES, ACTION_SPACES)
    for seed in range(3):
        _, metrics = agent.update(masked_batch(seed))
        assert np.isfinite([float(value) for value in metrics.values()]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(agent.state.nets))


@pytest.mark.slow
def test_every_member_of_a_population_obeys_its_own_masks(opinionated, rng):
    """Three members with one and the same opinion, and with masks that differ."""
    nets, policy = opinionated.state.nets, opinionated.algorithm.policy

    def act(obs, key):
        return policy(nets, opinionated.initial(8), obs, jnp.ones(8, bool), key, "sample")[0]

    together = jax.jit(jax.vmap(act))
    for number in range(10):
        obs = random_masks(rng, 3, 8)
        action = together(obs, jax.random.split(jax.random.key(number), 3))
        for key in ("buttons", "move"):
            chosen = np.asarray(action[key])
            assert np.take_along_axis(obs[f"action_mask.{key}"], chosen[..., None], -1).all(), key


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An agent after a run on `probe_masked`, which refuses forbidden actions: sampled, and at the end its mode."""
    logdir = tmp_path_factory.mktemp("masked")
    overrides = (
        "task=probe_masked",
        "env.count=4",
        "rssm={deter: 32, hidden: 32, classes: 4, free_nats: 0}",
        "nets.units=32",
        "behavior.horizon=5",
        "optimizer.lr=3e-3",
        "replay={batch_size: 8, batch_length: 16}",
        "run={env_steps: 1500, train_ratio: 32, eval_episodes: 4, log_every: 0}",
        f"logdir={logdir}",
    )
    return train(config=small_config(*overrides), quiet=True)


@pytest.mark.slow
def test_the_agent_learns_what_is_best_among_allowed_actions(trained):
    scores = [
        line["episode/score"] for line in read_metrics(trained.logdir / "metrics.jsonl") if "episode/score" in line
    ]
    assert np.mean(scores[-20:]) > 2
    assert trained.evaluation.scores == (3.0, 3.0, 3.0, 3.0)


@pytest.mark.slow
def test_imagined_actions_obey_the_predicted_masks_which_are_the_true_ones(trained):
    agent, count = trained.agent, 64
    obs = {"action_mask": np.ones((count, 3), np.int32)}
    _, memory, _ = agent.policy(agent.initial(count), obs, np.ones(count, bool))

    @jax.jit
    def imagine(nets, start):
        # Equal logits, since a policy that has learned to obey would prove little.
        both = nets.behavior._replace(actor=jax.tree.map(jnp.zeros_like, nets.behavior.actor))
        trajectory = imagine_trajectory(nets.world_model, both, both.critic, start, 5, jax.random.key(1))
        return trajectory.action["action"], trajectory.extras.masks["action"]

    action, mask = jax.device_get(imagine(agent.state.nets, memory.state))
    assert mask.shape == (6, count, 3)
    assert np.take_along_axis(mask, action[..., None], -1).all()
    # The game forbids nothing at first, and then the action before.
    true = np.concatenate([np.ones((1, count, 3), bool), action[:-1, :, None] != np.arange(3)])
    assert (mask == true).mean() > 0.98
