"""What `import dreamer` gives: the verbs, quickly, and by the same names whatever was imported before."""

import os
import pathlib
import subprocess
import sys

import pytest

import dreamer

ROOT = pathlib.Path(__file__).resolve().parent.parent


def output(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_import_is_light() -> None:
    heavy = "['jax', 'numpy', 'yaml', 'gymnasium', 'dreamer.train']"
    assert output(f"import dreamer, sys; print([name for name in {heavy} if name in sys.modules])") == "[]"


@pytest.mark.parametrize("name", dreamer.__all__)
def test_every_name_exists(name: str) -> None:
    assert callable(getattr(dreamer, name))


def test_names_mean_what_they_say() -> None:
    from dreamer import config
    from dreamer.agent import runtime as agent
    from dreamer.evaluate import scores as evaluate

    assert dreamer.Agent is agent.Agent
    assert (dreamer.Config, dreamer.ConfigError) == (config.Config, config.ConfigError)
    assert dreamer.load_config is config.load
    assert (dreamer.load, dreamer.make_env) == (evaluate.load, evaluate.make_env)


def test_errors_can_be_caught_by_name() -> None:
    errors = [getattr(dreamer, name) for name in dreamer.__all__ if name.endswith(("Error", "InUse", "Failed"))]
    assert len(errors) == 8
    assert all(issubclass(error, Exception) for error in errors)
    code = "import dreamer, sys; dreamer.EnvError, dreamer.ConfigError; print('dreamer.train' in sys.modules)"
    assert output(code) == "False"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "dreamer").rglob("__main__.py")), ids=lambda path: path.parent.name)
def test_a_command_can_be_started_as_a_file(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    start_as_file(path, tmp_path)


@pytest.mark.parametrize("name", ["train.py", "failure.py"])
def test_a_file_that_is_a_command_can_be_started(name: str, tmp_path: pathlib.Path) -> None:
    start_as_file(ROOT / "dreamer" / name, tmp_path)


def start_as_file(path: pathlib.Path, directory: pathlib.Path) -> None:
    """Its directory has modules called like those of Python itself, which must not hide these."""
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, str(path), "--help"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, env=environ)
    assert done.returncode == 0 and done.stdout.lstrip().startswith("usage:"), done.stderr


def test_modules_of_the_package_hide_behind_no_other_name() -> None:
    assert output("from dreamer import types, config; print(types.__name__, config.__name__)") == (
        "dreamer.types dreamer.config"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_verb_can_be_called_and_is_a_module_before_and_after_it_was_imported(name: str) -> None:
    code = f"""
import warnings
warnings.simplefilter("ignore")  # Of the libraries.
import dreamer

before = dreamer.{name}
import dreamer.{name} as module
from dreamer import {name} as imported

assert before is dreamer.{name} is module is imported
assert module.main and module.{name} is not module
module.{name} = lambda *args, **kwargs: (args, kwargs)
print(dreamer.{name}(1, two=2))
"""
    assert output(code) == "((1,), {'two': 2})"


def test_errors_of_a_verb_are_those_of_the_function() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'enviroment'"):
        dreamer.train(enviroment=None)
    with pytest.raises(dreamer.ConfigError, match="There is no preset 'cartpol'"):
        dreamer.train(presets=["cartpol"])


@pytest.mark.parametrize("name", ["train", "evaluate", "compare"])
def test_a_verb_runs_as_a_program(name: str) -> None:
    command = [sys.executable, "-m", f"dreamer.{name}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: python -m dreamer.{name}")
    assert not done.stderr


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'trian'\. It has: .*evaluate, imagine, load, .*train\."):
        dreamer.trian  # noqa: B018
