"""Users' functions that make environments: from their name, to their name, and what they do instead of making one."""

import ast
import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import pathlib
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import PathFinder
from types import MappingProxyType
from typing import Any

import gymnasium

from dreamer.envs.errors import EnvError

CUSTOM = "custom_"
"""Prefix of the task of a run whose environment has no name by which it can be imported."""

_JAX = ("brax", "craftax", "gymnax", "jaxmarl", "jumanji", "kinetix", "mujoco_playground", "navix", "pgx", "xminigrid")
"""Packages of environments written in JAX."""

_ADVICE = {
    "vector": "return one environment, because env.count of them are made and stepped together, or a "
    "gymnasium.vector.VectorEnv with env.count of them",
    "envpool": "make it with envpool.make_gymnasium",
    "agents": "one agent is trained here, so write a gymnasium.Env in which the others are part of the world",
    "turns": "one agent is trained here, so convert it with pettingzoo.utils.aec_to_parallel and write a gymnasium.Env "
    "in which the other agents are part of the world",
    "jax": "wrap it in a NativeEnv, as docs/device_loop.md shows, and name it task=jax_package.module:function",
    "dm_env": "convert it with shimmy.DmControlCompatibilityV0(env); tasks of DeepMind Control are dmc_DOMAIN_TASK",
    "gym": "derive it from gymnasium.Env, or convert it with shimmy.GymV26CompatibilityV0(env=env), if gym is older "
    "than 0.26 with shimmy.GymV21CompatibilityV0(env=env)",
}
"""What to do about an environment that is none of Gymnasium's."""

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent


