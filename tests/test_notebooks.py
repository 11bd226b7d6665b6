"""The notebooks run from top to bottom, and are kept without their outputs."""

import ast
import pathlib

import nbformat
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))


def cells(path: pathlib.Path, kind: str) -> list:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def test_they_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["inside_the_dream", "quickstart", "your_environment"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_have_no_outputs_and_define_no_more_than_an_environment(path):
    code = cells(path, "code")
    assert not [cell for cell in code if cell.outputs or cell.execution_count]
    defined = [node for cell in code for node in ast.parse(cell.source).body if hasattr(node, "name")]
    environments = [node for node in defined if isinstance(node, ast.ClassDef)]
    assert defined == environments and len(environments) == (2 if path.stem == "your_environment" else 0)
    assert cells(path, "markdown")[0].source.startswith("# ")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_they_run(path, tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("PYTHONPATH", str(path.parent.parent))
    # Each has one device, as a user's machine does.
    monkeypatch.delenv("XLA_FLAGS")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [output for output in shown if "image/png" in output.get("data", {})]
    printed = "".join(output.text for output in shown if output.output_type == "stream" and output.name == "stdout")
    (tmp_path / "printed.txt").write_text(printed)
    expected = {
        "quickstart": "before training",
        "inside_the_dream": "report/open_loop/",
        "your_environment": "error: ",
    }
    assert expected[path.stem] in printed
