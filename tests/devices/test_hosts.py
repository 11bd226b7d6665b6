"""Two processes on one machine train as two hosts: the numbers of one process, one checkpoint, the same decisions."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import dreamer
from dreamer import checkpoints
from dreamer.agent import Agent
from dreamer.checkpoints import CheckpointError
from dreamer.config import ConfigError
from dreamer.devices import hosts as groups
from dreamer.devices.hosts import HostError, Hosts
from dreamer.devices.placement import ShardedPlacement
from dreamer.envs.driver import Row
from dreamer.logs.logger import read_metrics
from dreamer.replay import read_contents
from dreamer.training.host import HostRun
from dreamer.training.stopping import StopRequest
from tests.small import ACTION_SPACES, OBS_SPACES, OVERRIDES, same_tree, small_batch, small_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROWS = 8


# ------------------------------------------------------------------------------------------------------ one host alone


def test_a_single_host_decides_alone():
    hosts = Hosts()
    assert hosts.first
    assert hosts.table([3, 4]).tolist() == [[3, 4]]
    config = small_config()
    assert hosts.part(config) is config
    assert groups.join(config).count == 1
    hosts.same("Nothing of", "")
    with pytest.raises(LookupError), hosts.together("look"):
        raise LookupError


def test_a_signal_that_comes_while_hosts_talk_is_shared_before_it_counts():
    """The others cannot know of it yet: a host that stopped at once would save while they wait for its update."""
    run: Any = HostRun.__new__(HostRun)
    run.config, run._stop, run.log = small_config(), StopRequest(), SimpleNamespace(recent=[])
    run.driver = SimpleNamespace(env_steps=3, agent_steps=3, episodes=1)
    run._counted = {"env_steps": 0, "agent_steps": 0, "episodes": 0}
    run._begin = run._seconds_before = 0.0
    shared = []

    def table(values):
        shared.append(list(values))
        run._stop.signal = "SIGTERM"
        return Hosts().table(values)

    run.hosts = SimpleNamespace(first=True, table=table)
    assert run._agree(save=True) and not run._stopped
    assert not run._agree(save=True) and run._stopped
    assert [values[3] > 0 for values in shared] == [False, True]
    # A turn that begins with the signal is still a whole one: the host's replay is not a row behind the others'.
    rows: list[Any] = []
    parts: Any = ("step", "action", "latent")
    run.learner = SimpleNamespace(replay=SimpleNamespace(add=lambda *row: rows.append(row)))
    assert run._add(Row(*parts)) and rows == [parts]


def host_of(index, count):
    """One of several hosts, without the others."""
    hosts = Hosts()
    hosts.index = index
    hosts.count = count
    return hosts


def test_each_host_has_its_part():
    part = host_of(1, 2).part(small_config("env.count=6", "replay.batch_size=4", "replay.capacity=401"))
    assert (part.env.count, part.replay.batch_size, part.replay.capacity) == (3, 2, 200)
    with pytest.raises(ConfigError, match=r"env\.count=6 cannot be divided over 4 hosts: expected a multiple of 4"):
        host_of(0, 4).part(small_config("env.count=6", "replay.batch_size=8"))


def test_errors_of_another_host_arrive_here(monkeypatch):
    hosts = host_of(1, 2)
    monkeypatch.setattr(hosts, "table", lambda values: np.array([[1], values]))
    with pytest.raises(HostError, match=r"Host 0 could not write: see what it said"), hosts.together("write"):
        pass
    with pytest.raises(ConfigError, match=r"The config of host 1 is not that of host 0"):
        hosts.same("The config of", "task: a")


def test_hosts_that_are_not_specified(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=r"distributed=true needs logdir=DIR, the same on every host"):
        groups.join(small_config("distributed=true"))
    # JAX is in use already, which is one of the reasons.
    jax.devices()
    with pytest.raises(ConfigError, match=r"the hosts could not be joined .*JAX_COORDINATOR_ADDRESS=ADDRESS:PORT"):
        groups.join(small_config("distributed=true", f"logdir={tmp_path}"))


# ----------------------------------------------------------------------------------------------------------- two hosts


HELD: list[socket.socket] = []
"""Ports of runs, one for each."""


@pytest.fixture(scope="module", autouse=True)
def close_ports():
    yield
    while HELD:
        HELD.pop().close()


def start(*command):
    """Both hosts of a run, as processes."""
    # A socket that is bound and does not listen keeps the port from all others until the coordinator, which shares it
    # as this one does, has it.
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", 0))
    HELD.append(held)
    port = held.getsockname()[1]
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    shared = {
        "XLA_FLAGS": " ".join(flags),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    return [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **shared, "JAX_PROCESS_ID": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]


def finish(processes, timeout=600):
    """Exit statuses and outputs; no process is left running."""
    try:
        said = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = ["\n".join(line for line in text.splitlines() if "[Gloo]" not in line) for text in said]
    return [process.returncode for process in processes], said


UPDATES = """
import runpy, sys
import jax, numpy as np
from dreamer.agent import Agent
from dreamer.devices.hosts import join
from dreamer.devices.placement import placement

