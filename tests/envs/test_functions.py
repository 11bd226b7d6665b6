"""Functions that make environments: what goes wrong in them, what they return instead, and how they are named."""

import functools
import importlib
import os
import pathlib
import subprocess
import sys
import types
from typing import Any

import gymnasium
import numpy as np
import pytest

from dreamer import envs
from dreamer.config import EnvConfig
from dreamer.envs import functions
from dreamer.envs.errors import EnvError

# ------------------------------------------------------------------------------------------------------------ errors

BROKEN = """
import sys
import gymnasium

def raises():
    raise ValueError("the map is\\n too small")

def silent():
    assert False

def ends():
    sys.exit(7)

def keyword():
    return gymnasium.make("CartPole-v1", speed=2)

class Machine(gymnasium.Env):
    def __init__(self, render_mode=None):
        self.joints = {}["joints"]

gymnasium.register("Machine-v0", entry_point=Machine)
"""


@pytest.fixture
def broken(tmp_path, monkeypatch):
    (tmp_path / "broken_shop.py").write_text(BROKEN)
    (tmp_path / "misspelt_shop.py").write_text("def make(:\n    pass\n")
    (tmp_path / "unknown_shop.py").write_text("\nvalue = undefined\n")
    monkeypatch.delitem(sys.modules, "broken_shop", raising=False)  # that of another directory
    gymnasium.registry.pop("Machine-v0", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("broken_shop:raises", "ValueError: the map is too small (broken_shop.py:6)"),
        ("broken_shop:silent", "AssertionError (broken_shop.py:9)"),
        ("broken_shop:ends", "SystemExit: 7 (broken_shop.py:12)"),
        ("broken_shop:keyword", "(broken_shop.py:15)"),
        ("broken_shop:Machine", "KeyError: 'joints' (broken_shop.py:19)"),
        ("gym_broken_shop:Machine-v0", "KeyError: 'joints' (broken_shop.py:19)"),
        ("jax_broken_shop:raises", "ValueError: the map is too small (broken_shop.py:6)"),
        ("misspelt_shop:make", "SyntaxError: invalid syntax (misspelt_shop.py:1)"),
        ("unknown_shop:make", "NameError: name 'undefined' is not defined (unknown_shop.py:2)"),
    ],
)
@pytest.mark.parametrize("render", [False, True])
@pytest.mark.filterwarnings("ignore:.*render_mode:UserWarning")
def test_an_error_while_an_environment_is_made_is_one_sentence(broken, task, message, render):
    with pytest.raises(EnvError) as failure:
        envs.make(task, EnvConfig(), render=render)
    text = str(failure.value)
    assert text.startswith(f"Task '{task}' cannot be made: ")
    assert message in text and "\n" not in text


def test_the_same_holds_for_functions_that_are_given_in_python():
    def make_arena():
        raise RuntimeError("no display")

    def make_sized(size):
        return size

    with pytest.raises(
        EnvError, match=r"The environment of make_arena cannot be made: RuntimeError: no display \(.*py:"
    ):
        functions.maker_of(make_arena)()
    with pytest.raises(EnvError, match=r"of make_sized cannot be made: TypeError: .*missing 1 required .*'size'"):
        functions.maker_of(make_sized)()


def test_an_environment_in_place_of_a_function_is_refused():
    with pytest.raises(EnvError, match=r"expected a function .*: env=lambda: gymnasium\.make\('CartPole-v1'\)"):
        functions.maker_of(gymnasium.make("CartPole-v1"))
    with pytest.raises(
        EnvError, match=r"with a parameter num_envs .*: env=lambda num_envs: gymnasium\.make_vec\('Cart"
    ):
        functions.maker_of(gymnasium.make_vec("CartPole-v1", 2))
    with pytest.raises(EnvError, match=r"env is a builtins\.dict, expected a function without arguments"):
        functions.maker_of({})


# -------------------------------------------------------------------------------------------------- what is returned


def foreign(module, name="World", base=object, **members):
    """An object of a class that says it comes from a module, without that module."""
    return type(name, (base,), {"__module__": module, **members})()


NATIVE = dict.fromkeys(("obs_spaces", "action_spaces", "reset", "step"))
BASE = foreign("pettingzoo.utils.env", "ParallelEnv").__class__


