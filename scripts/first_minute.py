"""Compare the time to the first update of two checkouts: ``python scripts/first_minute.py OLD NEW [key=value ...]``.

Runs of the default preset are started in turns: one that compiles everything, and some with programs from the cache.
Each ends with its first update. Processor time is that of all threads; wall time depends on what else the machine does.
"""

import argparse
import json
import os
import pathlib
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time

CACHED = 2
"""Runs with programs from the cache, for each that compiles."""


def work(root: pathlib.Path, overrides: list[str]) -> None:
    """Run until the first update, and print the seconds of processor time that this took."""
    sys.path[:0] = [str(root)]
    # From the checkout, whatever is installed.
    import jax

    import dreamer
    from dreamer.devices.compile_cache import keep_compiled_programs

    update = dreamer.Agent.update

    def first_update(agent: dreamer.Agent, batch: dreamer.Batch) -> None:
        jax.block_until_ready(update(agent, batch))
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps(used.ru_utime + used.ru_stime), flush=True)
        signal.raise_signal(signal.SIGKILL)  # What the run would still save is not wanted.

    dreamer.Agent.update = first_update
    keep_compiled_programs()
    dreamer.train(overrides=overrides, quiet=True)


def measure(root: pathlib.Path, cache: pathlib.Path, overrides: list[str]) -> tuple[float, float]:
    """Wall and processor time of one run to its first update."""
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    with tempfile.TemporaryDirectory() as logdir:
        own = [sys.executable, __file__, "--worker", str(root), str(root), f"logdir={logdir}/run", *overrides]
        begin = time.perf_counter()
        done = subprocess.run(own, cwd=root, env=env, stdout=subprocess.PIPE, text=True)
        wall = time.perf_counter() - begin
    if not done.stdout:
        raise SystemExit(f"A run ended with status {done.returncode}; what it said is above.")
    return wall, float(json.loads(done.stdout))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=pathlib.Path, help="directory of the checkout to compare with")
    parser.add_argument("new", type=pathlib.Path, help="directory of the checkout to judge")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.new, args.overrides)
        return
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}, expected at least 1")
    roots = [args.old.resolve(), args.new.resolve()]
    found: dict[str, list[list[tuple[float, float]]]] = {"compiling": [[], []], "from the cache": [[], []]}
    for turn in range(args.rounds):
        with tempfile.TemporaryDirectory() as caches:
            for kind in ["compiling", *["from the cache"] * CACHED]:
                # Whoever is first in a round is second in the next.
                for index in (0, 1) if turn % 2 == 0 else (1, 0):
                    wall, cpu = measure(roots[index], pathlib.Path(caches, str(index)), args.overrides)
                    found[kind][index].append((wall, cpu))
                    print(f"{roots[index]}, {kind}: {wall:.1f} s, of processors {cpu:.1f} s", flush=True)
    for kind, both in found.items():
        for what, column in (("wall", 0), ("processors", 1)):
            old, new = ([run[column] for run in runs] for runs in both)
            ratio = statistics.median(after / before for before, after in zip(old, new, strict=True))
            print(
                f"{kind}, {what}: old {statistics.median(old):.1f} s, new {statistics.median(new):.1f} s; "
                f"ratio {ratio:.2f} in {len(old)} runs"
            )


if __name__ == "__main__":
    main()
