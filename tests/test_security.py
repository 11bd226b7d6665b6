"""Files that somebody else has made are data: nothing in them is executed, and they do not say where we write."""

import ast
import os
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from dreamer import failure, train
from dreamer.agent import Agent
from dreamer.compare import __main__ as compare_command
from dreamer.config import ConfigError, to_yaml
from dreamer.evaluate import __main__ as evaluate_command
from dreamer.replay import Layout, Replay, ReplayMemoryError
from dreamer.report import __main__ as report_command
from dreamer.sweep import __main__ as sweep_command
from tests.small import ACTION_SPACES, OBS_SPACES, latent_spec, small_config

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "dreamer"

# Worker processes are sent their environment by the process that started them; no file is involved.
PICKLES = {"envs/vector/workers.py"}
# These import by a name: the package's own modules and suites, and `task=module:function`, which the user has typed.
IMPORTS = {
    *("__init__.py", "envs/functions.py", "envs/names.py", "envs/suites/memory_maze.py"),
    "config/registry.py",
    "envs/interpreter/start.py",
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


@pytest.mark.parametrize("size", ["rssm.deter=16_000_000", "nets.units=16_000_000", "rssm.hidden=16_000_000"])
def test_absurd_networks_are_refused_before_anything_is_allocated(size):
    with pytest.raises(
        ConfigError, match=r"needs at least [\d,]+\.\d GB of memory: .* GB are available\. Choose a smaller"
    ):
        Agent(small_config(size), OBS_SPACES, ACTION_SPACES)


def test_an_absurd_replay_is_refused_before_anything_is_allocated():
    config, spec = small_config("replay.capacity=1_000_000_000_000"), latent_spec(16, 3, 4, np.float32)
    with pytest.raises(ReplayMemoryError, match=r"needs \d+\.\d+ GB of memory .* The largest that fits"):
        Replay(config.replay, 2, Layout.of(OBS_SPACES, ACTION_SPACES, spec), np.random.default_rng(0))


def commands(run: pathlib.Path) -> dict[str, Callable[[], int]]:
    """Every command that reads the directory of a run."""
    sweep = run.parent / "sweep.yaml"
    sweep.write_text("presets: [size/tiny]\ngrid: {optimizer.lr: [1e-4]}\n")
    return {
        "train": lambda: train.main(["--resume", str(run)]),
        "evaluate": lambda: evaluate_command.main([str(run)]),
        "report": lambda: report_command.main([str(run)]),
        "compare": lambda: compare_command.main([str(run)]),
        "failure": lambda: failure.main([str(run)]),
        "sweep": lambda: sweep_command.main([str(sweep), "--logdir", str(run)]),
        "sweep file": lambda: sweep_command.main([str(run / "config.yaml"), "--logdir", str(run / "sweep")]),
        "results of a sweep": lambda: sweep_command.main([str(sweep), "--logdir", str(run), "--report"]),
    }


READ = {
    "config.yaml": ("train", "evaluate", "compare", "sweep file"),
    "metrics.jsonl": ("train", "compare"),
    "failure-3/failure.json": ("failure",),
    "failure-3/state.npz": ("failure",),
    "checkpoints/000000000007/manifest.json": ("evaluate", "report"),
    "checkpoints/000000000007/meta/metadata": ("evaluate", "report"),
    "checkpoints/best.json": ("evaluate", "report"),
    "sweep.json": ("sweep", "results of a sweep"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("place", "command"), [(place, command) for place, names in READ.items() for command in names])
@pytest.mark.parametrize("kind", ["a pipe", "a directory", "a device"])
def test_a_command_waits_for_nothing_that_is_no_file(tmp_path, capsys, kind, place, command):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(small_config(f"logdir={run}")))
    (run / "metrics.jsonl").write_text("{}\n")
    if "failure" in place:
        (run / "failure-3").mkdir()
        (run / "failure-3/failure.json").write_text("{}")
        (run / "failure-3/batch-0.npz").write_text("")
    path = run / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    assert commands(run)[command]() == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("Error: ")
