"""A whole run within a minute: a tiny agent is trained, saved, resumed and scored. It learns nothing."""

import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator

from dreamer.doctor.findings import MachineFinding, ask
from dreamer.logs.logger import read_metrics

_SMALL = (
    "task=probe_action",
    "env.count=2",
    "rssm={hidden: 8, classes: 4, blocks: 2, prior_layers: 1}",
    "nets={units: 8, depth: 2, encoder_layers: 1, decoder_layers: 1, actor_layers: 1, critic_layers: 1, bins: 41}",
    "nets.dtype=float32",
    "behavior.horizon=3",
    "replay={batch_size: 2, batch_length: 4, capacity: 1000}",
)

_PATIENCE = 300.0
"""Seconds for each of the three programs."""


def smoke(directory: pathlib.Path, environ: dict[str, str] | None = None) -> Iterator[MachineFinding]:
    """Train, resume and score in a temporary directory below ``directory``.

    Args:
        directory: where runs go; if it does not exist, the system's temporary directory is used.
        environ: environment variables; None: those of this process.
    """
    environ = dict(os.environ if environ is None else environ)
    # Nothing here runs long enough to repay an optimized compilation.
    quick = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    environ["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {quick}".strip()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(
        prefix=".dreamer-doctor-", dir=directory if directory.is_dir() else None
    ) as scratch:
        logdir = pathlib.Path(scratch) / "run"
        run = "run={train_ratio: 8, eval_episodes: 0, log_every: 0.2}"
        train = [sys.executable, "-m", "dreamer.train", "--config", "size/tiny", *_SMALL, run, f"logdir={logdir}"]
        score = [sys.executable, "-m", "dreamer.evaluate", str(logdir), "--episodes", "2", "--json"]
        steps = (
            ("train", [*train, "run.env_steps=200"]),
            ("resume", [*train, "run.env_steps=400"]),
            ("evaluate", score),
        )
        for step, command in steps:
            answer = ask(command, environ, _PATIENCE)
            if answer.status != 0:
                shown = " ".join(command[1:])
                yield MachineFinding(
                    "problem",
                    "smoke",
                    f"A tiny run could not {step}: {answer.error.rstrip('.')}. See for yourself: python {shown}",
                )
                return
        lines = read_metrics(logdir / "metrics.jsonl")
        updates = max((line.get("updates", 0) for line in lines), default=0)
        resumed = any(line.get("env_steps", 0) > 200 for line in lines)
        mean = json.loads(answer.out.splitlines()[-1])["mean"]
    seconds = time.monotonic() - begin
    if not updates or not resumed:
        failure = "it was not resumed" if updates else "it made no updates"
        yield MachineFinding(
            "problem", "smoke", f"A tiny run ended with status 0, but {failure}: run the tests (make test)."
        )
        return
    text = f"A tiny agent trained for {updates} updates, was saved, resumed and scored ({mean:.2f}) in {seconds:.0f} s."
    yield MachineFinding("ok", "smoke", text, {"updates": updates, "seconds": seconds, "score": mean})


__all__ = ["smoke"]
