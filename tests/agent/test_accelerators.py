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

from dreamer.agent import Agent
from dreamer.config.population import members
from dreamer.envs import native
from dreamer.training.device_program import DeviceLoop
from dreamer.types import Space
from tests.small import ACTION_SPACES, OBS_SPACES, small_batch, small_config, total_loss

IMAGES = {**OBS_SPACES, "image": Space("image", (16, 16, 3))}

BACKENDS = {"cuda": "gpu", "tpu": "tpu"}
"""Platforms of programs, and what JAX calls the backend that runs them."""

WINDOW = 8


@pytest.fixture
def batch(rng):
    plain = small_batch()
    image = rng.integers(0, 256, (2, 4, 16, 16, 3), dtype=np.uint8)
    return jax.tree.map(jnp.asarray, plain._replace(obs={**plain.obs, "image": image}))


def losses(agent, batch):
    """Metrics and gradients of an update, as the backend of now computes them."""

    def loss(nets):
        total, out = total_loss(agent)(nets, agent.state.memory, batch, key, agent.config)
        return total, out.metrics

    key = jax.random.key(3)
    (_, metrics), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(agent.state.nets)
    return metrics, gradient


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


@pytest.mark.slow
def test_an_update_computes_what_it_does_on_a_cpu(batch, monkeypatch):
    agent = Agent(small_config(), IMAGES, ACTION_SPACES)
    on_cpu = losses(agent, batch)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    close(on_cpu, losses(agent, batch))


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
    agent = Agent(small_config("nets.dtype=bfloat16"), IMAGES, ACTION_SPACES)
    state, key = agent.state, jax.random.key(0)
    first = {name: value[:, 0] for name, value in batch.obs.items()}

    def policy(nets, memory, obs, is_first):
        return agent.algorithm.policy(nets, memory, obs, is_first, key, "sample")

    programs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "update": (agent._flat_update, (*agent._split(agent._leaves), batch, key)),
        "policy": (policy, (state.nets, agent.initial(2), first, jnp.array([True, False]))),
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
