"""Measures one row of `gpu_day.py` in this process: ``python scripts/gpu_rows.py KIND ARGUMENTS FOLDER``.

There is a function for each kind of row. It prepares, which is mostly compilation and may happen while others do, and
returns a function that measures, for which the device should be quiet. ARGUMENTS is JSON. When FOLDER has the file
``ready``, a line on standard input starts the measurement, whose figures go to ``figures.json`` there.
"""

import contextlib
import functools
import importlib
import json
import pathlib
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreamer import config as configs
from dreamer.agent import Agent
from dreamer.devices.flops import matmul_ceiling, program_gflop
from dreamer.doctor.accelerator import PEAKS

# What only one kind of row needs is imported there, so that a library that is missing costs that row alone.

ROOT = pathlib.Path(__file__).resolve().parent.parent

Figures = dict[str, Any]
"""By name, with the unit at its end."""

Measure = Callable[[], Figures]

ROUNDS = 5
"""Updates that are recorded for a profile."""

LONGEST = 10
"""Kernels that a profile lists."""


def update(case: str, overrides: Sequence[str], repeats: int, unroll: int = 1, reuse: bool = True) -> Measure:
    """The update of a case of `bench.CASES`, on a batch in the device's memory, and on one from the host.

    Args:
        case: name of the case.
        overrides: of its config.
        repeats: updates timed.
        unroll: steps in each round of all loops over time.
        reuse: as `dreamer.nn.loops.reuse_pays` says; otherwise never.
    """
    import bench
    import scaling

    from dreamer.behaviors import actor_critic

    if unroll > 1:
        jax.lax.scan = functools.partial(jax.lax.scan, unroll=unroll)
    if not reuse:
        actor_critic.reuse_pays = lambda loops: False
    size, spaces, published = bench.CASES[case]
    config = configs.load([f"size/{size}"], overrides)
    agent = Agent(config, *spaces)
    on_host = scaling.random_batch(config, *spaces)
    batch = jax.device_put(on_host)
    begin = time.perf_counter()
    agent.compile_update(batch)
    compiled = time.perf_counter() - begin
    # The published count is for batches of 16 sequences, and the operations are proportional to them.
    gflop = published * config.replay.batch_size / 16 if published else update_gflop(agent, batch)

    def measure() -> Figures:
        times = bench.seconds(lambda: agent.update(batch), repeats)
        per_second = gflop / float(np.median(times))
        kind = jax.devices()[0].device_kind
        peak = next((peak for name, peak in PEAKS.items() if name in kind), None)
        return {
            "update_ms": float(np.median(times) * 1e3),
            "range_ms": [float(times.min() * 1e3), float(times.max() * 1e3)],
            "with_batch_from_host_ms": float(np.median(bench.seconds(lambda: agent.update(on_host), repeats)) * 1e3),
            "compile_s": compiled,
            "memory_gb": peak_memory_gb(),
            "of_matmul_ceiling_%": 100 * per_second / matmul_ceiling(config.nets.dtype),
            "mfu_%": 100 * per_second / peak if peak else None,
        }

    return measure


def update_gflop(agent: Agent, batch: Any) -> float:
    """GFLOP of an update, counted in its program."""
    algorithm = agent.algorithm
    count = lambda state, batch, key: algorithm.update(state, batch, key, agent.config)  # noqa: E731
    return program_gflop(count, agent.state, batch, jax.random.key(0))


