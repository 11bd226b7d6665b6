"""What environments say in info: success, costs, and numbers to log, whatever their types."""

import fractions
from typing import Any

import gymnasium
import numpy as np
import pytest

from dreamer.config import EnvConfig
from dreamer.envs import Adapter
from dreamer.envs.info import COST, SUCCESS, SUCCESS_ANY, as_number
from dreamer.envs.restore.states import pack, unpack


class Tells(gymnasium.Env):
    """Gives prepared infos, episode after episode; an episode ends with its last."""

    observation_space: gymnasium.Space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, *episodes):
        self.episodes = episodes
        self.episode = -1
        self.time = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.time = 0
        return np.zeros(1, np.float32), {"is_success": True, "cost": 100.0}

    def step(self, action):
        infos = self.episodes[self.episode]
        self.time += 1
        return np.zeros(1, np.float32), 0.0, False, self.time == len(infos), infos[self.time - 1]


def logs(*episodes, repeat=1) -> list[dict[str, float]]:
    """What an adapter logs of each episode."""
    env = Adapter(Tells(*episodes), EnvConfig(repeat=repeat))
    found = []
    for _ in episodes:
        env.reset()
        truncated = False
        while not truncated:
            assert env.episode_log == {}
            *_, truncated, _ = env.step({"action": 0})
        found.append(env.episode_log)
    return found


@pytest.mark.parametrize("key", ["is_success", "success"])
@pytest.mark.parametrize("kind", [bool, int, np.float32, np.bool_, lambda x: np.array([x])])
@pytest.mark.parametrize("repeat", [1, 2])
def test_success_at_the_last_step_and_at_any(key, kind, repeat):
    flags = [[0, 1, 0], [0, 0, 1], [0, 0, 0], [1]]
    found = logs(*([{key: kind(flag)} for flag in episode] for episode in flags), repeat=repeat)
    assert [log[SUCCESS] for log in found] == [0.0, 1.0, 0.0, 1.0]
    assert [log[SUCCESS_ANY] for log in found] == [1.0, 1.0, 0.0, 1.0]


def test_where_success_is_reported_only_when_there_is_one_silence_means_failure():
    found = logs([{}, {}], [{}, {"success": True}], [{}, {}], [{"success": True}, {}])
    assert found[0] == {}
    assert [(log[SUCCESS], log[SUCCESS_ANY]) for log in found[1:]] == [(1.0, 1.0), (0.0, 0.0), (0.0, 1.0)]


@pytest.mark.parametrize("value", ["yes", 0.5, 2, float("nan"), [True], np.ones(2), object()])
def test_a_success_of_another_meaning_is_ignored_and_said_once(value):
    env = Adapter(Tells([{"success": value}] * 3), EnvConfig())
    env.reset()
    for _ in range(3):
        env.step({"action": 0})
    assert env.episode_log == {}
    ((key, sentence),) = env.take_notes()
    assert key == "info['success']"
    assert "step 1 of episode 1: info['success'] is" in sentence and "expected a bool, 0 or 1" in sentence


@pytest.mark.parametrize("repeat", [1, 3])
def test_costs_are_summed_per_episode(repeat):
    found = logs([{"cost": 1}, {}, {"cost": np.float64(0.5)}], [{"cost": None}, {"cost": 2}], repeat=repeat)
    assert found == [{COST: 1.5}, {COST: 2.0}]


def test_an_episode_without_any_of_it_logs_nothing():
    assert logs([{}, {"reward_dist": 1.0}]) == [{}]


def test_names_that_are_logged_do_not_meet_the_outcome():
    (log,) = logs([{"log": {"success": 0.25, "cost": 9}, "success": True}])
    assert log == {"success": 0.25, "cost": 9.0, SUCCESS: 1.0, SUCCESS_ANY: 1.0}


@pytest.mark.parametrize(
    ("log", "numbers"),
    [
        ({"a": 1, "b": True, 3: np.float32(0.5)}, {"a": 1.0, "b": 1.0, "3": 0.5}),
        ({"a": {"b": {"c": 2}}, "d": {}}, {"a/b/c": 2.0}),
        ({"a": "fine", "b": 1}, {"b": 1.0}),
        ({"a": [1, 2], "b": np.ones(3), "c": np.array([4])}, {"c": 4.0}),
        ({"a": "3"}, {}),
        ("moved left", {}),
        ([1.0], {}),
        (None, {}),
        ({"a": 10**400}, {}),
    ],
)
def test_of_a_log_what_is_a_number_is_kept(log, numbers):
    assert logs([{"log": log}]) == [numbers]


def test_a_log_that_contains_itself_is_no_trap():
    log: dict[str, Any] = {"a": 1}
    log["self"] = log
    (found,) = logs([{"log": log}])
    assert found["a"] == 1.0 and len(found) <= 4


@pytest.mark.parametrize(
    ("value", "number"),
    [(True, 1.0), (fractions.Fraction(1, 2), 0.5), (np.array([[2]]), 2.0), ("1", None), (b"1", None), (1j, None)],
)
def test_what_counts_as_a_number(value, number):
    assert as_number(value) == number


def test_the_outcome_is_kept_over_a_resume_in_the_middle_of_an_episode():
    episode = [{"success": True, "cost": 1.0}, {"cost": 2.0}, {"cost": 4.0}]
    one, two = (Adapter(Tells(episode), EnvConfig()) for _ in range(2))
    one.reset()
    one.step({"action": 0})
    two.set_state(unpack(*pack({**one.get_state(), "env": two.get_state()["env"]})))
    two.env.episode, two.env.time = 0, 1  # type: ignore[attr-defined]
    for env in (one, two):
        for _ in range(2):
            env.step({"action": 0})
    assert one.episode_log == two.episode_log == {SUCCESS: 0.0, SUCCESS_ANY: 1.0, COST: 7.0}


def test_goals_are_ordinary_observations():
    class Goals(Tells):
        def __init__(self, *episodes):
            super().__init__(*episodes)
            box = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
            self.observation_space = gymnasium.spaces.Dict(observation=box, achieved_goal=box, desired_goal=box)

        def reset(self, *, seed=None, options=None):
            return dict.fromkeys(("observation", "achieved_goal", "desired_goal"), super().reset()[0]), {}

    env = Adapter(Goals([{}]), EnvConfig())
    assert list(env.obs_spaces) == ["achieved_goal", "desired_goal", "observation"]
    assert env.reset()[0].keys() == env.obs_spaces.keys()
