"""How fast are the environments here? ``python scripts/bench_envs.py [--cases ...] [--seconds S] [--output FILE]``.

For each case: env steps per second of the library's environment alone, of the same task behind the `Adapter`, and of
`VectorEnv` with 1, 4 and 16 environments in one process and in worker processes. Actions are random and drawn
beforehand; resets at the end of episodes are part of the time. Every case runs in a separate process.
"""

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
import psutil

from dreamer.config import DMCConfig, EnvConfig
from dreamer.envs import EnvError, VectorEnv, make
from dreamer.envs.suites.dmc import choose_renderer
from dreamer.envs.suites.probes import Catch
from dreamer.spaces import Spaces

ROOT = pathlib.Path(__file__).resolve().parent.parent
COUNTS = (1, 4, 16)
WINDOWS = 5
"""Each figure is the median over this many parts of the time."""

PACKAGES = ("gymnasium", "numpy", "dm_control", "mujoco", "ale-py", "crafter", "minigrid")

Step = Callable[[], int]
"""Takes one step, and returns the number of its env steps."""


class Case(NamedTuple):
    """A task and the config with which it is measured."""

    task: str
    config: EnvConfig
    raw: Callable[[], Step]
    """Makes the library's environment, and returns its step."""


def gymnasium_step(env: gymnasium.Env) -> Step:
    """Steps of any Gymnasium environment."""
    env.action_space.seed(0)
    actions = itertools.cycle([env.action_space.sample() for _ in range(256)])
    env.reset(seed=0)

    def step() -> int:
        _, _, terminated, truncated, _ = env.step(next(actions))
        if terminated or truncated:
            env.reset()
        return 1

    return step


def registered(name: str, module: str = "gymnasium") -> Callable[[], Step]:
    """Steps of a registered environment, as `gymnasium.make` returns it, except for its checker."""

    def raw() -> Step:
        __import__(module)
        return gymnasium_step(gymnasium.make(name, disable_env_checker=True))

    return raw


def walker(*, pixels: bool) -> Step:
    """Steps of dm_control's walker, rendered or not."""
    choose_renderer()
    from dm_control import suite

    env = suite.load("walker", "walk", task_kwargs={"random": 0})
    spec = env.action_spec()
    rng = np.random.default_rng(0)
    actions = itertools.cycle(rng.uniform(spec.minimum, spec.maximum, (256, *spec.shape)))
    env.reset()

    def step() -> int:
        if env.step(next(actions)).last():
            env.reset()
        if pixels:
            env.physics.render(64, 64, camera_id=0)
        return 1

    return step


def pong() -> Step:
    """Four frames of the emulator, and the picture of the last."""
    from ale_py import ALEInterface, LoggerMode, roms

    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    ale.setInt("random_seed", 0)
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(str(roms.get_rom_path("pong")))
    legal = ale.getMinimalActionSet()
    actions = itertools.cycle([legal[i] for i in np.random.default_rng(0).integers(len(legal), size=256)])

    def step() -> int:
        if ale.game_over():
            ale.reset_game()
        action = next(actions)
        for _ in range(4):
            ale.act(action)
        ale.getScreenRGB()
        return 4

    return step


def crafter() -> Step:
    """Steps of Crafter, including its picture."""
    import crafter

    env = crafter.Env(seed=0)
    actions = itertools.cycle(np.random.default_rng(0).integers(env.action_space.n, size=256).tolist())
    env.reset()

    def step() -> int:
        _, _, done, _ = env.step(next(actions))
        if done:
            env.reset()
        return 1

    return step


DOORKEY = "MiniGrid-DoorKey-5x5-v0"
CASES = {
    "catch": Case("probe_catch", EnvConfig(), lambda: gymnasium_step(Catch())),
    "cartpole": Case("gym_CartPole-v1", EnvConfig(), registered("CartPole-v1")),
    "walker": Case("dmc_walker_walk", EnvConfig(), lambda: walker(pixels=False)),
    "walker_pixels": Case(
        "dmc_walker_walk", EnvConfig(dmc=DMCConfig(obs="pixels", size=(64, 64))), lambda: walker(pixels=True)
    ),
    "pong": Case("atari_pong", EnvConfig(repeat=4), pong),
    "crafter": Case("crafter_reward", EnvConfig(), crafter),
    "doorkey": Case(f"minigrid_{DOORKEY}", EnvConfig(), registered(DOORKEY, "minigrid")),
}


