"""Whether an environment is fit for training: what it does when played, and how fast it steps."""

import argparse
import dataclasses
import functools
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dreamer import envs
from dreamer.config import Config, EnvConfig
from dreamer.envs.adapter import Adapter, adapt
from dreamer.envs.check import diagnosis
from dreamer.envs.check.diagnosis import EnvFinding
from dreamer.envs.errors import EnvError
from dreamer.envs.restore.rehearsal import require_another
from dreamer.envs.rollouts import Recording, explain, extreme_choosers, random_action, record
from dreamer.envs.vector.vector_env import VectorEnv, make_all
from dreamer.spaces import mask_keys

MOST_STEPS = 10_000
"""Most actions of the long recording."""

_COMPARED = 300
"""Most actions of the recordings that are compared with the long one."""

_EPISODES = 5

_EXTREME = 400
"""Most actions of each recording of constant or extreme actions."""

_EXTREME_SECONDS = 20.0
"""What all of these may take together, if the environment is slow."""

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


def check(make_env: Callable[[], Any], config: Config, *, steps: int = MOST_STEPS) -> Iterator[EnvFinding]:
    """Play an environment with random actions and report what is wrong or surprising.

    Args:
        make_env: returns a new environment each time: an `Adapter`, or any gymnasium.Env, which gets one.
        config: only ``env`` and ``nets`` matter.
        steps: most agent steps to play.

    Yields:
        Findings, including those that are fine. The environment can be trained on if none is an error.
    """
    try:
        first = adapt(make_env, config.env)
    except Exception as failure:
        yield EnvFinding("error", "make", explain(failure, "Making the environment"))
        return

    def make_another() -> Adapter:
        made = adapt(make_env, config.env)
        require_another(made, first)
        return made

    first.close(quiet=True)  # Closing the recorded instances will report any failure.
    yield from diagnosis.observation_keys(first.obs_spaces, config.nets, first.view.sources)
    yield from diagnosis.unseen(first.view.dropped)
    yield from diagnosis.action_keys(first)
    yield from diagnosis.masks(first.obs_spaces, first.action_spaces)
    yield from _play(make_another, config.env, first, steps)


def together(make_env: Callable[[], Any], config: EnvConfig) -> Iterator[EnvFinding]:
    """Whether two environments can exist at once in one process; tried only if more than one is wanted."""
    if config.count == 1:
        return
    try:
        for env in make_all(make_env, config, 2):
            env.close()
    except Exception as failure:
        yield EnvFinding(
            "warning",
            "together",
            f"{explain(failure, 'Making a second environment while the first was open')} If only one can exist in a "
            "process, use env.count=1, or env.workers=async for one in each process.",
        )


