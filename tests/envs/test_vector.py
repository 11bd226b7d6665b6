"""Stepping N environments: exact timing across episode ends, equal results of both kinds of workers, and failures."""

import functools
import multiprocessing
import os
import subprocess
import sys
import textwrap
from typing import ClassVar, Literal

import gymnasium
import numpy as np
import pytest

from dreamer.config import EnvConfig
from dreamer.envs import Adapter, EnvError, NotRestorable, VectorEnv, make
from dreamer.envs.info import OUTCOMES

FIELDS = ("reward", "is_first", "is_last", "is_terminal", "env_steps")


def script(episodes, **failures):
    """A maker of environments that play episodes of rewards over and over; the last letter says how one ends.

    The observation is [episode, time]. ``episodes`` are pairs such as ([1, 2, 3], "T") for terminated, "L" for a limit.
    """

    def make_env():
        class Scripted(gymnasium.Env):
            def __init__(self):
                self.observation_space = gymnasium.spaces.Box(0, 99, (2,), np.float32)
                self.action_space = gymnasium.spaces.Discrete(3)
                self.episode = -1

            def reset(self, *, seed=None, options=None):
                self.episode += 1
                self.time = 0
                if self.episode == failures.get("reset"):
                    raise LookupError("no such level")
                return np.array([self.episode, 0], np.float32), {"noise": object()}

            def step(self, action):
                rewards, end = episodes[self.episode % len(episodes)]
                if self.time >= len(rewards):
                    raise RuntimeError("stepped past the end")
                reward = rewards[self.time]
                self.time += 1
                if action == 2:
                    failures["do"]()
                over = self.time == len(rewards)
                obs = np.array([self.episode, self.time], np.float32)
                info = {"noise": object(), "log": {"episode": self.episode, "odd": np.bool_(self.episode % 2)}}
                return obs, reward, over and end == "T", over and end == "L", info

        return Scripted()

    return make_env


def run(env, actions):
    """All steps: the reset and one per action; compares with copies at the end, to detect overwriting."""
    steps = [env.reset()]
    copies = [_copy(steps[0])]
    for action in actions:
        steps.append(env.step(action))
        copies.append(_copy(steps[-1]))
    for step, copy in zip(steps, copies, strict=True):
        _assert_equal(step, copy)
    return steps


def _copy(step):
    return step._replace(obs={k: v.copy() for k, v in step.obs.items()}, **{k: getattr(step, k).copy() for k in FIELDS})


def _assert_equal(one, two):
    assert one.obs.keys() == two.obs.keys()
    for key in one.obs:
        np.testing.assert_array_equal(one.obs[key], two.obs[key], strict=True)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(one, field), getattr(two, field), strict=True)
    assert one.log == two.log


def column(steps, field):
    """One field of environment 0 over time."""
    return [getattr(step, field)[0].item() for step in steps]


ACTIONS = [{"action": np.zeros(1, np.int32)}] * 7


KINDS: list[tuple[Literal["sync", "async"], int]] = [("sync", 1), ("async", 1), ("async", 2), ("async", 3)]