@pytest.mark.parametrize(
    ("env", "what", "advice"),
    [
        (None, "Got None as", "end the function with return"),
        (gymnasium.Env, "the class Env", r"return an instance, Env\(\)"),
        (foreign("my_game", base=BASE), r"my_game\.World \(PettingZoo, parallel\)", "one agent is trained"),
        (foreign("my_game", possible_agents=["a"]), "PettingZoo, parallel", "one agent is trained"),
        (foreign("pettingzoo.chess", agent_selection="a"), "PettingZoo, AEC", "aec_to_parallel"),
        (foreign("ray.rllib.env", "MultiAgentEnv", gymnasium.Env), "several agents", "one agent is trained"),
        (foreign("dm_env._environment"), r"dm_env\.Environment", "shimmy.DmControlCompatibilityV0"),
        (foreign("robot", action_spec=None, observation_spec=None), r"dm_env\.Environment", "shimmy"),
        (foreign("gym.core"), "of the older package gym", "shimmy.GymV26CompatibilityV0"),
        (foreign("gym.vector", num_envs=4), "a vector of environments", "return one environment"),
        (foreign("stable_baselines3.common.vec_env"), "a vector of environments", "return one environment"),
        (foreign("envpool.atari"), "EnvPool", "make it with envpool.make_gymnasium"),
        (foreign("pool", base=gymnasium.Env, async_reset=1, send=1, recv=1), "EnvPool", "envpool.make_gymnasium"),
        (foreign("brax.envs.ant"), "written in JAX", r"task=jax_package\.module:function"),
        (foreign("jumanji.env", action_spec=None, observation_spec=None), "written in JAX", "NativeEnv"),
        (foreign("pgx.core"), "written in JAX", "NativeEnv"),
        (foreign("mine", **NATIVE), "a NativeEnv", r"task=jax_package\.module:function, .* run\.loop=device"),
        (3, r"Got a builtins\.int as environment", r"derive it from gymnasium\.Env"),
    ],
)
def test_what_is_no_gymnasium_environment_is_called_by_its_name(env, what, advice):
    with pytest.raises(EnvError, match=rf"{what}.* as environment, expected a gymnasium\.Env: .*{advice}|{what}"):
        envs.adapt(lambda: env, EnvConfig())
    with pytest.raises(EnvError, match=advice):
        envs.adapt(lambda: env, EnvConfig())


def test_a_vector_of_gymnasium_is_called_by_its_name():
    vector = gymnasium.make_vec("CartPole-v1", num_envs=2)
    with pytest.raises(EnvError, match=r"a vector of environments\) as environment.*env\.count"):
        envs.adapt(lambda: vector, EnvConfig())
    vector.close()


def test_a_named_native_environment_gets_its_whole_task(monkeypatch):
    monkeypatch.setitem(sys.modules, "native_shop", types.SimpleNamespace(Walk=lambda: foreign("mine", **NATIVE)))
    with pytest.raises(EnvError, match=r"Task 'native_shop:Walk': got .*task=jax_native_shop:Walk"):
        envs.make("native_shop:Walk", EnvConfig())


