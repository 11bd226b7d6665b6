"""Measures this project on one GPU in twelve minutes: ``python scripts/gpu_day.py [--minutes 12] [--out DIR]``.

Rows are measured in the order of their value, each in a separate process with a limit of time, so a crash or a hang
costs one row. Several processes compile at once; then each measures alone. What does not fit the time left is skipped.
The same command again continues: what DIR has is not measured again, and what failed is tried last. DIR gets
``rows.jsonl``, the page ``gpu.md`` (the tables of ``docs/results/gpu.md``), and the log of every row.

``--plan`` prints what would be measured and how long that is expected to take; ``--cpu`` measures everything in
miniature on the CPU, to try the script itself. Nothing is downloaded. Rows need more than jax, flax, optax, chex,
orbax-checkpoint, numpy, scipy, pillow, matplotlib, imageio, psutil, pyyaml, rich, filelock, ml_dtypes, jaxtyping and
xxhash; the rest, as wheels for Python 3.12 on Linux:

    distrax 0.3 MB, with tfp-nightly 7.0 MB, dm-tree 0.2 MB, gast and decorator less than 0.1 MB each
    gymnasium 0.5 MB, with cloudpickle and farama-notifications less than 0.1 MB each
    omegaconf 0.3 MB
    tensorboardX 0.1 MB, for rows that train
    gymnax 0.1 MB, for populations and for CartPole in JAX; it imports seaborn

distrax is what distributions are made of, gymnasium has spaces and CartPole, and omegaconf reads configs: no row can do
without them. MuJoCo, Weights & Biases and other environments are not needed.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import psutil

ROOT = pathlib.Path(__file__).resolve().parent.parent
MEASURE = ROOT / "scripts" / "gpu_rows.py"

OLDEST = 8.0
"""Compute capability of the first GPUs with bfloat16 (A100)."""

LEAST_GB = 24
"""Free memory without which too many rows would fail."""

LATE = 2.5
"""A row that takes this many times what is expected, and ``GRACE`` seconds, is stopped."""

GRACE = 30

CORES = 3
"""Cores for each row that compiles."""


class Row(NamedTuple):
    """Something to measure."""

    name: str
    section: str
    what: str
    kind: str
    """Function of ``gpu_rows.py``."""
    arguments: dict[str, Any]
    """Of that function."""
    compile_s: float
    """Estimated seconds until it is ready to measure, on a machine with 16 cores."""
    measure_s: float
    """Estimated seconds of the measurement."""
    flags: str = ""
    """Of XLA, for this row alone."""
    predicted: str = ""
    setting: str = ""
    """Rows that do the same work in different ways have one, and compete."""


def update_row(
    name: str,
    section: str,
    what: str,
    case: str = "vector",
    *words: str,
    unroll: int = 1,
    reuse: bool = True,
    compile_s: float | None = None,
    **more: str,
) -> Row:
    """A row that times updates in bfloat16, unless ``words``, overrides of the config, say otherwise."""
    pixels = case.startswith("pixels")
    repeats = 30 if pixels else 50
    arguments = {"case": case, "overrides": words, "repeats": repeats, "unroll": unroll, "reuse": reuse}
    return Row(name, section, what, "update", arguments, compile_s or (60 if pixels else 45), 6, **more)


def population_row(members: int, predicted: str = "") -> Row:
    """A row that times a population of size 1m."""
    arguments = {"members": members, "ratios": [16, 128], "overrides": [], "seconds": 3}
    what = f"{members} member{'s' if members > 1 else ''}"
    return Row(f"population-{members}", "populations", what, "population", arguments, 60, 14, predicted=predicted)


GRAPHS = "--xla_gpu_enable_command_buffer=+WHILE"
UNROLLED_GRAPHS = f"{GRAPHS} --xla_gpu_command_buffer_unroll_loops=true"
NO_GRAPHS = "--xla_gpu_enable_command_buffer="
AS_IT_IS = "as it is"
ANCHORS = "official code on a GB200 22.0 ms, TorchRL before CUDA graphs 358 ms"

ROWS = (
    update_row("1m", "update", "1m, vectors, bfloat16", setting=AS_IT_IS, predicted="12.5 ms"),
    update_row("12m", "update", "12m, images, bfloat16", "pixels", setting=AS_IT_IS, predicted="17 ms"),
    update_row("1m-float32", "update", "1m, vectors, float32", "vector", "nets.dtype=float32"),
    update_row("12m-float32", "update", "12m, images, float32", "pixels", "nets.dtype=float32"),
    update_row("1m-graphs", "bounds", "1m, loops in command buffers", flags=GRAPHS, setting="loops in command buffers"),
    update_row(
        "1m-unrolled-graphs",
        "bounds",
        "1m, loops in command buffers, unrolled",
        flags=UNROLLED_GRAPHS,
        setting="loops in command buffers, unrolled",
        predicted="7.3 ms",
    ),
    update_row(
        "12m-unrolled-graphs",
        "bounds",
        "12m, loops in command buffers, unrolled",
        "pixels",
        flags=UNROLLED_GRAPHS,
        setting="loops in command buffers, unrolled",
        predicted="13 ms",
    ),
    Row("1m-profile", "bounds", "1m", "profile", {"case": "vector", "overrides": []}, 45, 8, flags=NO_GRAPHS),
    update_row("1m-no-graphs", "bounds", "1m, no command buffers", flags=NO_GRAPHS, setting="no command buffers"),
    update_row("1m-plain", "bounds", "1m, loops as written", "vector", "nets.loops=plain", setting="nets.loops=plain"),
    update_row("1m-no-reuse", "bounds", "1m, fast scans without reuse", reuse=False, setting="no reuse"),
    update_row(
        "1m-plain-graphs",
        "bounds",
        "1m, loops as written, in command buffers, unrolled",
        "vector",
        "nets.loops=plain",
        flags=UNROLLED_GRAPHS,
        setting="nets.loops=plain, loops in command buffers, unrolled",
    ),
    update_row(
        "12m-plain", "bounds", "12m, loops as written", "pixels", "nets.loops=plain", setting="nets.loops=plain"
    ),
    update_row(
        "12m-graphs",
        "bounds",
        "12m, loops in command buffers",
        "pixels",
        flags=GRAPHS,
        setting="loops in command buffers",
    ),
    update_row("1m-64", "bounds", "1m, batches of 64 sequences", "vector", "replay.batch_size=64"),
    update_row("12m-64", "bounds", "12m, batches of 64 sequences", "pixels", "replay.batch_size=64"),
    update_row("1m-unroll-4", "bounds", "1m, 4 steps a round", unroll=4, compile_s=70, setting="unroll=4"),
    update_row("1m-unroll-8", "bounds", "1m, 8 steps a round", unroll=8, compile_s=90, setting="unroll=8"),
    Row("12m-profile", "bounds", "12m", "profile", {"case": "pixels", "overrides": []}, 60, 8, flags=NO_GRAPHS),
    population_row(1),
    population_row(4),
    population_row(16, predicted="8 times the updates of one, or more"),
    population_row(64),
    update_row("50m", "large", "50m, images, bfloat16", "pixels_50m"),
    update_row("200m", "large", "200m, images, bfloat16", "pixels_200m", compile_s=90),
    Row(
        "host-loop",
        "host",
        "64 pixel environments, size 12m, train ratio 16",
        "host_loop",
        {"case": "64 pixel environments, ratio 16", "overrides": [], "seconds": 12},
        80,
        35,
        predicted="a peer's on four GPUs: 1,252 env steps/s",
    ),
    Row(
        "cartpole",
        "learning",
        "CartPole to 475",
        "train",
        {"presets": ["jax/cartpole"], "overrides": ["population=8"], "bar": 475, "seconds": 100},
        60,
        115,
    ),
    Row(
        "catch",
        "learning",
        "Catch to 3.6",
        "train",
        {"presets": ["jax/catch"], "overrides": ["population=8"], "bar": 3.6, "seconds": 80},
        60,
        95,
    ),
    Row("golden", "numbers", "the golden update", "golden", {}, 60, 2),
    Row("same-bits", "bits", "one seed twice, and killed and resumed", "same_bits", {"env_steps": 2000}, 50, 110),
)

SECTIONS = {
    # section: (heading, text below it)
    "update": (
        "The update",
        f"Batches of 16 x 64, horizon 15, all 1,024 starts: the published algorithm. Anchors at 1m: {ANCHORS}.",
    ),
    "bounds": (
        "What bounds the update",
        "In bfloat16. Command buffers are XLA's CUDA graphs, which by default leave out loops. Profiles are recorded "
        "without any, because a profile does not list the kernels of a graph. The fastest setting becomes the default "
        "where devices are chosen. A kernel that stays on the chip for all of the filtering loop is designed in "
        "[decision 13](../decisions/0013-one-resident-kernel-for-filtering.md): 2.9 ms are predicted at 1m.",
    ),
    "populations": (
        "Populations",
        "Size 1m in bfloat16 on CartPole in JAX, 16 environments for each member, batches of 16 x 64; rates count all "
        "members.",
    ),
    "large": ("Large sizes", "From 64 x 64 images, batches of 16 x 64."),
    "host": (
        "The loop on the host",
        "Random images from environments in this process, whose own steps take no time: `python scripts/bench_loop.py "
        "--cases '64 pixel environments, ratio 16'`.",
    ),
    "learning": (
        "Seconds to learn",
        "Eight seeds in one program, with the presets `jax/cartpole` and `jax/catch`, until the mean of the last ten "
        "training episodes is at the bar; compilation is not counted in the seconds of seeds.",
    ),
    "numbers": (
        "The golden update",
        "Relative errors of the loss and of the whole gradient against the official numbers (`tests/golden`). On a CPU "
        "they are 8e-8 and 7e-7 in float32, and 5e-4 and 0.14 in bfloat16, on networks of 12 to 32 units.",
    ),
    "bits": ("The same bits", "Of all parts of a checkpoint: parameters, moments, replay, environments, counters."),
}

MINIATURE = (
    "rssm={deter: 16, hidden: 8, stoch: 3, classes: 4, blocks: 2, prior_layers: 1}",
    "nets={units: 8, depth: 2, encoder_layers: 1, decoder_layers: 1, actor_layers: 1, critic_layers: 1, bins: 41}",
    "behavior={horizon: 3, starts: 0}",
    "replay={batch_size: 2, batch_length: 4, capacity: 2000}",
)
"""Overrides with which every row takes seconds on a CPU."""

MINIATURE_ARGUMENTS: dict[str, dict[str, Any]] = {
    "update": {"repeats": 2},
    "population": {"members": 2, "seconds": 0.1},
    "host_loop": {"seconds": 4},
    "train": {"seconds": 20},
    "same_bits": {"env_steps": 200},
}

MINIATURE_OVERRIDES = {
    # Batches are small, so the same ratios would be far more updates.
    "host_loop": ["run.train_ratio=0.25"],
    "train": ["population=2", "run={train_ratio: 4, env_steps: 256}"],
}


def miniature(row: Row) -> Row:
    """The same row in tiny sizes, with what it takes on two cores of a CPU."""
    arguments = {**row.arguments, **MINIATURE_ARGUMENTS.get(row.kind, {})}
    if "overrides" in arguments:
        arguments["overrides"] = [*arguments["overrides"], *MINIATURE, *MINIATURE_OVERRIDES.get(row.kind, [])]
    return row._replace(arguments=arguments, compile_s=20, measure_s={"same_bits": 40}.get(row.kind, 5))


# --------------------------------------------------------------------------------------------------------------------
# Which rows, and when

Record = dict[str, Any]
"""What is known of a row that was tried: name, status, figures or error, seconds, machine."""


def in_order(rows: Sequence[Row], records: Mapping[str, Record]) -> list[Row]:
    """Rows without figures: those that were never tried, then those that failed."""
    open_rows = [row for row in rows if records.get(row.name, {}).get("status") != "measured"]
    return sorted(open_rows, key=lambda row: row.name in records)


def next_batch(rows: Sequence[Row], seconds: float, jobs: int, pace: float) -> list[Row]:
    """The next rows, at most ``jobs``, that are expected to compile together and measure in turn in this time."""
    batch: list[Row] = []
    for row in rows:
        if len(batch) < jobs and expected([*batch, row], pace) <= seconds:
            batch.append(row)
    return batch


def expected(batch: Sequence[Row], pace: float) -> float:
    """Seconds that a batch is expected to take."""
    return pace * (max(row.compile_s for row in batch) + sum(row.measure_s for row in batch))


def pace_of(rows: Sequence[Row], records: Mapping[str, Record]) -> float:
    """How many times their estimate the rows that were measured have taken; 1 if there are none."""
    done = [row for row in rows if records.get(row.name, {}).get("status") == "measured"]
    took = sum(records[row.name]["compile_s"] + records[row.name]["measure_s"] for row in done)
    return took / sum(row.compile_s + row.measure_s for row in done) if done else 1.0


def plan(rows: Sequence[Row], records: Mapping[str, Record], seconds: float, jobs: int) -> str:
    """A line for each row: what it measures, its estimate, and the time at which its batch is over."""
    pace = pace_of(rows, records)
    waiting = in_order(rows, records)
    lines = [f"{len(rows) - len(waiting)} of {len(rows)} rows are measured. {seconds / 60:g} minutes, {jobs} at once:"]
    lines.append(f"{'row':20} {'compile':>8} {'measure':>8} {'done at':>8}  what")
    elapsed = 0.0
    while batch := next_batch(waiting, seconds - elapsed, jobs, pace):
        elapsed += expected(batch, pace)
        for row in batch:
            times = f"{pace * row.compile_s:6.0f} s {pace * row.measure_s:6.0f} s {elapsed:6.0f} s"
            lines.append(f"{row.name:20} {times}  {row.what}")
            waiting.remove(row)
    for row in waiting:
        times = f"{pace * row.compile_s:6.0f} s {pace * row.measure_s:6.0f} s {'skipped':>8}"
        lines.append(f"{row.name:20} {times}  {row.what}")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------------------
# Measuring


class Day:
    """Measures rows one batch after another, and writes what it finds.

    Args:
        rows: in the order of their value.
        out: the folder.
        machine: what is measured, as every record names it.
        environment: of the processes.
    """

    def __init__(self, rows: Sequence[Row], out: pathlib.Path, machine: str, environment: Mapping[str, str]) -> None:
        self.rows = rows
        self.out = out
        self.machine = machine
        self.environment = environment
        self.records = read_records(out)

    def measure(self, seconds: float, jobs: int) -> None:
        """Measure what fits, and write the page."""
        deadline = time.monotonic() + seconds
        waiting = in_order(self.rows, self.records)
        while batch := next_batch(waiting, deadline - time.monotonic(), jobs, pace := pace_of(self.rows, self.records)):
            print(f"compiling {', '.join(row.name for row in batch)} ...", flush=True)
            self._measure_batch(batch, deadline, pace)
            waiting = [row for row in waiting if row not in batch]
        if waiting:
            print(f"There was no time for {', '.join(row.name for row in waiting)}.")
        self.write_page()

    def _measure_batch(self, batch: Sequence[Row], deadline: float, pace: float) -> None:
        patience = LATE * max(1.0, pace)
        late: set[str] = set()
        with contextlib.ExitStack() as stack:
            start = time.monotonic()
            attempts = [(row, stack.enter_context(self._process(row))) for row in batch]
            compiled: dict[str, float] = {}
            while waiting := [a for a in attempts if a[0].name not in compiled]:
                time.sleep(0.05)
                now = time.monotonic()
                for row, process in waiting:
                    if (self._folder(row) / "ready").exists() or process.poll() is not None:
                        compiled[row.name] = now - start
                    elif now > min(deadline, start + GRACE + patience * row.compile_s):
                        stop(process)  # It would disturb what is measured next.
                        compiled[row.name] = now - start
                        late.add(row.name)
            for row, process in attempts:
                begin = time.monotonic()
                limit = min(deadline, begin + GRACE + patience * row.measure_s)
                if row.name not in late:
                    try:
                        process.communicate("go\n", timeout=max(0.0, limit - begin))
                    except subprocess.TimeoutExpired:
                        stop(process)
                        late.add(row.name)
                now = time.monotonic()
                seconds = {"compile_s": compiled[row.name], "measure_s": now - begin}
                if row.name not in late:
                    self._record(row, seconds, process.returncode)
                elif now < deadline:
                    self._record(row, seconds, None)
                else:
                    print(f"{row.name}: no time left")  # As if it had not been tried.

    @contextlib.contextmanager
    def _process(self, row: Row) -> Iterator[subprocess.Popen[str]]:
        """The process of a row; at the end it is killed, with all that it has started."""
        folder = self._folder(row)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("ready", "figures.json"):
            (folder / name).unlink(missing_ok=True)
        flags = f"{self.environment.get('XLA_FLAGS', '')} {row.flags}".strip()
        with (
            open(folder / "log", "w") as log,
            subprocess.Popen(
                [*COMMAND, row.kind, json.dumps(row.arguments), str(folder)],
                env={**self.environment, "XLA_FLAGS": flags},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            ) as process,
        ):
            try:
                yield process
            finally:
                stop(process)

    def _folder(self, row: Row) -> pathlib.Path:
        return self.out / "rows" / row.name

    def _record(self, row: Row, seconds: Mapping[str, float], status: int | None) -> None:
        """Write down how a row ended; a status of None: it was stopped."""
        folder = self._folder(row)
        figures = folder / "figures.json"
        record: Record = {"name": row.name, "machine": self.machine, **seconds}
        if status is None:
            record |= {"status": "stopped", "error": f"not done after {sum(seconds.values()):.0f} s"}
        elif status == 0 and figures.exists():
            record |= {"status": "measured", "figures": json.loads(figures.read_text())}
        else:
            record |= {"status": "failed", "error": reason((folder / "log").read_text(), status)}
        self.records[row.name] = record
        with open(self.out / "rows.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{row.name}: {summary(record)}", flush=True)
        self.write_page()

    def write_page(self) -> None:
        """Write ``gpu.md``."""
        (self.out / "gpu.md").write_text(page(self.rows, self.records, self.machine))


def stop(process: subprocess.Popen[str]) -> None:
    """Kill a process and all that it has started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
    process.kill()
    process.wait()


