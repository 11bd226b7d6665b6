"""Several devices train as one does: the same numbers, nothing sent that need not be, acting on a single device."""

import functools
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import checkpoints
from dreamer.agent import Agent
from dreamer.config import ConfigError, load
from dreamer.devices import placement as devices
from dreamer.devices.placement import Placement, ShardedPlacement, launch
from dreamer.equations import returns
from dreamer.equations.returns import ReturnRange
from tests.small import ACTION_SPACES, OBS_SPACES, same_tree, small_batch, small_config

ROWS = 8


def agent_on(placement, *overrides):
    return Agent(small_config("behavior.return_rate=0.5", *overrides), OBS_SPACES, ACTION_SPACES, placement)


def train(agent, updates=3):
    """Latents and metrics of every update, on the host."""
    results = []
    for seed in range(updates):
        latents, metrics = agent.update(small_batch(seed, rows=ROWS))
        results.append((agent.placement.fetch_rows(latents), jax.device_get(metrics)))
    return results


def assert_close(one, two, rtol=2e-4, atol=2e-5):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two), strict=True):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=atol, err_msg=name)


@functools.cache
def start_state():
    """A fresh state whose heads, which start at zero, give something to learn from and take percentiles of."""
    state = agent_on(None).state
    rng = np.random.default_rng(7)
    nets = jax.tree.map(lambda x: np.asarray(x) + 0.3 * rng.normal(size=x.shape).astype(np.float32), state.nets)
    memory = state.memory._replace(behavior=state.memory.behavior._replace(slow_critic=nets.behavior.critic))
    return jax.tree.map(np.asarray, state._replace(nets=nets, memory=memory))


@pytest.fixture(scope="module")
def alone():
    agent = agent_on(None)
    agent.state = jax.tree.map(jnp.array, start_state())
    return agent, train(agent)


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in ("replicated", "sharded")]
)
def together(request):
    agent = agent_on(ShardedPlacement(jax.devices()[:4], request.param))
    fresh = agent.placement.fetch_state(jax.tree.leaves(agent.state))
    agent.state = start_state()
    return agent, train(agent), fresh


def test_four_devices_give_the_numbers_of_one(alone, together):
    assert_close(jax.tree.leaves(agent_on(None).state), together[2])
    assert_close(alone[1], together[1])
    assert_close(alone[0].state, together[0].state)
    assert together[0]._jit_update._cache_size() == 1


def test_what_lies_where(together):
    agent = together[0]
    kernel = agent.state.nets.world_model.rssm.gates.kernel[...]
    assert kernel.is_fully_replicated and len(kernel.devices()) == 4
    parts = {x.addressable_data(0).size * 4 == x.size for x in jax.tree.leaves(agent.state.opt_state)}
    sharded = agent.placement._smallest == 1
    # Those of odd sizes are whole even then.
    assert parts == ({True, False} if sharded else {False})


def test_no_activation_leaves_its_device(together):
    """Devices exchange gradients, moments, sums, and the imagined returns for their percentiles: nothing else."""
    agent = together[0]
    compiled = agent._jit_update.lower(
        *agent._split(agent._leaves), small_batch(rows=ROWS), agent._update_key
    ).compile()
    program = compiled.as_text()
    # Nothing is exchanged in a loop, where devices would wait for one another at every step.
    bodies = set(re.findall(r"body=(%[\w.-]+)", program))
    loops = [part for part in program.split("\n\n") if part.split(" ", 1)[0] in bodies]
    assert len(bodies) == len(loops) > 3
    assert not re.search(r" (all-reduce|all-gather|reduce-scatter)(?:-start)?\(", "".join(loops))
    moved = {
        (kind, shape)
        for shapes, kind in re.findall(r"= (\S.*?) (all-gather|all-to-all|collective-permute)(?:-start)?\(", program)
        for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)
    }
    starts, horizon = ROWS * 4, agent.config.behavior.horizon
    parameters = {",".join(map(str, x.shape)) for x in jax.tree.leaves(agent.state)}
    parameters |= {"2,8,8", "2,24,8"}  # The mixing kernel is used in two parts.
    assert {shape for kind, shape in moved if kind == "all-gather"} - parameters == {f"{horizon},{starts}"}
    if agent.placement._smallest > 1:  # Otherwise parts of small parameters are exchanged as well.
        assert {kind for kind, _ in moved} == {"all-gather"}


