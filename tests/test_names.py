"""Names tell what they stand for: one public class per name, and functions that are verbs or nouns."""

import ast
import pathlib
from collections import defaultdict

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "dreamer"

SHARED_CLASS_NAMES = {
    # What a head of a world model predicts, and what a sweep draws values from: each is the word of its field.
    "Distribution",
}
MOST_SHARED_CLASS_NAMES = 3

# Functions once had these names, which do not tell what a call does: whether it asks, acts, or makes something.
PARTICIPLES = {
    "checked",
    "chosen",
    "compiled",
    "corrected",
    "died",
    "divided",
    "ended",
    "expected",
    "explained",
    "finished",
    "heard",
    "joined",
    "known",
    "normed_silu",
    "padded",
    "placed",
    "prepared",
    "seeded",
    "solved",
    "started",
    "tapped",
    "told",
    "touched",
    "typed",
    "upsampled_conv",
    "values_known",
    "wanted",
}


def trees() -> dict[str, ast.Module]:
    """Every file of the package, by its path within it."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def test_no_two_public_classes_have_one_name() -> None:
    files = defaultdict(list)
    for file, tree in trees().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                files[node.name].append(file)
    shared = {name: where for name, where in files.items() if len(where) > 1}
    assert {name: where for name, where in shared.items() if name not in SHARED_CLASS_NAMES} == {}


def test_few_names_are_excepted() -> None:
    assert len(SHARED_CLASS_NAMES) <= MOST_SHARED_CLASS_NAMES


def test_no_function_is_named_by_a_participle() -> None:
    found = [
        f"{file}: {node.name}"
        for file, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in PARTICIPLES
    ]
    assert found == []
