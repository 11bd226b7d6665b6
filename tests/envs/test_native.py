"""Environments in JAX do, step by step, what their Gymnasium counterparts do; resets are rows, as on the host."""

import functools
import pathlib
import re
import sys
import warnings
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import config as configs
from dreamer import envs
from dreamer.envs import names, native
from dreamer.envs.adapter import Adapter
from dreamer.envs.errors import UnknownTask
from dreamer.envs.native import autoreset
from dreamer.envs.native.hosted import HostedEnv
from dreamer.envs.suites import probes

KEY = jax.random.key(3)


def follow(env, state, actions):
    """Answers of a native environment, and its states, from a state until the end of the episode."""
    step = jax.jit(env.step)
    answers = []
    for i, action in enumerate(actions):
        state, obs, *outcome = step(state, action, jax.random.fold_in(KEY, i))
        answers.append((obs, state, *(x.item() for x in outcome)))
        if outcome[1] or outcome[2]:
            break
    return answers


class Draws:
    """Replaces a Gymnasium environment's random numbers with those of the other one, in its order."""

    def __init__(self, *values):
        self.values = list(values)

    def integers(self, *_):
        return self.values.pop(0)

    random = integers


def test_catch_plays_by_the_same_rules(rng):
    env, other = native.build("catch"), probes.Catch()
    state, obs = env.reset(KEY)
    mine = other.reset(seed=0)[0]
    other._column, other._drift = int(state.column), int(state.drift)
    np.testing.assert_array_equal(obs["image"], other._image())
    assert mine.shape == obs["image"].shape and obs["image"].dtype == np.uint8
    actions = [{"action": np.int32(a)} for a in rng.integers(0, 3, 40)]
    answers = follow(env, state, actions)
    assert len(answers) == 4 * 7
    rewards = set()
    for action, (obs, state, reward, terminated, truncated) in zip(actions, answers, strict=False):
        other.np_random = Draws(int(state.column), int(state.drift))  # type: ignore[assignment]
        expected: Any = other.step(int(action["action"]))
        np.testing.assert_array_equal(obs["image"], expected[0])
        assert (reward, terminated, truncated) == expected[1:4]
        rewards.add(reward)
    assert rewards == {-1.0, 0.0, 1.0}
    np.testing.assert_array_equal(env.render(state), other.render())  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_maze_plays_by_the_same_rules(seed):
    env, other = native.build("maze"), probes.Maze()
    state, obs = env.reset(KEY)
    np.testing.assert_array_equal(obs["discrete"], other.reset(seed=0)[0])
    # Mostly right and down, so that walls and borders of every side are met.
    actions = np.random.default_rng(seed).choice(4, 160, p=[0.1, 0.4, 0.4, 0.1])
    answers = follow(env, state, [{"action": np.int32(action)} for action in actions])
    assert len(answers) == 100
    for action, (obs, _, reward, terminated, truncated) in zip(actions, answers, strict=False):
        expected: Any = other.step(int(action))
        np.testing.assert_array_equal(obs["discrete"], expected[0])
        assert (reward, terminated, truncated) == expected[1:4]


def test_the_goal_of_the_maze_ends_it():
    env = native.build("maze")
    state, _ = env.reset(KEY)
    state = state._replace(cell=jnp.asarray([9, 8]))
    _, obs, *outcome = env.step(state, {"action": jnp.int32(1)}, KEY)
    assert tuple(obs["discrete"]) == probes.GOAL
    assert [x.item() for x in outcome] == [1, True, False]


@pytest.mark.parametrize(
    "name", ["action", "constant", "memory", "two_step", "cue1", "cue2", "cue4", "cue8", "cue16", "cue32"]
)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("choice", [0, 1])
def test_timed_probes_play_by_the_same_rules(name, seed, choice):
    env, other = native.build(name), probes.make(name, configs.EnvConfig(), None)
    state, obs = env.reset(jax.random.key(seed))
    other.reset(seed=0)
    assert state.cue == 1 - seed  # so that each action is tried after each cue
    other.unwrapped._cue = int(state.cue)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(obs["vector"], other.unwrapped._obs())  # type: ignore[attr-defined]
    for obs, _, reward, terminated, truncated in follow(env, state, [{"action": np.int32(choice)}] * 40):
        expected: Any = other.step(choice)
        np.testing.assert_array_equal(obs["vector"], expected[0])
        assert (reward, terminated, truncated) == expected[1:4]
    assert terminated


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_bandit_plays_by_the_same_rules(seed, rng):
    env, other = native.build("bandit"), probes.Bandit()
    state, obs = env.reset(jax.random.key(seed))
    np.testing.assert_array_equal(obs["vector"], other.reset(seed=0)[0])
    other._better = int(state.better)
    # A step draws one number, with the key that `follow` gives it.
    other.np_random = Draws(*(jax.random.uniform(jax.random.fold_in(KEY, i)) for i in range(40)))  # type: ignore[assignment]
    actions = [{"action": np.int32(a)} for a in rng.integers(0, 2, 50)]
    answers = follow(env, state, actions)
    assert len(answers) == 40 and {answer[2] for answer in answers} == {0.0, 1.0}
    for action, (obs, state, reward, terminated, truncated) in zip(actions, answers, strict=False):
        expected: Any = other.step(int(action["action"]))
        np.testing.assert_array_equal(obs["vector"], expected[0])
        assert (reward, terminated, truncated) == expected[1:4]
        assert state.better == other._better
    assert truncated


