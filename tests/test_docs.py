"""What the documents name exists: files, config keys, tests and metrics."""

import pathlib
import re

import jax
import pytest

from dreamer import config as configs
from tests.small import small_agent, small_batch

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


def test_metrics_are_described_once_each() -> None:
    described = [name for row in rows(ROOT / "docs/metrics.md") for name in quoted(row[0])]
    assert len(set(described)) == len(described)
    agent, batch = small_agent(), small_batch()
    _, updated = jax.eval_shape(agent.update, batch)
    _, reported = jax.eval_shape(lambda batch: agent.report(batch, 2), batch)
    keys = "|".join(batch.obs)
    names = {re.sub(f"/({keys})$", "/KEY", name) for name in updated | reported}
    groups = {name.split("/")[0] for name in names}
    assert {name for name in described if name.split("/")[0] in groups} == names
