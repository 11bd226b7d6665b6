"""MuJoCo Playground through the adapter: the numbers of the library, ends of episodes, resets, and a short run."""

import functools
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from dreamer import checkpoints, envs
from dreamer import config as configs
from dreamer import train as training
from dreamer.envs import EnvError, native
from dreamer.envs.errors import UnknownTask
from dreamer.envs.native import autoreset
from dreamer.types import Space
from tests.small import run_config, same_tree

from_playground: Any = pytest.importorskip(
    "dreamer.envs.native.from_playground", reason="needs the extra playground: pip install -e '.[playground]'"
)

KEY = jax.random.key(3)
TASK = "CartpoleBalance"


@pytest.fixture(autouse=True)
def lenient():
    """MJX adds arrays of different ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


@struct.dataclass
class Inner:
    """The parts of ``mujoco_playground.State`` that the adapter touches."""

    obs: Any
    reward: Any
    done: Any
    metrics: Any
    info: Any


class Slope:
    """Stands for a simulation: moves by the action, is rewarded by its place, and breaks down beyond 2."""

    observation_size = 1
    action_size = 1

    def reset(self, key):
        start = jnp.zeros(1) + 0.5 * jax.random.bernoulli(key)
        return Inner(start, jnp.float32(0), jnp.float32(0), {"seen": jnp.float32(0)}, {"rng": key})

    def step(self, state, action):
        place = state.obs + action
        place = jnp.where(place > 2, jnp.nan, place)
        state.metrics["seen"] = place[0]
        return state.replace(obs=place, reward=place[0], done=jnp.isnan(place).any().astype(float))


@pytest.fixture
def slope(monkeypatch):
    """The adapter around `Slope`, with episodes of four steps."""
    suite = from_playground.dm_control_suite
    monkeypatch.setattr(suite, "load", lambda name, config_overrides: Slope())
    monkeypatch.setattr(suite, "get_default_config", lambda name: SimpleNamespace(episode_length=4))
    return from_playground.Playground(TASK)


def roll(env, actions, count=2, clip_reward=0.0):
    """Rows of N environments that all take the same actions."""
    now = autoreset.begin(env, count, KEY)
    advance = jax.jit(functools.partial(autoreset.advance, env), static_argnames="clip_reward")
    rows = [now.step]
    for i, action in enumerate(actions):
        action = {"action": jnp.full((count, 1), action, jnp.float32)}
        now = advance(now, action, jax.random.fold_in(KEY, i), clip_reward=clip_reward)
        rows.append(now.step)
    return rows


def column(rows, name):
    return [np.asarray(getattr(row, name)).tolist() for row in rows]


def test_a_time_limit_is_last_but_not_terminal_and_a_reset_is_a_row(slope):
    rows = roll(slope, [0.25] * 7)
    assert column(rows, "is_first") == [[i in (0, 5)] * 2 for i in range(8)]
    assert column(rows, "is_last") == [[i == 4] * 2 for i in range(8)]
    assert column(rows, "is_terminal") == [[False] * 2] * 8
    assert column(rows, "env_steps") == [[int(i not in (0, 5))] * 2 for i in range(8)]
    vector = np.array([row.obs["vector"] for row in rows])
    assert vector.shape == (8, 2, 1) and vector.dtype == np.float32
    np.testing.assert_array_equal(vector[4] - vector[0], 1.0)
    reward = np.array(column(rows, "reward"))
    np.testing.assert_array_equal(reward, np.where([[i in (0, 5)] for i in range(8)], 0, vector[..., 0]))
    dtypes = {name: str(getattr(rows[-1], name).dtype) for name in rows[0]._fields[1:6]}
    assert list(dtypes.values()) == ["float32", "bool", "bool", "bool", "int32"]


def test_actions_beyond_the_bounds_and_large_rewards_are_clipped(slope):
    rows = roll(slope, [7.0], clip_reward=0.75)
    np.testing.assert_array_equal(rows[1].obs["vector"] - rows[0].obs["vector"], 1.0)
    assert column(rows[1:], "reward") == [[0.75, 0.75]]


def test_a_simulation_that_breaks_down_is_truncated_with_what_was_seen_before(slope):
    rows = roll(slope, [1.0, 1.0, 1.0, 0.0])
    over = np.argmax(column(rows, "is_last"), 0)
    assert set(over.tolist()) <= {2, 3} and not np.any(column(rows, "is_terminal"))
    for index, at in enumerate(over):
        assert rows[at].reward[index] == 0
        np.testing.assert_array_equal(rows[at].obs["vector"][index], rows[at - 1].obs["vector"][index])
        assert rows[at + 1].is_first[index] and rows[at + 1].obs["vector"][index] <= 0.5
    for row in rows:
        assert np.isfinite(row.obs["vector"]).all() and np.isfinite(row.reward).all()


def test_a_state_is_not_written_into(slope):
    state, _ = slope.reset(KEY)
    slope.step(state, {"action": jnp.ones(1)}, KEY)
    assert state.inner.metrics["seen"] == 0
    assert not [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]


def test_keys_decide_episodes(slope):
    starts = {float(slope.reset(jax.random.key(i))[1]["vector"][0]) for i in range(20)}
    assert starts == {0.0, 0.5}
    assert same_tree(slope.reset(KEY), slope.reset(KEY))


def test_names():
    names = from_playground.tasks()
    assert {TASK, "WalkerWalk", "HumanoidRun"} < set(names) and f"playground_{TASK}" in envs.tasks()
    with pytest.raises(EnvError, match=r"no task 'CartpoleBalence' .*Did you mean 'playground_CartpoleBalance'"):
        envs.make("playground_CartpoleBalence", configs.EnvConfig())
    with pytest.raises(UnknownTask, match="no task 'WalkerFly' in its DM Control suite"):
        native.build("WalkerFly", "playground")
    env = native.build(TASK, "playground")
    assert env is native.build(TASK, "playground") is from_playground.build(TASK)
    assert (env.obs_spaces, env.action_spaces) == (
        {"vector": Space("vector", (5,))},
        {"action": Space("continuous", (1,))},
    )


def test_a_task_that_needs_an_older_simulator_is_refused_and_not_listed(monkeypatch):
    monkeypatch.setattr(from_playground.mujoco, "MjSpec", object)
    assert "ReacherEasy" not in from_playground.tasks()
    with pytest.raises(EnvError, match=r"'playground_ReacherHard' cannot be made with MuJoCo .* dmc_reacher_hard"):
        from_playground.build("ReacherHard")


@pytest.mark.slow
def test_steps_and_rewards_are_those_of_the_library(rng):
    """Every step from the same state; and the end is that of Brax's wrapper, which Playground trains with."""
    training_wrappers = pytest.importorskip("brax.envs.wrappers.training")
    env = from_playground.build(TASK)
    raw = from_playground.dm_control_suite.load(TASK, config_overrides={"impl": "jax"})
    limited = training_wrappers.EpisodeWrapper(raw, 1000, 1)
    state, obs = jax.jit(env.reset)(KEY)
    other = jax.jit(limited.reset)(jax.random.key_data(KEY))
    np.testing.assert_allclose(obs["vector"], other.obs, rtol=1e-6)
    step: Any = jax.jit(env.step)
    other_step = jax.jit(limited.step)
    for i, action in enumerate(rng.uniform(-1, 1, (40, 1)).astype(np.float32)):
        if i == 38:
            state = state._replace(time=jnp.int32(998))
            other.info["steps"] = jnp.float32(998)
        state, obs, reward, terminated, truncated = step(state, {"action": action}, KEY)
        other = other_step(other, jnp.asarray(action))
        np.testing.assert_allclose(obs["vector"], other.obs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(reward, other.reward, rtol=1e-5)
        assert (bool(terminated | truncated), bool(truncated)) == (other.done == 1, other.info["truncation"] == 1)
        assert bool(truncated) == (i == 39) and not terminated
        other = other.replace(data=state.inner.data)
    assert 0 < reward < 1 and step._cache_size() == 1


@pytest.mark.slow
def test_all_tasks_fit_into_a_loop():
    """States and observations keep their shapes and dtypes; nothing is computed."""
    for name in ("AcrobotSwingupSparse", "BallInCup", "CheetahRun", "HopperHop", "PendulumSwingup"):
        env = native.build(name, "playground")
        action: Any = {"action": jnp.zeros((2, *env.action_spaces["action"].shape))}
        now = jax.eval_shape(functools.partial(autoreset.begin, env, 2), KEY)
        after = jax.eval_shape(functools.partial(autoreset.advance, env), now, action, KEY)
        kinds = [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(now)]
        assert kinds == [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(after)], name
        assert now.step.obs["vector"].shape == (2, *env.obs_spaces["vector"].shape), name


@pytest.mark.slow
def test_both_loops_see_the_same_environment():
    env, hosted = native.build(TASK, "playground"), envs.make(f"playground_{TASK}", configs.EnvConfig())
    assert (hosted.obs_spaces, hosted.action_spaces) == (env.obs_spaces, env.action_spaces)
    seen = []
    for seed in (1, 1, 2):
        first, _ = hosted.reset(seed=seed)
        second, reward, terminated, truncated, info = hosted.step({"action": np.array([0.5], np.float32)})
        assert (terminated, truncated) == (False, False)
        assert 0 < reward <= 1
        assert info["env_steps"] == 1
        seen.append(np.concatenate([first["vector"], second["vector"]]))
    np.testing.assert_array_equal(seen[0], seen[1])
    assert (seen[0] != seen[2]).any()


@pytest.mark.slow
def test_a_short_run_that_resumes(tmp_path):
    def run(name, *overrides):
        task = ("task=playground_CartpoleBalance", "run.loop=device", "run.eval_episodes=0")
        return training.train(None, run_config(tmp_path / name, *task, *overrides), quiet=True)

    whole, half = run("whole"), run("half", "run.env_steps=34")
    assert int(whole.agent.state.step) > 0 and not whole.interrupted
    again = run("half")
    one, two = (checkpoints.load(result.logdir, with_replay=True) for result in (whole, again))
    assert one.replay is not None and two.replay is not None
    assert same_tree(one.state, {name: two.state[name] for name in one.state})
    assert same_tree(one.replay["fields"], {name: two.replay["fields"][name] for name in one.replay["fields"]})
    seen = [value for name, value in one.replay["fields"].items() if name.endswith("obs/vector")]
    assert len(seen) == 1
    assert all(np.isfinite(value).all() for value in seen)
    assert half.logdir == again.logdir