def peak_memory_gb() -> float:
    """The most memory of the device that was in use; on a CPU, of this process."""
    stats = jax.devices()[0].memory_stats()
    return (stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9


def profile(case: str, overrides: Sequence[str]) -> Measure:
    """Which kernels an update of a case of `bench.CASES` launches, and how long the device waits between them."""
    import bench
    import scaling

    size, spaces, _ = bench.CASES[case]
    config = configs.load([f"size/{size}"], overrides)
    agent = Agent(config, *spaces)
    batch = jax.device_put(scaling.random_batch(config, *spaces))
    agent.compile_update(batch)

    def measure() -> Figures:
        bench.seconds(lambda: agent.update(batch), repeats=3)
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                for _ in range(ROUNDS):
                    last = agent.update(batch)
                jax.block_until_ready(last)
            (trace,) = pathlib.Path(folder).rglob("*.xplane.pb")
            return timeline(kernels(trace), ROUNDS)

    return measure


def kernels(trace: pathlib.Path) -> list[tuple[str, float, float]]:
    """Name, begin and end in nanoseconds of all that ran on a GPU; without one, of the operations of programs."""
    planes = list(jax.profiler.ProfileData.from_file(str(trace)).planes)
    gpus = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    lines = [line for plane in gpus or planes for line in plane.lines]
    # Some versions add lines that are made from those of the streams.
    lines = [line for line in lines if line.name.startswith("Stream")] or lines
    events = [event for line in lines for event in line.events if gpus or _is_operation(event)]
    return [(event.name, event.start_ns, event.start_ns + event.duration_ns) for event in events]


def _is_operation(event: Any) -> bool:
    with contextlib.suppress(ValueError):  # Statistics of a kind that JAX cannot decode.
        return any(name == "hlo_op" for name, _ in event.stats)
    return False


def timeline(events: Sequence[tuple[str, float, float]], rounds: int) -> Figures:
    """Figures of one of ``rounds`` updates from the kernels (name, begin, end) of all of them."""
    busy = reach = 0.0
    spent: dict[str, float] = {}
    calls: dict[str, int] = {}
    for name, begin, end in sorted(events, key=lambda event: event[1]):
        # Kernels of several streams overlap; what they cover is counted once.
        busy += max(0.0, end - max(begin, reach))
        reach = max(reach, end)
        spent[name] = spent.get(name, 0.0) + end - begin
        calls[name] = calls.get(name, 0) + 1
    whole = reach - min(begin for _, begin, _ in events)
    longest = sorted(spent, key=lambda name: -spent[name])[:LONGEST]
    return {
        "whole_ms": whole / rounds * 1e-6,
        "busy_ms": busy / rounds * 1e-6,
        "gaps_ms": (whole - busy) / rounds * 1e-6,
        "kernels": len(events) / rounds,
        "longest": [[name, spent[name] / rounds * 1e-6, calls[name] / rounds] for name in longest],
    }


def population(members: int, ratios: Sequence[float], overrides: Sequence[str], seconds: float) -> Measure:
    """A population in the device loop at size 1m, with environments in JAX, at several train ratios."""
    import population

    task = ["task=jax_CartPole-v1", "run.loop=device", "replay.capacity=20000", f"population={members}", "logdir=none"]
    config = configs.load(["size/1m"], [*task, *overrides])
    loop, state, compiled = population.start(config)

    def measure() -> Figures:
        nonlocal state
        figures: Figures = {}
        for ratio in ratios:
            state, turns = population.rate(loop, state, population.updates_due(config, ratio), seconds)
            figures[f"env_steps_per_s_at_ratio_{ratio}"] = members * config.env.count * turns
            figures[f"updates_per_s_at_ratio_{ratio}"] = members * population.updates_per_turn(config, ratio) * turns
        return {**figures, "compile_s": compiled, "memory_gb": peak_memory_gb()}

    return measure


def host_loop(case: str, overrides: Sequence[str], seconds: float) -> Measure:
    """A case of `bench_loop.CASES`."""
    import bench_loop

    def measure(seconds: float = seconds) -> Figures:
        figures = bench_loop.measure(case, seconds, overrides)
        return {name: figures[name] for name in ("env_steps_per_s", "updates_per_s", "learner_busy", "update_alone_ms")}

    measure(seconds=4.0)  # The cache on disk has its programs now.
    return measure


def train(presets: Sequence[str], overrides: Sequence[str], bar: float, seconds: float) -> Measure:
    """A population that trains until the mean of the last ten episodes of all members is at a bar, or time is over."""
    from one_setting import EPISODES_AT_BAR, reached

    from dreamer import train as training
    from dreamer.logs.logger import read_metrics, without_repeats

    def run(folder: str, *more: str) -> Any:
        end = [f"run.score={bar}", f"run.hours={seconds / 3600}", "run.eval_episodes=0", "logger.pictures_every=0"]
        return training.train(presets=presets, overrides=[*end, *overrides, f"logdir={folder}", *more], quiet=True)

    with tempfile.TemporaryDirectory() as folder:
        run(folder, "run.env_steps=64")  # The cache on disk has its programs now.

    def measure() -> Figures:
        begin = time.perf_counter()
        took, steps = [], []
        with tempfile.TemporaryDirectory() as folder:
            result = run(folder)
            whole = time.perf_counter() - begin
            for member in result.members or [result]:
                lines = without_repeats(read_metrics(member.logdir / "metrics.jsonl"))
                episodes = [line for line in lines if "episode/score" in line]
                first = reached(np.array([line["episode/score"] for line in episodes]), bar, EPISODES_AT_BAR)
                if first is not None:
                    took.append(episodes[first]["seconds"])
                    steps.append(episodes[first]["env_steps"])
        figures: Figures = {"seeds": len(result.members or [result]), "at_the_bar": len(took), "whole_run_s": whole}
        if took:
            figures |= {"median_s": float(np.median(took)), "range_s": [min(took), max(took)]}
            figures |= {"env_steps": [min(steps), max(steps)]}
        return figures

    return measure


PRECISIONS = {
    # name: (precision of products in float32, dtype of activations, largest error that is rounding)
    "float32": ("highest", "float32", 1e-4),
    "tf32": ("default", "float32", 1e-2),
    "bfloat16": ("default", "bfloat16", 0.25),
}


def golden() -> Measure:
    """The golden update (``tests/golden``) in several precisions: errors of the loss and of the whole gradient."""
    from dreamer.agent.learning import weighted_total

    # By its own name: other packages install a `tests` too.
    sys.path.insert(0, str(ROOT / "tests"))
    golden_values = importlib.import_module("golden_values")

    data = golden_values.load("v3_update")
    batch = golden_values.golden_batch(data)
    names = golden_values.official_names()

    def program(dtype: str) -> Any:
        agent = golden_values.golden_agent(data, f"nets.dtype={dtype}")
        state = agent.state
        total = weighted_total(agent.algorithm.loss)

        def loss_and_gradient(nets: Any) -> Any:
            (loss, _), gradient = jax.value_and_grad(total, has_aux=True)(
                nets, state.memory, batch, jax.random.key(0), agent.config
            )
            return loss, gradient

        return jax.jit(loss_and_gradient).lower(state.nets).compile(), state.nets

    with fixed_draws():
        programs = {}
        for name, (precision, dtype, _) in PRECISIONS.items():
            with jax.default_matmul_precision(precision):
                programs[name] = program(dtype)

    def measure() -> Figures:
        figures: Figures = {}
        for name, (compiled, nets) in programs.items():
            loss, gradient = compiled(nets)
            squared_error = squared_norm = 0.0
            for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
                official = names[golden_values.path_name(path)]
                expected = golden_values.from_official(official, data[f"grads/{official}"])
                squared_error += float(np.square(np.asarray(leaf, float) - expected).sum())
                squared_norm += float(np.square(expected, dtype=float).sum())
            error = (squared_error / squared_norm) ** 0.5
            figures[f"loss_error_{name}"] = abs(float(loss) / float(data["loss"]) - 1)
            figures[f"gradient_error_{name}"] = error
            most = PRECISIONS[name][2]
            figures[f"verdict_{name}"] = f"{'within' if error <= most else 'NOT within'} {most:g}"
        return figures

    return measure


@contextlib.contextmanager
def fixed_draws() -> Iterator[None]:
    """Uniform draws are 0.37 and normal ones 0.5, as in the golden update."""
    uniform, normal = jax.random.uniform, jax.random.normal
    jax.random.uniform = lambda key, shape=(), *a, **k: jnp.full(shape, 0.37, jnp.float32)
    jax.random.normal = lambda key, shape=(), *a, **k: jnp.full(shape, 0.5, jnp.float32)
    try:
        yield
    finally:
        jax.random.uniform, jax.random.normal = uniform, normal


def same_bits(env_steps: int) -> Measure:
    """A small run, the same again, and the same killed once and resumed: which parts of their states differ?"""
    import torture

    task = "gym_CartPole-v1"
    folder = tempfile.TemporaryDirectory()
    root = pathlib.Path(folder.name)
    torture.finish(torture.command(root / "one", task, 0, env_steps))

    def measure() -> Figures:
        with folder:
            torture.finish(torture.command(root / "again", task, 0, env_steps))
            killed = torture.command(root / "killed", task, 0, env_steps)
            kills, _ = torture.kill_until_done(killed, root / "killed", random.Random(0), most=1.0, most_kills=1)
            one = torture.contents(root / "one")
            again = torture.differences(one, torture.contents(root / "again"))
            resumed = torture.differences(one, torture.contents(root / "killed"))
        return {
            "parts": len(one),
            "differ_when_run_again": len(again),
            "kills": kills,
            "differ_when_resumed": len(resumed),
            "for_example": ", ".join([*again, *resumed][:3]) or "none",
        }

    return measure


KINDS = {kind.__name__: kind for kind in (update, profile, population, host_loop, train, golden, same_bits)}


def main() -> None:
    """Command line."""
    kind, arguments, name = sys.argv[1:]
    folder = pathlib.Path(name)
    measure = KINDS[kind](**json.loads(arguments))
    (folder / "ready").touch()
    if sys.stdin.readline():  # Empty if the script that started this one is gone.
        (folder / "figures.json").write_text(json.dumps(measure()))


if __name__ == "__main__":
    main()
