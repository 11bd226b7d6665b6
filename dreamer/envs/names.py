"""Names of tasks: which suite or function a name stands for, and which name was meant by one that stands for nothing.

A task is ``SUITE_NAME``, ``package.module:function``, or an id with the package that registers it as its namespace
(``gym_pusht/PushT-v0``). Names overlap: ``gym_envs:make`` could be the function ``make`` of a file ``gym_envs.py``, or
the Gymnasium id ``make`` of a module ``envs``. A function wins if its module exists; nothing is imported to find out.
"""

import difflib
import functools
import importlib
import importlib.util
import pathlib
import re
from collections.abc import Iterable
from types import ModuleType

import gymnasium

from dreamer.envs.errors import EnvError
from dreamer.envs.functions import CUSTOM, is_importable

SUITES = {
    "dmc": "suites.dmc",
    "atari": "suites.atari",
    "crafter": "suites.crafter",
    "minigrid": "suites.minigrid",
    "memory": "suites.memory_maze",
    "craftax": "native.from_craftax",
    "playground": "native.from_playground",
    "jax": "native",
    "probe": "suites.probes",
    "envpool": "suites.envpool",
    "vec": "suites.vec",
    "gym": "suites.gym",
}
"""Module of each suite by its prefix. Gymnasium comes last: importing another suite may add to its registry."""

_QUICK = ("probe", "atari", "minigrid", "crafter", "memory", "gym")
"""Suites that are imported in a fraction of a second; the others are searched only where a name points to them."""

EXTRAS = {
    "ale_py": "atari",
    "craftax": "craftax",
    "crafter": "crafter",
    "envpool": "envpool",
    "gymnax": "gymnax",
    "memory_maze": "memory",
    "minigrid": "minigrid",
    "mujoco_playground": "playground",
}
"""Extra of this package that installs a module."""

_DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python"}
"""What pip calls packages that are imported under another name."""

HOW = (
    "A task is gym_ID for any Gymnasium id (gym_CartPole-v1; gym_MODULE:ID imports MODULE first), vec_ID for many of "
    "it in one object, envpool_ID, dmc_DOMAIN_TASK, atari_GAME, crafter_reward, minigrid_ID, memory_maze_SIZE, "
    "craftax_NAME, playground_NAME, jax_NAME, probe_NAME, your.module:function for a function that returns a Gymnasium "
    "environment, or jax_your.module:function for one that returns a NativeEnv"
)
"""All forms of a name, for messages."""

_NEAR = 0.8
"""Least similarity of a name that is suggested, from 0 to 1."""

_NEAR_IN_SUITE = 0.75
"""The same where the suite is certain."""

_MOST = 3
"""Most names that are suggested."""


def split(task: str) -> tuple[str, str]:
    """The suite of a task and its name there.

    Args:
        task: name of a task.

    Returns:
        The prefix of the suite, one of `SUITES`, and the rest of the name. The prefix is empty for
        ``package.module:function``, and for names without a suite; the rest is then the whole name.
    """
    prefix, _, name = task.partition("_")
    if ":" in task:
        # Of all suites, these know names with a colon.
        return (prefix, name) if prefix in ("gym", "vec", "jax") and name and not _names_function(task) else ("", task)
    namespace, slash, _ = task.partition("/")
    if slash and is_importable(namespace):
        return "gym", task
    return (prefix, name) if prefix in SUITES and name else ("", task)


def _names_function(task: str) -> bool:
    """Whether ``package.module:function`` could be imported as it is written, as far as one can tell without trying."""
    module, _, function = task.partition(":")
    return all(part.isidentifier() for part in function.split(".")) and is_importable(module)


def tasks() -> list[str]:
    """Names that `dreamer.envs.make` accepts, sorted, from all suites that are installed."""
    return sorted(name for prefix in SUITES for name in _tasks_of(prefix))


def _tasks_of(prefix: str) -> list[str]:
    """Full names of the tasks of a suite; none if its package is not installed."""
    try:
        return [f"{prefix}_{name}" for name in load_suite(prefix).tasks()]
    except EnvError:
        return []


@functools.cache
def load_suite(prefix: str) -> ModuleType:
    """The module of a suite; raises `EnvError` that names the extra if its package is missing."""
    try:
        return importlib.import_module(f"dreamer.envs.{SUITES[prefix]}")
    except ImportError as error:
        raise missing_package(f"The suite '{prefix}'", error) from error


