"""How busy are learner and environments while training? ``python scripts/bench_loop.py [--seconds 60] [--json FILE]``.

Trains at size 1m, from images at size 12m, with batches of 16 x 64 steps, everything included except pictures, which
are drawn once in five minutes (`scripts/logging_cost.py` times them). A learner that is the bottleneck should compute
all the time: the table has the share of the wall time in which an update was under way. Environments that are the
bottleneck should step as fast as without the learner: the table compares both with their speed alone, in the same
process. On a CPU, updates share the cores with everything else, and take longer than alone.
"""

import argparse
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import gymnasium
import jax
import numpy as np

from dreamer import config as configs
from dreamer.devices.flops import matmul_ceiling, program_gflop
from dreamer.devices.huge_pages import restart_with_huge_pages
from dreamer.envs import VectorEnv
from dreamer.evaluate import make_env
from dreamer.logs.logger import read_metrics
from dreamer.training.host import HostRun
from dreamer.types import Batch, Scalars

SLOW_SECONDS = 0.03
"""Seconds of a step of the slow environment, about those of a simulator with a camera."""

CASES: dict[str, tuple[str, str, int, list[str]]] = {
    # name: (environment, size, train ratio, overrides)
    "CartPole, ratio 32": ("cartpole", "1m", 32, ["env.count=1"]),
    "CartPole, ratio 512": ("cartpole", "1m", 512, ["env.count=1"]),
    "4 slow processes, ratio 12": ("slow", "1m", 12, ["env.count=4", "env.workers=async"]),
    "4 slow processes, ratio 128": ("slow", "1m", 128, ["env.count=4", "env.workers=async"]),
    "64 pixel environments, ratio 16": (
        "pixels",
        "12m",
        16,
        ["env.count=64", "env.workers=sync", "nets.dtype=bfloat16"],
    ),
}
DEFAULT_CASES = [name for name in CASES if "pixel" not in name]
"""The other is for accelerators."""


class Watch:
    """Records when updates start and end, in a thread that waits for each."""

    def __init__(self, update: Callable[[Batch], Any]) -> None:
        self.original = update
        self._thread = ThreadPoolExecutor(1)
        self._starts: list[float] = []
        self._ends: list[Future[float]] = []

    def update(self, batch: Batch) -> Any:
        """As the agent's method."""
        self._starts.append(time.perf_counter())
        result = self.original(batch)
        self._ends.append(self._thread.submit(self._end, result))
        return result

    @staticmethod
    def _end(result: Any) -> float:
        jax.block_until_ready(result)
        return time.perf_counter()

    def busy(self) -> float:
        """Share of the time in which an update was under way, from the third on, as the first two also compile."""
        starts = self._starts[2:]
        ends = [end.result() for end in self._ends[2:]]
        # An update that was started before the last one had ended waited for it.
        begins = [max(start, end) for start, end in zip(starts, [starts[0], *ends], strict=False)]
        return sum(end - begin for begin, end in zip(begins, ends, strict=True)) / (ends[-1] - starts[0])