def load_function(path: str, task: str, *, role: str = "Task") -> Callable[..., Any]:
    """Import a function, from the working directory too.

    Args:
        path: ``package.module:function``.
        task: the task that names it, for messages.
        role: what it is, if it is no task, for messages.

    Raises:
        EnvError: the module cannot be imported, or has no such function (names the nearest).
    """
    module_name, _, name = path.partition(":")
    _look_in_working_directory()
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        near = _near_module(task.partition(":")[0]) if isinstance(error, ImportError) else ""
        hint = f" Did you mean '{near}:{name}'?" if near else ""
        raise EnvError(
            f"{role} '{task}' cannot be made: importing {module_name} failed with {describe_error(error)}.{hint} "
            f"Expected package.module:function, with the package installed or in the working directory."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if callable(getattr(found, name)) and not name.startswith("_")]
            close = difflib.get_close_matches(part, names, n=1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise EnvError(f"{role} '{task}' cannot be made: {module_name} has no '{part}'.{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise EnvError(
            f"{role} '{task}' names a {type(found).__name__}, expected a function that returns an environment."
        )
    return found


def is_importable(module: str) -> bool:
    """Whether a module could be imported, here or from the working directory, as far as its first name tells."""
    _look_in_working_directory()
    first, dot, _ = module.partition(".")
    if first in sys.modules:
        return True
    try:
        spec = importlib.util.find_spec(first) if first.isidentifier() else None
    except (ImportError, ValueError):
        return False
    # A directory without __init__.py can hold modules, but no functions.
    return spec is not None and (spec.origin is not None or bool(dot))


def _look_in_working_directory() -> None:
    # An installed command does not look for modules there by itself.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())


def _near_module(name: str) -> str:
    """A module of the working directory with a similar name; empty: none."""
    names = [module.name for module in pkgutil.iter_modules([os.getcwd()])]
    return next(iter(difflib.get_close_matches(name, [other for other in names if other != name], 1, 0.8)), "")


# Calling


def call_function(function: Callable[..., Any], name: str = "", /, **options: Any) -> Any:
    """Call a function that makes an environment.

    Args:
        function: the function.
        name: the task that names it, for messages; empty: the name of the function.
        options: its keyword arguments.

    Returns:
        Whatever it returns.

    Raises:
        EnvError: the function raised; one sentence with the error and the line of the user's file.
    """
    with explain_failure(f"Task '{name}'" if name else f"The environment of {_name(function)}"):
        return function(**options)


@contextlib.contextmanager
def explain_failure(what: str) -> Iterator[None]:
    """Turn whatever the code of an environment raises while ``what`` is made into an `EnvError` of one sentence."""
    try:
        yield
    except EnvError:
        raise
    except (Exception, SystemExit) as error:
        raise EnvError(f"{what} cannot be made: {describe_error(error)}; fix the environment.") from error


def describe_error(error: BaseException) -> str:
    """An error in one line: its type, its text, and the last line of the user's own code, ``corridor.py:12``."""
    if isinstance(error, SyntaxError) and error.filename:
        text = error.msg
        places = [(error.filename, error.lineno)]
    else:
        text = " ".join(str(error).split()).rstrip(".;")
        places = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    own = [f" ({_shorten(file)}:{line})" for file, line in places if not _is_of_library(file)]
    return f"{type(error).__name__}{f': {text}' if text else ''}{own[-1] if own else ''}"


def _is_of_library(file: str) -> bool:
    """Whether code is Python's, an installed package's or this package's, and not the user's."""
    libraries = (str(_PACKAGE), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
    return file.startswith("<") or any(pathlib.Path(file).is_relative_to(place) for place in libraries)


def _shorten(file: str) -> str:
    """The path of a file as seen from the working directory."""
    path = pathlib.Path(file)
    return str(path.relative_to(os.getcwd()) if path.is_relative_to(os.getcwd()) else path)


def takes_render_mode(function: Callable[..., Any]) -> bool:
    """Whether a function has a parameter ``render_mode``, or passes on any keyword argument."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # Some functions written in C do not say.
        return False
    return any(p.name == "render_mode" or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # Some functions written in C do not say.
        return False


def refuse_frames_missing(env: gymnasium.Env, function: Callable[..., Any], task: str) -> None:
    """Raise `EnvError` that says how to change a function whose environment does not render images."""
    if env.render_mode == "rgb_array":
        return
    name = _name(function)
    modes = env.metadata.get("render_modes") or []
    if "rgb_array" not in modes:
        advice = (
            f"{_name(type(env.unwrapped))} has the render modes {modes}, expected 'rgb_array' among them. Add it to "
            "metadata['render_modes'], take a parameter render_mode, and return frames from render()"
        )
    elif takes_render_mode(function):
        advice = (
            f"{name} was called with render_mode='rgb_array', and its environment has render_mode={env.render_mode!r}. "
            "Pass the parameter on, or set self.render_mode = render_mode in __init__"
        )
    elif isinstance(function, type):
        advice = (
            f"{name} has no parameter render_mode. Write def __init__(self, render_mode=None), and set "
            "self.render_mode = render_mode"
        )
    else:
        advice = (
            f"the function {name} has no parameter render_mode. Write def {name}(render_mode=None), and pass it on: "
            "gymnasium.make(..., render_mode=render_mode)"
        )
    raise EnvError(f"Task '{task}' cannot render images: {advice}.")


# Naming


def maker_of(env: Any, options: Mapping[str, Any] = MappingProxyType({})) -> Callable[..., Any]:
    """The function to make environments with, for an argument ``env`` of a user.

    Args:
        env: a function or class that can be called without arguments, other than those of ``options`` and, if it
            makes many environments in one object, ``num_envs``.
        options: its keyword arguments.

    Returns:
        The function, with the parameter ``num_envs`` if ``env`` has it. What it raises is an `EnvError` of one
        sentence.

    Raises:
        EnvError: it is not a function; an environment, for example.
    """
    if isinstance(env, gymnasium.Env) or not callable(env):
        name = getattr(getattr(env, "spec", None), "id", "")
        parameters = "without arguments"
        made = f"lambda: gymnasium.make({name!r})" if name else "lambda: MyEnv()"
        if hasattr(env, "num_envs"):
            parameters = "with a parameter num_envs"
            made = f"lambda num_envs: gymnasium.make_vec({name!r}, num_envs)" if name else "lambda num_envs: MyEnv(...)"
        raise EnvError(
            f"env is a {type(env).__module__}.{type(env).__qualname__}, expected a function {parameters} that returns "
            f"a new environment at every call: env={made}."
        )
    if takes(env, "num_envs"):
        return functools.partial(_call_for_rows, env, options)
    return functools.partial(call_function, env, "", **options)


def _call_for_rows(function: Callable[..., Any], options: Mapping[str, Any], num_envs: int | None = None) -> Any:
    number = {} if num_envs is None else {"num_envs": num_envs}
    return call_function(function, "", **{**number, **options})


def task_of(function: Callable[..., Any]) -> str:
    """The task of a function or class: ``module:qualname`` if another process can import it so, else ``custom_NAME``.

    What the script that is running defines can be imported if the script is in the middle of its block ``if __name__ ==
    "__main__"``, because an import will not get there.
    """
    custom = f"{CUSTOM}{_name(function)}"
    module, qualname = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    found: Any = sys.modules.get(str(module))
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if module is None or found is not function:
        return custom
    if module == "__main__":
        module = _main_module()
    return f"{module}:{qualname}" if module and is_importable(module) else custom


def is_same_function(saved: str, task: str) -> bool:
    """Whether the task of a run and another may name the same environment, though one cannot be imported by name."""
    if saved.startswith(CUSTOM):
        return ":" in task or saved == task
    return ":" in saved and task == f"{CUSTOM}{saved.rpartition(':')[2].rpartition('.')[2]}"


def extra_path(task: str) -> str:
    """The directory that another process must be told of to import ``module:function``; empty: it finds it anyway.

    A script finds modules in its own directory, a command those in the working directory.
    """
    first = task.partition(":")[0].partition(".")[0]
    if ":" not in task or not first.isidentifier():
        return ""
    told = [os.path.abspath(place) for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    installed = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    if PathFinder.find_spec(first, [os.getcwd(), *told, *installed]) is not None:
        return ""
    return next((place for place in sys.path if place and PathFinder.find_spec(first, [place]) is not None), "")


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _main_module() -> str:
    """The name by which the script that is running can be imported without running it again; empty: none."""
    main = sys.modules["__main__"]
    path = pathlib.Path(getattr(main, "__file__", None) or "")
    spec = getattr(main, "__spec__", None)
    name = spec.name if spec is not None else path.stem
    frame = inspect.currentframe()
    while frame is not None and not (frame.f_globals is vars(main) and frame.f_code.co_name == "<module>"):
        frame = frame.f_back
    if frame is None or path.suffix != ".py" or not name.rpartition(".")[2].isidentifier():
        return ""
    guards = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    line = frame.f_lineno
    guarded = any("__name__" in ast.dump(g.test) and g.lineno < line <= (g.end_lineno or 0) for g in guards)
    return name if guarded else ""


# Returning something else


def require_gymnasium(env: object, name: str = "", *, role: str = "Task") -> gymnasium.Env:
    """Return a Gymnasium environment with one agent as it is, and refuse everything else.

    Args:
        env: what a user's function returned. The libraries that it may come from are not imported.
        name: the task, for messages; empty: none.
        role: what has this name, if it is no task, for messages.

    Raises:
        EnvError: it is something else; the sentence says how to make it a Gymnasium environment.
    """
    found = _describe_foreign(env, name)
    if found is None:
        assert isinstance(env, gymnasium.Env)
        return env
    what, advice = found
    source = f"{role} '{name}': got" if name else "Got"
    raise EnvError(f"{source} {what} as environment, expected a gymnasium.Env: {advice}.")


def _describe_foreign(env: Any, name: str) -> tuple[str, str] | None:
    """What an object is, and what to do about it; None for a Gymnasium environment."""
    kind = type(env)
    packages = {base.__module__.partition(".")[0] for base in kind.__mro__}
    found = f"a {kind.__module__}.{kind.__qualname__}"

    def has(*names: str) -> bool:
        return all(hasattr(env, name) for name in names)

    if "envpool" in packages or has("async_reset", "send", "recv"):
        return f"{found} (EnvPool, many environments at once)", _ADVICE["envpool"]
    if "MultiAgentEnv" in {base.__name__ for base in kind.__mro__}:
        return f"{found} (several agents)", _ADVICE["agents"]
    if isinstance(env, gymnasium.Env):
        return None
    if env is None:
        return "None", "end the function with return and the environment"
    if isinstance(env, type):
        return f"the class {env.__qualname__}", f"return an instance, {env.__qualname__}()"
    if isinstance(env, gymnasium.vector.VectorEnv) or "stable_baselines3" in packages or has("num_envs"):
        return f"{found} (a vector of environments)", _ADVICE["vector"]
    if has("agent_selection") or has("agent_iter"):
        return f"{found} (PettingZoo, AEC)", _ADVICE["turns"]
    if "pettingzoo" in packages or has("possible_agents"):
        return f"{found} (PettingZoo, parallel)", _ADVICE["agents"]
    if packages & {*_JAX}:
        return f"{found} (written in JAX)", _ADVICE["jax"]
    if has("obs_spaces", "action_spaces", "reset", "step"):
        task = f"jax_{name}" if ":" in name else "jax_package.module:function"
        return f"{found} (a NativeEnv)", f"name it task={task}, which also runs with run.loop=device"
    if packages & {"dm_env", "dm_control"} or has("action_spec", "observation_spec"):
        return f"{found} (a dm_env.Environment)", _ADVICE["dm_env"]
    if "gym" in packages:
        return f"{found} (of the older package gym)", _ADVICE["gym"]
    return found, "derive it from gymnasium.Env and return an instance of it"


__all__ = [
    "CUSTOM",
    "call_function",
    "describe_error",
    "explain_failure",
    "extra_path",
    "is_importable",
    "is_same_function",
    "load_function",
    "maker_of",
    "refuse_frames_missing",
    "require_gymnasium",
    "takes",
    "takes_render_mode",
    "task_of",
]
