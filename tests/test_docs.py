"""What the documents name exists: files, config keys, tests and metrics."""

import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import nnx

from dreamer import algorithms, world_models
from dreamer import config as configs
from dreamer import train as training
from dreamer.algorithms.base import blank_stored
from dreamer.envs.check import __main__ as check
from dreamer.types import Batch, Space
from tests.small import ACTION_SPACES, OBS_SPACES, small_agent, small_batch, small_config

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rows(path: pathlib.Path) -> list[list[str]]:
    """Cells of every row of every table, without headings."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return [row for row in cells if row[0] not in ("choice", "metric") and not set(row[0]) <= set("- ")]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: pathlib.Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    assert not [link for link in links if "://" not in link and not (path.parent / link).exists()]


COMPARISON = rows(ROOT / "docs/paper_vs_here.md")


@pytest.mark.parametrize("row", COMPARISON, ids=lambda row: row[0])
def test_comparison_with_the_paper_names_keys_and_tests_that_exist(row: list[str]) -> None:
    assert len(row) == 6
    keys = {key for key, _ in configs.flatten(configs.Config())}
    assert [key for key in re.findall(r"`([a-z_]+\.[a-z_0-9]+|seed)`", row[4]) if key not in keys] == []
    tests = quoted(row[5])
    assert tests and not [test for test in tests if not (ROOT / test).is_file()]


def losses_of_latents(batch: Batch) -> set[str]:
    """Losses that a world model has by choice, by name."""
    names: set[str] = set()
    for kind in ("barlow", "infonce", "next_embedding"):
        config = small_config(f"world_model={{decoder: false, representation: {kind}}}", "loss.straighten=1")
        model = jax.eval_shape(lambda c=config: world_models.make(c, OBS_SPACES, ACTION_SPACES, nnx.Rngs(params=0)))
        names |= jax.eval_shape(
            lambda m, c=config: m.loss(m.observe(batch, jax.random.key(0)), batch, c)[0], model
        ).keys()
    return names


def metric_names(algorithm: str) -> set[str]:
    """Metrics of an update of an algorithm without a recurrent world model."""
    action = Space("discrete", (), 3) if algorithm in ("dqn", "dyna_q", "muzero") else Space("continuous", (2,))
    spaces = OBS_SPACES, {"action": action}
    planner = "gumbel_muzero" if algorithm == "muzero" else "cem"
    config = small_config(
        f"algorithm={algorithm}", "ensemble={members: 2, elites: 2}", f"planner.kind={planner}", "muzero.unroll=2"
    )
    made = algorithms.make(config, *spaces)
    batch = small_batch()._replace(
        prev_action={"action": np.zeros((2, 4, *action.shape), action.dtype)},
        stored=blank_stored(made, 2, 5),
    )
    _, _, metrics = jax.eval_shape(
        lambda batch, key: made.update(made.init(key), batch, key, config), batch, jax.random.key(0)
    )
    return set(metrics)


def test_metrics_are_described_once_each() -> None:
    described = [name for row in rows(ROOT / "docs/metrics.md") for name in quoted(row[0])]
    assert len(set(described)) == len(described)
    agent, batch = small_agent(), small_batch()
    updated: set[str] = set()
    for one in (agent, small_agent("algorithm=plan2explore")):
        update = jax.jit(one.algorithm.update, static_argnums=3)
        updated |= update.eval_shape(one.state, batch, jax.random.key(0), one.config)[2].keys()
    _, reported = jax.eval_shape(lambda batch: agent.predict(batch, 2), batch)
    keys = "|".join(batch.obs)
    diagnosed = jax.eval_shape(agent.diagnose, batch)
    names = {re.sub(f"/({keys})$", "/KEY", name) for name in (*updated, *reported)}
    names |= {f"loss/{name}" for name in losses_of_latents(batch)}
    names = {re.sub(r"^(loss/explorer|explorer)/.+$", r"\1/NAME", name) for name in names}
    names |= {re.sub(r"^(diagnose/gradient)/.+/(encoder|rssm)$", r"\1/LOSS/PART", name) for name in diagnosed}
    others = ["sac", "dqn", "mbpo", "dyna_q", "pets", *(["muzero"] if importlib.util.find_spec("mctx") else [])]
    names |= {name for algorithm in others for name in metric_names(algorithm)}
    groups = {name.split("/")[0] for name in names}
    assert {name for name in described if name.split("/")[0] in groups} == names


ENVIRONMENTS = (ROOT / "docs/environments.md").read_text()


def block(language: str) -> str:
    """The only block of code in a language on the page about environments."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", ENVIRONMENTS, re.DOTALL)
    return found


def test_the_page_about_environments_names_every_option_and_no_other() -> None:
    keys = {key for key, _ in configs.flatten(configs.Config())}
    named = set(re.findall(r"(?:env|run|behavior)\.[a-z_]+(?:\.[a-z_]+)?\b(?!\.?\*)", ENVIRONMENTS))
    arguments = {name for name in named if name.startswith("env.kwargs.")}  # These have any name.
    assert named - keys - arguments - {"env.dmc", "env.atari", "env.minigrid"} == set()
    suites = ("env.dmc.", "env.atari.", "env.minigrid.")
    assert {key for key in keys if key.startswith(suites)} <= named


@pytest.fixture
def corridor(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A working directory with the example of the page."""
    (tmp_path / "corridor.py").write_text(block("python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("corridor")
def test_the_check_says_of_the_example_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["corridor:Corridor", "--fast"]) == 0
    assert capsys.readouterr().out == block("text")


@pytest.mark.slow
def test_the_example_can_be_trained_on(corridor: pathlib.Path) -> None:
    small = ["env.count=2", "replay={batch_size: 2, batch_length: 8, capacity: 200}", "behavior.horizon=3"]
    run = ["run.env_steps=40", "run.train_ratio=16", "run.eval_episodes=0", f"logdir={corridor / 'run'}"]
    command = ["--config", "size/tiny", "task=corridor:Corridor", *small, *run]
    assert training.main(command) == 0
    assert (corridor / "run/metrics.jsonl").is_file()
