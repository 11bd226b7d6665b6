"""Every fault that `dreamer.envs.check` knows, alone in a small environment, and none in a sound one."""

import itertools
import json
import pathlib
import subprocess
import sys
import types

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dreamer import config as configs
from dreamer.envs import rollouts
from dreamer.envs.check import __main__ as command
from dreamer.envs.check import diagnosis
from dreamer.envs.check import examination as check
from dreamer.envs.errors import EnvError
from dreamer.types import Space

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


class Sound(gymnasium.Env):
    """A walk of -1 or +1 from a random place between -3 and 3, until it leaves or 20 steps are over."""

    limit = 20

    def __init__(self):
        self.observation_space = spaces.Box(-4, 4, (2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.time = float(self.np_random.uniform(-3, 3)), 0
        return self.see(), {}

    def step(self, action):
        self.move(action)
        self.time += 1
        over = abs(self.place) > 3
        return self.see(), self.reward(over), over, self.time == self.limit, {}

    def move(self, action):
        self.place += 2 * action - 1

    def see(self):
        return np.array([self.place, self.time / self.limit], np.float32)

    def reward(self, over):
        return -abs(self.place)


class RaisesInReset(Sound):
    def reset(self, *, seed=None, options=None):
        raise LookupError("no such level")


class NoSeed(Sound):
    def reset(self):  # type: ignore[override]
        return super().reset()


class NotANumber(Sound):
    def see(self):
        return np.full(2, np.nan, np.float32)


class OutOfBounds(Sound):
    def see(self):
        return super().see() + 7


class OutOfBoundsWhereNobodyStrolls(Sound):
    """Random walks turn back before they have gone to the right twelve times in a row."""

    limit = 14
    right = 0

    def see(self):
        seen = super().see()
        self.right = 0 if self.time == 0 else self.right
        return seen if self.right < 12 else np.array([9, seen[1]], np.float32)

    def move(self, action):
        self.right = self.right + 1 if action == 1 else -100


class OldTuple(Sound):
    def step(self, action):
        obs, reward, over, _, info = super().step(action)
        return obs, reward, over, info


class WrongDtype(Sound):
    def __init__(self):
        super().__init__()
        self.observation_space = spaces.MultiDiscrete([9, 9])


class Indivisible(Sound):
    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (50, 50, 3), np.uint8)


class Shy(Sound):
    """Fails when it is made, not when it is used."""

    def __init__(self):
        raise KeyError("licence")


class Sticking(Sound):
    def close(self):
        raise OSError("busy")


class Single(Sound):
    """Allows one instance at a time."""

    alive = False

    def __init__(self):
        if Single.alive:
            raise PermissionError("one licence")
        Single.alive = True
        super().__init__()

    def close(self):
        Single.alive = False


class GlobalRandomness(Sound):
    def move(self, action):
        super().move(action)
        self.place = float(np.clip(self.place + np.random.random(), -4, 4))  # noqa: NPY002 (the fault)


class Unseeded(Sound):
    def reset(self, *, seed=None, options=None):
        self.place, self.time = float(np.random.default_rng().uniform(-3, 3)), 0
        return self.see(), {}


class OwnGenerator(Sound):
    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        self.place, self.time = float(self.generator.uniform(-3, 3)), 0
        return self.see(), {}


class Rewrites(Sound):
    def __init__(self):
        super().__init__()
        self.buffer = np.zeros(2, np.float32)

    def see(self):
        self.buffer[:] = super().see()
        return self.buffer


class Endless(Sound):
    limit = -1

    def move(self, action):
        self.place = float(np.clip(self.place + 2 * action - 1, -3, 3))

    def see(self):
        return np.array([self.place, 0], np.float32)


class ClockTerminates(Endless):
    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, reward, self.time == 60, False, {}


class KnownClockTerminates(ClockTerminates):
    max_steps = 60


class ShortTask(Endless):
    def step(self, action):
        obs, reward, *_ = super().step(action)
        return obs, reward, self.time == 6, False, {}


class Unscaled(Sound):
    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def see(self):
        return super().see() * 1e4


class WithConstant(Sound):
    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Dict(
            {"still": spaces.Box(0, 1, (1,), np.float32), "walk": self.observation_space}
        )

    def see(self):
        return {"walk": super().see(), "still": np.zeros(1, np.float32)}


class Dark(Sound):
    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (16, 16), np.uint8)

    def see(self):
        return np.full((16, 16), self.place > 0, np.uint8)


