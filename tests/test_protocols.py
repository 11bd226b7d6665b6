"""The page about protocols names the functions that they have, and its examples work."""

import importlib
import json
import pathlib
import re
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dreamer
from dreamer import algorithms, behaviors, exploration, planners, world_models
from dreamer import train as training
from dreamer.config import Registry
from tests.small import OVERRIDES, small_agent, small_batch

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/protocols.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
EXAMPLES = {"q_learning": "An algorithm", "best_of_many": "A planner"}


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
        ("A bonus", exploration.Bonus),
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
        ("exploration.kind", exploration.BONUSES),
    ],
)
def test_the_page_names_the_parts_that_come_with_the_package(key: str, registry: Registry) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{key}` |")]
    assert set(re.findall(r"`(\w+)`", row.split("|")[-2])) - ({"none"} - set(registry)) == set(registry)


@pytest.fixture
def examples(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A directory from which Python imports the examples of the page."""
    for name, section in EXAMPLES.items():
        (example,) = re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)
        (tmp_path / f"{name}.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in EXAMPLES:
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_the_algorithm_of_the_page_trains(examples: pathlib.Path) -> None:
    logdir = examples / "run"
    run = "run={env_steps: 60, train_ratio: 4, eval_episodes: 2, log_every: 0}"
    own = ["algorithm=q_learning:make", "task=probe_action", run, f"logdir={logdir}"]
    assert training.main(["--config", "size/tiny", *OVERRIDES, *own]) == 0
    lines = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["env_steps"] == 60
    assert [line for line in lines if line.get("loss/q") is not None]
    assert dreamer.load(logdir).initial(1) == ()


@pytest.mark.usefixtures("examples")
def test_the_planner_of_the_page_acts() -> None:
    agent = small_agent("planner={kind: 'best_of_many:make', candidates: 4, elites: 2}")
    obs = {key: np.asarray(value)[:, 0] for key, value in small_batch(rows=3).obs.items()}
    action, _ = agent.act(obs, agent.initial(3))
    assert {key: value.shape for key, value in action.items()} == {"move": (3,), "push": (3, 2)}


@pytest.mark.usefixtures("examples")
def test_the_planner_of_the_page_takes_the_best_candidate() -> None:
    """In a world where an action leads to a state that is worth as much as the action is high."""
    world = SimpleNamespace(
        noise=lambda key, batch: (),
        step=lambda state, action, noise: action["push"],
        reward=lambda state: SimpleNamespace(mean=lambda: state),
        cont=jnp.zeros_like,
    )
    planner = importlib.import_module("best_of_many").BestOfMany(candidates=8, discount=1.0)
    action, _, metrics = planner.plan(
        world,
        leaf=jnp.zeros_like,
        prior=lambda state, key: {"push": jax.random.uniform(key, state.shape)},
        start=jnp.zeros(2),
        plan=(),
        is_first=jnp.zeros(2, bool),
        key=jax.random.key(0),
    )
    assert action["push"].mean() == metrics["planner/return"]