def test_a_reward_of_several_objectives_asks_for_one_number():
    class Objectives(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        action_space = gymnasium.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.zeros(1, np.float32), np.zeros(2), False, False, {}

    env = envs.adapt(Objectives, EnvConfig())
    env.reset()
    with pytest.raises(EnvError, match=r"shape \[2\], expected one number: .*a weighted sum"):
        env.step({"action": 0})


# --------------------------------------------------------------------------------------------------------- rendering

FILMS = """
import gymnasium, numpy as np

def plain():
    return gymnasium.make("CartPole-v1")

def drops(render_mode=None):
    return gymnasium.make("CartPole-v1")

def passes(**options):
    return gymnasium.make("CartPole-v1", **options)

class Blind(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

class Able(Blind):
    metadata = {"render_modes": ["rgb_array"]}
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain", r"Write def plain\(render_mode=None\), and pass it on: gymnasium\.make\(\.\.\., render_mode="),
        ("drops", r"drops was called with render_mode='rgb_array', and its environment has render_mode=None\. Pass"),
        ("Blind", r"Blind has the render modes \[\], expected 'rgb_array' among them"),
        ("Able", r"Write def __init__\(self, render_mode=None\), and set self\.render_mode = render_mode"),
    ],
)
def test_an_environment_without_frames_says_how_to_get_them(name, message, tmp_path, monkeypatch):
    (tmp_path / "film_shop.py").write_text(FILMS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "film_shop", raising=False)
    envs.make(f"film_shop:{name}", EnvConfig()).close()
    with pytest.raises(EnvError, match=message):
        envs.make(f"film_shop:{name}", EnvConfig(), render=True)
    assert envs.make("film_shop:passes", EnvConfig(), render=True).render_mode == "rgb_array"


@pytest.mark.filterwarnings("ignore:.*render_mode:UserWarning")
def test_an_id_whose_environment_takes_no_render_mode_says_so():
    class Dark(gymnasium.Env):
        def __init__(self):
            pass

    make_dark: Any = Dark
    gymnasium.register("Dark-v0", entry_point=make_dark)
    try:
        with pytest.raises(
            EnvError, match=r"'gym_Dark-v0' cannot render images: its __init__ has no parameter render_m"
        ):
            envs.make("gym_Dark-v0", EnvConfig(), render=True)
    finally:
        del gymnasium.registry["Dark-v0"]


# ------------------------------------------------------------------------------------------------------------ naming


class Parity(gymnasium.Env):
    """A class that can be imported from this file."""

    @staticmethod
    def make():
        return Parity()


def test_a_function_is_named_as_it_can_be_imported():
    here = Parity.__module__

    class Local(gymnasium.Env):
        pass

    assert functions.task_of(Parity) == f"{here}:Parity"
    assert functions.task_of(Parity.make) == f"{here}:Parity.make"
    assert functions.load_function(f"{here}:Parity.make", "task") is Parity.make
    assert functions.task_of(Local) == "custom_Local"
    assert functions.task_of(lambda: None) == "custom_<lambda>"
    assert functions.task_of(functools.partial(gymnasium.make, "CartPole-v1")) == "custom_partial"


SCRIPT = """
import gymnasium
from dreamer.envs import task_of

class Parity(gymnasium.Env):
    pass

def main():
    print(task_of(Parity))

if __name__ == "__main__":
    main()
if "dreamer":
    main()
"""


def test_a_script_can_be_imported_while_it_runs_its_guarded_block(tmp_path):
    (tmp_path / "script_shop.py").write_text(SCRIPT)
    where = {**os.environ, "PYTHONPATH": str(pathlib.Path(envs.__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "script_shop.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=where)
    assert done.stdout.split() == ["script_shop:Parity", "custom_Parity"]


def test_a_module_beside_the_script_is_told_to_other_processes(tmp_path, monkeypatch):
    (tmp_path / "beside_shop.py").write_text("")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.import_module("beside_shop")
    assert functions.extra_path("beside_shop:make") == str(tmp_path)
    assert functions.extra_path("gymnasium:make") == functions.extra_path("gym_CartPole-v1") == ""
    monkeypatch.chdir(tmp_path)
    assert functions.extra_path("beside_shop:make") == ""


@pytest.mark.parametrize(
    ("saved", "now", "same"),
    [
        ("custom_Parity", "script:Parity", True),  # a run of before
        ("custom_<lambda>", "shop:make", True),  # --env
        ("script:Parity", "custom_Parity", True),
        ("script:Parity", "custom_Catch", False),
        ("script:Parity", "other:Parity", False),
        ("custom_Parity", "custom_Catch", False),
        ("gym_CartPole-v1", "script:Parity", False),
        ("gym_CartPole-v1", "custom_CartPole-v1", False),
    ],
)
def test_a_resumed_run_may_give_its_environment_a_better_name(saved, now, same):
    assert functions.is_same_function(saved, now) is same


def test_arguments_reach_ids_and_functions_and_are_refused_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "sized_shop.py").write_text(
        "import gymnasium\n\ndef make_sized(size, name='plain'):\n    env = gymnasium.make('CartPole-v1')\n"
        "    env.unwrapped.made_of = (size, name)\n    return env\n"
    )
    monkeypatch.chdir(tmp_path)
    sized: Any = envs.make("sized_shop:make_sized", EnvConfig(kwargs={"size": 3, "name": "large"}))
    assert sized.unwrapped.made_of == (3, "large")
    lake = envs.make("gym_FrozenLake-v1", EnvConfig(kwargs={"map_name": "8x8"}))
    assert lake.obs_spaces["discrete"].classes == 64
    with pytest.raises(EnvError, match=r"cannot be made: TypeError: .*unexpected keyword argument 'sized'"):
        envs.make("gym_FrozenLake-v1", EnvConfig(kwargs={"sized": 3}))
    with pytest.raises(
        EnvError, match=r"env\.kwargs=\{'size': 3\} cannot be used with task 'probe_catch': only tasks by"
    ):
        envs.make("probe_catch", EnvConfig(kwargs={"size": 3}))
    maker = functions.maker_of(lambda size: gymnasium.make("CartPole-v1", max_episode_steps=size), {"size": 7})
    assert maker().spec.max_episode_steps == 7
