"""Records some updates with JAX's profiler, and prints which operations took the time."""

import collections
import contextlib
import pathlib
import re
from collections.abc import Callable

import jax

from dreamer.config import paths

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
    """

    def __init__(
        self, logdir: pathlib.Path, updates: int, wait: Callable[[], object], say: Callable[[str], object]
    ) -> None:
        self._path = logdir / "profile"
        self._updates = updates
        self._wait = wait
        self._say = say
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
        text = summary(newest, max(1, updates - self._begin))
        paths.write_text(self._path / "summary.txt", text + "\n")
        trace = next(iter(newest.parent.glob("perfetto_trace.json.gz")), newest)
        self._say(f"{text}\nThe trace is {trace}; open it at https://ui.perfetto.dev. See docs/profiling.md.")


def summary(trace: pathlib.Path, updates: int) -> str:
    """Table of the time spent in each kind of operation of each program, in milliseconds per update.

    Time is summed over the threads or streams that share the work, so it may exceed the wall time. Operations of one
    kind are those whose names differ only in their number; loops include the operations inside them.
    """
    spent: collections.Counter[tuple[str, str]] = collections.Counter()
    calls: collections.Counter[tuple[str, str]] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        for line in plane.lines:
            for event in line.events:
                with contextlib.suppress(ValueError):  # Statistics of a kind that JAX cannot decode.
                    stats = dict(event.stats)
                    if "hlo_op" in stats:
                        program = re.sub(r"\(\d+\)$", "", str(stats.get("hlo_module", "?")))
                        kind = re.sub(r"[.\d]+$", "", str(stats["hlo_op"]))
                        spent[program, kind] += event.duration_ns
                        calls[program, kind] += 1
    total = sum(spent.values()) or 1
    lines = [f"{'ms per update':>14} {'share':>6} {'calls':>7}  operation"]
    for (program, kind), nanoseconds in spent.most_common(_ROWS):
        lines.append(
            f"{nanoseconds / 1e6 / updates:14.2f} {nanoseconds / total:6.1%} "
            f"{calls[program, kind] / updates:7.0f}  {kind} in {program}"
        )
    return "\n".join([f"Where the time of {updates} updates went:", *lines])