def test_bandit_draws_either_arm_as_the_better_one_and_pays_it_more_often():
    env = native.build("bandit")
    keys = jax.random.split(KEY, 2000)
    state, _ = jax.vmap(env.reset)(keys)
    assert 0.45 < state.better.mean() < 0.55
    for arm, expected in ((state.better, 0.7), (1 - state.better, 0.3)):
        _, _, reward, *_ = jax.vmap(env.step)(state, {"action": arm}, jax.random.split(keys[0], 2000))
        assert abs(reward.mean() - expected) < 0.05


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_repeat_plays_by_the_same_rules(seed, rng):
    env, other = native.build("repeat"), probes.RepeatPrevious()
    state, obs = env.reset(jax.random.key(seed))
    other.reset(seed=0)
    other._symbols = np.asarray(state.symbols)
    np.testing.assert_array_equal(obs["vector"], other._obs())
    wanted = np.concatenate([[0] * 4, other._symbols])
    actions = [{"action": np.int32(a)} for a in np.where(rng.random(37) < 0.5, wanted, rng.integers(0, 4, 37))]
    answers = follow(env, state, actions)
    assert len(answers) == 32 and len({answer[2] for answer in answers}) == 3
    for action, (obs, _, reward, terminated, truncated) in zip(actions, answers, strict=False):
        expected: Any = other.step(int(action["action"]))
        np.testing.assert_array_equal(obs["vector"], expected[0])
        assert (reward, terminated, truncated) == (np.float32(expected[1]), *expected[2:4])
    assert truncated
    rewards = [answer[2] for answer in follow(env, state, [{"action": np.int32(a)} for a in wanted])]
    assert sum(rewards) == pytest.approx(1)


def test_masked_plays_by_the_same_rules():
    env, other = native.build("masked"), probes.Masked()
    state, obs = env.reset(KEY)
    np.testing.assert_array_equal(obs["action_mask"], other.reset()[0]["action_mask"])
    for i, (obs, _, reward, over, _) in enumerate(follow(env, state, [{"action": np.int32(i % 3)} for i in range(9)])):
        expected = other.step(i % 3)
        np.testing.assert_array_equal(obs["action_mask"], expected[0]["action_mask"])
        assert (reward, over) == expected[1:3]
    assert over
    *_, reward, _, _ = env.step(state._replace(previous=jnp.int32(1)), {"action": jnp.int32(1)}, KEY)
    assert reward == -1000


@pytest.mark.parametrize("push", ["random", "balanced"])
def test_cartpole_of_gymnax_is_that_of_gymnasium(push, rng):
    pytest.importorskip("gymnax")
    env, other = native.build("CartPole-v1"), gymnasium.make("CartPole-v1")
    state, obs = env.reset(KEY)
    other.reset(seed=0)
    inner: Any = other.unwrapped
    inner.state = np.asarray(obs["vector"], np.float64)
    step = jax.jit(env.step)
    while True:
        lean = inner.state[2] + 0.3 * inner.state[3] + 0.05 * inner.state[0] + 0.1 * inner.state[1]
        action = int(lean > 0) if push == "balanced" else int(rng.integers(2))
        state, obs, reward, terminated, truncated = step(state, {"action": np.int32(action)}, KEY)
        expected: Any = other.step(int(action))
        # Gymnasium computes in float64: from the same float32 state, one step agrees to rounding.
        np.testing.assert_allclose(obs["vector"], expected[0], rtol=1e-5, atol=1e-6)
        assert (reward, terminated, truncated) == expected[1:4]
        inner.state = np.asarray(obs["vector"], np.float64)
        if terminated or truncated:
            break
    if push == "balanced":
        assert truncated
        assert not terminated
        assert state.time == 500
    else:
        assert terminated and state.time < 100


