"""Environments in worker processes that raise, answer nonsense, hang or die: nothing is lost or left behind."""

import gc
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time

import gymnasium
import numpy as np
import psutil
import pytest

from dreamer.config import Config, EnvConfig, ReplayConfig
from dreamer.envs import EnvError, VectorEnv
from dreamer.envs.driver import Driver
from dreamer.envs.vector.vector_env import seed_of
from dreamer.evaluate import make_env as make_of
from dreamer.replay import Layout, Replay

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

STEP, RAISE, NONSENSE, HANG, KILL, CRASH, EXIT = range(7)
"""What an action makes the environment do."""
KILL_IDLE = 7
"""The test kills the worker between two steps."""

LENGTH = 5
"""Steps of an episode."""

SAID = {
    RAISE: r"step \d of episode \d+: ArithmeticError: lost count \(environment number {}\)(?s:.*)in fail",
    NONSENSE: r"step \d of episode \d+: observation key 'discrete' holds class -99 at index \[2\].*number {}\)",
    HANG: r"step \d of episode \d+ \(environment number {}.*no answer within 1 seconds \(env.timeout\)",
    KILL: r"step \d of episode \d+ \(environment number {}.*exit code -9, usually because memory ran out",
    CRASH: r"step \d of episode \d+ \(environment number {}.*exit code -11, a crash in native code",
    EXIT: r"step \d of episode \d+: SystemExit: 3 \(environment number {}\)",
    KILL_IDLE: r"\(environment number \d.*exit code -9, usually because memory ran out",
}
"""Message about each fault of an environment."""


def counting(directory, length=LENGTH):
    """A maker of environments that count, and record every answer before giving it.

    The observation is [seed, episode, time]; an environment appends it, with action and reward, to a file named by its
    seed. Episodes end after ``length`` steps, in turn by termination and by a limit.
    """

    def make_env():
        class Counting(gymnasium.Env):
            def __init__(self):
                self.observation_space = gymnasium.spaces.MultiDiscrete([2**31 - 1] * 3)
                self.action_space = gymnasium.spaces.Discrete(7)
                self.episode = -1

            def reset(self, *, seed=None, options=None):
                if seed is not None:
                    self.seed = seed
                self.episode += 1
                self.time = 0
                self.record(STEP, 0.0)
                return self.observe(), {}

            def step(self, action):
                self.fail(action)
                self.time += 1
                reward = 10.0 * self.episode + self.time
                self.record(action, reward)
                over, odd = self.time == length, self.episode % 2 == 1
                return self.observe(), reward, over and not odd, over and odd, {}

            def fail(self, action):
                if action == RAISE:
                    raise ArithmeticError("lost count")
                if action == NONSENSE:
                    self.time = -100
                if action == HANG:
                    time.sleep(1000)
                if action in (KILL, CRASH):
                    os.kill(os.getpid(), signal.SIGKILL if action == KILL else signal.SIGSEGV)
                if action == EXIT:
                    raise SystemExit(3)

            def observe(self):
                return np.array([self.seed, self.episode, self.time], np.int64)

            def record(self, action, reward):
                if self.time >= 0:
                    with open(os.path.join(directory, str(self.seed)), "a") as file:
                        file.write(f"{self.episode} {self.time} {action} {reward}\n")

        return Counting()

    return make_env


class Leaks:
    """Workers and file handles that were not there before; a handle holds shared memory too, which has no name."""

    def __init__(self):
        multiprocessing.forkserver.ensure_running()  # It stays, as does the resource tracker.
        gc.collect()
        self.handles = psutil.Process().num_fds()

    def assert_none(self):
        gc.collect()
        assert not multiprocessing.active_children()
        assert not workers_alive()
        assert psutil.Process().num_fds() == self.handles


@pytest.fixture
def leaks():
    found = Leaks()
    yield found
    found.assert_none()


def workers_alive():
    server = psutil.Process(vars(multiprocessing.forkserver._forkserver)["_forkserver_pid"])
    return [child.pid for child in server.children() if child.status() != psutil.STATUS_ZOMBIE]


