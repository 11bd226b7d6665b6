"""The codebase keeps the shape it claims: layers, names, docstrings, and files that work on any machine."""

import ast
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dreamer"

# A room imports from rooms of floors below its own, and from itself. CONTRIBUTING.md shows the same picture.
FLOORS = (
    {"config", "spaces"},
    {"types"},
    {"devices", "envs", "replay"},
    {"equations", "logs"},
    {"nn"},
    {"world_models"},
    {"behaviors", "planners", "exploration"},
    {"algorithms.base"},  # The protocol, which those who run algorithms share with the algorithms.
    {"agent"},
    {"algorithms"},
    {"checkpoints", "doctor"},
    {"evaluate"},
    {"training", "compare"},
    {"failure", "report", "sweep", "train"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# What stores, steps and logs must work for any agent, so it knows of data and configuration alone.
MODEL_FREE = ("replay", "envs", "logs")
MODEL_LIBRARIES = {"flax", "distrax", "optax", "tensorflow_probability"}
MOST_ENTRIES = 25

MODULES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: pathlib.Path) -> str:
    """``dreamer/replay/storage.py`` is ``replay.storage``, and ``dreamer/__init__.py`` is the empty string."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, package: list[str]) -> set[str]:
    """Absolute names of all modules that a file imports, wherever in it the statement stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(start + (node.module.split(".") if node.module else []))
            # What is imported may be a module itself: `from dreamer import config`.
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return found


def imports_of(path: pathlib.Path) -> set[str]:
    name = module_name(path)
    package = ["dreamer", *name.split(".")] if name else ["dreamer"]
    if path.name != "__init__.py":
        package = package[:-1]
    return imports(ast.parse(path.read_text()), package)


def room_of(name: str) -> str:
    """The room of a module named without ``dreamer.``: ``replay`` of ``replay.ratio``; the empty string: none."""
    room = name.split(".")[0]
    within = ".".join(name.split(".")[:2])
    return within if within in FLOOR_OF else room if room in FLOOR_OF else ""


def rooms_used(path: pathlib.Path) -> set[str]:
    """Rooms, and files at the root, that a file imports from."""
    names = [name.removeprefix("dreamer.") for name in imports_of(path) if name.startswith("dreamer.")]
    # A package is named along with its module: `from dreamer.algorithms.base import Algorithm`.
    whole = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
    return {room_of(name) for name in whole} - {""}


def tracked_files() -> list[pathlib.Path]:
    """Files under version control or about to be; all that is not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import dreamer.nn.layers", {"dreamer.nn.layers"}),
        ("from dreamer import nn", {"dreamer", "dreamer.nn"}),
        ("from dreamer.nn.layers import MLP as M", {"dreamer.nn.layers", "dreamer.nn.layers.MLP"}),
        ("from . import ratio", {"dreamer.replay", "dreamer.replay.ratio"}),
        ("from ..nn import layers", {"dreamer.nn", "dreamer.nn.layers"}),
        ("def f():\n    import dreamer.train", {"dreamer.train"}),
    ],
)
def test_the_reader_of_imports_sees_every_form(source: str, expected: set[str]) -> None:
    assert imports(ast.parse(source), ["dreamer", "replay"]) == expected


def test_every_room_stands_on_a_floor() -> None:
    assert {room_of(module_name(path)) for path in MODULES} - {""} == FLOOR_OF.keys()
    assert [module_name(path) for path in MODULES if module_name(path) and not room_of(module_name(path))] == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_room_imports_only_from_floors_below(path: pathlib.Path) -> None:
    room = room_of(module_name(path))
    if not room:
        return
    below = {other for other, floor in FLOOR_OF.items() if floor < FLOOR_OF[room]}
    assert rooms_used(path) - {room} <= below


def test_the_root_is_a_table_of_contents() -> None:
    tracked = {path.relative_to(PACKAGE).parts[0] for path in tracked_files() if PACKAGE in path.parents} - {"py.typed"}
    assert len(tracked) <= MOST_ENTRIES, sorted(tracked)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_data_handling_knows_no_networks(path: pathlib.Path) -> None:
    if module_name(path).split(".")[0] not in MODEL_FREE:
        return
    assert {name.split(".")[0] for name in imports_of(path)}.isdisjoint(MODEL_LIBRARIES)


def test_the_package_imports_nothing_heavy_by_itself() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    # Type checkers may see everything; at run time the training program is loaded when it is asked for.
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = imports(ast.Module(body=list(top), type_ignores=[]), ["dreamer"])
    assert not {name for name in names if name.startswith("dreamer.train")}


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    drawers = {"util", "utils", "tool", "tools", "common", "helpers", "misc"}
    assert not [path for path in MODULES if drawers & set(module_name(path).split("."))]


def test_only_world_models_know_what_a_latent_is_made_of() -> None:
    # Two files beside the rooms may name them: arrays that older files hold, and a config key of released runs.
    allowed = ("world_models", "config", "checkpoints.former", "compare.released")
    others = [path for path in MODULES if not module_name(path).startswith(allowed)]
    assert [module_name(path) for path in others if re.search(r"\b(deter|stoch)\b", path.read_text())] == []


def test_one_file_asks_for_the_backend() -> None:
    assert [module_name(path) for path in MODULES if "default_backend" in path.read_text()] == ["devices.backend"]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_what_is_public_has_a_docstring(path: pathlib.Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the file itself"
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    public = [node for node in tree.body if isinstance(node, definitions) and not node.name.startswith("_")]
    assert not [node.name for node in public if not ast.get_docstring(node)]


def test_files_name_no_package_registry_and_no_place_on_one_machine() -> None:
    # Spelled in halves, so that this file passes its own test.
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "npmjs" + ".org", "npmjs" + ".com", "anaconda" + ".org"]
    places = ["/wor" + "k/", "/ro" + "ot/", "/ho" + "me/", "/Use" + "rs/", "/tm" + "p/", "/opt/" + "pypi"]
    found = []
    for path in tracked_files():
        data = path.read_bytes()
        if b"\0" in data:
            continue
        text = data.decode("utf-8")
        found += [f"{path.relative_to(ROOT)}: {word}" for word in hosts + places if word in text]
    assert not found


def test_constraints_are_exact_versions_and_nothing_else() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    names = [line.partition("==")[0].lower() for line in lines]
    assert all(line.count("==") == 1 and set(line) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-=_") for line in lines)
    assert len(set(names)) == len(names)