def test_percentiles_are_those_of_the_whole_batch(alone, together, monkeypatch):
    """The mean of percentiles that each device takes of its own part would be a mistake; this would notice it."""

    def per_device(previous, returns, rate):
        parts = returns.reshape(returns.shape[0], 4, -1)
        low, high = jnp.percentile(parts, jnp.array([5.0, 95.0]), axis=(0, 2)).mean(1)
        return ReturnRange(previous.low + rate * (low - previous.low), previous.high + rate * (high - previous.high))

    names = ("imagined/return_low", "imagined/return_high")
    right, found = ([metrics[name] for name in names] for metrics in (alone[1][0][1], together[1][0][1]))
    assert_close(right, found, atol=0)
    monkeypatch.setattr(returns, "update_return_range", per_device)
    state, agent = start_state(), alone[0]
    key = jax.random.fold_in(agent._update_key, 0)
    batch = small_batch(0, rows=ROWS)
    loss = jax.jit(agent.algorithm.loss, static_argnums=4)
    aux = loss(state.nets, state.memory, batch, key, agent.config)
    wrong = [aux.metrics[name] for name in names]
    assert np.abs(np.array(wrong) / np.array(right) - 1).max() > 0.02


def test_acting_needs_one_device_and_gives_the_actions_of_one(alone, together):
    obs = {key: value[:, 0] for key, value in small_batch(rows=2).obs.items()}
    first = np.ones(2, bool)
    for agent in (alone[0], together[0]):
        agent.policy_steps = 10
    answers = [agent.policy(agent.initial(2), obs, first) for agent in (alone[0], together[0])]
    assert {d for x in jax.tree.leaves(answers[1]) for d in x.devices()} == {jax.devices()[0]}
    assert_close(*answers)
    near = together[0]._near[1]
    together[0].policy(together[0].initial(2), obs, first)
    assert together[0]._near[1] is near and together[0]._policy._cache_size() == 1
    # They are the parameters themselves and no copies.
    kernel = together[0].state.nets.behavior.critic.head.kernel[...].addressable_data(0)
    assert any(x.unsafe_buffer_pointer() == kernel.unsafe_buffer_pointer() for x in near)


def test_acting_follows_every_update(together):
    agent, obs = together[0], {key: value[:, 0] for key, value in small_batch(rows=2).obs.items()}
    agent.policy(agent.initial(2), obs, np.ones(2, bool))
    before = [np.array(x) for x in agent._near[1]]
    agent.update(small_batch(9, rows=ROWS))
    agent.explore(agent.initial(2), obs, np.ones(2, bool))
    assert same_tree(before, agent._near[1])
    agent.policy(agent.initial(2), obs, np.ones(2, bool))
    assert not same_tree(before, agent._near[1])
    assert same_tree(agent._near[1], agent.placement.fetch_state(jax.tree.leaves(agent.state.nets)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["devices=3"], r"devices=3 .*batch_size=16 .*evenly\. Choose devices=1 or 2 or 4 or 8, or .* multiple of 3"),
        (
            ["devices=9"],
            r"devices=9 cannot be used: this machine shows JAX 8 of the kind cpu\. Choose a number up to 8",
        ),
        (["devices=0"], r"devices=0 cannot be used: expected a number from 1 on, or all"),
        (["devices=some"], r"devices=some cannot be used: expected a number from 1 on, or all"),
        (
            ["devices=all", "replay.batch_size=12"],
            r"8 device\(s\) in all cannot share .*Choose devices=1 or 2 or 3 or 4 or 6, or",
        ),
    ],
)
def test_numbers_of_devices_that_cannot_be(overrides, message):
    with pytest.raises(ConfigError, match=message):
        devices.placement(small_config("replay.batch_size=16", *overrides))