class Faults:
    """A policy that makes environments fail, and records what it did.

    Args:
        plan: faults to come by turn, each ``(environment, kind)``; if the environment's episode is over, its fault gets
            the next turn to itself, because a reset ignores the action.
    """

    def __init__(self, plan):
        self.plan = plan
        self.done: list[tuple[int, int]] = []
        self.idle: list[int] = []

    def __call__(self, memory, obs, is_first):
        count = len(is_first)
        action, self.idle = np.zeros(count, np.int32), []
        for index, kind in self.plan.pop(0) if self.plan else []:
            if obs["discrete"][index, 2] == LENGTH:
                self.plan.insert(0, [(index, kind)])
                continue
            self.done.append((index, kind))
            if kind == KILL_IDLE:
                self.idle.append(index)
            else:
                action[index] = kind
        return (
            {"action": action},
            memory,
            (),
        )


def play(directory, plan, *, count=3, per_worker=1, turns, failures=1000, timeout=1.0):
    """Play ``turns`` turns with faults; returns the replay fields, the faults that happened, and the messages."""
    config = EnvConfig(count=count, workers="async", per_worker=per_worker, timeout=timeout, failures=failures)
    messages: list[str] = []
    policy = Faults(plan)
    with VectorEnv(counting(directory), config, 7, messages.append) as vector:
        settings = ReplayConfig(capacity=count * (turns + 1), batch_size=1, batch_length=2)
        rng = np.random.default_rng(0)
        replay = Replay(settings, count, Layout.of(vector.obs_spaces, vector.action_spaces, ()), rng)
        driver = Driver(vector, policy, None)
        for _ in range(turns):
            replay.add(*driver.act())
            for index in policy.idle:
                kill(vector, index)
            driver.advance()
        replay.add(*driver.act())
        assert vector.failures == len(messages)
    fields = replay.contents()
    assert driver.agent_steps == (~fields["is_first"]).sum() and driver.env_steps == driver.agent_steps
    return fields, policy.done, messages


def worker_of(vector, index):
    (worker,) = [worker for worker in vector._envs._workers if index in worker.indices]
    return worker._process.pid


def kill(vector, index):
    os.kill(worker_of(vector, index), signal.SIGKILL)


def assert_flags(fields, index, seeds):
    """Rows of one environment follow one another correctly; ``seeds`` are those of its starts, all of them used."""
    obs, first, last, terminal, reward = (
        fields[name][index] for name in ("obs/discrete", "is_first", "is_last", "is_terminal", "reward")
    )
    seeds, start = list(seeds), 0
    for row, (seed, episode, now) in enumerate(obs.tolist()):
        over = now == LENGTH
        assert seed == seeds[start]
        assert reward[row] == (0 if first[row] else 10 * episode + now)
        assert terminal[row] == (over and episode % 2 == 0)
        follows = obs[row + 1].tolist() if row + 1 < len(obs) else [seed, episode, now + 1]
        if over and follows[0] == seed:
            follows_expected = [seed, episode + 1, 0]
        elif follows[0] != seed:
            start += 1
            follows_expected = [seeds[start], 0, 0]
        else:
            follows_expected = [seed, episode, now + 1]
        if row + 1 < len(obs):
            assert follows == follows_expected
            assert first[row + 1] == (follows[2] == 0)
            assert last[row] == first[row + 1]
    assert first[0] and start == len(seeds) - 1


def assert_record(directory, fields, index, seeds, lost=0):
    """Replay holds what an environment recorded, except for up to ``lost`` last answers that were never received."""
    obs, reward, first = fields["obs/discrete"][index], fields["reward"][index], fields["is_first"][index]
    action = np.concatenate([[[0]], fields["action/action"][index, :-1, None]])[:, 0]
    held: dict[int, list] = {seed: [] for seed in seeds}
    for (seed, episode, now), *rest in zip(obs.tolist(), np.where(first, 0, action), reward, strict=True):
        held[seed].append([episode, now, *rest])
    missing = 0
    for seed, rows in held.items():
        wrote = np.loadtxt(os.path.join(directory, str(seed)), ndmin=2)
        np.testing.assert_array_equal(wrote[: len(rows)], rows)
        missing += len(wrote) - len(rows)
    assert missing <= lost


def seeds_of(index, count, starts):
    return [seed_of(np.random.SeedSequence(7), count, index, start) for start in range(starts)]


def draw(rng, number, count):
    """A plan of ``number`` faults of all kinds, none in the first turn and at most one in any other."""
    kinds = rng.permutation(np.resize(list(SAID), number)).tolist()
    plan: list[list[tuple[int, int]]] = [[]]
    for kind in kinds:
        plan += [[]] * int(rng.integers(3)) + [[(int(rng.integers(count)), kind)]]
    return plan


