"""YAML that others have written: configs, presets, sweep files and values of overrides.

The safe loader runs nothing, but a small text can still ask for a lot: lists within lists, aliases of aliases, values
of any type as keys. Whatever is larger or deeper than anything a person writes is refused before it is built.
"""

import os
from typing import Any

import yaml

from dreamer.config import paths
from dreamer.config.fields import can_be_written

MOST_BYTES = 2**18
"""Size of a file or text; the config of a run takes a twentieth of it."""

MOST_VALUES = 100_000
"""Values in a document, those behind aliases counted every time."""

MOST_LEVELS = 50
"""Levels of lists and mappings in one another."""


class DocumentError(ValueError):
    """YAML that cannot be used; the message is the reason, without a full stop."""


def read(path: str | os.PathLike[str]) -> Any:
    """The value in a YAML file.

    Raises:
        DocumentError: the file cannot be read, or see `parse`.
    """
    try:
        return parse(paths.read_text(path, MOST_BYTES))
    except OSError as error:
        raise DocumentError(f"{error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DocumentError(f"it cannot be decoded as UTF-8 ({error.reason} at byte {error.start})") from error


def parse(text: str) -> Any:
    """The value of a YAML text: lists, scalars, and mappings whose keys are texts.

    Raises:
        DocumentError: it is not YAML, is too large or too deep, contains itself, or has other keys or characters that
            no file can hold.
    """
    if len(text) > MOST_BYTES:
        raise DocumentError(f"it has more than {MOST_BYTES:,} characters, which is too large")
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _Measure().size(root, 1)
        return loader.construct_document(root)
    except RecursionError as error:
        raise DocumentError(f"it has more than {MOST_LEVELS} levels of lists and mappings") from error
    except DocumentError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise DocumentError(in_one_line(error)) from error


class _Measure:
    """Counts the values below nodes, each node once."""

    def __init__(self) -> None:
        self._sizes: dict[int, int | None] = {}

    def size(self, node: Any, level: int) -> int:
        """Values in a node, with those behind aliases."""
        known = self._sizes.get(id(node), 0)
        if known is None:
            raise DocumentError("it contains itself")
        if known:
            return known
        if level > MOST_LEVELS:
            raise DocumentError(f"it has more than {MOST_LEVELS} levels of lists and mappings")
        self._sizes[id(node)] = None
        total = 1
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                    raise DocumentError(f"it has a key in line {key.start_mark.line + 1} that is not text")
                total += self.size(key, level + 1) + self.size(value, level + 1)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(self.size(item, level + 1) for item in node.value)
        elif not can_be_written(node.value):
            raise DocumentError(f"it has a character in line {node.start_mark.line + 1} that no file can hold")
        if total > MOST_VALUES:
            raise DocumentError(f"it stands for more than {MOST_VALUES:,} values")
        self._sizes[id(node)] = total
        return total


def in_one_line(error: Exception) -> str:
    """The message of an error in one line, with line and column instead of YAML's excerpt of the place."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return " ".join(str(error).split()).rstrip(".")


__all__ = ["DocumentError", "in_one_line", "parse", "read"]
