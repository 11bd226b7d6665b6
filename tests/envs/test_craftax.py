"""Craftax through the adapter: the numbers of the library, ends of episodes, the log, and a short run.

For hand: `make test` skips this file, because Craftax overwrites files of what the extra `dev` installs (see
docs/environments.md). In an environment for it: ``pip install --no-deps craftax``, and then
``python -m pytest tests/envs/test_craftax.py``.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import checkpoints, envs
from dreamer import config as configs
from dreamer import train as training
from dreamer.envs import EnvError, native
from dreamer.envs.errors import UnknownTask
from dreamer.envs.native import autoreset
from dreamer.envs.native.hosted import HostedEnv
from dreamer.logs.logger import read_metrics
from dreamer.types import Space
from tests.small import run_config, same_tree

from_craftax: Any = pytest.importorskip(
    "dreamer.envs.native.from_craftax", reason="needs the extra craftax: pip install -e '.[craftax]'"
)

KEY = jax.random.key(3)
NOOP: Any = {"action": np.int32(0)}


@pytest.fixture(autouse=True)
def lenient():
    """Craftax adds arrays of different ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def classic():
    """The environment, and its functions compiled."""
    env = from_craftax.build("Classic")
    return env, jax.jit(env.reset), jax.jit(env.step)


def test_names(monkeypatch):
    found = [name for name in envs.tasks() if name.startswith("craftax_")]
    assert found == ["craftax_Classic", "craftax_ClassicPixels", "craftax_Pixels", "craftax_Symbolic"]
    with pytest.raises(EnvError, match=r"Craftax has no task 'Clasic'\. Did you mean 'craftax_Classic'"):
        envs.make("craftax_Clasic", configs.EnvConfig())
    with pytest.raises(UnknownTask, match="no task 'Text'"):
        native.build("Text", "craftax")


def test_the_run_finds_the_summary():
    assert envs.summarizer("craftax_Symbolic") is from_craftax.summarize


def test_score():
    none, every = {f"achievement_{i}": 0.0 for i in range(22)}, {f"achievement_{i}": 1.0 for i in range(22)}
    # Rates of 75 % for one achievement and 50 % for the other 21.
    found = from_craftax.summarize([every, none, none | {"achievement_3": 1.0}, every])
    assert found == {"craftax_score": pytest.approx(math.exp((math.log(76) + 21 * math.log(51)) / 22) - 1)}


@pytest.mark.slow
def test_steps_and_rewards_are_those_of_the_library(classic, rng):
    env, reset, step = classic
    raw, params = env._env, env._env.default_params
    state, obs = reset(KEY)
    expected, other = jax.jit(raw.reset_env)(jax.random.key_data(KEY), params)
    np.testing.assert_allclose(obs["vector"], expected, rtol=1e-6, atol=1e-6)
    other_step, rewards = jax.jit(raw.step_env), []
    for i, action in enumerate(rng.integers(0, 17, 150).astype(np.int32)):
        key = jax.random.fold_in(KEY, i)
        state, obs, reward, terminated, truncated = step(state, {"action": action}, key)
        expected, other, other_reward, over, _ = other_step(jax.random.key_data(key), other, action, params)
        np.testing.assert_allclose(obs["vector"], expected, rtol=1e-6, atol=1e-6)
        assert same_tree(state.map, other.map) and reward.dtype == np.float32
        np.testing.assert_allclose(reward, other_reward, rtol=1e-6, atol=1e-6)
        assert bool(terminated | truncated) == bool(over) and not truncated
        rewards.append(float(reward))
        if over:
            break
    assert {0.0, 1.0} <= {round(reward, 6) for reward in rewards} and step._cache_size() == 1


@pytest.mark.slow
def test_death_terminates_and_the_limit_truncates(classic):
    env, reset, step = classic
    assert env._params.max_timesteps == 10_000
    state, _ = reset(KEY)
    dead = {"player_health": jnp.zeros_like(state.player_health), "player_food": jnp.zeros_like(state.player_food)}
    late = {"timestep": jnp.full_like(state.timestep, 9_999)}
    for changes, expected in (({}, (False, False)), (dead, (True, False)), (late, (False, True))):
        _, _, _, terminated, truncated = step(state.replace(**changes), NOOP, KEY)
        assert (bool(terminated), bool(truncated)) == expected, changes
    _, _, _, terminated, truncated = step(state.replace(**dead, **late), NOOP, KEY)
    assert (bool(terminated), bool(truncated)) == (True, False)


