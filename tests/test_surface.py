"""Notebooks and scripts use the package as others can: public names of `dreamer` and of its rooms."""

import ast
import importlib
import pathlib
from collections.abc import Iterator

import nbformat
import pytest

import dreamer

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
ROOMS = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in (ROOT / "dreamer").rglob("__init__.py")
    if path.parent.parent != ROOT
)

NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}
"""Public names of every NamedTuple, in spite of the underscore."""

EXCEPTIONS = {
    # The program of an update, compiled for a machine that is not here: no run does that.
    "kernels.py": {"_flat_update", "_leaves", "_split", "_update_key"},
    # Ends a run from within, as a signal would.
    "bench_loop.py": {"_stop"},
    # Waits for the metrics that a logger holds, so that fetching them alone is timed.
    "logging_cost.py": {"_updates"},
}
"""Private names that a script may use."""


def code(path: pathlib.Path) -> ast.Module:
    """All code cells of a notebook."""
    notebook = nbformat.read(path, as_version=4)
    return ast.parse("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Module and name of everything that is imported from the package; the name is empty for a whole module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.split(".")[0] == "dreamer")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dreamer":
            yield from ((node.module or "", alias.name) for alias in node.names)


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in NAMED_TUPLE


def foreign_private_names(tree: ast.Module) -> set[str]:
    """Private names that a script imports, or uses as attributes of something, without defining them itself."""
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    found = (used - own) | {name for _, name in imported(tree)}
    return {name for name in found if private(name)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from dreamer.logs.logger import _cut", {"_cut"}),
        ("run._stop.signal = 1", {"_stop"}),
        ("self._starts = []\nself._starts.append(1)", set()),
        ("row._replace(a=1).__dict__", set()),
    ],
)
def test_the_reader_of_private_names_sees_them(source: str, expected: set[str]) -> None:
    assert foreign_private_names(ast.parse(source)) == expected


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_public_names_of_the_package_and_its_rooms(path: pathlib.Path) -> None:
    for module, name in imported(code(path)):
        if not name:
            assert module == "dreamer"
            continue
        assert module in ["dreamer", *ROOMS]
        assert name in importlib.import_module(module).__all__


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_no_other_name_of_the_package(path: pathlib.Path) -> None:
    tree = code(path)
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    used = {node.attr for node in attributes if isinstance(node.value, ast.Name) and node.value.id == "dreamer"}
    assert used <= set(dreamer.__all__)
    assert foreign_private_names(tree) == set()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_uses_no_private_name_but_those_with_a_reason(path: pathlib.Path) -> None:
    assert foreign_private_names(ast.parse(path.read_text())) == EXCEPTIONS.get(path.name, set())


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_of_a_room_exists(room: str) -> None:
    module = importlib.import_module(room)
    assert [name for name in getattr(module, "__all__", ()) if not hasattr(module, name)] == []