class FlatImage(Sound):
    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(-4, 4, (64, 64, 3), np.float32)

    def see(self):
        return np.full((64, 64, 3), self.place, np.float32)


class Continuous(Sound):
    low, high = -1.0, 1.0

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Box(self.low, self.high, (1,), np.float64)

    def move(self, action):
        self.place += float(action[0]) / max(abs(self.low), abs(self.high))


class Fixed(Continuous):
    low = high = 1.0


class Vast(Continuous):
    low, high = -1e9, 1e9


class Tiny(Continuous):
    low, high = -1e-6, 1e-6


class OneSided(Continuous):
    low, high = 0.0, 2.0


class IgnoresActions(Sound):
    def move(self, action):
        self.place += 1


class OneClass(Sound):
    def __init__(self):
        super().__init__()
        self.action_space = spaces.Discrete(1)


class NoReward(Sound):
    def reward(self, over):
        return 0.0


class LargeReward(Sound):
    def reward(self, over):
        return 1e5 * self.place


class LateReward(Sound):
    def reward(self, over):
        return 1.0 if over else 0.0


class WithMask(Sound):
    """Steps outwards are forbidden and raise, until time is up."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Dict({"action_mask": spaces.MultiBinary(2), "walk": self.observation_space})

    def see(self):
        allowed = np.array([self.place > -2, self.place < 2], np.int8)
        return {"action_mask": allowed, "walk": super().see()}

    def move(self, action):
        if not self.see()["action_mask"][action]:
            raise ValueError(f"action {action} is forbidden")
        super().move(action)


def findings(make_env, *overrides):
    return list(check.check(make_env, configs.load([], overrides), steps=600))


def test_a_sound_environment_has_only_findings_that_are_fine():
    found = findings(Sound)
    assert [finding for finding in found if finding.level != "ok"] == []
    text = "\n".join(finding.text for finding in found)
    assert "Observation 'vector': float32 [2]: symlog, then MLP." in text
    assert "Action 'action': int32 [], 2 classes: one categorical distribution." in text
    assert "Two instances with the same seed and actions agree" in text
    assert "Another seed gives other episodes." in text
    assert "Other actions have other consequences." in text


def test_what_is_ignored_in_training_is_a_warning():
    class Chatty(Sound):
        def step(self, action):
            return *super().step(action)[:4], {"log": "moved", "is_success": "maybe"}

    for make_env, sentence in [
        (Chatty, "info['log'] is 'moved', expected a dict of numbers by name. It is ignored."),
        (Chatty, "info['is_success'] is 'maybe', expected a bool, 0 or 1. It is ignored."),
        (Sticking, "when it was closed: OSError: busy ("),
        (
            lambda: gymnasium.wrappers.NormalizeObservation(Sound()),
            "has the wrapper NormalizeObservation, whose running",
        ),
    ]:
        found = findings(make_env)
        assert [finding for finding in found if finding.level == "error"] == []
        assert sum(sentence in finding.text for finding in found if finding.level == "warning") == 1


@pytest.mark.parametrize(
    ("make_env", "sentence"),
    [
        (Shy, "Making the environment: KeyError: 'licence' ("),
        (itertools.repeat(Sound()).__next__, "returned the same environment twice (Sound)"),
        (lambda: 3, "expected a gymnasium.Env"),
        (RaisesInReset, "LookupError: no such level"),
        (NoSeed, "unexpected keyword argument 'seed'"),
        (NotANumber, "holds nan at index [0], expected finite numbers"),
        (
            OldTuple,
            "step returned a tuple of 4 values, expected Gymnasium's tuple (observation, reward, terminated, trunc",
        ),
        (WrongDtype, "has dtype float32, expected int64"),
        (Indivisible, "An image of 50x50 pixels cannot be encoded"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_environments_that_cannot_be_trained_on_are_an_error(make_env, sentence):
    errors = [finding for finding in findings(make_env) if finding.level == "error"]
    assert any(sentence in finding.text for finding in errors), errors


def test_an_environment_that_exists_once_can_be_trained_on():
    assert not [finding for finding in findings(Single) if finding.level == "error"]
    (finding,) = check.together(Single, configs.EnvConfig(count=2))
    assert finding.level == "warning"
    assert "PermissionError: one licence" in finding.text
    assert "use env.count=1, or env.workers=async" in finding.text
    Single.alive = False
    assert not list(check.together(Single, configs.EnvConfig(count=1)))
    assert not list(check.together(Sound, configs.EnvConfig(count=2)))


FAULTS = [
    (
        GlobalRandomness,
        "warning",
        "first differ in observation 'vector', 1 steps in: draw all random numbers from self.np_",
    ),
    (Unseeded, "warning", "first differ in observation 'vector', 0 steps in: call super().reset(seed=seed) in reset"),
    (OwnGenerator, "warning", "The seed is ignored: episodes differ, but not between seeds"),
    (Rewrites, "note", "overwrites observations that it returned before"),
    (Endless, "warning", "No episode ended in 600 env steps of random actions: if nothing else ends them, wrap"),
    (ClockTerminates, "warning", "All 5 episodes ended terminated after exactly 60 env steps: if a clock ends them"),
    (KnownClockTerminates, "warning", "after exactly 60 env steps, the time limit: if a clock"),
    (ShortTask, "note", "All 50 episodes ended terminated after exactly 6 env steps"),
    (Unscaled, "note", "Observation 'vector' reaches"),
    (WithConstant, "note", "Observation 'still' is the same in all"),
    (Dark, "warning", "Observation 'image' holds no pixel above 1"),
    (FlatImage, "warning", "Observation 'vector' is a vector of 12288 numbers: if it is an image, declare it"),
    (Fixed, "warning", "Action 'action' has 1 entries with equal bounds"),
    (Vast, "warning", "Action 'action' has bounds up to 1e+09, which sensible actions hardly reach"),
    (Tiny, "note", "Action 'action' has bounds only 2e-06 apart"),
    (OneSided, "note", "Action 'action' has asymmetric bounds: the first policy is centred on 1 in entry 0"),
    (IgnoresActions, "warning", "Actions are ignored"),
    (OneClass, "warning", "There is nothing to choose"),
    (NoReward, "warning", "rewards are 0 under random actions: the reward is sparse"),
    (LargeReward, "note", "Rewards reach"),
    (
        OutOfBounds,
        "note",
        "outside their bounds, the first with random actions: Environment OutOfBounds, step 0 of episode 1: obs",
    ),
    (
        OutOfBoundsWhereNobodyStrolls,
        "note",
        "outside their bounds, the first with class 1 all the time: Environment OutOfBoundsWhereNobodyStrolls, step 12",
    ),
    (LateReward, "note", "Reward comes only with the last step of an episode"),
    (WithMask, "note", "Observation 'action_mask' is the mask of action 'action'"),
]


@pytest.mark.parametrize(("make_env", "level", "sentence"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_fault_is_found_at_its_level(make_env, level, sentence):
    found = findings(make_env)
    assert [finding.level for finding in found if sentence in finding.text] == [level], found
    assert "error" not in [finding.level for finding in found]


def test_a_known_time_limit_that_was_not_reached_is_fine():
    found = findings(lambda: gymnasium.wrappers.TimeLimit(Endless(), 5000))
    assert "No episode ended in 600 env steps; the time limit is 5000." in [finding.text for finding in found]
    assert {finding.level for finding in found} == {"ok"}


def test_an_environment_too_slow_to_finish_an_episode_gets_no_warning(monkeypatch):
    monkeypatch.setattr(rollouts, "_SECONDS", 0.0)
    recording = rollouts.record(Endless, configs.EnvConfig(), seed=0, action_seed=0, steps=600, episodes=5)
    assert recording.out_of_time
    assert len(recording.steps) == 2
    (finding,) = diagnosis.endings(recording, None)
    assert finding.level == "note"
    assert "as many as there was time for" in finding.text


def test_compiling_the_first_step_does_not_count_as_slow(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(rollouts, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    class Compiled(Endless):
        def step(self, action):
            now[0] += 0.1 if now[0] else 1000.0
            return super().step(action)

    recording = rollouts.record(Compiled, configs.EnvConfig(), seed=0, action_seed=0, steps=30, episodes=5)
    assert not recording.out_of_time
    assert len(recording.steps) == 31


def test_repeats_count_as_env_steps():
    (finding,) = [f for f in findings(ClockTerminates, "env.repeat=2") if "exactly" in f.text]
    assert "after exactly 60 env steps" in finding.text


def test_late_observations_of_a_long_recording_are_dropped(monkeypatch):
    monkeypatch.setattr(rollouts, "_KEPT", 10)
    recording = rollouts.record(Endless, configs.EnvConfig(), seed=0, action_seed=0, steps=30, episodes=5)
    assert [bool(step.obs) for step in recording.steps] == [True] * 10 + [False] * 21


def test_random_actions_are_uniform_among_those_allowed(rng):
    actions = {"a": Space("continuous", (2,)), "b": Space("discrete", (3,), 4)}
    mask = np.array([[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    drawn = rollouts.random_action(rng, actions, {"b": "mask"}, {"mask": np.tile(mask, (3000, 1, 1))}, (3000,))
    assert drawn["a"].shape == (3000, 2) and np.abs(drawn["a"]).max() <= 1
    assert drawn["b"].dtype == np.int32
    for entry, allowed in enumerate(mask):
        shares = np.bincount(drawn["b"][:, entry], minlength=4) / 3000
        np.testing.assert_allclose(shares, allowed / allowed.sum(), atol=0.04)


def test_speed_is_measured_alone_and_in_workers(monkeypatch):
    monkeypatch.setattr(check, "_rate", lambda make, config, seconds: 100.0 * config.count)
    found = check.speed(Sound, configs.EnvConfig(count=32, per_worker=2))
    assert found.text.startswith("Speed: 100 agent steps/s alone; 200, 800, 3,200 with 1, 4, 16 workers. Use env.w")
    assert "100 with 1 worker. " in check.speed(Sound, configs.EnvConfig(count=1)).text
    assert "100, 400 with 1, 4 workers. " in check.speed(Sound, configs.EnvConfig(count=15)).text
    few = configs.EnvConfig(count=2, per_worker=3)
    assert check.speed(Sound, few).text == "Speed: 100 agent steps/s alone."
    monkeypatch.setattr(check, "_rate", lambda make, config, seconds: 100.0)
    assert check.speed(Sound, configs.EnvConfig()).data["workers"] == "sync"


def test_one_rate_counts_agent_steps(monkeypatch):
    """Of two environments, for ten steps of a tenth of a second; a reset is no step of the agent."""
    taken, clock = [], iter(range(10**6))
    step = check.VectorEnv.step

    def counting(self, action):
        found = step(self, action)
        taken.append(int((~found.is_first).sum()))
        return found

    monkeypatch.setattr(check.VectorEnv, "step", counting)
    monkeypatch.setattr(check.time, "perf_counter", lambda: next(clock) / 10)
    rate = check._rate(Sound, configs.EnvConfig(count=2), 1.05)
    assert len(taken) == 10
    assert rate == pytest.approx(sum(taken) / 1.1)


def test_an_environment_that_does_not_run_in_workers_is_reported(monkeypatch):
    def rate(make, config, seconds):
        if config.workers == "async":
            raise EnvError("cannot be sent")
        return 1.0

    monkeypatch.setattr(check, "_rate", rate)
    found = check.speed(Sound, configs.EnvConfig())
    assert (found.level, found.text) == ("warning", "It does not run in worker processes: cannot be sent")


@pytest.mark.parametrize(
    ("task", "presets", "images", "expected"),
    [
        ("dmc_walker_walk", [], False, ["dmc_proprio", "dmc_small"]),
        ("dmc_walker_walk", [], True, ["dmc_vision", "dmc_vision_small"]),
        ("atari_pong", [], True, ["atari100k", "atari_small"]),
        ("crafter_reward", [], True, ["crafter", "crafter size/tiny"]),
        ("gym_CartPole-v1", [], False, ["gym", "gym_small"]),
        ("atari_like:make", [], False, ["gym", "gym_small"]),
        ("atari_pong", ["atari57", "size/12m"], True, ["atari57 size/12m"]),
    ],
)
def test_commands_fit_the_task(task, presets, images, expected):
    commands = [finding.data["command"] for finding in check.suggestions(task, presets, ["env.count=4"], images=images)]
    start = "python -m dreamer.train --config"
    assert commands == [f"{start} {names} task={task} env.count=4" for names in expected]


def test_the_command_prints_a_level_and_a_sentence_on_every_line():
    command = [sys.executable, "-W", "error", "-m", "dreamer.envs.check", "probe_catch", "env.repeat=2", "--fast"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert {level for level, _ in lines} == {"ok", "note"}
    assert lines[0][1] == "Observation 'image': uint8 [16, 16, 1]: convolutions, 16x16 -> 4x4."
    assert lines[-1][1] == "'probe_catch' can be trained on."
    assert all(sentence[0].isupper() or sentence.startswith("'") for _, sentence in lines)


def test_json_holds_the_findings(capsys):
    assert command.main(["probe_catch", "--json", "--fast", "--steps=50"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["task"], report["trainable"]) == ("probe_catch", True)
    image = next(finding for finding in report["findings"] if finding["topic"] == "observation")
    assert image["data"] == {"kind": "image", "shape": [16, 16, 1], "classes": 0}


def test_what_an_environment_prints_does_not_disturb_the_findings(capsys, monkeypatch):
    class Chatty(Sound):
        def see(self):
            print("hello")
            return super().see()

    monkeypatch.setattr(check.envs, "make_any", lambda task, config, num_envs: check.adapt(Chatty, config))
    assert command.main(["mine", "--json", "--fast", "--steps=50"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["trainable"]
    assert "hello" in err


def test_status_distinguishes_errors_from_wrong_usage(capsys):
    assert command.main(["probe_catsh", "--fast"]) == 2
    out = capsys.readouterr().out
    assert "error    There is no task 'probe_catsh': There is no probe 'catsh'. Did you mean 'probe_catch'" in out
    assert out.splitlines()[-1] == "error    'probe_catsh' cannot be trained on: fix what the lines marked error say."
    assert command.main(["probe_catch", "env.repeet=2"]) == 2
    assert "Did you mean 'env.repeat'?" in capsys.readouterr().err
    for wrong in ([], ["probe_catch", "--steps=0"]):
        with pytest.raises(SystemExit) as exit:
            command.main(wrong)
        assert exit.value.code == 2


@pytest.mark.parametrize("task", ["atari_pong", "crafter_reward", "dmc_x", "gym_x", "memory_maze_9x9", "minigrid_x"])
@pytest.mark.parametrize("images", [False, True])
def test_the_suggested_presets_exist(task, images):
    suggested = [name for found in check.suggestions(task, [], [], images=images) for name in found.data["presets"]]
    assert len(suggested) >= 2
    assert set(suggested) <= set(configs.presets())


def test_many_environments_in_one_object_are_played_together(capsys):
    def said(*options):
        status = command.main(["vec_CartPole-v1", "--steps=300", *options])
        return status, capsys.readouterr().out

    status, text = said("env.count=3")
    assert status == 0
    for line in (
        "note     vec_CartPole-v1 is 3 environments in one object.",
        "Observation 'vector': float32 [4]",
        "ended terminated, 0 truncated.",
        "agent steps/s in all rows.",
        "--config gym task=vec_CartPole-v1 env.count=3",
        "'vec_CartPole-v1' can be trained on.",
    ):
        assert line in text
    status, text = said("env.repeat=2")
    assert status == 2
    assert "action_repeat=1" in text
