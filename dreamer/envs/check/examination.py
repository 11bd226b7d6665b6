"""Whether an environment is fit for training: what playing it with random actions shows, and how fast it steps."""

import argparse
import contextlib
import dataclasses
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dreamer import envs
from dreamer.config import Config, EnvConfig
from dreamer.envs.adapter import Adapter, adapt
from dreamer.envs.check import diagnosis
from dreamer.envs.check.diagnosis import Finding
from dreamer.envs.errors import EnvError
from dreamer.envs.rollouts import explain, random_action, record
from dreamer.envs.vector.vector_env import VectorEnv
from dreamer.spaces import mask_keys

MOST_STEPS = 10_000
"""Most actions of the long recording."""

_COMPARED = 300
"""Actions of the recordings that are compared with it."""

_EPISODES = 5

_PRESETS = {
    "atari": (["atari100k"], ["atari_small"]),
    "craftax": (["jax/craftax"], ["jax/craftax", "size/tiny"]),
    "crafter": (["crafter"], ["crafter", "size/tiny"]),
    "dmc": (["dmc_proprio"], ["dmc_small"]),
    "memory": (["memory_maze"], ["memory_maze", "size/tiny"]),
    "minigrid": (["minigrid"], ["minigrid_small"]),
    "playground": (["jax/playground"], ["jax/playground", "size/tiny"]),
}
"""Presets for a GPU and for two CPU cores, by the prefix of the task."""


def check(make_env: Callable[[], Any], config: Config, *, steps: int = MOST_STEPS) -> Iterator[Finding]:
    """Play an environment with random actions and say what is wrong, or surprising.

    Args:
        make_env: returns a new environment each time: an `Adapter`, or any gymnasium.Env, which gets one.
        config: ``env`` and ``nets`` count.
        steps: most agent steps to play.

    Yields:
        Findings, also those that are fine. It can be trained on if none of them is an error.
    """
    try:
        env = adapt(make_env, config.env)
    except Exception as failure:
        yield Finding("error", "make", explain(failure, "Making the environment"))
        return

    def make_another() -> Adapter:
        made = adapt(make_env, config.env)
        if made.unwrapped is env.unwrapped:
            raise EnvError(
                "The same environment was returned twice, expected a new one from every call: make it there."
            )
        return made

    try:
        yield from diagnosis.observation_keys(env.obs_spaces, config.nets)
        yield from diagnosis.action_keys(env)
        yield from diagnosis.masks(env.obs_spaces, env.action_spaces)
        yield from _play(make_another, config.env, env, steps)
    finally:
        with contextlib.suppress(Exception):  # that it cannot be closed was told when others of its kind were
            env.close()


