"""The tour and the glossary name files that exist and functions that are defined in them."""

import ast
import itertools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOUR = (ROOT / "docs/tour.md").read_text()
GLOSSARY = (ROOT / "docs/glossary.md").read_text()
FILE = re.compile(r"`(dreamer/[\w/]+\.py)`")
TERMS = re.findall(r"^\| ([^|]+?) \| [^|]+ \| `([^`]+)` \|$", GLOSSARY, re.MULTILINE)


def table(heading: str) -> list[list[str]]:
    """Cells of the rows of the table with this heading."""
    lines = TOUR[TOUR.index(heading) :].splitlines()[2:]
    return [line.strip("|").split(" | ") for line in itertools.takewhile(lambda line: line.startswith("|"), lines)]


STATIONS = table("| | file | functions |")
QUESTIONS = table("| question | file | functions |")


def definitions(node: ast.AST, prefix: str = "") -> set[str]:
    """Functions and classes of a file; a method by its name within its class, a function within another by its own."""
    found = set()
    for child in ast.iter_child_nodes(node):
        inside = prefix
        if isinstance(child, ast.FunctionDef | ast.ClassDef):
            found.add(f"{prefix}{child.name}")
            inside = f"{prefix}{child.name}." if isinstance(child, ast.ClassDef) else ""
        found |= definitions(child, inside)
    return found


@pytest.mark.parametrize("name", sorted(set(FILE.findall(TOUR + GLOSSARY))))
def test_a_file_that_is_named_exists(name: str) -> None:
    assert (ROOT / name).is_file()


@pytest.mark.parametrize("row", STATIONS + QUESTIONS, ids=lambda row: row[1].split("`")[1])
def test_functions_next_to_a_file_are_defined_in_it(row: list[str]) -> None:
    (file,) = FILE.findall(row[1])
    functions = re.findall(r"`([\w.]+)`", row[2])
    assert functions
    assert set(functions) <= definitions(ast.parse((ROOT / file).read_text()))


def test_the_way_of_a_batch_takes_six_files() -> None:
    assert [row[0].strip() for row in STATIONS] == ["1", "2", "3", "4", "5", "6"]


def test_five_questions_are_answered_by_at_most_two_files_each() -> None:
    starts = [number for number, row in enumerate(QUESTIONS) if row[0].strip()]
    answers = [end - start for start, end in itertools.pairwise([*starts, len(QUESTIONS)])]
    assert len(answers) == 5
    assert max(answers) <= 2


def test_the_glossary_is_in_alphabetical_order() -> None:
    names = [term.lower() for term, _ in TERMS]
    assert names == sorted(set(names))


def test_every_term_has_its_file() -> None:
    assert len(TERMS) == len([line for line in GLOSSARY.splitlines() if line.startswith("| ")]) - 2
    assert [file for _, file in TERMS if not FILE.fullmatch(f"`{file}`")] == []
