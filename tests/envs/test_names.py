"""Names of tasks: what each form means, and which names are suggested for one that means nothing."""

import sys

import pytest

from dreamer import config as configs
from dreamer.config import ConfigError, EnvConfig
from dreamer.envs import make, names, native, summarizer
from dreamer.envs.errors import EnvError

MODULE = """
import gymnasium

def make():
    return gymnasium.make("CartPole-v1")
"""

PACKAGE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

gymnasium.register("gym_poles/Pole-v0", entry_point=CartPoleEnv)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with modules whose names begin like suites, and a package that registers an id."""
    for name in ("gym_shop.py", "jax_shop.py", "dmc_shop.py", "plain_shop.py"):
        (tmp_path / name).write_text(MODULE)
    (tmp_path / "gym_poles").mkdir()
    (tmp_path / "gym_poles" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "gym_poles" / "envs.py").write_text(MODULE)
    (tmp_path / "gym_empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("gym_shop", "jax_shop", "dmc_shop", "plain_shop"):
        monkeypatch.delitem(sys.modules, module, raising=False)  # that of another test


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("gym_CartPole-v1", ("gym", "CartPole-v1")),
        ("memory_maze_9x9", ("memory", "maze_9x9")),
        # A function whose module exists wins, whatever its name begins with.
        ("gym_shop:make", ("", "gym_shop:make")),
        ("jax_shop:make", ("", "jax_shop:make")),
        ("gym_poles.envs:make", ("", "gym_poles.envs:make")),
        ("dmc_shop:make", ("", "dmc_shop:make")),
        # Otherwise the prefix counts.
        ("gym_plain_shop:Thing-v0", ("gym", "plain_shop:Thing-v0")),
        ("gym_shop:Thing-v0", ("gym", "shop:Thing-v0")),
        ("jax_plain_shop:make", ("jax", "plain_shop:make")),
        ("gym_nowhere:make", ("gym", "nowhere:make")),
        ("gym_empty:make", ("gym", "empty:make")),
        ("atari_nowhere:make", ("", "atari_nowhere:make")),
        # The namespace of an id may be the package that registers it.
        ("gym_poles/Pole-v0", ("gym", "gym_poles/Pole-v0")),
        ("gym_nowhere/Pole-v0", ("gym", "nowhere/Pole-v0")),
        ("gym_empty/Pole-v0", ("gym", "empty/Pole-v0")),
        ("CartPole-v1", ("", "CartPole-v1")),
        ("gym_", ("", "gym_")),
    ],
)
def test_what_a_name_means_depends_on_what_exists(place, task, expected):
    assert names.split(task) == expected


@pytest.mark.parametrize("task", ["gym_shop:make", "jax_shop:make", "gym_poles.envs:make", "gym_poles/Pole-v0"])
def test_such_tasks_are_made(place, task):
    assert make(task, EnvConfig()).obs_spaces["vector"].shape == (4,)
    assert summarizer(task) is None


def test_the_device_loop_says_how_to_name_a_native_environment(place):
    with pytest.raises(ConfigError, match=r"If that function returns a NativeEnv, write task=jax_jax_shop:make\."):
        native.native_env(configs.load([], ["task=jax_shop:make", "run.loop=device"]))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("gym_nowhere:make", "neither a module gym_nowhere with a function make, nor a module nowhere that registers"),
        ("plain_shp:make", r"Did you mean 'plain_shop:make'\?"),
        ("jax_plain_shop:make", r"gives a gymnasium\.Env, expected a NativeEnv: name it task=plain_shop:make"),
        ("gym_nowhere/Abyss-v0", "If gym_nowhere is the package that registers this id, install it"),
        ("custom_<lambda>", r"--env package\.module:function.*dreamer\.evaluate\(dreamer\.load\(LOGDIR\), env, 20\)"),
    ],
)
def test_a_name_without_anything_behind_it_says_what_was_looked_for(place, task, message):
    with pytest.raises(EnvError, match=message):
        make(task, EnvConfig())


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("CartPole-v1", ["gym_CartPole-v1"]),
        ("CartPole", ["gym_CartPole-v1"]),  # the newest version
        ("CartPole-v0", ["gym_CartPole-v0"]),
        ("CartPoel-v1", ["gym_CartPole-v1"]),
        ("gym_CartPol-v1", ["gym_CartPole-v1"]),
        ("gymnasium_CartPole-v1", ["gym_CartPole-v1"]),
        ("catch", ["probe_catch"]),
        ("prob_catch", ["probe_catch"]),
        ("foo", []),
        ("gym_pusht/PushT-v0", []),  # gym_Pusher-v5 would be a guess
        ("my_env", []),
        ("", []),
    ],
)
def test_the_nearest_names_are_near(task, expected):
    assert names.nearest(task) == expected


@pytest.mark.parametrize(
    ("package", "task", "expected"),
    [
        ("ale_py", "ALE/Pong-v5", "atari_pong"),
        ("ale_py", "PongNoFrameskip-v4", "atari_pong"),
        ("ale_py", "MsPacman-v5", "atari_ms_pacman"),
        ("ale_py", "atri_pong", "atari_pong"),
        ("minigrid", "MiniGrid-DoorKey-5x5-v0", "minigrid_MiniGrid-DoorKey-5x5-v0"),
        ("minigrid", "minigrid_DoorKey-5x5-v0", "minigrid_MiniGrid-DoorKey-5x5-v0"),
        ("dm_control", "walker_walk", "dmc_walker_walk"),
        ("dm_control", "dm_control/walker-walk-v0", "dmc_walker_walk"),
        ("crafter", "crafter", "crafter_reward"),
    ],
)
def test_ids_of_other_programs_lead_to_the_suite(package, task, expected):
    pytest.importorskip(package)
    assert expected in names.nearest(task)


def test_slow_suites_are_imported_only_for_names_that_point_to_them(monkeypatch):
    imported = []
    load_suite = names.load_suite

    def load(prefix):
        imported.append(prefix)
        return load_suite(prefix)

    monkeypatch.setattr(names, "load_suite", load)
    for task in ("CartPoel-v1", "foo", "some_thing", "gym_CartPoel-v1", "Humanoid/Run-v3"):
        names.nearest(task)
    assert "gym" in imported
    assert not {"jax", "playground", "craftax", "dmc"} & set(imported)