COMMAND = [sys.executable, str(MEASURE)]
"""Measures one row; followed by its kind, arguments and folder."""


def reason(log: str, status: int) -> str:
    """One line about a process that failed."""
    for line in log.splitlines():
        if "Unknown flag in XLA_FLAGS" in line or "Illegal value for --xla" in line:
            return "this XLA does not know the flag: " + line.rpartition("] ")[2]
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    ended = f"signal {-status}" if status < 0 else f"status {status}"
    return f"{ended}: {lines[-1][:200]}" if lines else ended


def read_records(out: pathlib.Path) -> dict[str, Record]:
    """The newest record of every row in a folder."""
    path = out / "rows.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    records = {}
    for line in lines:
        with contextlib.suppress(ValueError):  # The last line, if the process was killed while it wrote.
            record = json.loads(line)
            records[record["name"]] = record
    return records


# --------------------------------------------------------------------------------------------------------------------
# Tables


def summary(record: Record) -> str:
    """A record in one line."""
    if record["status"] != "measured":
        return f"{record['status']}: {record['error']}"
    return ", ".join(f"{show(value)} {heading(name)}" for name, value in record["figures"].items() if name != "longest")


def heading(name: str) -> str:
    """The heading of a figure: ``compile_s`` is ``compile s``."""
    return name.replace("_", " ")


