"""The phases of an update, by which ``--profile`` says where its time goes.

A phase is a name around a part of the code. JAX passes it on to every operation that is traced there, forward and
backward, and the compiler keeps it.
"""

import collections
import re
from collections.abc import Iterable
from typing import Any

import jax

_MARK = "phase:"

_PHASE = re.compile(re.escape(_MARK) + r"([^/()]+)")

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")

_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\(")

_NAME = re.compile(r'op_name="([^"]*)"')

_FUSED = re.compile(r"(?:calls|to_apply)=%([\w.\-]+)")

CONTAINERS = {"while", "conditional", "call"}
"""Operations whose time is that of others inside them."""

UNNAMED = "no phase"


def phase(name: str) -> Any:
    """Give a part of a program a name: a context in which it is traced, or a decorator. Changes no number.

    A phase within another is a part of it, ``reconstruction, convolutions``.
    """
    return jax.named_scope(_MARK + name)


def phase_of(op_name: str) -> str:
    """The phase of an operation by the name that JAX gave it, such as ``filtering, backward``; empty if it has none.

    ``jit(f)/transpose(jvp(phase:filtering))/while/body/dot_general`` is a transpose, and so belongs to a gradient. What
    is computed again for a gradient counts as backward, too.
    """
    names = list(dict.fromkeys(_PHASE.findall(op_name)))
    if not names:
        return ""
    if "transpose(" in op_name:
        return ", ".join([*names, "backward"])
    return ", ".join([*names, "forward"] if "jvp(" in op_name else names)


def phases_of(program: str) -> dict[str, str]:
    """The phase of each operation of a compiled program, by its name; `CONTAINERS` are left out.

    Operations that the compiler joined to one belong to the phase of the last of them, for which the others are
    computed; where the compiler added the last one, to the phase that most of them have. Without any, an operation in
    the body of a loop belongs to the phase of most operations there.

    Args:
        program: text of an optimized HLO module, as `jax.stages.Compiled.as_text` returns it.
    """
    computations: dict[str, dict[str, str]] = {}
    """Lines by the name of the instruction, by that of the computation."""
    entry = ""
    lines: dict[str, str] = {}
    for line in program.splitlines():
        if head := _COMPUTATION.match(line):
            entry = head[2] if head[1] else entry
            lines = computations.setdefault(head[2], {})
        elif instruction := _INSTRUCTION.match(line):
            lines[instruction[1]] = line
    phases: dict[str, str] = {}
    for computation, lines in computations.items():
        own = {name: _own_phase(line, computations) for name, line in lines.items()}
        usual = _most_common(own.values()) if computation != entry else ""
        for name, line in lines.items():
            instruction = _INSTRUCTION.match(line)
            if instruction and instruction[2] not in CONTAINERS:
                phases[name] = own[name] or usual or UNNAMED
    return phases


def _own_phase(line: str, computations: dict[str, dict[str, str]]) -> str:
    name = _NAME.search(line)
    if name and (own := phase_of(name[1])):
        return own
    fused = _FUSED.search(line)
    parts = computations.get(fused[1], {}).values() if fused else ()
    return _most_common(_own_phase(part, computations) for part in parts)


def _most_common(phases: Iterable[str]) -> str:
    counts = collections.Counter(phase for phase in phases if phase)
    return counts.most_common(1)[0][0] if counts else ""


__all__ = ["CONTAINERS", "UNNAMED", "phase", "phase_of", "phases_of"]
