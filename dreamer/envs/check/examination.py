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
from dreamer.envs.rollouts import RecordedStep, Recording, explain, extreme_choosers, random_action, record
from dreamer.envs.spaces import action_codec
from dreamer.envs.vector.batched import Batched, open_env
from dreamer.envs.vector.vector_env import VectorEnv, make_all
from dreamer.spaces import Step, mask_keys

MOST_STEPS = 10_000
"""Most actions of the long recording."""

_COMPARED = 300
"""Most actions of the recordings that are compared with the long one."""

_EPISODES = 5

_EXTREME = 400
"""Most actions of each recording of constant or extreme actions."""

_EXTREME_SECONDS = 20.0
"""What all of these may take together, if the environment is slow."""

_ROWS_SECONDS = 10.0
"""How long many environments in one object are played."""

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
        make_env: returns a new environment each time, or many in one object; as for `VectorEnv`.
        config: only ``env`` and ``nets`` matter.
        steps: most agent steps to play.

    Yields:
        Findings, including those that are fine. The environment can be trained on if none is an error.
    """
    try:
        first = open_env(make_env, config.env)
    except Exception as failure:
        yield EnvFinding("error", "make", explain(failure, "Making the environment"))
        return
    if isinstance(first, Batched):
        yield from _check_rows(first, config, steps)
        return

    def make_another() -> Adapter:
        made = adapt(make_env, config.env)
        require_another(made, first)
        return made

    first.close(quiet=True)  # Closing the recorded instances will report any failure.
    yield from diagnosis.observation_keys(first.obs_spaces, config.nets, first.view.sources)
    yield from diagnosis.unseen(first.view.dropped)
    yield from diagnosis.action_keys(action_codec(first.env.action_space, first.name))
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


def _check_rows(batch: Batched, config: Config, steps: int) -> Iterator[EnvFinding]:
    """Findings about many environments in one object, which is stepped as it is and then closed."""
    count = {"num_envs": batch.num_envs}
    yield EnvFinding("note", "make", f"{batch.name} is {batch.num_envs} environments in one object.", count)
    yield from diagnosis.observation_keys(batch.obs_spaces, config.nets, batch.view.sources)
    yield from diagnosis.unseen(batch.view.dropped)
    yield from diagnosis.action_keys(action_codec(batch.single_action_space, batch.name))
    yield from diagnosis.masks(batch.obs_spaces, batch.action_spaces)
    notes: list[str] = []
    played: list[Step] = []
    rng = np.random.default_rng(0)
    try:
        with VectorEnv(lambda: batch, config.env, 0, notes.append, any_count=True) as vector:
            masks = mask_keys(vector.obs_spaces, vector.action_spaces)
            step = vector.reset()
            start = time.perf_counter()
            while len(played) * batch.num_envs < steps and (not played or time.perf_counter() - start < _ROWS_SECONDS):
                played.append(step)
                step = vector.step(random_action(rng, vector.action_spaces, masks, step.obs, (batch.num_envs,)))
            seconds = time.perf_counter() - start
    except Exception as failure:
        yield EnvFinding("error", "play", explain(failure, batch.where()))
        return
    taken = sum(int((~step.is_first).sum()) for step in played)
    yield EnvFinding("ok", "play", f"Took {taken} random actions without an error.")
    recording = Recording([_of_row(step, row) for row in range(batch.num_envs) for step in played])
    yield from diagnosis.endings(recording, None)
    yield from diagnosis.rewards(recording)
    yield from diagnosis.observations(recording, batch.obs_spaces)
    for sentence in notes:
        yield EnvFinding("note", "play", sentence)
    rate = taken / seconds
    yield EnvFinding("ok", "speed", f"Speed: {rate:,.0f} agent steps/s in all rows.", {"alone": rate})


def _of_row(step: Step, row: int) -> RecordedStep:
    """What one row answered."""
    return RecordedStep(
        {key: value[row] for key, value in step.obs.items()},
        float(step.reward[row]),
        is_first=bool(step.is_first[row]),
        is_last=bool(step.is_last[row]),
        is_terminal=bool(step.is_terminal[row]),
        env_steps=int(step.env_steps[row]),
    )


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

    def make_env(num_envs: int | None = None) -> envs.Adapter | envs.Batched:
        return envs.make_any(task, config.env, num_envs=num_envs)

    errors = 0
    batched = 0
    for finding in check(make_env, config, steps=args.steps):
        errors += finding.level == "error"
        batched = finding.data.get("num_envs", batched)
        images |= finding.data.get("kind") == "image"
        yield finding
    env_config = config.env
    for finding in together(make_env, env_config) if not (errors or batched) else ():
        yield finding
        env_config = dataclasses.replace(env_config, count=1)
        overrides = [*overrides, "env.count=1"]
    if not (errors or batched or args.fast):
        measured = speed(make_env, env_config)
        errors += measured.level == "error"
        yield measured
        if measured.data.get("workers") == "async":
            overrides = [*overrides, "env.workers=async"]
    if batched:
        overrides = [*(key for key in overrides if not key.startswith("env.count=")), f"env.count={batched}"]
    if errors:
        yield EnvFinding("error", "verdict", f"'{task}' cannot be trained on: fix what the lines marked error say.")
        return
    yield from suggestions(task, args.config, overrides, images=images)
    yield EnvFinding("ok", "verdict", f"'{task}' can be trained on.")