@pytest.mark.slow
def test_both_loops_see_the_same_environment(classic):
    env, _, _ = classic
    hosted = envs.make("craftax_Classic", configs.EnvConfig())
    assert (hosted.obs_spaces, hosted.action_spaces) == (env.obs_spaces, env.action_spaces)
    assert env.obs_spaces == {"vector": Space("vector", (1345,))} and env.action_spaces["action"].classes == 17
    first, again, other = (hosted.reset(seed=seed)[0]["vector"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any() and 0 <= first.min() < first.max() <= 1
    inner: Any = hosted.unwrapped
    assert isinstance(inner, HostedEnv) and len(env.log_names) == 22
    assert "log" not in hosted.step(NOOP)[4]
    state = inner._state
    done = state.achievements.at[0].set(True)
    inner._state = state.replace(timestep=jnp.full_like(state.timestep, 9_999), achievements=done)
    _, _, terminated, truncated, info = hosted.step(NOOP)
    assert (terminated, truncated) == (False, True)
    assert info["log"].keys() == set(env.log_names) and info["log"]["achievement_collect_wood"] == 1
    assert sum(info["log"].values()) == 1


@pytest.mark.slow
def test_the_larger_game_fits_into_a_loop():
    """States and observations keep their shapes and dtypes; nothing is computed."""
    env: Any = native.build("Symbolic", "craftax")
    now = jax.eval_shape(functools.partial(autoreset.begin, env, 2), KEY)
    action: Any = {"action": jnp.zeros(2, jnp.int32)}
    after = jax.eval_shape(functools.partial(autoreset.advance, env), now, action, KEY)
    kinds = [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(now)]
    assert kinds == [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(after)]
    assert now.step.obs["vector"].shape == (2, 8268) and env.action_spaces["action"].classes == 43
    assert jax.eval_shape(functools.partial(autoreset.logs, env), now).shape == (2, 67) == (2, len(env.log_names))


@pytest.mark.slow
def test_images_are_those_of_the_library_with_a_border():
    env = from_craftax.build("ClassicPixels")
    state, obs = jax.jit(env.reset)(KEY)
    image = np.asarray(obs["image"])
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8
    assert env.obs_spaces["image"].shape == image.shape
    np.testing.assert_allclose(image[:63, :63] / 255, jax.jit(env._env.get_obs)(state), atol=0.003)
    assert not image[63].any()
    assert not image[:, 63].any()
    assert image.any()
    frame = env.render(state)
    assert frame.dtype == np.uint8
    assert frame.shape == (144, 144, 3)
    assert frame.any()


@pytest.mark.slow
def test_a_short_run_logs_achievements_and_resumes(tmp_path, monkeypatch):
    env = from_craftax.Craftax("Classic")
    monkeypatch.setattr(env, "_params", env._params.replace(max_timesteps=5))
    monkeypatch.setattr(from_craftax, "build", lambda name: env)

    def run(name, *overrides):
        task = ("task=craftax_Classic", "run.loop=device", "run.eval_episodes=0")
        return training.train(None, run_config(tmp_path / name, *task, *overrides), quiet=True)

    def episodes(result):
        return [line for line in read_metrics(result.logdir / "metrics.jsonl") if "episode/score" in line]

    whole = run("whole")
    found = episodes(whole)
    # Thirty rows of two environments: a reset after every five steps.
    assert len(found) == 2 * 5 and {line["episode/length"] for line in found} == {5}
    assert {f"episode/log/{name}" for name in env.log_names} < found[0].keys()
    assert all(0 <= line["episode/log/craftax_score"] <= 100 for line in found)
    run("half", "run.env_steps=34")
    again = run("half")
    names = [name for name in found[0] if name.startswith("episode/")]
    assert [[line[name] for name in names] for line in episodes(again)] == [[line[n] for n in names] for line in found]
    one, two = (checkpoints.load(result.logdir) for result in (whole, again))
    assert same_tree(one.state, {name: two.state[name] for name in one.state})
