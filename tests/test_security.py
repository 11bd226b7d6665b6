"""Files that somebody else has made are data: nothing in them is executed, and they do not say where we write."""

import ast
import pathlib

import numpy as np
import pytest

from dreamer.agent import Agent
from dreamer.config import ConfigError
from dreamer.replay import Layout, Replay, ReplayMemoryError
from tests.small import ACTION_SPACES, OBS_SPACES, latent_spec, small_config

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "dreamer"

# Worker processes are sent their environment by the process that started them; no file is involved.
PICKLES = {"envs/vector/workers.py"}
# These import by a name: the package's own modules and suites, and `task=module:function`, which the user has typed.
IMPORTS = {
    *("__init__.py", "envs/functions.py", "envs/names.py", "envs/suites/memory_maze.py"),
    "config/registry.py",
    *("envs/native/__init__.py", "envs/native/from_craftax.py"),
}


def dangers(tree: ast.AST) -> set[str]:
    """What a file does that could execute the contents of another one."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            )
            if {name.split(".")[0] for name in names} & {
                "pickle",
                "cloudpickle",
                "dill",
                "joblib",
                "shelve",
                "marshal",
            }:
                found.add("pickle")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in ("eval", "exec", "compile", "__import__"):
            found.add(name)
        if name.endswith("import_module") or name.startswith("runpy."):
            found.add("import")
        if name.startswith("yaml.") and "load" in name and name != "yaml.safe_load":
            found.add("yaml")
        if (
            given.get("allow_pickle", "False") != "False"
            or given.get("shell", "False") != "False"
            or name == "os.system"
        ):
            found.add("allow_pickle or shell")
    return found


@pytest.mark.parametrize(
    ("code", "danger"),
    [
        ("import pickle", "pickle"),
        ("from cloudpickle import loads", "pickle"),
        ("eval(text)", "eval"),
        ("yaml.load(text)", "yaml"),
        ("yaml.unsafe_load(text)", "yaml"),
        ("np.load(path, allow_pickle=True)", "allow_pickle or shell"),
        ("importlib.import_module(name)", "import"),
        ("subprocess.run(text, shell=True)", "allow_pickle or shell"),
    ],
)
def test_the_search_finds(code, danger):
    assert dangers(ast.parse(code)) == {danger}
    assert not dangers(ast.parse("yaml.safe_load(text); np.load(path, allow_pickle=False); re.compile(text)"))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_in_a_file_is_executed(path):
    name = path.relative_to(PACKAGE).as_posix()
    allowed = ({"pickle"} if name in PICKLES else set()) | ({"import"} if name in IMPORTS else set())
    assert dangers(ast.parse(path.read_text())) <= allowed


@pytest.mark.parametrize("size", ["rssm.deter=1_000_000_000", "nets.units=100_000_000", "rssm.hidden=1_000_000_000"])
def test_absurd_networks_are_refused_before_anything_is_allocated(size):
    with pytest.raises(
        ConfigError, match=r"needs at least [\d,]+\.\d GB of memory: .* GB are available\. Choose a smaller"
    ):
        Agent(small_config(size), OBS_SPACES, ACTION_SPACES)


def test_an_absurd_replay_is_refused_before_anything_is_allocated():
    config, spec = small_config("replay.capacity=1_000_000_000_000_000"), latent_spec(16, 3, 4, np.float32)
    with pytest.raises(ReplayMemoryError, match=r"needs \d+\.\d+ GB of memory .* The largest that fits"):
        Replay(config.replay, 2, Layout.of(OBS_SPACES, ACTION_SPACES, spec), np.random.default_rng(0))
