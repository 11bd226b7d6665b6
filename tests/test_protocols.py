"""The page about protocols names the functions that they have, and its algorithm trains."""

import json
import pathlib
import re
import sys

import pytest

import dreamer
from dreamer import algorithms, behaviors, planners, world_models
from dreamer import train as training
from dreamer.config import Registry
from tests.small import OVERRIDES

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/protocols.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def first_cells(text: str) -> list[str]:
    """What is quoted in the first cell of every row of the tables."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


def members(protocol: type) -> set[str]:
    """Public functions and attributes of a protocol, those of protocols that it extends included."""
    ours = [base for base in protocol.__mro__ if base.__module__.startswith("dreamer.")]
    names = {name for base in ours for name in (*vars(base), *base.__annotations__)}
    return {name for name in names if not name.startswith("_")}


def test_an_algorithm_has_the_fields_that_the_page_names_in_their_order() -> None:
    assert tuple(first_cells(SECTIONS["An algorithm"])) == algorithms.Algorithm._fields


@pytest.mark.parametrize(
    ("section", "protocol"),
    [
        ("A world model", world_models.WorldModel),
        ("A behaviour", behaviors.Behavior),
        ("A planner", planners.Planner),
    ],
)
def test_a_protocol_has_the_functions_that_the_page_names(section: str, protocol: type) -> None:
    named = first_cells(SECTIONS[section])
    assert len(set(named)) == len(named)
    assert set(named) == members(protocol)


@pytest.mark.parametrize(
    ("key", "registry"),
    [
        ("algorithm", algorithms.ALGORITHMS),
        ("world_model.kind", world_models.WORLD_MODELS),
        ("behavior.kind", behaviors.BEHAVIORS),
        ("planner.kind", planners.PLANNERS),
    ],
)
def test_the_page_names_the_parts_that_come_with_the_package(key: str, registry: Registry) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{key}` |")]
    assert set(re.findall(r"`(\w+)`", row.split("|")[-2])) - {"none"} == set(registry)


@pytest.mark.slow
def test_the_algorithm_of_the_page_trains(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", SECTIONS["An algorithm"], re.DOTALL)
    (tmp_path / "q_learning.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    logdir = tmp_path / "run"
    run = "run={env_steps: 60, train_ratio: 4, eval_episodes: 2, log_every: 0}"
    own = ["algorithm=q_learning:make", "task=probe_action", run, f"logdir={logdir}"]
    try:
        assert training.main(["--config", "size/tiny", *OVERRIDES, *own]) == 0
        lines = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["env_steps"] == 60
        assert [line for line in lines if line.get("loss/q") is not None]
        assert dreamer.load(logdir).initial(1) == ()
    finally:
        sys.modules.pop("q_learning", None)