def test_the_config_chooses_the_devices():
    assert type(devices.placement(small_config())) is Placement
    assert devices.placement(small_config("replay.batch_size=16", "devices=all")).count == 8
    assert devices.placement(small_config("replay.batch_size=6", "devices=2")).count == 2


def test_checkpoints_know_no_number_of_devices(alone, together, tmp_path):
    def save(agent, name):
        (tmp_path / name).mkdir()
        checkpoints.save(tmp_path / name, 1, agent, {"fields": {"reward": np.zeros(3)}}, {})

    def restore(agent, name):
        checkpoints.restore_agent(agent, checkpoints.load(tmp_path / name))

    def contents(agent):
        return agent.placement.fetch_state(list(checkpoints.state_arrays(agent).values()))

    one, four, batch = alone[0], together[0], small_batch(11, rows=ROWS)
    save(one, "before")
    save(four, "four")
    restore(one, "four")
    assert same_tree(contents(one), contents(four))
    # Exact on as many devices, and close on others.
    four.update(batch)
    first = contents(four)
    restore(four, "four")
    four.update(batch)
    assert same_tree(first, contents(four))
    one.update(batch)
    assert_close(contents(one), first)
    save(one, "one")
    restore(four, "one")
    assert same_tree(contents(one), contents(four)) and four._jit_update._cache_size() == 1
    four.update(batch)
    one.update(batch)
    assert_close(contents(one), contents(four))
    restore(one, "before")  # It is compared with other agents as well.


def test_short_programs_run_beside_a_long_one_that_was_launched():
    # A rotation; JAX runs programs of less than a thousand operations in the thread that starts them.
    turn = jnp.kron(jnp.eye(32), jnp.array([[0.0, 1.0], [-1.0, 0.0]]))
    program = jax.jit(lambda rounds: jax.lax.fori_loop(0, rounds, lambda _, x: x @ turn, jnp.eye(64)))
    jax.block_until_ready(program(3))
    long = launch(program, 100_001)
    short = jax.block_until_ready(program(3))
    assert not long.is_ready()
    np.testing.assert_array_equal(short, -turn)
    np.testing.assert_array_equal(long, turn)


@pytest.mark.parametrize(("backend", "hosts", "concurrent"), [("cpu", 1, True), ("cpu", 2, False), ("gpu", 1, False)])
def test_a_launch_keeps_the_order_of_one_thread_where_it_must(backend, hosts, concurrent, monkeypatch):
    """On two hosts, updates that ran concurrently with other messages raised "distributed collective mismatch"."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "process_count", lambda: hosts)
    assert (launch(threading.get_ident) != threading.get_ident()) is concurrent


def test_users_are_told_what_to_expect(monkeypatch):
    large, small = load([], ["replay.batch_size=64"]), load(["size/1m"])
    four, two = ShardedPlacement(jax.devices()[:4]), ShardedPlacement(jax.devices()[:2])
    assert devices.expectation(large, 150_000_000, Placement()) == ""
    assert "share the cores of one CPU: together they are hardly" in devices.expectation(large, 150_000_000, four)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert devices.expectation(large, 150_000_000, four) == ""
    # 640,867 parameters * 16 * (6 * 64 + 2.5 * 64 * 15) states / 5e13; 3 * 64 + 15 steps of 0.1 ms.
    said = devices.expectation(small, 640_867, two)
    assert "2 devices are expected to update about 1.0 times" in said
    assert "each has 0.29 ms of arithmetic, and all of them 21 ms of steps" in said


def test_users_are_told_of_a_dtype_that_is_slow_on_their_cpu(monkeypatch):
    wide, narrow = load(["size/1m"], ["nets.dtype=float32"]), load(["size/1m"])
    assert "nets.dtype=bfloat16 is for accelerators" in devices.dtype_advice(narrow)
    assert devices.dtype_advice(wide) == ""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert devices.dtype_advice(narrow) == ""
    assert devices.compiler_options() is None
