"""MiniGrid and BabyAI against the library itself: classes, drawings, missions, flags and seeds."""

import importlib.util
import itertools

import gymnasium
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("minigrid", reason="needs the extra minigrid")
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.mission import MissionSpace
from minigrid.wrappers import RGBImgPartialObsWrapper

from dreamer.config import EnvConfig, MiniGridConfig
from dreamer.envs import EnvError, make
from dreamer.envs.suites.minigrid import _WORDS, MiniGrid, _encode_words, tasks
from dreamer.types import Space

FORWARD, RIGHT = 2, 1


def raw_make(name):
    return gymnasium.make(name, disable_env_checker=True)


def assert_same_obs(obs, native):
    for index, key in enumerate(("object", "color", "state")):
        np.testing.assert_array_equal(obs[key], native["image"][..., index])
        assert obs[key].dtype == np.int32
    assert obs["direction"] == native["direction"]


@pytest.mark.parametrize(
    ("name", "repeat"),
    [
        ("MiniGrid-DoorKey-5x5-v0", 1),
        ("MiniGrid-LavaGapS5-v0", 1),
        ("MiniGrid-Empty-Random-5x5-v0", 3),
        ("MiniGrid-Dynamic-Obstacles-5x5-v0", 1),
        ("BabyAI-OpenTwoDoors-v0", 2),
    ],
)
def test_same_as_the_raw_environment(name, repeat):
    """Golden: scripted actions over several episodes, every field of every step."""
    raw, env = raw_make(name), make(f"minigrid_{name}", EnvConfig(repeat=repeat))
    rng = np.random.default_rng(0)
    assert_same_obs(env.reset(seed=4)[0], raw.reset(seed=4)[0])
    for _ in range(400):
        action = rng.integers(env.action_spaces["action"].classes)
        rewards = []
        while True:
            native, raw_reward, raw_terminated, raw_truncated, _ = raw.step(action)
            rewards.append(float(raw_reward))
            if raw_terminated or raw_truncated or len(rewards) == repeat:
                break
        obs, reward, terminated, truncated, info = env.step({"action": action})
        assert_same_obs(obs, native)
        assert reward == pytest.approx(sum(rewards))
        assert (terminated, truncated, info["env_steps"]) == (raw_terminated, raw_truncated, len(rewards))
        if terminated or truncated:
            assert_same_obs(env.reset()[0], raw.reset()[0])


def test_the_goal_terminates_and_the_limit_truncates():
    env = make("minigrid_MiniGrid-Empty-5x5-v0", EnvConfig())
    env.reset(seed=0)
    for action in (FORWARD, FORWARD, RIGHT, FORWARD):
        assert env.step({"action": action})[1:4] == (0, False, False)
    _, reward, *ends, _ = env.step({"action": FORWARD})
    assert reward == pytest.approx(1 - 0.9 * 5 / 100) and ends == [True, False]
    env.reset()
    turns = [env.step({"action": RIGHT})[2:4] for _ in range(100)]
    assert turns == [(False, False)] * 99 + [(False, True)]


def test_spaces_have_as_many_classes_as_there_are_things():
    env = make("minigrid_MiniGrid-DoorKey-5x5-v0", EnvConfig())
    assert env.obs_spaces == {
        "color": Space("discrete", (7, 7), 6),
        "direction": Space("discrete", (), 4),
        "object": Space("discrete", (7, 7), 11),
        "state": Space("discrete", (7, 7), 3),
    }
    assert env.action_spaces == {"action": Space("discrete", (), 7)}
    image = make("minigrid_MiniGrid-DoorKey-5x5-v0", EnvConfig(minigrid=MiniGridConfig("image", (32, 48))))
    assert image.obs_spaces == {"direction": Space("discrete", (), 4), "image": Space("image", (32, 48, 3))}


