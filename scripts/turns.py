"""Compare the speed of two checkouts: ``python scripts/turns.py OLD NEW``.

Each checkout gets a process with its own package, and the two are asked alternately for updates and for actions, so
that whatever else the machine does meets both. What counts are the ratios, one for each round. An update is the
published one, with batches of 16 x 64 and all 1,024 start states; acting is for 16 environments. Inputs are random.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

COUNTS = {"update": 20, "act": 1000}
"""Calls of each kind in a round."""


def work(root: pathlib.Path, size: str, case: str) -> None:
    """Answer each line of standard input, ``KIND COUNT``, with the median seconds of so many calls."""
    sys.path[:0] = [str(root), str(root / "scripts")]
    # From the checkout, whatever is installed.
    import jax
    import numpy as np
    import scaling

    from dreamer import config as configs
    from dreamer.agent import Agent

    config = configs.load([f"size/{size}"])
    spaces = scaling.CASES[case]
    agent = Agent(config, *spaces)
    batch = scaling.random_batch(config, *spaces)
    start = time.perf_counter()
    agent.compile_update(batch)
    compile_seconds = time.perf_counter() - start
    is_first = np.zeros(len(batch.is_first), bool)
    memory = agent.initial(len(is_first))
    obs = {key: value[:, 0] for key, value in batch.obs.items()}
    calls = {"update": lambda: agent.update(batch), "act": lambda: agent.policy(memory, obs, is_first)}
    for call in calls.values():
        jax.block_until_ready(call())
    print(json.dumps(compile_seconds), flush=True)
    for line in sys.stdin:
        kind, count = line.split()
        seconds = []
        for _ in range(int(count)):
            start = time.perf_counter()
            jax.block_until_ready(calls[kind]())
            seconds.append(time.perf_counter() - start)
        print(json.dumps(statistics.median(seconds)), flush=True)


def answer(process: subprocess.Popen[str], question: str = "") -> float:
    """What a worker says to a question."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(question)
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"A worker ended with status {process.wait()}; what it said is above.")
    return float(json.loads(line))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=pathlib.Path, help="directory of the checkout to compare with")
    parser.add_argument("new", type=pathlib.Path, help="directory of the checkout to judge")
    parser.add_argument("--size", default="1m", help="a preset of configs/size (default 1m)")
    parser.add_argument("--case", default="vector", help="a case of scripts/scaling.py (default vector)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds (default 12)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args.new, args.size, args.case)
        return
    if args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}, expected at least 1")
    roots = [args.old.resolve(), args.new.resolve()]
    for root in roots:
        if not (root / "dreamer" / "__init__.py").exists():
            parser.error(f"{root} is no checkout: dreamer/__init__.py is missing")
    own = [sys.executable, __file__, "--worker", "--size", args.size, "--case", args.case]
    # Programs from a cache would hide what compiling takes.
    env = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    workers = []
    for root in roots:
        # One after the other, so that neither compiles beside the other.
        workers.append(
            subprocess.Popen(
                [*own, str(root), str(root)],
                cwd=root,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        print(f"{root}: the update compiled in {answer(workers[-1]):.1f} s", flush=True)
    for kind, count in COUNTS.items():
        medians: list[list[float]] = [[], []]
        for turn in range(args.rounds):
            # Whoever is first in a round is second in the next.
            for index in (0, 1) if turn % 2 == 0 else (1, 0):
                medians[index].append(answer(workers[index], f"{kind} {count}\n"))
        old, new = (1e3 * statistics.median(values) for values in medians)
        ratios = [after / before for before, after in zip(*medians, strict=True)]
        ratio = statistics.median(ratios)
        print(
            f"{kind}, size {args.size}, {args.case}: old {old:.4g} ms, new {new:.4g} ms; ratio {ratio:.3f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) in {args.rounds} rounds of {count} calls"
        )
    for worker in workers:
        worker.communicate()  # No more questions: it ends.


if __name__ == "__main__":
    main()