@pytest.mark.parametrize(
    ("number", "per_worker"), [(7, 2), *(pytest.param(n, 1, marks=pytest.mark.slow) for n in (14, 50))]
)
def test_replay_holds_exactly_the_steps_that_were_taken(tmp_path, leaks, number, per_worker):
    count = 3
    plan = draw(np.random.default_rng(number), number, count)
    fields, done, messages = play(tmp_path, plan, count=count, per_worker=per_worker, turns=2 * len(plan))
    assert len(done) == len(messages) == number
    for (index, kind), message in zip(done, messages, strict=True):
        assert re.search(SAID[kind].format(index), message), (kind, message)
    for index in range(count):
        alone = [other for other, kind in done if other == index]
        worker = [(other, kind) for other, kind in done if other // per_worker == index // per_worker]
        together = [other for other, kind in worker if other == index or kind in (HANG, KILL, CRASH, KILL_IDLE)]
        seeds = seeds_of(index, count, len(together) + 1)
        assert_flags(fields, index, seeds)
        assert_record(tmp_path, fields, index, seeds, lost=len(together) - len(alone))


@pytest.mark.slow
def test_several_fail_in_one_turn(tmp_path, leaks):
    plan = [[], [], [(0, RAISE), (1, NONSENSE), (2, KILL), (4, HANG)], [(0, RAISE)], [(5, KILL_IDLE), (0, KILL_IDLE)]]
    fields, done, messages = play(tmp_path, plan, count=6, per_worker=2, turns=9)
    assert len(done) == len(messages) == 7
    for index, starts in enumerate([4, 3, 2, 2, 3, 3]):
        assert_flags(fields, index, seeds_of(index, 6, starts))


def test_the_same_faults_give_the_same_replay(tmp_path, leaks):
    results = []
    for number, per_worker in enumerate([1, 1, 3]):
        directory = tmp_path / str(number)
        directory.mkdir()
        plan = [[], [(1, RAISE)], [], [(0, NONSENSE), (2, RAISE)], [(1, RAISE)]]
        results.append(play(directory, plan, per_worker=per_worker, turns=12)[0])
    for other in results[1:]:
        for name, value in results[0].items():
            np.testing.assert_array_equal(value, other[name])


def test_too_many_failures_in_a_row_end_the_run(tmp_path, leaks):
    messages: list[str] = []
    config = EnvConfig(count=2, workers="async", failures=2)
    env = VectorEnv(counting(tmp_path), config, 0, messages.append)
    env.reset()
    env.step({"action": np.array([STEP, STEP])})
    for _ in range(2):
        step = env.step({"action": np.array([RAISE, STEP])})
        assert step.is_first.tolist() == [True, False]
        assert not step.is_last.any()
        assert step.env_steps.tolist() == [0, 1]
    with pytest.raises(
        EnvError, match=r"lost count.*failure 3 in a row.*env.failures=2.*\nIn the worker process:\nTrace"
    ):
        env.step({"action": np.array([RAISE, STEP])})
    assert len(messages) == 2
    with pytest.raises(EnvError, match="are closed"):
        env.reset()


def test_a_finished_episode_resets_the_count_of_failures(tmp_path, leaks):
    plan = [[], [(0, RAISE)]] + [[]] * (LENGTH + 1)
    _, done, messages = play(tmp_path, plan * 4, count=2, turns=len(plan) * 4, failures=1)
    assert len(done) == len(messages) == 4


@pytest.mark.parametrize("kind", [RAISE, NONSENSE, HANG, KILL])
def test_a_failure_in_the_first_step_ends_the_run(tmp_path, leaks, kind):
    env = VectorEnv(counting(tmp_path), EnvConfig(count=2, workers="async", timeout=0.3), 0)
    env.reset()
    with pytest.raises(EnvError, match=r"step 1 of episode 1.*\(environment number 1"):
        env.step({"action": np.array([STEP, kind])})


def test_an_environment_that_cannot_be_remade_ends_the_run(tmp_path, leaks):
    make_env = counting(tmp_path)

    def once():
        if (tmp_path / "made").exists():
            raise OSError("licence expired")
        return make_env()

    env = VectorEnv(once, EnvConfig(count=1, workers="async"), 0)
    env.reset()
    env.step({"action": np.array([STEP])})
    (tmp_path / "made").touch()
    with pytest.raises(EnvError, match=r"when it was made: OSError: licence expired"):
        env.step({"action": np.array([RAISE])})


def test_failures_are_printed_without_a_callback(tmp_path, leaks, capsys):
    with VectorEnv(counting(tmp_path), EnvConfig(count=1, workers="async"), 0) as env:
        env.reset()
        for action in (STEP, RAISE):
            env.step({"action": np.array([action])})
    assert re.search(SAID[RAISE].format(0), capsys.readouterr().err)


def test_a_hanging_environment_leaves_no_child_process(tmp_path, leaks):
    inner = counting(tmp_path)

    def make_env():
        class Spawning(gymnasium.Wrapper):
            def step(self, action):
                if action == HANG:
                    child = subprocess.Popen(["sleep", "1000"])
                    (tmp_path / "child").write_text(str(child.pid))
                return self.env.step(action)

        return Spawning(inner())

    with VectorEnv(make_env, EnvConfig(count=1, workers="async", timeout=0.5), 0, lambda message: None) as env:
        env.reset()
        for action in (STEP, HANG):
            env.step({"action": np.array([action])})
    wait_for_end([int((tmp_path / "child").read_text())])


def wait_for_end(pids, seconds=10.0):
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.02)