def test_pendulum_of_gymnax_is_that_of_gymnasium(rng):
    pytest.importorskip("gymnax")
    env, other = native.build("Pendulum-v1"), gymnasium.make("Pendulum-v1")
    state, _ = env.reset(KEY)
    other.reset(seed=0)
    inner: Any = other.unwrapped
    step = jax.jit(env.step)
    for action in rng.uniform(-1, 1, 20).astype(np.float32):
        inner.state = np.array([state.theta, state.theta_dot], np.float64)
        state, obs, reward, terminated, truncated = step(state, {"action": action[None]}, KEY)
        expected: Any = other.step(2 * action[None])  # [-1, 1] stands for its bounds.
        np.testing.assert_allclose(obs["vector"], expected[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(reward, expected[1], rtol=1e-4, atol=1e-5)
        assert not terminated and not truncated


@pytest.mark.parametrize(
    "name", ["bandit", "catch", "cue4", "masked", "memory", "repeat", "CartPole-v1", "Pendulum-v1"]
)
def test_both_loops_see_the_same_spaces(name):
    if "-v" in name:
        pytest.importorskip("gymnax")
    env, hosted = native.build(name), envs.make(f"jax_{name}", configs.EnvConfig())
    assert (hosted.obs_spaces, hosted.action_spaces) == (env.obs_spaces, env.action_spaces)
    assert native.build(name) is env and f"jax_{name}" in envs.tasks()
    first, _ = hosted.reset(seed=1)
    again, _ = hosted.reset(seed=1)
    other, _ = hosted.reset(seed=2)
    for key, value in first.items():
        assert value.dtype == env.obs_spaces[key].dtype and value.shape == env.obs_spaces[key].shape
        np.testing.assert_array_equal(value, again[key])
    if name in ("catch", "CartPole-v1", "Pendulum-v1"):  # The first observations of the others are few, or just one.
        assert any((first[key] != other[key]).any() for key in first)
    over, steps = False, 0
    while not over and steps < 20:
        _, _, terminated, truncated, _ = hosted.step({"action": hosted.action_space["action"].sample()})
        over, steps = terminated or truncated, steps + 1
    assert over == (name in ("cue4", "masked", "memory")) or name == "CartPole-v1"


def test_a_reset_is_a_separate_row():
    """Two-step episodes: first, step, last, and then the first of the next, whose action does not matter."""
    env = native.build("two_step")
    now = autoreset.begin(env, 2, KEY)
    rows = []
    for i in range(7):
        rows.append(now.step)
        now = autoreset.advance(env, now, {"action": jnp.zeros(2, jnp.int32)}, jax.random.fold_in(KEY, i))
    table: Any = {name: [getattr(row, name)[0].item() for row in rows] for name in rows[0]._fields[1:6]}
    assert table["reward"] == [0, 0, 1, 0, 0, 1, 0]
    assert table["is_first"] == [True, False, False, True, False, False, True]
    assert table["is_last"] == table["is_terminal"] == [False, False, True, False, False, True, False]
    assert table["env_steps"] == [0, 1, 1, 0, 1, 1, 0]
    assert [row.obs["vector"][0].item() for row in rows] == [0, 0.5, 1, 0, 0.5, 1, 0]
    dtypes = {name: getattr(now.step, name).dtype for name in rows[0]._fields[1:6]}
    assert list(map(str, dtypes.values())) == ["float32", "bool", "bool", "bool", "int32"]


def test_resets_are_computed_only_where_an_episode_ended():
    """Members of a population ask together whether any episode ended, so that the reset stays a branch."""
    made = []

    class Costly(type(native.build("two_step"))):  # type: ignore[misc]
        def reset(self, key):
            jax.debug.callback(lambda: made.append(1))
            return super().reset(key)

    env = Costly()

    def advance(now, key):
        return autoreset.advance(env, now, {"action": jnp.zeros(2, jnp.int32)}, key)

    keys = jax.random.split(KEY, 3)
    now, step = jax.vmap(functools.partial(autoreset.begin, env, 2))(keys), jax.jit(jax.vmap(advance))
    counts = []
    for _ in range(5):
        jax.effects_barrier()
        counts.append(len(made))
        now = step(now, keys)
    assert counts == [1, 1, 1, 2, 2]  # Once for all members and environments together.


def test_an_environment_reports_numbers_about_an_episode():
    class Reporting(type(native.build("two_step"))):  # type: ignore[misc]
        log_names = ("time", "twice")

        def log(self, state):
            return jnp.stack([state.time, 2 * state.time]).astype(jnp.float32)

    env = Reporting()
    now = autoreset.begin(env, 3, KEY)
    now = autoreset.advance(env, now, {"action": jnp.zeros(3, jnp.int32)}, KEY)
    np.testing.assert_array_equal(autoreset.logs(env, now), [[1.0, 2.0]] * 3)
    assert autoreset.logs(native.build("two_step"), now).shape == (3, 0)
    hosted = Adapter(HostedEnv(env), configs.EnvConfig())
    hosted.reset(seed=0)
    infos = [hosted.step({"action": np.int32(0)})[4] for _ in range(2)]
    assert infos[1]["log"] == {"time": 2.0, "twice": 4.0} and "log" not in infos[0]


def test_a_time_limit_is_last_but_not_terminal():
    pytest.importorskip("gymnax")
    env = native.build("Pendulum-v1")
    now = autoreset.begin(env, 1, KEY)
    now = now._replace(state=now.state.replace(time=jnp.full(1, 199)))
    push: Any = {"action": jnp.full((1, 1), 7.0)}
    now = autoreset.advance(env, now, push, KEY, clip_reward=0.25)
    assert (now.step.is_last.item(), now.step.is_terminal.item()) == (True, False)
    assert now.step.reward.item() == -0.25 and now.state.last_u.item() == 2.0
    now = autoreset.advance(env, now, push, KEY)
    assert now.step.is_first.item() and now.state.time.item() == 0


def test_the_example_of_the_page_is_an_environment():
    page = (pathlib.Path(__file__).resolve().parents[2] / "docs/device_loop.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    env = names["Walk"]()
    assert isinstance(env, native.NativeEnv)
    now = autoreset.begin(env, 3, KEY)
    for i in range(11):
        now = autoreset.advance(env, now, {"action": jnp.full(3, 2)}, jax.random.fold_in(KEY, i))
        assert now.step.is_last.all() == (i == 9) and now.step.is_first.all() == (i == 10)
    hosted = Adapter(HostedEnv(env), configs.EnvConfig())
    assert (hosted.obs_spaces, hosted.action_spaces) == (env.obs_spaces, env.action_spaces)
    first, _ = hosted.reset(seed=0)
    answers = [hosted.step({"action": 2}) for _ in range(10)]
    assert answers[-1][2] and answers[-1][1] == -abs(first["vector"][0] + 10 - 3)


def test_environments_of_users_are_found_in_the_working_directory(tmp_path, monkeypatch):
    page = (pathlib.Path(__file__).resolve().parents[2] / "docs/device_loop.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_walk.py").write_text(example + "\n\ndef nothing():\n    return 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    env = envs.make("jax_my_walk:Walk", configs.EnvConfig())
    assert env.obs_spaces == native.build("my_walk:Walk").obs_spaces
    with pytest.raises(envs.EnvError, match=r"my_walk has no 'Wolk'\. Did you mean 'Walk'"):
        envs.make("jax_my_walk:Wolk", configs.EnvConfig())
    with pytest.raises(envs.EnvError, match=r"gives a int without obs_spaces and action_spaces and reset and step"):
        envs.make("jax_my_walk:nothing", configs.EnvConfig())


@pytest.mark.slow
def test_all_environments_of_gymnax_fit_into_a_loop():
    """States and observations keep their shapes and dtypes; nothing is computed."""
    from_gymnax = pytest.importorskip("dreamer.envs.native.from_gymnax")

    def step(env, now, key):
        action: Any = {key: jnp.zeros((2, *space.shape), space.dtype) for key, space in env.action_spaces.items()}
        return autoreset.advance(env, now, action, key)

    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # From their code.
        for name in from_gymnax.names():
            env = native.build(name)
            now = jax.eval_shape(functools.partial(autoreset.begin, env, 2), KEY)
            after = jax.eval_shape(functools.partial(step, env), now, KEY)
            kinds = [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(now)]
            assert kinds == [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(after)], name
            for key, space in env.obs_spaces.items():
                assert (now.step.obs[key].shape, now.step.obs[key].dtype) == ((2, *space.shape), space.dtype), name


def test_unknown_names_and_what_cannot_be_drawn():
    with pytest.raises(UnknownTask, match="no environment 'catsh' in JAX"):
        native.build("catsh")
    with pytest.raises(envs.EnvError, match=r"Did you mean 'jax_catch'"):
        envs.make("jax_catsh", configs.EnvConfig())
    frame = envs.make("jax_catch", configs.EnvConfig(), render=True)
    frame.reset(seed=0)
    assert frame.render().shape == (128, 128, 3)
    with pytest.raises(envs.EnvError, match="cannot render"):
        envs.make("jax_memory", configs.EnvConfig(), render=True)


@pytest.mark.parametrize(("suite", "module"), [("craftax", "craftax"), ("playground", "mujoco_playground")])
def test_a_missing_extra_is_named(monkeypatch, suite, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"dreamer.envs.native.from_{suite}", raising=False)
    names.load_suite.cache_clear()
    with pytest.raises(envs.EnvError, match=rf"not installed: .* Install it with: pip install 'dreamer\[{suite}\]'"):
        envs.make(f"{suite}_Any", configs.EnvConfig())
