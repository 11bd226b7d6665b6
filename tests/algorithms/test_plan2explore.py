"""Plan2Explore: who acts when, which loss reaches which parameters, and what a Dreamer takes over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import algorithms, checkpoints
from dreamer.agent.diagnosis import gradients_by_loss
from dreamer.checkpoints import transfer
from dreamer.config import ConfigError
from dreamer.config.population import with_numbers
from tests.small import ACTION_SPACES, OBS_SPACES, same_tree, small_agent, small_batch, small_config

SIZES = ("algorithm=plan2explore", "exploration={heads: 2, units: 8, layers: 1}", "rssm.free_nats=0")
CEM = "planner={kind: cem, horizon: 2, candidates: 8, elites: 2, iterations: 1}"


@pytest.fixture(scope="module")
def agent():
    """An agent whose parameters are moved, because heads that predict zeros have no gradient."""
    agent = small_agent(*SIZES)
    rng = np.random.default_rng(0)
    nets = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), agent.state.nets)
    agent.state = agent.state._replace(nets=nets)
    return agent


def observation(rows=4):
    return {key: np.asarray(value)[:, 0] for key, value in small_batch(rows=rows).obs.items()}


def parts(nets):
    return {
        "world_model": nets.world_model,
        "task_actor": nets.behavior.actor,
        "task_critic": nets.behavior.critic,
        "ensemble": nets.bonus.bonus,
        "explorer_actor": nets.bonus.behavior.actor,
        "explorer_critic": nets.bonus.behavior.critic,
    }


def test_which_loss_reaches_which_parameters(agent):
    state = agent.state
    measure = jax.jit(gradients_by_loss(agent.algorithm.loss, parts), static_argnums=4)
    found, _ = measure(state.nets, state.memory, small_batch(), jax.random.key(0), agent.config)
    reached: dict[str, set[str]] = {}
    for name, value in found.items():
        loss, _, part = name.removeprefix("diagnose/gradient/").rpartition("/")
        reached.setdefault(loss, set()).update({part} if value > 0 else ())
    assert reached == {
        **{name: {"world_model"} for name in ("obs/label", "obs/vector", "reward", "cont", "dyn", "rep")},
        "actor": {"task_actor"},
        "critic": {"task_critic"},
        "replay_critic": {"task_critic", "world_model"},
        "bonus": {"ensemble"},
        "explorer/actor": {"explorer_actor"},
        "explorer/critic": {"explorer_critic"},
        "explorer/replay_critic": {"explorer_critic"},
    }


def test_the_explorer_does_not_see_rewards_unless_it_is_told_to(agent):
    batch = small_batch()
    other = batch._replace(reward=batch.reward + 5)

    @jax.jit
    def losses(extrinsic, batch):
        config = with_numbers(agent.config, {"exploration.extrinsic": extrinsic})
        found = agent.algorithm.loss(agent.state.nets, agent.state.memory, batch, jax.random.key(0), config).losses
        return {name: values for name, (_, values) in found.items()}

    for extrinsic in (0.0, 1.0):
        one, two = (losses(extrinsic, each) for each in (batch, other))
        assert not same_tree(one["replay_critic"], two["replay_critic"])
        assert same_tree(one["explorer/replay_critic"], two["explorer/replay_critic"]) == (extrinsic == 0)


def test_each_policy_has_its_own_weight_of_the_entropy(agent):
    @jax.jit
    def losses(entropy, explorers):
        config = with_numbers(agent.config, {"behavior.entropy": entropy, "exploration.explorer_entropy": explorers})
        key = jax.random.key(0)
        found = agent.algorithm.loss(agent.state.nets, agent.state.memory, small_batch(), key, config).losses
        return {name: values for name, (_, values) in found.items()}

    before = losses(0.0, 0.0)
    for values, changed in (((1.0, 0.0), {"actor"}), ((0.0, 1.0), {"explorer/actor"})):
        after = losses(*values)
        assert {name for name in after if not same_tree(after[name], before[name])} == changed


@pytest.mark.parametrize("acts", ["task", "explorer"])
def test_the_explorer_acts_in_training_and_the_task_in_evaluation(agent, acts):
    nets, memory = agent.state.nets, agent.initial(4)
    none = jax.tree.map(jnp.zeros_like, nets.behavior)
    other = nets._replace(behavior=none)
    if acts == "explorer":
        other = nets._replace(bonus=nets.bonus._replace(behavior=none))

    def action(nets, mode):
        return agent.algorithm.policy(nets, memory, observation(), jnp.ones(4, bool), jax.random.key(1), mode)[0]

    mode = {"task": "mode", "explorer": "sample"}
    changed = {name: not same_tree(action(nets, mode[name]), action(other, mode[name])) for name in mode}
    assert changed == {name: name == acts for name in mode}


def test_a_planner_acts_for_the_task_alone(agent):
    planned = small_agent(*SIZES, CEM)
    nets, key = agent.state.nets, jax.random.key(1)
    memory, first = planned.initial(4), jnp.ones(4, bool)
    action, after, _ = planned.algorithm.policy(nets, memory, observation(), first, key, "sample")
    own, _, _ = agent.algorithm.policy(nets, agent.initial(4), observation(), first, key, "sample")
    assert same_tree(action, own)
    assert same_tree(after.plan, memory.plan)
    assert not same_tree(planned.algorithm.policy(nets, memory, observation(), first, key, "mode")[1].plan, memory.plan)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((CEM, "behavior.kind=none"), r"behavior\.kind=none cannot be used with algorithm=plan2explore"),
        (("optimizer.order=model_first",), r"order=model_first cannot be used .* Use optimizer\.order=together"),
    ],
)
def test_what_it_cannot_do_is_refused_in_one_sentence(overrides, message):
    with pytest.raises(ConfigError, match=message):
        algorithms.make(small_config(*SIZES, *overrides), OBS_SPACES, ACTION_SPACES)


def test_targets_of_both_follow(agent):
    batch, state = small_batch(), agent.state
    after = jax.jit(agent.algorithm.update, static_argnums=3)(state, batch, jax.random.key(0), agent.config)[0]
    for nets, memory, before in (
        (after.nets.behavior, after.memory.behavior, state.memory.behavior),
        (after.nets.bonus.behavior, after.memory.bonus.behavior, state.memory.bonus.behavior),
    ):
        new, old, slow = (x.head.kernel[...] for x in (nets.critic, before.slow_critic, memory.slow_critic))
        np.testing.assert_allclose(slow, old + 0.02 * (new - old), rtol=1e-5, atol=1e-7)
        assert memory.return_range.high != before.return_range.high
    assert after.memory.bonus.bonus.typical != state.memory.bonus.bonus.typical


def test_a_dreamer_takes_over_all_that_it_has(agent, tmp_path):
    checkpoints.save(tmp_path, 70, agent, {"fields": {}}, {"env_steps": 70})
    config = small_config(f"load.from={tmp_path}")
    shapes = jax.eval_shape(algorithms.make(config, OBS_SPACES, ACTION_SPACES).init, jax.random.key(0))
    taken = transfer.read(config, shapes.nets)
    assert taken.fresh == {}
    nets = checkpoints.named_arrays(agent.state.nets)
    assert {"world_model", "behavior"} == {name.split(".")[0] for name in taken.arrays}
    assert all(same_tree(array, nets[name]) for name, array in taken.arrays.items())