def actions_of(spaces: Spaces, count: int) -> Iterator[dict[str, Any]]:
    """Random actions ``[count, ...]``, in the agent's units, over and over."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(256):
        action: dict[str, np.ndarray] = {}
        for key, space in spaces.items():
            shape = (count, *space.shape)
            if space.kind == "discrete":
                action[key] = rng.integers(0, space.classes, shape, dtype=np.int32)
            else:
                action[key] = rng.uniform(-1, 1, shape).astype(np.float32)
        drawn.append(action)
    return itertools.cycle(drawn)


def adapted_step(case: Case) -> Step:
    """Steps of the task behind its adapter."""
    env = make(case.task, case.config)
    actions = ({key: value[0] for key, value in action.items()} for action in actions_of(env.action_spaces, 1))
    env.reset(seed=0)

    def step() -> int:
        _, _, terminated, truncated, info = env.step(next(actions))
        if terminated or truncated:
            env.reset()
        return int(info["env_steps"])

    return step


def rate(step: Step, seconds: float) -> float:
    """Env steps per second: the median of `WINDOWS` windows, after one that does not count."""
    rates = []
    for _ in range(WINDOWS + 1):
        begin = time.perf_counter()
        steps = 0
        while (elapsed := time.perf_counter() - begin) < seconds / WINDOWS:
            steps += step()
        rates.append(steps / elapsed)
    return float(np.median(rates[1:]))


def vector_rate(case: Case, count: int, workers: Literal["sync", "async"], seconds: float) -> float:
    """Env steps per second of a `VectorEnv`; one worker per core, or per environment if there are fewer."""
    per_worker = -(-count // len(os.sched_getaffinity(0)))
    config = dataclasses.replace(case.config, count=count, workers=workers, per_worker=per_worker)
    with VectorEnv(lambda: make(case.task, config), config, 0) as env:
        env.reset()
        actions = actions_of(env.action_spaces, count)
        return rate(lambda: int(env.step(next(actions)).env_steps.sum()), seconds)


def measure(name: str, seconds: float) -> dict[str, Any]:
    """All figures of a case, or the reason why there are none."""
    case = CASES[name]
    try:
        adapted = adapted_step(case)
        raw = case.raw()
    except (EnvError, ImportError) as error:
        return {"case": name, "task": case.task, "skipped": f"{name} was left out: {error}"}
    result: dict[str, Any] = {"case": name, "task": case.task, "repeat": case.config.repeat}
    result["raw"] = rate(raw, seconds)
    result["adapter"] = rate(adapted, seconds)
    kinds: tuple[Literal["sync", "async"], ...] = ("sync", "async")
    for workers, count in itertools.product(kinds, COUNTS):
        result[f"{workers} {count}"] = vector_rate(case, count, workers, seconds)
    return result


def table(results: list[dict[str, Any]]) -> str:
    """The figures as Markdown, and a line for each case without any."""
    columns = [f"{workers} {count}" for workers in ("sync", "async") for count in COUNTS]
    lines = [f"| case | task | library alone | adapter | overhead | {' | '.join(columns)} |"]
    lines += ["|---|---" + "|---:" * (3 + len(columns)) + "|"]
    for r in results:
        if "skipped" not in r:
            figures = [f"{r['raw']:,.0f}", f"{r['adapter']:,.0f}", f"{r['raw'] / r['adapter'] - 1:.0%}"]
            figures += [f"{r[column]:,.0f}" for column in columns]
            lines.append(f"| {r['case']} | `{r['task']}` | {' | '.join(figures)} |")
    return "\n".join([*lines, *(f"\n{r['skipped']}" for r in results if "skipped" in r)])


def machine() -> str:
    """Processor, cores and memory."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    memory = psutil.virtual_memory().total / 1e9
    return f"{names[0] if names else platform.machine()}, {cores} cores, {memory:.0f} GB, {platform.system()}"


def versions() -> str:
    """Versions of Python and of those packages that are installed."""
    found = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def commit() -> str:
    """The measured commit, and whether files differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip()
    return f"{head or 'unknown'}{' with changes' if changed else ''}"


def page(results: list[dict[str, Any]], seconds: float, before: float) -> str:
    """The page of results, with everything that is needed to repeat them."""
    return f"""# Speed of environments

Env steps per second; every repeat of an action counts. "Library alone" is the environment of its package, without our
suite or adapter: for Atari four frames and the picture of the last, without the maximum and the resizing that the
protocol requires. "Overhead" is the additional time that a step takes behind our suite and adapter. "sync" and "async"
are `VectorEnv` with this many environments, in one process or with one worker process per core. The speed of Crafter
depends on what happens in an episode, which differs from column to column.

{table(results)}

- Machine: {machine()}; load average before the first case {before:.2f}.
- Versions: {versions()}.
- Commit: {commit()}.
- Command: `{" ".join(["python scripts/bench_envs.py", *sys.argv[1:]])}`; every figure is the median of {WINDOWS}
  windows of {seconds / WINDOWS:g} seconds.
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seconds", type=float, default=10.0, help="time of each figure")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "docs/results/environments.md")
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one, args.seconds)))
        return
    before = os.getloadavg()[0]
    results = []
    for case in args.cases:
        print(f"measuring {case} ...", file=sys.stderr, flush=True)
        options = ["--one", case, "--seconds", str(args.seconds)]
        output = subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(output.stdout.splitlines()[-1]))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(page(results, args.seconds, before))
    print(table(results))


if __name__ == "__main__":
    main()
