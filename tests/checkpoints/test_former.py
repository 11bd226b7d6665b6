"""Checkpoints of the format before: every array is found under its name of today, and nothing is lost."""

import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dreamer import checkpoints
from dreamer.checkpoints import former, transfer
from dreamer.types import Space
from tests.small import same_tree, small_agent, small_config


def name_of_version_3(name):
    """The name that version 3 gave to an array of today's training state."""
    name = re.sub(r"^(nets|acting|opt_state\.\d+\.\w+)\.behavior\.", r"\1.", name)
    name = name.removeprefix("memory.behavior.")
    return name.replace(".from_recurrent.", ".from_deter.").replace(".from_sample.", ".from_stoch.")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint as version 3 wrote it, and the agent that it holds."""
    agent = small_agent()
    agent.state = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), agent.state)
    logdir = tmp_path_factory.mktemp("former")
    prepared = checkpoints.prepare(agent, {"fields": {}}, {"env_steps": 7})
    state = {name_of_version_3(name): array for name, array in prepared.state.items()}
    assert {"nets.actor.mlp.layers.0.linear.kernel", "slow_critic.head.bias", "return_range.low"} <= state.keys()
    assert "opt_state.1.nu.critic.head.kernel" in state
    meta = json.dumps({**json.loads(prepared.meta), "version": 3})
    checkpoints.write(logdir, 7, prepared._replace(state=state, meta=meta))
    return logdir, agent


@pytest.mark.slow
def test_an_agent_is_restored(saved):
    logdir, agent = saved
    other = small_agent("seed=5")
    checkpoints.restore_agent(other, checkpoints.load(logdir))
    assert same_tree(other.state, agent.state)


@pytest.mark.slow
def test_parameters_are_taken_from_it(saved):
    logdir, agent = saved
    taken = transfer.read(small_config(f"load.from={logdir}", "load.only=actor"), agent.state.nets)
    assert taken.fresh == {}
    actor = {name: x for name, x in taken.arrays.items() if name.startswith("behavior.actor.")}
    assert actor.keys() == taken.arrays.keys()
    assert same_tree(list(actor.values()), jax.tree.leaves(agent.state.nets.behavior.actor))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("step", "step"),
        ("nets.world_model.rssm.mix.kernel", "nets.world_model.rssm.mix.kernel"),
        ("nets.world_model.decoder.images.0.from_deter.bias", "nets.world_model.decoder.images.0.from_recurrent.bias"),
        ("nets.critic.head.bias", "nets.behavior.critic.head.bias"),
        ("opt_state.2.ema.actor.heads.move.bias", "opt_state.2.ema.behavior.actor.heads.move.bias"),
        ("acting.actor.mlp.layers.0.norm.scale", "acting.behavior.actor.mlp.layers.0.norm.scale"),
        ("return_range.high", "memory.behavior.return_range.high"),
    ],
)
def test_names_by_hand(old, new):
    assert former.state_name(old) == new


def test_the_last_action_is_split_by_key():
    spaces = {"push": Space("continuous", (2,)), "buttons": Space("discrete", (2,), 3)}
    flat = np.array([[0, 1, 0, 0, 0, 1, 0.5, -2.0], [0] * 8], np.float32)  # Two buttons of three classes, then push.
    for given in (flat, flat.astype(ml_dtypes.bfloat16).view(np.uint16)):
        actions = former.split_action(given, spaces)
        assert list(actions) == ["buttons", "push"]
        np.testing.assert_array_equal(actions["buttons"], [[1, 2], [0, 0]])
        np.testing.assert_array_equal(actions["push"], [[0.5, -2.0], [0, 0]])
        assert actions["buttons"].dtype == np.int32


def test_what_a_member_carries_has_names_of_today():
    spaces = {"move": Space("discrete", (), 2)}
    fields: dict[str, np.ndarray] = {
        "memory.latent.deter": np.ones(3),
        "memory.prev_action": np.array([[0.0, 1.0]], np.float32),
        "latents.stoch": np.ones(2),
        "fields.reward": np.ones(4),
    }
    found = former.member_arrays(fields, spaces)
    assert found.keys() == {"memory.state.deter", "memory.prev_action.move", "stored.stoch", "fields.reward"}
    np.testing.assert_array_equal(found["memory.prev_action.move"], [1])