def show(value: Any) -> str:
    """A figure in three digits; ranges as ``2 to 3``."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return " to ".join(map(show, value))
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def table(rows: Sequence[Row], records: Mapping[str, Record]) -> str:
    """Rows of one kind as Markdown; those without figures say why."""
    found = [records[row.name]["figures"] for row in rows if "figures" in records.get(row.name, {})]
    names = [name for name in (found[0] if found else {}) if name != "longest"]
    headings = ["", "predicted", *(map(heading, names) if names else ["measured"])]
    lines = ["| " + " | ".join(headings) + " |", "|---|---|" + "---:|" * (len(headings) - 2)]
    for row in rows:
        record = records.get(row.name)
        if record is None:
            cells = ["not yet", *[""] * (len(headings) - 3)]
        elif "figures" not in record:
            cells = [f"{record['status']}: {record['error']}".replace("|", "/"), *[""] * (len(headings) - 3)]
        else:
            cells = [show(record["figures"].get(name)) for name in names]
        lines.append("| " + " | ".join([row.what, row.predicted, *cells]) + " |")
    return "\n".join(lines)


def longest_kernels(row: Row, record: Record) -> str:
    """The longest kernels of a profile as Markdown."""
    lines = [f"The longest kernels at {row.what}, of one update:", "", "| kernel | ms | calls |", "|---|---:|---:|"]
    lines += [f"| `{name[:80]}` | {show(ms)} | {show(calls)} |" for name, ms, calls in record["figures"]["longest"]]
    return "\n".join(lines)


def winners(rows: Sequence[Row], records: Mapping[str, Record]) -> list[str]:
    """For each case that was measured as it is, a sentence about the fastest setting."""
    sentences = []
    for as_it_is in rows:
        if as_it_is.setting != AS_IT_IS or "figures" not in records.get(as_it_is.name, {}):
            continue
        case = as_it_is.arguments["case"]
        times = {
            row.setting: records[row.name]["figures"]["update_ms"]
            for row in rows
            if row.setting and row.arguments["case"] == case and "figures" in records.get(row.name, {})
        }
        best = min(times, key=lambda setting: times[setting])
        sentences.append(
            f"At size {as_it_is.name}, the fastest of {len(times)} settings is: {best}, {show(times[best])} ms; "
            f"{AS_IT_IS}: {show(times[AS_IT_IS])} ms."
        )
    return sentences


ABOUT = """\
`python scripts/gpu_day.py` measures what fits into twelve minutes, in the order of its value, and writes this page. The
same command again continues; `--plan` prints what it would measure, and `--cpu` tries all of it in miniature (all 30
rows pass, in 6:45 on two cores of an AMD EPYC at commit 9eb7329, JAX 0.10.2). Nothing is downloaded; `--help` lists the
wheels that it needs.

