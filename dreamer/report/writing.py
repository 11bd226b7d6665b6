"""Writes a report on a run: plays fresh episodes, measures the world model, and puts page and numbers into a directory.

docs/report.md says what the numbers mean.
"""

import errno
import hashlib
import json
import math
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dreamer import checkpoints
from dreamer import config as configs
from dreamer.agent.runtime import Agent
from dreamer.config import Config, paths
from dreamer.evaluate import load_saved, make_env
from dreamer.logs import logger
from dreamer.logs import pictures as dream_pictures
from dreamer.report import card as report_card
from dreamer.report import page as report_page
from dreamer.report.findings import findings
from dreamer.report.held_out import HeldOut, collect
from dreamer.report.page import Picture
from dreamer.report.plots import Series

VERSION = 1
"""Version of the fields of ``report.json``."""

FILMED = 4
"""Episodes in a film."""


class ReportError(RuntimeError):
    """No report can be written; the message says why and what to do."""


def write_report(
    logdir: pathlib.Path,
    *,
    out: pathlib.Path | None = None,
    checkpoint: checkpoints.Which = "newest",
    episodes: int = 16,
    seed: int = 0,
    task: str = "",
) -> pathlib.Path:
    """Report on a run.

    Args:
        logdir: directory of the run, which is only read if ``out`` lies elsewhere.
        out: directory of the report; None: ``logdir/report``.
        checkpoint: which checkpoint.
        episodes: fresh episodes to play.
        seed: seed of the episodes and of all random draws.
        task: the task to play; empty: that of the run.

    Returns:
        The page.

    Raises:
        ReportError: there is no world model, the metrics are not those of a run, or the directory cannot be written.
        CheckpointError, EnvError: see `dreamer.evaluate.load` and `held_out.collect`.
    """
    logdir = paths.expand(logdir)
    agent, saved = load_saved(logdir, checkpoint)
    behavior = agent.algorithm.behavior
    if behavior is None:
        raise ReportError(
            f"The algorithm '{agent.config.algorithm}' of {logdir} has no world model to report on. Score it with: "
            f"python -m dreamer.evaluate {shlex.quote(str(logdir))}"
        )
    # What can fail at once comes before anything that takes long.
    lines, warnings = read_lines(logdir / "metrics.jsonl")
    target = logdir / "report" if out is None else paths.expand(out)
    _prepare(target, is_default=out is None)
    held_out = collect(agent, make_env(agent.config, task=task), episodes, seed)
    card = report_card.measure(behavior, agent.state.nets, agent.config, agent.obs_spaces, held_out, seed)
    found = findings(card)
    if not card.obs:
        warnings = [
            *warnings,
            "The world model gives no predictions of observations, so there are no pictures of its dreams.",
        ]
    scores = card.scores
    facts = {
        "task": agent.config.task,
        "config digest": digest(agent.config),
        "checkpoint": f"{saved.path.name} ({saved.meta['env_steps']:,} env steps)",
        "parameters": f"{agent.parameter_count:,}",
        "return of these episodes": f"{scores.mean():.4g} (from {scores.min():.4g} to {scores.max():.4g})",
        "marks": ", ".join(
            f"{sum(f.verdict == verdict for f in found)} {word}"
            for verdict, word in (("good", "good"), ("fair", "fair"), ("poor", "poor"), ("unknown", "not known"))
            if any(f.verdict == verdict for f in found)
        ),
    }
    changes = {
        key: value
        for key, (_, value) in configs.differences(Config(), agent.config).items()
        if key not in ("task", "logdir")
    }
    text = report_page.page(
        f"Report on {agent.config.task}",
        facts,
        warnings,
        found,
        pictures(agent, held_out, card.context),
        card,
        agent.obs_spaces,
        training_curves(lines),
        {key: str(value) for key, value in changes.items()},
    )
    numbers = {
        "version": VERSION,
        "task": agent.config.task,
        "config_digest": digest(agent.config),
        "config_changes": changes,
        "checkpoint": {"name": saved.path.name, "env_steps": saved.meta["env_steps"]},
        "seed": seed,
        "warnings": warnings,
        "findings": [{**finding._asdict(), **_finite(finding)} for finding in found],
        "card": card.to_json(),
    }
    try:
        paths.write_text(target / "report.json", json.dumps(numbers, indent=1, allow_nan=False) + "\n")
        paths.write_text(target / "index.html", text)
    except OSError as error:
        raise _write_error(target, error, is_default=out is None) from error
    return target / "index.html"