def _play(make_env: Callable[[], Adapter], config: EnvConfig, env: Adapter, steps: int) -> Iterator[Finding]:
    """Findings about recordings of instances beside ``env``."""
    first = record(make_env, config, seed=0, action_seed=0, steps=steps, episodes=_EPISODES)
    if first.error:
        yield Finding("error", "play", first.error)
        return
    played = sum(not moment.is_first for moment in first.moments)
    yield Finding("ok", "play", f"Took {played} random actions without an error.")
    yield from diagnosis.endings(first, diagnosis.time_limit(env))
    yield from diagnosis.rewards(first)
    yield from diagnosis.observations(first, env.obs_spaces)

    compared = min(played // 4 if first.out_of_time else played, _COMPARED)
    options: dict[str, int] = {"steps": compared, "episodes": compared}
    again = record(make_env, config, seed=0, action_seed=0, **options)
    other = record(make_env, config, seed=0, action_seed=1, **options)
    reseeded = record(make_env, config, seed=1, action_seed=0, **options)
    if errors := {recording.error for recording in (again, other, reseeded)} - {""}:
        yield from (Finding("error", "play", error) for error in sorted(errors))
        return
    yield diagnosis.reproducible(first, again)
    yield diagnosis.seeded(first, reseeded)
    yield diagnosis.actions_matter(first, other, env.action_spaces)


def speed(make_env: Callable[[], Any], config: EnvConfig, seconds: float = 2.0) -> Finding:
    """Agent steps per second with random actions: alone, and in 1, 4 and 16 worker processes.

    Args:
        make_env: as for `check`.
        config: action repeat, checks, and environments per worker.
        seconds: duration of each of the four measurements, without start-up.
    """
    rates: dict[str, float] = {}
    try:
        rates["alone"] = _rate(make_env, dataclasses.replace(config, count=1, workers="sync"), seconds)
        for workers in (1, 4, 16):
            parallel = dataclasses.replace(config, count=workers * config.per_worker, workers="async")
            rates[str(workers)] = _rate(make_env, parallel, seconds)
    except EnvError as error:
        where = "in worker processes" if rates else "in a VectorEnv"
        return Finding("warning" if rates else "error", "speed", f"It does not run {where}: {error}", rates)
    alone, *others = rates.values()
    parallel_rates = ", ".join(f"{rate:,.0f}" for rate in others)
    text = f"Speed: {alone:,.0f} agent steps/s alone; {parallel_rates} with 1, 4, 16 workers."
    faster = max(others) > 1.2 * alone
    advice = "Use env.workers=async." if faster else "Worker processes do not pay: keep env.workers=sync."
    return Finding("ok", "speed", f"{text} {advice}", {**rates, "workers": "async" if faster else "sync"})


def _rate(make_env: Callable[[], Any], config: EnvConfig, seconds: float) -> float:
    rng, taken = np.random.default_rng(0), 0
    with VectorEnv(make_env, config, 0) as vector:
        masks = mask_keys(vector.obs_spaces, vector.action_spaces)
        step = vector.reset()
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds or not taken:
            step = vector.step(random_action(rng, vector.action_spaces, masks, step.obs, (config.count,)))
            taken += int((~step.is_first).sum())
    return taken / elapsed


def suggestions(task: str, presets: Sequence[str], overrides: Sequence[str], images: bool = False) -> Iterator[Finding]:
    """Commands that train on a task, with a GPU and on a CPU, or with presets that were chosen already.

    Args:
        task: its name.
        presets: names of presets; empty: the usual ones.
        overrides: ``key=value`` to add.
        images: whether the agent sees images.
    """
    prefix = task.partition("_")[0] if ":" not in task else ""
    large, small = _PRESETS.get(prefix, (["gym"], ["gym_small"]))
    if prefix == "dmc" and images:
        large, small = ["dmc_vision"], ["dmc_vision_small"]
    choices = {"": presets} if presets else {" with a GPU": large, " on a CPU": small}
    for device, names in choices.items():
        command = shlex.join(["python", "-m", "dreamer.train", "--config", *names, f"task={task}", *overrides])
        yield Finding("ok", "train", f"Train{device}: {command}", {"presets": list(names), "command": command})


def examine(args: argparse.Namespace, config: Config, overrides: Sequence[str]) -> Iterator[Finding]:
    """Everything that the command says about a task: findings, speed, commands and a verdict."""
    task, images = config.task, False

    def make_env() -> Adapter:
        return envs.make(task, config.env)

    errors = 0
    for finding in check(make_env, config, steps=args.steps):
        errors += finding.level == "error"
        images |= finding.data.get("kind") == "image"
        yield finding
    if not errors and not args.fast:
        measured = speed(make_env, config.env)
        errors += measured.level == "error"
        yield measured
        if measured.data.get("workers") == "async":
            overrides = [*overrides, "env.workers=async"]
    if errors:
        yield Finding("error", "verdict", f"'{task}' cannot be trained on: mend what the lines with error say.")
        return
    yield from suggestions(task, args.config, overrides, images)
    yield Finding("ok", "verdict", f"'{task}' can be trained on.")