def _play(make_env: Callable[[], Adapter], config: EnvConfig, env: Adapter, steps: int) -> Iterator[EnvFinding]:
    """Findings about recordings of further instances, one at a time; ``env`` is closed, and only asked what it is."""
    first = record(make_env, config, seed=0, action_seed=0, steps=steps, episodes=_EPISODES)
    if first.error:
        yield EnvFinding("error", "play", first.error)
        return
    played = first.taken
    yield EnvFinding("ok", "play", f"Took {played} random actions without an error.")
    yield from diagnosis.endings(first, diagnosis.time_limit(env))
    yield from diagnosis.rewards(first)
    yield from diagnosis.observations(first, env.obs_spaces)

    # A policy is not random: it holds on to an action for a whole episode, or goes to its limits.
    extremes: dict[str, Recording] = {}
    if not mask_keys(env.obs_spaces, env.action_spaces):
        choosers = extreme_choosers(env.action_spaces)
        for name, choose in choosers.items():
            extremes[name] = record(
                make_env,
                config,
                seed=0,
                action_seed=0,
                steps=min(steps, _EXTREME),
                episodes=1,
                choose=choose,
                seconds=_EXTREME_SECONDS / len(choosers),
            )
            if extremes[name].error:
                yield EnvFinding("error", "play", f"With {name}: {extremes[name].error}")
                return
        actions = sum(recording.taken for recording in extremes.values())
        yield EnvFinding("ok", "play", f"Took {actions} constant and extreme actions without an error.")
    yield from diagnosis.outside({"random actions": first, **extremes})
    yield from diagnosis.ignored({"random actions": first, **extremes})

    compared = min(played // 4 if first.out_of_time else played, _COMPARED)
    short = functools.partial(record, make_env, config, steps=compared, episodes=compared)
    again = short(seed=0, action_seed=0)
    other = short(seed=0, action_seed=1)
    reseeded = short(seed=1, action_seed=0)
    if errors := {recording.error for recording in (again, other, reseeded)} - {""}:
        yield from (EnvFinding("error", "play", error) for error in sorted(errors))
        return
    yield diagnosis.reproducibility(first, again)
    yield diagnosis.seed_effect(first, reseeded)
    yield diagnosis.action_effect(first, other, env.action_spaces)


def speed(make_env: Callable[[], Any], config: EnvConfig, seconds: float = 2.0) -> EnvFinding:
    """Agent steps per second with random actions: alone, and in 1, 4 and 16 worker processes.

    Args:
        make_env: as for `check`.
        config: action repeat, checks, environments per worker, and how many there may be at most.
        seconds: duration of each of the four measurements, without start-up.
    """
    config = dataclasses.replace(config, rehearse=False)
    rates: dict[str, float] = {}
    numbers = [workers for workers in (1, 4, 16) if workers * config.per_worker <= config.count]
    try:
        rates["alone"] = _rate(make_env, dataclasses.replace(config, count=1, workers="sync"), seconds)
        for number in numbers:
            parallel = dataclasses.replace(config, count=number * config.per_worker, workers="async")
            rates[str(number)] = _rate(make_env, parallel, seconds)
    except EnvError as error:
        where = "in worker processes" if rates else "in a VectorEnv"
        return EnvFinding("warning" if rates else "error", "speed", f"It does not run {where}: {error}", rates)
    alone, *others = rates.values()
    text = f"Speed: {alone:,.0f} agent steps/s alone."
    if not others:
        return EnvFinding("ok", "speed", text, {**rates, "workers": "sync"})
    parallel_rates = ", ".join(f"{rate:,.0f}" for rate in others)
    workers = f"{', '.join(map(str, numbers))} worker{'s' if numbers[-1] > 1 else ''}"
    text = f"{text.rstrip('.')}; {parallel_rates} with {workers}."
    faster = max(others) > 1.2 * alone
    advice = "Use env.workers=async." if faster else "Worker processes do not pay off: keep env.workers=sync."
    return EnvFinding("ok", "speed", f"{text} {advice}", {**rates, "workers": "async" if faster else "sync"})


def _rate(make_env: Callable[[], Any], config: EnvConfig, seconds: float) -> float:
    rng = np.random.default_rng(0)
    taken = 0
    with VectorEnv(make_env, config, 0) as vector:
        masks = mask_keys(vector.obs_spaces, vector.action_spaces)
        step = vector.reset()
        start = time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds or not taken:
            step = vector.step(random_action(rng, vector.action_spaces, masks, step.obs, (config.count,)))
            taken += int((~step.is_first).sum())
    return taken / elapsed


def suggestions(
    task: str, presets: Sequence[str], overrides: Sequence[str], *, images: bool = False
) -> Iterator[EnvFinding]:
    """Commands that train on a task, with a GPU and on a CPU, or with presets already chosen.

    Args:
        task: its name.
        presets: names of presets; if empty, the usual ones for the task.
        overrides: ``key=value`` to add.
        images: whether the agent sees images.
    """
    prefix, _ = envs.split(task)
    large, small = _PRESETS.get(prefix, (["gym"], ["gym_small"]))
    if prefix == "dmc" and images:
        large, small = ["dmc_vision"], ["dmc_vision_small"]
    choices = {"": presets} if presets else {" with a GPU": large, " on a CPU": small}
    for device, names in choices.items():
        command = shlex.join(["python", "-m", "dreamer.train", "--config", *names, f"task={task}", *overrides])
        yield EnvFinding("ok", "train", f"Train{device}: {command}", {"presets": list(names), "command": command})


def examine(args: argparse.Namespace, config: Config, overrides: Sequence[str]) -> Iterator[EnvFinding]:
    """Everything the command says about a task: findings, speed, commands and a verdict."""
    task = config.task
    images = False

    def make_env() -> Adapter:
        return envs.make(task, config.env)

    errors = 0
    for finding in check(make_env, config, steps=args.steps):
        errors += finding.level == "error"
        images |= finding.data.get("kind") == "image"
        yield finding
    env_config = config.env
    for finding in together(make_env, env_config) if not errors else ():
        yield finding
        env_config = dataclasses.replace(env_config, count=1)
        overrides = [*overrides, "env.count=1"]
    if not errors and not args.fast:
        measured = speed(make_env, env_config)
        errors += measured.level == "error"
        yield measured
        if measured.data.get("workers") == "async":
            overrides = [*overrides, "env.workers=async"]
    if errors:
        yield EnvFinding("error", "verdict", f"'{task}' cannot be trained on: fix what the lines marked error say.")
        return
    yield from suggestions(task, args.config, overrides, images=images)
    yield EnvFinding("ok", "verdict", f"'{task}' can be trained on.")