class Slow(gymnasium.Wrapper):
    """CartPole whose steps take time, but no work of the processor."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        """Sleep, then step."""
        time.sleep(SLOW_SECONDS)
        return self.env.step(action)


def make_slow() -> gymnasium.Env:
    """The slow environment."""
    return Slow(gymnasium.make("CartPole-v1"))


class Pixels(gymnasium.Env):
    """Random images of 64 x 64 pixels, whose steps take hardly any time; episodes are truncated after 1,000 steps."""

    observation_space = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space: gymnasium.Space = gymnasium.spaces.Discrete(18)
    frames = np.random.default_rng(0).integers(0, 256, (16, 64, 64, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Begin an episode."""
        super().reset(seed=seed)
        self.steps = 0
        return self.frames[0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Show the next image."""
        self.steps += 1
        return self.frames[self.steps % len(self.frames)], 0.0, False, self.steps == 1000, {}


MAKERS: dict[str, Callable[[], gymnasium.Env]] = {"slow": make_slow, "pixels": Pixels}


def measure(name: str, seconds: float, more: Sequence[str] = ()) -> dict:
    """Figures of one case, with ``more`` overrides."""
    kind, size, ratio, overrides = CASES[name]
    with tempfile.TemporaryDirectory() as logdir:
        common = ["task=gym_CartPole-v1", f"run.train_ratio={ratio}", "run.eval_episodes=0", "logger.pictures_every=0"]
        common += [f"run.log_every={min(10.0, seconds / 6)}", "nets.dtype=float32", f"logdir={logdir}"]
        # Far more env steps than it takes; ``until`` ends the run when its time is over.
        end = "run={env_steps: 1000000, save_every: 1000000}"
        config = configs.load(["gym", f"size/{size}"], [*common, end, *overrides, *more])
        make = MAKERS.get(kind) or make_env(config)
        alone = environment_rate(config, make)
        run = HostRun(config, make, quiet=True)
        learn = run.learner.learn
        watch = Watch(run.agent.update)
        begin: list[float] = []

        def until(agent_steps: int) -> Iterator[Scalars]:
            for metrics in learn(agent_steps):
                begin.append(time.perf_counter())
                yield metrics
            if len(begin) > 3 and time.perf_counter() - begin[2] > seconds:
                run._stop.signal = "SIGTERM"  # The clean way out of the loop.

        run.learner.learn = until  # type: ignore[method-assign]
        run.agent.update = watch.update  # type: ignore[method-assign]
        run.train()
        # What follows does not belong to the loop.
        busy = watch.busy()
        run.agent.update = watch.original  # type: ignore[assignment, method-assign]
        lines = [
            x for x in read_metrics(run.logdir / "metrics.jsonl") if x.get("updates", 0) > 3 and "rate/updates" in x
        ]
        first = lines[0]
        last = lines[-1]
        elapsed = last["seconds"] - first["seconds"]
        env_rate = (last["env_steps"] - first["env_steps"]) / elapsed
        update_rate = (last["updates"] - first["updates"]) / elapsed
        batch, _ = run.learner.replay.sample()
        algorithm, arguments = run.agent.algorithm, (run.agent.state, batch, jax.random.key(0))
        gflop = program_gflop(lambda state, batch, key: algorithm.update(state, batch, key, config), *arguments)
        ceiling = matmul_ceiling(config.nets.dtype)
        times = []
        for _ in range(10):
            start = time.perf_counter()
            jax.block_until_ready(run.agent.update(batch))
            times.append(time.perf_counter() - start)
    update = float(np.median(times))
    return {
        "case": name,
        "env_steps_per_s": env_rate,
        "updates_per_s": update_rate,
        "update_alone_ms": update * 1e3,
        "learner_busy": busy,
        "learner_share": update_rate * update,
        "fraction_of_ceiling": update_rate * gflop / ceiling,
        "environments_alone_per_s": alone,
        "environment_share": env_rate / alone,
    }


def environment_rate(config: configs.Config, make: Callable[[], gymnasium.Env], turns: int = 100) -> float:
    """Env steps per second of the environments alone, always with the same action."""
    with VectorEnv(make, config.env, np.random.SeedSequence(0)) as envs:
        envs.reset()
        action = {key: np.zeros((envs.num_envs, *space.shape), np.int32) for key, space in envs.action_spaces.items()}
        begin = time.perf_counter()
        steps = 0
        for _ in range(turns):
            steps += int(envs.step(action).env_steps.sum())
        return steps / (time.perf_counter() - begin)


def table(results: list[dict]) -> str:
    """The figures as Markdown."""
    head = [
        "| | env steps/s | updates/s | an update is under way | updates alone take, ms | of that speed "
        "| of the ceiling | environments alone, steps/s | of that speed |",
        "|---" * 9 + "|",
    ]
    return "\n".join(
        head
        + [
            f"| {r['case']} | {r['env_steps_per_s']:.1f} | {r['updates_per_s']:.2f} | {r['learner_busy']:.0%} | "
            f"{r['update_alone_ms']:.0f} | {r['learner_share']:.0%} | {r['fraction_of_ceiling']:.0%} | "
            f"{r['environments_alone_per_s']:.0f} | {r['environment_share']:.0%} |"
            for r in results
        ]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="wall time of each case after the first updates")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=DEFAULT_CASES)
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures here")
    args = parser.parse_args()
    restart_with_huge_pages()
    results = []
    for case in args.cases:
        results.append(measure(case, args.seconds))
        print(table(results[-1:]), flush=True)
    print("\n" + table(results))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