@pytest.mark.slow
def test_workers_follow_a_parent_that_is_killed(tmp_path):
    script = textwrap.dedent(
        f"""
        import os, signal, threading, time
        import numpy as np
        from dreamer.config import EnvConfig
        from dreamer.envs import VectorEnv
        from test_faults import counting, worker_of

        env = VectorEnv(counting({str(tmp_path)!r}), EnvConfig(count=3, per_worker=2, workers="async"), 0)
        env.reset()
        print(worker_of(env, 0), worker_of(env, 2), flush=True)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start()
        env.step({{"action": np.array([0, {HANG}, 0])}})
        """
    )
    paths = {"PYTHONPATH": f"{ROOT}:{pathlib.Path(__file__).parent}"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(
        command, env={**os.environ, **paths}, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    wait_for_end([int(pid) for pid in done.stdout.split()])


@pytest.fixture
def interrupts():
    """Python's own handler of SIGINT, which a shell disables in processes it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_only_the_parent_handles_interrupts(tmp_path, leaks, interrupts):
    env = VectorEnv(counting(tmp_path), EnvConfig(count=2, workers="async"), 0)
    env.reset()
    for index in range(2):
        os.kill(worker_of(env, index), signal.SIGINT)
    assert env.step({"action": np.array([STEP, STEP])}).env_steps.tolist() == [1, 1]
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        env.step({"action": np.array([STEP, HANG])})


def test_closing_closes_the_environments(tmp_path, leaks):
    inner = counting(tmp_path)

    def make_env():
        class Closing(gymnasium.Wrapper):
            def close(self):
                (tmp_path / f"closed {os.getpid()} {id(self)}").touch()

        return Closing(inner())

    with VectorEnv(make_env, EnvConfig(count=5, per_worker=2, workers="async"), 0) as env:
        env.reset()
    assert len(list(tmp_path.glob("closed *"))) == 1 + 5  # the first one only provided its spaces
    leaks.assert_none()  # although the object is still there
    env.close()


@pytest.mark.slow
def test_workers_end_when_the_environment_is_deleted_without_closing(tmp_path, leaks):
    env = VectorEnv(counting(tmp_path), EnvConfig(count=2, workers="async"), 0)
    env.reset()
    pids = [worker_of(env, index) for index in range(2)]
    del env
    gc.collect()
    wait_for_end(pids)


def test_workers_do_without_jax():
    inner = make_of(Config(task="probe_constant"))

    def make_env():
        class Looking(gymnasium.Wrapper):
            def reset(self, *, seed=None, options=None):
                obs, info = self.env.reset(seed=seed)
                heavy = {"jax", "flax", "dreamer.types", "dreamer.evaluate"} & sys.modules.keys()
                return {"vector": np.full_like(obs["vector"], bool(heavy))}, info

        return Looking(inner())

    with VectorEnv(make_env, EnvConfig(count=2, workers="async"), 0) as env:
        assert env.reset().obs["vector"].tolist() == [[0.0], [0.0]]