def missing_package(what: str, error: ImportError) -> EnvError:
    """The error that says which package ``what`` needs, and the command that installs it."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(module)
    package = f"'dreamer[{extra}]'" if extra else _DISTRIBUTIONS.get(module, module) or "PACKAGE"
    return EnvError(
        f"{what} needs a package that is not installed: {str(error).rstrip('.')}. "
        f"Install it with: pip install {package}."
    )


def unknown(task: str, reason: str = "") -> EnvError:
    """The error that says that there is no such task, with the nearest names and all forms of a name.

    Args:
        task: name of a task.
        reason: what its suite says about it, as a sentence.
    """
    why = f": {reason}" if reason else "."
    if task.startswith(CUSTOM):
        function = task.removeprefix(CUSTOM)
        return EnvError(
            f"There is no task '{task}': the run was trained with dreamer.train(env={function}), and no name is known "
            f"by which this function can be imported. Name it with --env package.module:function, or stay in Python: "
            f"dreamer.evaluate(dreamer.load(LOGDIR), {function if function.isidentifier() else 'env'}, 20)."
        )
    near = nearest(task)
    hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    namespace, slash, _ = task.partition("/")
    if slash and namespace.isidentifier() and not near:
        hint = f" If {namespace} is the package that registers this id, install it, or run in its directory."
    return EnvError(f"There is no task '{task}'{why}{hint} {HOW}.")


def nearest(task: str) -> list[str]:
    """Names of tasks that may have been meant by one that does not exist; the likeliest first, at most a few.

    Only suites that a name points to are imported, and those that are imported quickly.
    """
    prefix, _, name = task.partition("_")
    if task in SUITES:
        return few if len(few := _tasks_of(task)) <= _MOST else []
    if prefix in SUITES:
        return _nearest_of(name, [prefix], _NEAR_IN_SUITE)
    found = _nearest_of(task, _QUICK, 1.0) or (_nearest_of(task, ["dmc"], 1.0) if _is_of_dmc(task) else [])
    near_prefix = [suite for suite in SUITES if name and (prefix.startswith(suite) or suite.startswith(prefix))]
    near_prefix = near_prefix or difflib.get_close_matches(prefix, SUITES if name else [], n=1)
    for suite in () if found else near_prefix:
        found = found or _nearest_of(name, [suite], _NEAR)
    return found or _nearest_of(task, _QUICK, _NEAR)


def _nearest_of(name: str, prefixes: Iterable[str], cutoff: float) -> list[str]:
    """The nearest tasks of some suites to a name without prefix, one of each stem, those with the same stem first."""
    by_stem: dict[str, list[str]] = {}
    for prefix in prefixes:
        for task in _tasks_of(prefix):
            own = task.removeprefix(f"{prefix}_")
            # Ids that these packages register are tasks of suites, which know what their agents should see.
            if prefix != "gym" or not str(gymnasium.registry[own].entry_point).startswith(tuple(EXTRAS)):
                for stem in {_stem(own), _stem(own).removeprefix(prefix)}:  # MiniGrid repeats its name in every id.
                    by_stem.setdefault(stem, []).append(task)
    stem = _stem(name)
    near = [stem] if stem in by_stem else difflib.get_close_matches(stem, by_stem, _MOST, cutoff) if cutoff < 1 else []
    found = []
    for match in near:
        exact = [task for task in by_stem[match] if task.endswith(f"_{name}")]
        suites = dict.fromkeys(task.partition("_")[0] for task in by_stem[match])
        newest = [max((t for t in by_stem[match] if t.startswith(f"{suite}_")), key=_version) for suite in suites]
        found += exact or newest
    return found[:_MOST]


def _stem(name: str) -> str:
    """A name without what people leave out or spell differently: namespace, version, case, and all punctuation."""
    name = re.sub(r"-v\d+$", "", name.rpartition("/")[2])
    return re.sub(r"[\W_]", "", re.sub("(NoFrameskip|Deterministic|-ram)$", "", name)).lower() or name


def _version(name: str) -> int:
    found = re.search(r"-v(\d+)$", name)
    return int(found[1]) if found else -1


def _is_of_dmc(name: str) -> bool:
    """Whether the first word of a name is a domain of DeepMind Control, whose suite takes a second to import."""
    words = re.findall("[A-Z]?[a-z0-9]+", name.rpartition("/")[2])
    package = importlib.util.find_spec("dm_control")
    if package is None or len(words) < 2:
        return False
    places = [pathlib.Path(place, "suite") for place in package.submodule_search_locations or []]
    heads = ["_".join(words[:count]).lower() for count in (1, 2, 3)]
    return any((place / f"{head}.py").is_file() for place in places for head in heads)


__all__ = ["HOW", "SUITES", "load_suite", "missing_package", "nearest", "split", "tasks", "unknown"]
