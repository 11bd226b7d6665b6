"""Records some updates with JAX's profiler, and prints which phases and which operations took the time."""

import collections
import contextlib
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from dreamer.config import paths
from dreamer.devices.phases import CONTAINERS, UNNAMED, phases_of

WARMUP = 10
"""Updates before recording starts: the first ones compile and fill caches."""

_ROWS = 20


class Profiler:
    """Records ``updates`` updates, once, and everything that happens between them.

    Args:
        logdir: directory of the run; the trace goes to ``profile/`` in it.
        updates: updates to record; 0 records nothing.
        wait: returns when the device has finished its work.
        say: prints a message.
        program: the `jax.stages.Compiled` whose phases are told apart: the update.
    """

    def __init__(
        self,
        logdir: pathlib.Path,
        updates: int,
        wait: Callable[[], object],
        say: Callable[[str], object],
        program: Any,
    ) -> None:
        self._path = logdir / "profile"
        self._updates = updates
        self._wait = wait
        self._say = say
        self._program = program
        self._begin: int | None = None
        self._done = updates == 0

    def turn(self, updates: int) -> None:
        """Start or stop recording if it is time; call it between turns of the loop with the updates done so far."""
        if self._done:
            return
        if self._begin is None and updates >= WARMUP:
            self._wait()
            self._begin = updates
            jax.profiler.start_trace(self._path, create_perfetto_trace=True)
        elif self._begin is not None and updates >= self._begin + self._updates:
            self.close(updates)

    def close(self, updates: int) -> None:
        """Stop recording, if it has started, and print a summary."""
        if self._done or self._begin is None:
            return
        self._done = True
        self._wait()
        jax.profiler.stop_trace()
        newest = max(self._path.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        text = summary(newest, max(1, updates - self._begin), self._program.as_text() or "")
        paths.write_text(self._path / "summary.txt", text + "\n")
        trace = next(iter(newest.parent.glob("perfetto_trace.json.gz")), newest)
        self._say(f"{text}\nThe trace is {trace}; open it at https://ui.perfetto.dev. See docs/profiling.md.")


def summary(trace: pathlib.Path, updates: int, program: str) -> str:
    """Tables of the time spent in each phase and in each kind of operation, in milliseconds per update.

    Time is summed over the threads or streams that share the work, so it may exceed the wall time. Operations of one
    kind are those whose names differ only in their number; loops include the operations inside them, which are
    counted once in the table of phases. Programs without phases, such as acting, have one row there.

    Args:
        trace: what the profiler wrote.
        updates: that were recorded.
        program: text of the compiled program that has phases, see `dreamer.devices.phases.phases_of`.
    """
    phases = phases_of(program)
    module = re.match(r"HloModule ([^\s,]+)", program)
    by_phase: dict[str, float] = collections.defaultdict(float)
    by_kind: dict[str, float] = collections.defaultdict(float)
    calls: collections.Counter[str] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                with contextlib.suppress(ValueError):  # Statistics of a kind that JAX cannot decode.
                    stats = dict(event.stats)
                    if "hlo_op" in stats:
                        name = re.sub(r"\(\d+\)$", "", str(stats.get("hlo_module", "?")))
                        operation = str(stats["hlo_op"])
                        kind = re.sub(r"[.\d]+$", "", operation)
                        by_kind[f"{kind} in {name}"] += event.duration_ns
                        calls[f"{kind} in {name}"] += 1
                        if kind not in CONTAINERS:
                            known = module is not None and name == module[1]
                            by_phase[phases.get(operation, UNNAMED) if known else name] += event.duration_ns
    lines = [f"Where the time of {updates} updates went:", f"{'ms per update':>14} {'share':>6}  phase"]
    for row, spent, share in _shares(by_phase):
        lines.append(f"{spent / updates:14.2f} {share:6.1%}  {row}")
    lines.append(f"{'ms per update':>14} {'share':>6} {'calls':>7}  operation")
    for row, spent, share in _shares(by_kind)[:_ROWS]:
        lines.append(f"{spent / updates:14.2f} {share:6.1%} {calls[row] / updates:7.0f}  {row}")
    return "\n".join(lines)


def _shares(nanoseconds: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Name, milliseconds, and share of all of them, of each row, the largest first."""
    total = sum(nanoseconds.values()) or 1
    largest_first = sorted(nanoseconds.items(), key=lambda row: -row[1])
    return [(name, spent / 1e6, spent / total) for name, spent in largest_first]


__all__ = ["Profiler", "summary"]