@pytest.mark.parametrize("size", [(56, 56), (64, 64), (40, 96)])
def test_images_are_the_agents_view(size):
    """Golden: 56 pixels are 8 for each of the 7 cells; other sizes are shrunk from the next larger drawing."""
    tile = -(-max(size) // 7)
    raw = RGBImgPartialObsWrapper(raw_make("MiniGrid-DoorKey-6x6-v0"), tile_size=tile)
    env = make("minigrid_MiniGrid-DoorKey-6x6-v0", EnvConfig(minigrid=MiniGridConfig("image", size)))
    rng = np.random.default_rng(0)
    native, (obs, _) = raw.reset(seed=2)[0], env.reset(seed=2)
    for _ in range(20):
        drawn = np.asarray(Image.fromarray(native["image"]).resize(size[::-1], Image.Resampling.BOX))
        np.testing.assert_array_equal(obs["image"], native["image"] if size == (56, 56) else drawn)
        assert obs["image"].shape == (*size, 3) and obs["direction"] == native["direction"]
        action = rng.integers(7)
        native, obs = raw.step(action)[0], env.step({"action": action})[0]


@pytest.mark.parametrize("obs", ["symbolic", "image"])
def test_missions_are_classes_in_alphabetical_order(obs):
    name = "MiniGrid-Fetch-5x5-N2-v0"
    raw, env = raw_make(name), make(f"minigrid_{name}", EnvConfig(minigrid=MiniGridConfig(obs)))
    asks = ("get a", "go get a", "fetch a", "go fetch a", "you must fetch a")
    missions = sorted(" ".join(words) for words in itertools.product(asks, COLOR_NAMES, ("key", "ball")))
    assert env.obs_spaces["mission"] == Space("discrete", (), 60)
    found = set()
    for seed in range(30):
        mission = raw.reset(seed=seed)[0]["mission"]
        assert missions[int(env.reset(seed=seed)[0]["mission"])] == mission
        found.add(mission)
    assert len(found) > 10


def test_babyai_missions_are_words():
    name = "BabyAI-BossLevel-v0"
    raw, env = raw_make(name), make(f"minigrid_{name}", EnvConfig())
    assert env.obs_spaces["mission"] == Space("discrete", (72,), len(_WORDS))
    for seed in range(8):
        mission = raw.reset(seed=seed)[0]["mission"]
        words = [_WORDS[index] for index in env.reset(seed=seed)[0]["mission"]]
        assert " ".join(words).rstrip() == mission.replace(",", "")


def test_the_longest_sentence_of_babyai_fits_and_no_other_words_do():
    put = "put the red ball in front of you next to a grey box in front of you"
    longest = f"{put} and {put} after you {put} and {put}"
    assert (_encode_words(longest) > 0).all()
    for mission in (f"{longest} now", f"{longest} you", "go to the red banana"):
        with pytest.raises(EnvError, match=r"BabyAI gave the mission .* expected at most 72 of its grammar"):
            _encode_words(mission)


def test_every_task_can_be_played():
    """All except the family that needs another package."""
    names = [name for name in tasks() if "WFC" not in name]
    assert len(names) > 100 and all(name.startswith(("MiniGrid-", "BabyAI-")) for name in names)
    for name in names:
        env = make(f"minigrid_{name}", EnvConfig())
        for seed in range(2):
            obs, _ = env.reset(seed=seed)
            assert {"object", "color", "state", "direction"} <= obs.keys(), name
        env.step({"action": 0})
        env.close()


def test_unknown_tasks_and_missing_packages_are_named():
    with pytest.raises(EnvError, match=r"Did you mean 'minigrid_MiniGrid-DoorKey-5x5-v0'"):
        make("minigrid_MiniGrid-DorKey-5x5-v0", EnvConfig())
    if importlib.util.find_spec("networkx") is None:
        with pytest.raises(EnvError, match=r"'minigrid_MiniGrid-WFC-.*not installed.*pip install .minigrid\[wfc\]"):
            make(next(f"minigrid_{name}" for name in tasks() if "WFC" in name), EnvConfig())


def test_too_many_missions_are_refused():
    env = raw_make("MiniGrid-Empty-5x5-v0")
    numbers = [str(number) for number in range(40)]
    env.observation_space["mission"] = MissionSpace(lambda x, y: f"go to {x} {y}", [numbers, numbers])
    with pytest.raises(EnvError, match=r"has 1600 possible missions, expected at most 1000: wrap the task"):
        MiniGrid(env)


def test_nothing_is_printed_while_levels_are_tried(capsys):
    name, seeds = "BabyAI-SynthLoc-v0", range(10)
    raw, env = raw_make(name), make(f"minigrid_{name}", EnvConfig())
    for seed in seeds:
        raw.reset(seed=seed)
    assert "rejected" in capsys.readouterr().out
    for seed in seeds:
        env.reset(seed=seed)
    assert capsys.readouterr().out == ""


def test_seeds_decide_all_episodes():
    def episodes(seed):
        env = make("minigrid_MiniGrid-FourRooms-v0", EnvConfig())
        return [env.reset(seed=s)[0]["object"].tobytes() for s in (seed, None, None)]

    assert episodes(1) == episodes(1)
    assert len({*episodes(1), *episodes(2), *episodes(None)}) >= 7  # one wall looks like another


def test_people_see_the_whole_grid():
    env = make("minigrid_MiniGrid-Empty-5x5-v0", EnvConfig(), render=True)
    env.reset(seed=0)
    assert env.render().shape == (160, 160, 3)