small = runpy.run_path("tests/small.py")
config = small["small_config"]("distributed=true", "replay.batch_size=8", "optimizer.moments=sharded", "logdir=unused")
hosts = join(config)
agent = Agent(config, small["OBS_SPACES"], small["ACTION_SPACES"], placement(config))
rows = slice(4 * hosts.index, 4 * hosts.index + 4)
for seed in range(3):
    batch = jax.tree.map(lambda x: x[rows], small["small_batch"](seed, rows=8))
    latents, metrics = agent.update(batch)
obs = {key: value[:2, 0] for key, value in small["small_batch"](rows=2).obs.items()}
action, _, _ = agent.policy(agent.initial(2), obs, np.ones(2, bool))
results = [
    *agent.placement.fetch_state(jax.tree.leaves(agent.state)),
    *agent.placement.fetch_rows(latents),
    jax.device_get(metrics)["loss/total"],
    np.asarray(action["push"]),
    hosts.table([hosts.index, 5]),
]
np.savez(f"{sys.argv[1]}/{hosts.index}.npz", *results)
"""


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    status, said = finish(start("-c", UPDATES, str(tmp_path)))
    assert status == [0, 0], said
    one, two = ([file[name] for name in file.files] for file in (np.load(tmp_path / f"{i}.npz") for i in range(2)))
    *leaves, deter, stoch, loss, action, table = one
    *other_leaves, other_deter, other_stoch, _, other_action, other_table = two
    agent = Agent(small_config(), OBS_SPACES, ACTION_SPACES, ShardedPlacement(jax.devices()[:2], "sharded"))
    for seed in range(3):
        latents, metrics = agent.update(small_batch(seed, rows=ROWS))
    state = agent.placement.fetch_state(jax.tree.leaves(agent.state))
    assert same_tree(leaves, other_leaves)
    for ours, expected in zip(leaves, state, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-5)
    # Each host got the latents of its own sequences.
    np.testing.assert_allclose(np.concatenate([deter, other_deter]), latents.deter, rtol=1e-3, atol=1e-4)
    assert np.array_equal(np.concatenate([stoch, other_stoch]), latents.stoch)
    np.testing.assert_allclose(loss, metrics["loss/total"], rtol=1e-4)
    # The same observations, but different draws: hosts must not explore in lockstep.
    assert not np.array_equal(action, other_action)
    assert table.tolist() == other_table.tolist() == [[0, 5], [1, 5]]


def command(logdir, *overrides):
    run = "run={env_steps: 80, train_ratio: 4, eval_episodes: 2, log_every: 0}"
    shared = ["task=probe_action", run, "env.count=4", f"logdir={logdir}", "distributed=true"]
    return ["-m", "dreamer.train", "--config", "gym", *OVERRIDES, *shared, *overrides]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    logdir = tmp_path_factory.mktemp("hosts") / "run"
    status, said = finish(start(*command(logdir)))
    assert status == [0, 0], said
    return logdir, said


@pytest.mark.slow
def test_two_hosts_train_and_write_one_checkpoint(finished):
    logdir, (first, second) = finished
    assert "Trained for 80 env steps" in first
    assert "mean return" in first
    assert second == "Dreamer starts: importing JAX takes a few seconds."
    saved = checkpoints.load(logdir)
    # Two environments on each host: every second turn of all four is a reset.
    assert (saved.meta["env_steps"], saved.meta["agent_steps"], saved.meta["episodes"]) == (80, 80, 80)
    assert saved.meta["hosts"] == 2
    assert saved.meta["replay"]["rows_total"] == 39
    parts = [checkpoints.load(logdir, with_replay=True, hosts=host_of(i, 2)).replay or {} for i in range(2)]
    rewards = [read_contents(logdir / "replay" / str(i), parts[i])["reward"] for i in range(2)]
    assert rewards[0].shape == rewards[1].shape == (2, 39)
    assert not np.array_equal(rewards[0], rewards[1])
    assert parts[0]["rng"] != parts[1]["rng"]
    assert parts[0]["rows_total"] == parts[1]["rows_total"]
    assert {path.name for path in checkpoints.directory(logdir).iterdir()} == {"000000000080", "best.json"}
    lines = [line for line in read_metrics(logdir / "metrics.jsonl") if "rate/updates" in line]
    # As on one host: replay is ready after five rows, in which 8 steps were taken; an update replays 8 steps.
    assert lines[-1]["updates"] == saved.meta["updates"] == (76 - 8) * 4 // 8
    losses = [line["loss/total"] for line in lines if "loss/total" in line]
    assert losses and np.isfinite(losses).all()


@pytest.mark.slow
def test_one_process_can_use_what_two_hosts_trained(finished):
    logdir, _ = finished
    agent = dreamer.load(logdir)
    obs = {key: np.zeros((1, *space.shape), np.float32) for key, space in agent.obs_spaces.items()}
    action, _ = agent.act(obs, agent.initial(1))
    assert all(value.shape[0] == 1 for value in action.values())
    with pytest.raises(CheckpointError, match=r"holds the replay of 2 host\(s\), and this run has 1\. Resume it on 2"):
        checkpoints.load(logdir, with_replay=True)


@pytest.mark.slow
def test_two_hosts_resume_and_stop_together(finished):
    logdir, _ = finished
    processes = start(*command(logdir, "run.env_steps=1000000"))
    deadline = time.monotonic() + 500
    while read_metrics(logdir / "metrics.jsonl")[-1]["env_steps"] < 200 and time.monotonic() < deadline:
        time.sleep(0.5)
    processes[1].send_signal(signal.SIGTERM)  # Host 0 learns of it from host 1.
    status, (first, second) = finish(processes)
    assert status == [75, 75], (first, second)
    assert "resumed at 80 env steps" in first
    assert "Stopped by SIGTERM on another host after" in first
    saved = checkpoints.load(logdir, with_replay=True, hosts=host_of(1, 2))
    assert saved.meta["env_steps"] >= 200
    assert saved.meta["resumes"] == 1
    assert saved.replay is not None


@pytest.mark.slow
def test_hosts_that_differ_do_not_start(tmp_path):
    words = command(tmp_path / "run")[2:]
    code = "import os, sys; from dreamer import train; "
    code += f"sys.exit(train.main([*{words!r}, 'seed=' + os.environ['JAX_PROCESS_ID']]))"
    status, said = finish(start("-c", code))
    assert status == [2, 2], said
    assert all("Error: The config of host 1 is not that of host 0" in text for text in said), said