def digest(config: Config) -> str:
    """Twelve hexadecimal digits, the same for two configs that differ in at most their ``logdir``."""
    values = {key: str(value) for key, value in configs.flatten(config) if key != "logdir"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def read_lines(path: pathlib.Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Lines of ``metrics.jsonl`` that have the counters of a run, and sentences about everything else in it.

    Raises:
        ReportError: no line is that of a run, though there are lines; or the file cannot be read.
    """
    try:
        found = logger.read_numbered(path).requiring("env_steps", "updates")
    except FileNotFoundError:
        return [], [f"There is no {path}, so there are no curves of the training."]
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}. Make it readable, or move it away.") from error
    good = list(found.lines.values())
    complaints = found.complaints()
    if complaints and not good:
        raise ReportError(
            f"{path} does not hold the metrics of a run: {'; '.join(complaints)}. Put the file of the run back, or "
            "move this one away to do without curves."
        )
    return logger.without_repeats(good), [f"In {path}, {fault}, and was left out." for fault in complaints]


def training_curves(lines: list[dict[str, Any]]) -> dict[str, tuple[Series, str]]:
    """Plots of the training: series by title, each with the label of its axis."""

    def series(names: Mapping[str, str], positive: bool = False) -> Series:
        found = {}
        for label, name in names.items():
            points = [(line["env_steps"], line[name]) for line in lines if _is_number(line.get(name))]
            points = [(steps, value) for steps, value in points if value > 0 or not positive]
            if points:
                steps, values = zip(*points, strict=True)
                found[label] = np.array(steps, float), np.array(values, float)
        return found

    keys = sorted({name for line in lines for name in line if name.startswith("loss/obs/")})
    model = {name.removeprefix("loss/obs/"): name for name in keys}
    model |= {"reward": "loss/reward", "continue": "loss/cont", "KL": "loss/dyn"}
    behaviour = {"imagined return": "imagined/return", "value": "imagined/value"}
    curves = {
        "Return": (
            series({"episodes": "episode/score", "mean of 10": "episode/recent_score", "evaluation": "eval/mean"}),
            "return",
        ),
        "Success rate": (
            {**_running_mean(lines, "episode/success"), **series({"evaluation": "eval/success"})},
            "share of episodes",
        ),
        "World-model errors on replay": (series(model, positive=True), "loss, log scale"),
        "Losses of the critic": (
            series({"imagined": "loss/critic", "replayed": "loss/replay_critic"}, positive=True),
            "loss, log scale",
        ),
        "What is imagined": (series(behaviour), "discounted reward"),
        "Entropy of the policy": (series({"entropy": "actor/entropy"}), "nats"),
    }
    return {title: (found, y) for title, (found, y) in curves.items() if found}


def _running_mean(lines: list[dict[str, Any]], name: str) -> Series:
    """The mean of a number over the last `logger.RECENT` episodes that have it; empty if none has."""
    points = [(line["env_steps"], line[name]) for line in lines if _is_number(line.get(name))]
    if not points:
        return {}
    steps, values = (np.array(column, float) for column in zip(*points, strict=True))
    recent = [values[max(0, end - logger.RECENT) : end].mean() for end in range(1, len(values) + 1)]
    return {f"mean of {logger.RECENT}": (steps, np.array(recent))}


def pictures(agent: Agent, held_out: HeldOut, context: int, steps: int = 50) -> list[Picture]:
    """Films of image keys and plots of the others, from one dream in each of the longest episodes."""
    order = np.argsort(-held_out.length, kind="stable")[:FILMED]
    length = min(context + steps, int(held_out.length.max()))
    fields = held_out.batch._replace(stored=None)
    batch = jax.tree.map(lambda x: x[order, :length], fields)
    batch = batch._replace(stored=jax.tree.map(lambda x: x[order], held_out.batch.stored))
    predictions, _ = agent.predict(batch, context)
    predictions = jax.device_get(predictions)
    valid = held_out.valid[order, :length]
    shown = []
    for key, space in agent.obs_spaces.items():
        if key not in predictions:  # The model does not predict observations.
            continue
        if space.kind == "image":
            frames = dream_pictures.film(batch.obs[key], predictions[key], context, valid)
            caption = f"{context} steps seen, then dreamt. Left to right: true, predicted, error."
            shown.append(Picture(key, caption, "gif", dream_pictures.encode(frames, "gif")))
        else:
            plot = dream_pictures.plot(space, batch.obs[key][0], predictions[key][0], context, valid[0])
            caption = f"{context} steps seen, then dreamt; at most {dream_pictures.MOST_ENTRIES} entries."
            shown.append(Picture(key, caption, "svg+xml", plot))
    return shown


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(finding: Any) -> dict[str, float | None]:
    """The numbers of a finding as JSON takes them: None for those that are not finite."""
    numbers = {name: getattr(finding, name) for name in ("value", "low", "high")}
    return {name: float(f"{x:.6g}") if math.isfinite(x) else None for name, x in numbers.items()}


def _prepare(target: pathlib.Path, is_default: bool) -> None:
    """Make the directory, and try to write there."""
    try:
        if is_default and (found := paths.obstacle(target, directory=True)):
            raise OSError(errno.EEXIST, f"it is {found}, expected a directory or nothing")
        target.mkdir(parents=True, exist_ok=True)
        for name in (".probe", "report.json", "index.html"):
            if found := paths.obstacle(target / name):
                raise OSError(errno.EEXIST, f"{name} is {found}, expected a file or nothing")
        paths.write_text(target / ".probe", "")
        (target / ".probe").unlink()
    except OSError as error:
        raise _write_error(target, error, is_default) from error


def _write_error(target: pathlib.Path, error: OSError, is_default: bool) -> ReportError:
    remedy = "Choose another directory with --out DIR" if is_default else "Choose another --out"
    return ReportError(f"The report cannot be written to {target}: {error.strerror}. {remedy}.")