Predictions are counted: an update launches 5,206 kernels at size 1m and 5,579 at size 12m
([`speed.md`](speed.md#what-a-gpu-would-launch)). Each is assumed to take 2.4 us, and 1.4 us in a command buffer, or as
long as its arithmetic. MFU is 29 or 1,337 GFLOP for an update of size 1m or 12m ([`bench.md`](bench.md)), larger sizes
as counted in the program, over the published rate in bfloat16, whatever the dtype."""

NOT_YET = "Not measured yet: nothing of this project has run on a GPU."


def page(rows: Sequence[Row], records: Mapping[str, Record], machine: str = NOT_YET) -> str:
    """The page of results; without records, the one of before the day."""
    parts = [f"# One GPU\n\n{machine}\n\n{ABOUT}"]
    for section, (title, text) in SECTIONS.items():
        own = [row for row in rows if row.section == section]
        if own:
            parts.append(f"## {title}\n\n{textwrap.fill(text, 128, break_on_hyphens=False, break_long_words=False)}")
        kinds = dict.fromkeys(row.kind for row in own)
        parts += [table([row for row in own if row.kind == kind], records) for kind in kinds]
        parts += [
            longest_kernels(row, records[row.name])
            for row in own
            if "longest" in records.get(row.name, {}).get("figures", {})
        ]
        if section == "bounds":
            parts += winners(rows, records)
    return "\n\n".join(parts) + "\n"


# --------------------------------------------------------------------------------------------------------------------
# The machine


class NotHere(Exception):
    """The day cannot begin; the message says why, and what to do."""


def gpu_index(environ: Mapping[str, str]) -> str:
    """The one GPU that is used: the first that ``CUDA_VISIBLE_DEVICES`` shows."""
    return environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]


def check_gpu(index: str) -> None:
    """Raise `NotHere` unless there is a GPU that is new enough and has memory."""
    query = "--query-gpu=name,compute_cap,memory.total,memory.free"
    command = ["nvidia-smi", "-i", index, query, "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        name, capability, total, free = (word.strip() for word in answer.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        raise NotHere(
            "There is no NVIDIA GPU here that nvidia-smi can describe, expected one: run this where there is one, or "
            "try the script in miniature with --cpu."
        ) from None
    if float(capability) < OLDEST:
        raise NotHere(
            f"The {name} has compute capability {capability}, expected {OLDEST} or newer: older GPUs have no bfloat16."
        )
    free_gb, total_gb = float(free) * 2**20 / 1e9, float(total) * 2**20 / 1e9
    if free_gb < LEAST_GB:
        raise NotHere(
            f"The {name} has {free_gb:.1f} of {total_gb:.1f} GB of memory free, expected {LEAST_GB} GB or more: end "
            "the programs that nvidia-smi lists, or choose another GPU with CUDA_VISIBLE_DEVICES."
        )


def describe_machine(environment: Mapping[str, str]) -> str:
    """The device that JAX uses, and versions; raises `NotHere` if JAX cannot use it."""
    code = (
        "import jax, platform; print(jax.devices()[0].device_kind, jax.__version__, platform.python_version(), sep='|')"
    )
    command = [sys.executable, "-c", code]
    answer = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    if answer.returncode:
        why = reason(answer.stderr, answer.returncode)
        raise NotHere(
            f"JAX cannot start on {environment['JAX_PLATFORMS']} ({why}). Repair the installation; for a GPU, "
            "pip install 'jax[cuda13]'."
        )
    device, jax_version, python = answer.stdout.splitlines()[-1].split("|")
    return f"{device}, jax {jax_version}, Python {python}, {os.cpu_count()} CPU cores."


def environment_of(out: pathlib.Path, *, cpu: bool) -> dict[str, str]:
    """Environment variables of the processes that measure."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "JAX_PLATFORMS": "cpu" if cpu else "cuda,cpu",
        "JAX_COMPILATION_CACHE_DIR": str(out / "compiled"),
        # Rows that compile at once share the memory.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    if cpu:
        # Compiles in a hurry. Flags that only some versions know would end the process.
        environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
    else:
        environment["CUDA_VISIBLE_DEVICES"] = gpu_index(os.environ)
    return environment


def claim(out: pathlib.Path, machine: str) -> None:
    """Make the folder; raises `NotHere` if it cannot be written or has rows of another machine."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "rows.jsonl", "a"):
            pass
    except OSError as error:
        raise NotHere(f"{out} cannot be written ({error.strerror}): choose another folder with --out.") from None
    other = {record["machine"] for record in read_records(out).values()} - {machine}
    if other:
        raise NotHere(
            f"{out} has rows of another machine ({other.pop()}), expected {machine} Choose another folder with --out."
        )


def minutes(text: str) -> float:
    """A number of minutes from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a number of minutes above 0")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; the exit status is 2 if the day cannot begin, and 1 if a row failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=minutes, default=12.0, help="time of this call; default 12")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the results; default runs/gpu_day")
    parser.add_argument("--jobs", type=int, choices=range(1, 17), metavar="N", help="rows that compile at once")
    parser.add_argument("--cpu", action="store_true", help="everything in miniature, on the CPU")
    parser.add_argument("--plan", action="store_true", help="print what would be measured, and measure nothing")
    args = parser.parse_args(argv)
    rows = [miniature(row) for row in ROWS] if args.cpu else list(ROWS)
    out = (args.out or pathlib.Path("runs") / ("gpu_day_cpu" if args.cpu else "gpu_day")).absolute()
    jobs = args.jobs or max(1, (os.cpu_count() or 1) // CORES)
    if args.plan:
        print(plan(rows, read_records(out), 60 * args.minutes, jobs))
        return 0
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # So that processes of rows end too.
    try:
        if not args.cpu:
            check_gpu(gpu_index(os.environ))
        environment = environment_of(out, cpu=args.cpu)
        machine = describe_machine(environment)
        claim(out, machine)
    except NotHere as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    day = Day(rows, out, machine, environment)
    day.measure(60 * args.minutes - (time.monotonic() - begin), jobs)
    missing = in_order(rows, day.records)
    print("\n" + "\n".join(winners(rows, day.records)))
    print(
        f"{len(rows) - len(missing)} of {len(rows)} rows are measured, which took "
        f"{pace_of(rows, day.records):.2f} of what was expected. The tables are in {out / 'gpu.md'}; the same command "
        "again continues."
    )
    return int(any(row.name in day.records for row in missing))


if __name__ == "__main__":
    sys.exit(main())