@pytest.mark.parametrize("workers", ["sync", "async"])
def test_next_step_reset_is_exact(workers):
    maker = script([([1.0, 2.0], "T"), ([4.0, 8.0, 16.0], "L")])
    with VectorEnv(maker, EnvConfig(count=1, workers=workers), 0) as env:
        steps = run(env, ACTIONS)
    assert [step.obs["vector"][0].tolist() for step in steps] == [
        [0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [1, 3], [2, 0],
    ]  # fmt: skip
    assert column(steps, "reward") == [0, 1, 2, 0, 4, 8, 16, 0]
    assert column(steps, "is_first") == [True, False, False, True, False, False, False, True]
    assert column(steps, "is_last") == [False, False, True, False, False, False, True, False]
    assert column(steps, "is_terminal") == [False, False, True, False, False, False, False, False]
    assert column(steps, "env_steps") == [0, 1, 1, 0, 1, 1, 1, 0]
    for step in steps:
        assert [getattr(step, f).dtype for f in FIELDS] == [np.float32, bool, bool, bool, np.int32]
        assert step.obs["vector"].dtype == np.float32


def test_repeat_counts_the_steps_really_taken():
    maker = script([([1.0, 2.0, 4.0], "T")])
    with VectorEnv(maker, EnvConfig(count=2, repeat=2), 0) as env:
        steps = run(env, [{"action": np.zeros(2, np.int32)}] * 5)
    assert column(steps, "reward") == [0, 3, 4, 0, 3, 4]
    assert column(steps, "env_steps") == [0, 2, 1, 0, 2, 1]
    assert column(steps, "is_first") == [True, False, False, True, False, False]
    assert column(steps, "is_last") == [False, False, True, False, False, True]


@pytest.mark.parametrize(("workers", "per_worker"), KINDS)
def test_logs_of_episodes_come_with_their_last_step(workers, per_worker):
    config = EnvConfig(count=3, workers=workers, per_worker=per_worker)
    with VectorEnv(script([([0.0], "T"), ([0.0, 0.0], "L")]), config, 0) as env:
        steps = run(env, [{"action": np.zeros(3, np.int32)}] * 4)
    logs = [{}, {"episode": 0.0, "odd": 0.0}, {}, {}, {"episode": 1.0, "odd": 1.0}]
    assert [step.log for step in steps] == [{i: log for i in range(3) if log} for log in logs]
    assert all(type(value) is float for log in steps[4].log.values() for value in log.values())


@pytest.mark.parametrize(("workers", "per_worker"), KINDS)
def test_logs_that_are_not_numbers_are_said_once_and_ignored(workers, per_worker):
    class Chatty(gymnasium.Wrapper):
        def step(self, action):
            log = {"mood": "fine", "speed": {"mean": np.float32(2), "top": [1, 2]}}
            return *self.env.step(action)[:2], True, False, {"log": log}

    said: list[str] = []
    config = EnvConfig(count=2, workers=workers, per_worker=per_worker)
    with VectorEnv(lambda: Chatty(gymnasium.make("CartPole-v1")), config, 0, said.append) as env:
        steps = run(env, [{"action": np.zeros(2, np.int32)}] * 4)
    assert [step.log for step in steps] == [{}, *[{0: {"speed/mean": 2.0}, 1: {"speed/mean": 2.0}}, {}] * 2]
    assert len(said) == 1
    assert "step 1 of episode 1: info['log']['mood'] is 'fine', expected a number. It is ignored" in said[0]


@pytest.mark.parametrize(("workers", "per_worker"), KINDS)
def test_outcomes_come_with_the_last_step_of_either_kind_of_worker(workers, per_worker):
    class Reaches(gymnasium.Wrapper):
        def step(self, action):
            *answer, _ = self.env.step(action)
            return *answer, {"success": bool(answer[1] == 2.0), "cost": np.float32(answer[1])}

    make_scripted = script([([1.0, 2.0, 4.0], "T"), ([1.0, 2.0], "L"), ([1.0], "T")])
    config = EnvConfig(count=2, workers=workers, per_worker=per_worker)
    with VectorEnv(lambda: Reaches(make_scripted()), config, 0) as env:
        steps = run(env, [{"action": np.zeros(2, np.int32)}] * 8)
    outcomes = [[step.log[i][name] for name in OUTCOMES] for step in steps if step.log for i in range(2)]
    assert outcomes == [[0.0, 1.0, 7.0]] * 2 + [[1.0, 1.0, 3.0]] * 2 + [[0.0, 0.0, 1.0]] * 2


def test_environments_that_cannot_be_closed_cost_neither_a_result_nor_the_first_error(capsys):
    class Sticks(gymnasium.Wrapper):
        def close(self):
            raise OSError("busy")

    make_scripted = script([([1.0], "T")])
    with VectorEnv(lambda: Sticks(make_scripted()), EnvConfig(count=3), 0) as env:
        run(env, [{"action": np.zeros(3, np.int32)}] * 2)
    made = iter([Sticks(make_scripted())])
    with pytest.raises(StopIteration):
        VectorEnv(lambda: next(made), EnvConfig(count=2), 0)
    assert capsys.readouterr().err.count("close failed with OSError: busy") == 1


@pytest.mark.parametrize(("workers", "per_worker"), KINDS)
def test_what_is_outside_its_bounds_is_said_once_and_counted_in_the_log(workers, per_worker):
    make_scripted = script([([0.0] * 3, "T")])

    def make_env():
        env = make_scripted()
        env.observation_space = gymnasium.spaces.Box(np.zeros(2, np.float32), np.array([99, 1], np.float32))
        return env

    said: list[str] = []
    config = EnvConfig(count=3, workers=workers, per_worker=per_worker)
    with VectorEnv(make_env, config, 0, said.append) as env:
        steps = run(env, [{"action": np.zeros(3, np.int32)}] * 8)
    assert [step.log[i]["outside/vector"] for step in steps if step.log for i in range(3)] == [2.0] * 6
    assert [step.obs["vector"][0].tolist() for step in steps[:4]] == [[0, 0], [0, 1], [0, 2], [0, 3]]
    assert len(said) == 1
    assert "step 2 of episode 1: observation key 'vector' holds 2.0 at index [1], outside [0.0, 1.0]" in said[0]


@pytest.mark.parametrize("workers", ["sync", "async"])
def test_reset_starts_new_episodes_everywhere(workers):
    with VectorEnv(script([([1.0, 2.0], "T")]), EnvConfig(count=1, workers=workers), 0) as env:
        run(env, ACTIONS[:2])
        step = env.reset()
        assert step.is_first.all()
        assert not step.is_last.any()
        assert step.obs["vector"].tolist() == [[1, 0]]
        assert env.step(ACTIONS[0]).reward.tolist() == [1.0]


@pytest.mark.parametrize("repeat", [1, 2])
@pytest.mark.parametrize("task", ["CartPole-v1", "Pendulum-v1"])
def test_same_as_raw_environments(task, repeat):
    """Golden: every field of every step of three environments, over several episodes."""
    config = EnvConfig(count=3, repeat=repeat)
    rng = np.random.default_rng(1)
    length = 460 // repeat
    if task == "CartPole-v1":
        actions = rng.integers(0, 2, (length, 3)).astype(np.int32)
    else:
        actions = rng.uniform(-1.2, 1.2, (length, 3, 1)).astype(np.float32)
    with VectorEnv(lambda: make(f"gym_{task}", config), config, 11) as env:
        steps = run(env, [{"action": action} for action in actions])
    seeds = [int(word) >> 1 for word in np.random.SeedSequence(11).generate_state(3)]
    ends = 0
    for i in range(3):
        raw = gymnasium.make(task)
        obs, _ = raw.reset(seed=seeds[i])
        expected = (obs, 0.0, True, False, False, 0)
        for t, step in enumerate(steps):
            np.testing.assert_array_equal(step.obs["vector"][i], expected[0])
            assert step.reward[i] == np.float32(expected[1])
            assert tuple(getattr(step, field)[i] for field in FIELDS[1:]) == expected[2:], (t, i)
            if t == length:
                break
            if step.is_last[i]:
                ends += 1
                expected = (raw.reset()[0], 0.0, True, False, False, 0)
                continue
            action = actions[t, i] if task == "CartPole-v1" else 2 * np.clip(actions[t, i], -1, 1)
            total, taken = 0.0, 0
            for _ in range(repeat):
                obs, reward, terminated, truncated, _ = raw.step(action)
                total, taken = total + float(reward), taken + 1
                if terminated or truncated:
                    break
            expected = (obs, total, False, terminated or truncated, terminated, taken)
    assert ends >= 6


@pytest.mark.parametrize("repeat", [1, 3])
def test_async_equals_sync_on_every_kind_of_space(repeat):
    results = []
    for workers, per_worker in KINDS:
        config = EnvConfig(count=3, workers=workers, per_worker=per_worker, repeat=repeat)
        with VectorEnv(functools.partial(make, "probe_dummy", config), config, np.random.SeedSequence(5)) as env:
            space = gymnasium.vector.utils.batch_space(make("probe_dummy", config).action_space, 3)
            space.seed(0)
            results.append(run(env, [space.sample() for _ in range(25)]))
            spaces = env.obs_spaces
    for one, *others in zip(*results, strict=True):
        for other in others:
            _assert_equal(one, other)
        for key, value in one.obs.items():
            assert (value.shape, value.dtype) == ((3, *spaces[key].shape), spaces[key].dtype)
    assert sum(step.is_last.sum() for step in results[0]) >= 4


def test_seeds_differ_between_environments_and_decide_all():
    def first(seed):
        with VectorEnv(lambda: gymnasium.make("CartPole-v1"), EnvConfig(count=4), seed) as env:
            return env.reset().obs["vector"], env.reset().obs["vector"]

    sequence = np.random.SeedSequence(3)
    for one, two in zip(first(3), first(sequence), strict=True):
        np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(first(sequence)[1], first(3)[1])
    a, b = first(3)
    assert len(np.unique(np.concatenate([a, b, first(4)[0]]), axis=0)) == 12


@pytest.mark.parametrize("workers", ["sync", "async"])
def test_an_exception_in_the_environment_is_reported(workers):
    def fail():
        raise ZeroDivisionError("100% odd")

    env = VectorEnv(script([([0.0] * 9, "T")], do=fail), EnvConfig(count=2, workers=workers, failures=0), 0)
    children = multiprocessing.active_children()
    env.reset()
    env.step({"action": np.array([0, 1], np.int32)})
    message = r"Scripted, step 2 of episode 1: ZeroDivisionError: 100% odd \(environment number 1\)"
    with pytest.raises(EnvError, match=message) as caught:
        env.step({"action": np.array([0, 2], np.int32)})
    if workers == "async":
        assert "in fail" in str(caught.value)  # the traceback of the worker
        assert len(children) == 2 and not multiprocessing.active_children()
    else:
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(EnvError, match="environments are closed"):
        env.step({"action": np.array([0, 0], np.int32)})
    env.close()


def test_errors_of_the_adapter_travel_from_workers():
    env = VectorEnv(script([([0.0, np.inf], "T")]), EnvConfig(count=2, workers="async", failures=0), 0)
    env.reset()
    env.step({"action": np.zeros(2, np.int32)})
    with pytest.raises(
        EnvError, match=r"Scripted, step 2 of episode 1: the reward is inf.*\(environment number [01]\)"
    ):
        env.step({"action": np.zeros(2, np.int32)})
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", ["sync", "async"])
def test_failing_resets_are_reported(workers):
    env = VectorEnv(script([([0.0], "T")], reset=1), EnvConfig(count=1, workers=workers, failures=0), 0)
    env.reset()
    env.step(ACTIONS[0])
    with pytest.raises(EnvError, match=r"step 0 of episode 2: LookupError: no such level"):
        env.step(ACTIONS[0])


def test_failing_to_make_in_a_worker_is_reported():
    home = os.getpid()

    def make_env():
        if os.getpid() != home:
            raise OSError("licence server unreachable")
        return make("probe_constant", EnvConfig())

    env = VectorEnv(make_env, EnvConfig(count=2, workers="async"), 0)
    with pytest.raises(
        EnvError, match=r"(?s)probe_constant, when it was made: OSError: licence.*worker process:.*make_env"
    ):
        env.reset()
    assert not multiprocessing.active_children()


def test_workers_must_make_what_this_process_makes():
    home = os.getpid()

    def make_env():
        return gymnasium.make("CartPole-v1" if os.getpid() == home else "Acrobot-v1")

    env = VectorEnv(make_env, EnvConfig(count=1, workers="async"), 0)
    with pytest.raises(EnvError, match=r"Acrobot-v1 was made with the observation space .*must return .* equal spaces"):
        env.reset()


def test_a_worker_that_vanishes_is_noticed():
    env = VectorEnv(script([([0.0] * 9, "T")], do=lambda: os._exit(7)), EnvConfig(count=2, workers="async"), 0)
    env.reset()
    with pytest.raises(
        EnvError, match=r"step 1 of episode 1 \(environment number 0\): its worker process ended.*code 7"
    ):
        env.step({"action": np.array([2, 0], np.int32)})
    assert not multiprocessing.active_children()


def test_close_ends_the_workers_and_may_be_repeated():
    env = VectorEnv(script([([0.0], "T")]), EnvConfig(count=2, workers="async"), 0)
    assert len(multiprocessing.active_children()) == 2
    env.close()
    env.close()
    assert not multiprocessing.active_children()


def test_environments_that_cannot_be_sent_to_workers_are_reported():
    generator = (i for i in range(9))

    def make_env():
        next(generator)
        return make("probe_constant", EnvConfig())

    with pytest.raises(EnvError, match=r"make_env cannot be sent to worker processes.*generator.*env\.workers=sync"):
        VectorEnv(make_env, EnvConfig(count=1, workers="async"), 0)
    VectorEnv(make_env, EnvConfig(count=1), 0)


def test_a_script_without_guard_can_start_workers(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import gymnasium, numpy as np
            from dreamer.config import EnvConfig
            from dreamer.envs import VectorEnv
            print("main", __name__, flush=True)

            class Mine(gymnasium.Wrapper):
                pass

            def make_env():
                return Mine(gymnasium.make("CartPole-v1"))

            env = VectorEnv(make_env, EnvConfig(count=2, workers="async"), 0)
            print(env.reset().obs["vector"].shape)
            env.close()
            """
        )
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    result = subprocess.run(
        [sys.executable, script], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=60
    )
    assert (result.stdout, result.returncode) == ("main __main__\n(2, 4)\n", 0), result.stderr


def test_environments_must_be_new_and_alike():
    single = gymnasium.make("CartPole-v1")
    for config in (EnvConfig(count=1), EnvConfig(count=2), EnvConfig(count=2, rehearse=False)):
        with pytest.raises(EnvError, match="the same environment twice"):
            VectorEnv(lambda: single, config, 0)
    ids = iter([*3 * ["CartPole-v1"], "Acrobot-v1"])
    with pytest.raises(EnvError, match=r"made with the observation space .*make_env must return .* equal spaces"):
        VectorEnv(lambda: gymnasium.make(next(ids)), EnvConfig(count=2), 0)


class Counted(gymnasium.Env):
    """Knows how many of its kind exist."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    alive: ClassVar[set[int]] = set()
    most = 0

    def __init__(self):
        Counted.alive.add(id(self))
        Counted.most = max(Counted.most, len(Counted.alive))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}

    def close(self):
        Counted.alive.discard(id(self))


@pytest.mark.parametrize("count", [1, 3])
def test_there_are_never_more_environments_than_count(count):
    Counted.most = 0
    with VectorEnv(Counted, EnvConfig(count=count), 0) as env:
        env.reset()
        env.state()
    assert Counted.most == count
    assert not Counted.alive


def test_without_a_rehearsal_nothing_is_made_and_no_state_is_trusted():
    made = []

    def make_env():
        made.append(gymnasium.make("CartPole-v1"))
        return made[-1]

    with VectorEnv(make_env, EnvConfig(count=2, rehearse=False), 0) as env:
        env.reset()
        with pytest.raises(NotRestorable, match=r"was not tried, because of env\.rehearse=false"):
            env.state()
    assert len(made) == 2


def test_a_crash_in_a_rehearsal_for_workers_ends_nothing_else():
    def make_env():  # Sent to workers by value, as they cannot import this file.
        class Crashing(gymnasium.Env):
            observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
            action_space = gymnasium.spaces.Discrete(2)

            def reset(self, *, seed=None, options=None):
                self.time = 0
                return np.zeros(1, np.float32), {}

            def step(self, action):
                self.time += 1
                if self.time == 5:
                    os._exit(7)
                return np.zeros(1, np.float32), 0.0, False, False, {}

        return Crashing()

    with VectorEnv(make_env, EnvConfig(count=1, workers="async"), 0) as env:
        env.reset()
        with pytest.raises(NotRestorable, match="exit code 7"):
            env.state()
        env.step({"action": np.zeros(1, np.int32)})


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"move": np.zeros(2, np.int32)}, r"has the keys \['move'\], expected exactly \['action'\]"),
        ({"action": np.zeros(3, np.int32)}, r"'action' has shape \[3\], expected \[2\]"),
        ({"action": np.zeros(2, np.float32)}, r"'action' has dtype float32, expected int32"),
    ],
)
def test_actions_must_fit(action, message):
    with VectorEnv(script([([0.0] * 9, "T")]), EnvConfig(count=2), 0) as env:
        with pytest.raises(EnvError, match="call reset first"):
            env.step(action)
        env.reset()
        with pytest.raises(EnvError, match=message):
            env.step(action)
        env.step({"action": np.zeros(2, np.int32)})  # a refused action changes nothing


def test_adapters_and_raw_environments_are_both_fine():
    config = EnvConfig(count=1, repeat=2)
    for maker in (script([([1.0, 1.0], "T")]), lambda: Adapter(script([([1.0, 1.0], "T")])(), config)):
        with VectorEnv(maker, config, 0) as env:
            env.reset()
            assert env.step(ACTIONS[0]).reward.tolist() == [2.0]
