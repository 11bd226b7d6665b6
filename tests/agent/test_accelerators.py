"""What runs on accelerators, as far as a CPU can tell: the same numbers, in programs that lower for GPUs and TPUs.

Where the backend decides how something is computed, all of those places are switched here together.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dreamer.agent import Agent, learning
from dreamer.config.population import members
from dreamer.devices import batch_axis
from dreamer.envs import native
from dreamer.training.device_program import DeviceLoop
from dreamer.types import Space
from tests.small import ACTION_SPACES, OBS_SPACES, small_batch, small_config

ALL_KINDS = {**OBS_SPACES, "action_mask.move": Space("discrete", (3,), 2), "image": Space("image", (16, 16, 3))}
"""Observations of every kind, masks included."""

BACKENDS = {"cuda": "gpu", "tpu": "tpu"}
"""Platforms of programs, and what JAX calls the backend that runs them."""

WINDOW = 8


@pytest.fixture(scope="module")
def batch():
    """Four rows of `ALL_KINDS`."""
    rng, plain = np.random.default_rng(0), small_batch(rows=4)
    lead = plain.reward.shape
    image = rng.integers(0, 256, (*lead, 16, 16, 3), dtype=np.uint8)
    mask = rng.integers(0, 2, (*lead, 3), dtype=np.int32)
    obs = {**plain.obs, "action_mask.move": mask, "image": image}
    return jax.tree.map(jnp.asarray, plain._replace(obs=obs))


def gradient(agent, batch, count=1):
    """Total, gradient and metrics of an update, as the backend of now computes them on this many devices."""
    assert agent.algorithm.loss is not None
    loss = agent.algorithm.loss

    def program(*args):
        return learning._gradient(loss, agent.config)(*args)

    if count > 1:
        mesh = Mesh(np.array(jax.devices()[:count]), (batch_axis.AXIS,), axis_types=(AxisType.Auto,))
        program = batch_axis.for_devices(mesh, program)
        batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec(batch_axis.AXIS)))
    state = jax.tree.map(np.asarray, agent.state)
    found, _, _ = jax.jit(program)(state.nets, state.memory, batch, jax.random.key(3))
    return jax.device_get(found)


def population(*overrides):
    """A loop of two members that learn at different rates."""
    run = ["task=jax_memory", "run.loop=device", "env.count=3", "replay.capacity=36", "population.lr=[1e-3,4e-3]"]
    config = small_config(*run, *overrides)
    return DeviceLoop(config, members(config), native.build("memory"))


def close(one, two):
    """Assert that the leaves of two pytrees are nearly the same numbers, beside the largest of each."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(two), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if np.issubdtype(a.dtype, np.floating):
            size = np.nanmax(np.abs(a), initial=0)
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * size, err_msg=jax.tree_util.keystr(path))
        else:
            np.testing.assert_array_equal(b, a, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def agent():
    """One whose heads, which start at zero, say something; above all, which actions are allowed."""
    agent = Agent(small_config(), ALL_KINDS, ACTION_SPACES)
    rng = np.random.default_rng(7)
    nets = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), agent.state.nets)
    agent.state = agent.state._replace(nets=nets)
    return agent


@pytest.fixture(scope="module")
def on_cpu(agent, batch):
    return gradient(agent, batch)


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "count"), [("gpu", 1), ("gpu", 4), ("cpu", 4)])
def test_a_gradient_is_that_of_one_cpu(backend, count, agent, batch, on_cpu, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    close(on_cpu, gradient(agent, batch, count))


@pytest.mark.slow
def test_members_that_share_every_operation_learn_what_they_do_in_turns(monkeypatch):
    due = np.array([0, 0, 0, 0, 0, 1, 1, 0], np.int32)

    def run():
        loop = population()
        state, report = loop.run(loop.begin(), due, WINDOW)
        return report, jax.tree.map(np.asarray, state.members.train.nets)

    report, nets = run()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    other_report, other_nets = run()
    close(report, other_report)
    close(nets, other_nets)


@pytest.mark.slow
@pytest.mark.parametrize("platform", BACKENDS)
def test_all_programs_lower_for_accelerators(platform, batch, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: BACKENDS[platform])
    agent = Agent(small_config("nets.dtype=bfloat16"), ALL_KINDS, ACTION_SPACES)
    state, key = agent.state, jax.random.key(0)
    first = {name: value[:, 0] for name, value in batch.obs.items()}

    def policy(nets, memory, obs, is_first):
        return agent.algorithm.policy(nets, memory, obs, is_first, key, "sample")

    programs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "update": (agent._flat_update, (*agent._split(agent._leaves), batch, key)),
        "policy": (policy, (state.nets, agent.initial(4), first, jnp.array([True, False] * 2))),
        "predict": (lambda nets, batch: agent.algorithm.predict(nets, batch, key, 2), (state.nets, batch)),
    }
    for name, (function, arguments) in programs.items():
        program = export.export(jax.jit(function), platforms=[platform])(*arguments)
        assert program.platforms == (platform,) and "bf16" in program.mlir_module(), name


@pytest.mark.slow
@pytest.mark.parametrize("platform", BACKENDS)
def test_a_population_lowers_for_accelerators(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: BACKENDS[platform])
    loop = population("nets.dtype=bfloat16")
    arguments = (loop._seeds, loop._numbers, *loop.shapes(), np.zeros(WINDOW, np.int32), np.int32(0))
    program = export.export(loop._jit_run, platforms=[platform])(*arguments)
    assert program.platforms == (platform,) and "bf16" in program.mlir_module()
