"""Scores of trained agents: load one, play complete fresh episodes, and summarise them."""

import argparse
import dataclasses
import pathlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dreamer import checkpoints, envs
from dreamer import config as configs
from dreamer.agent.runtime import Agent, Mode
from dreamer.config import Config, ConfigError
from dreamer.envs.info import COST, SUCCESS, SUCCESS_ANY
from dreamer.evaluate import statistics
from dreamer.evaluate.episodes import MakeEnv, Moment, play
from dreamer.evaluate.video import Film
from dreamer.logs.sinks import DataTable


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of complete episodes."""

    task: str
    scores: tuple[float, ...]
    """Sum of rewards of each episode."""
    lengths: tuple[int, ...]
    """Length of each episode in env steps."""
    checkpoint_env_steps: int
    """Env steps the agent had been trained for."""
    successes: tuple[float, ...] = ()
    """Whether the last step of each episode was a success, 0 or 1; empty if the environment does not say so."""
    successes_any: tuple[float, ...] = ()
    """Whether any step of each episode was a success."""
    costs: tuple[float, ...] = ()
    """Sum of costs of each episode; empty if the environment reports none."""
    cut: int = 0
    """How many of the episodes were cut off, because they did not end in ``run.eval_steps``."""
    action_ms: float = dataclasses.field(default=0.0, compare=False)
    """Milliseconds that choosing one action took: the median over steps, in each of which all environments share."""

    def outcomes(self) -> dict[str, tuple[float, ...]]:
        """What the environment reports beyond rewards, by name: ``success``, ``success_any`` and ``cost``."""
        every = {"success": self.successes, "success_any": self.successes_any, "cost": self.costs}
        return {name: values for name, values in every.items() if values}

    def summary(self) -> dict[str, Any]:
        """Statistics by name; ``std`` is that of the sample (divisor n - 1), 0 for a single episode.

        ``success`` and ``success_any`` are shares of episodes, ``cost`` is a mean; each only if it is reported.
        """
        scores = np.array(self.scores)
        return {
            "task": self.task,
            "episodes": len(scores),
            "mean": float(scores.mean()),
            "std": float(scores.std(ddof=1)) if len(scores) > 1 else 0.0,
            "min": float(scores.min()),
            "max": float(scores.max()),
            "lengths_mean": float(np.mean(self.lengths)),
            "checkpoint_env_steps": self.checkpoint_env_steps,
            **({"cut": self.cut} if self.cut else {}),
            **{name: float(np.mean(values)) for name, values in self.outcomes().items()},
        }

    def table(self) -> DataTable:
        """A row for each episode."""
        outcomes = self.outcomes()
        rows = zip(range(len(self.scores)), self.scores, self.lengths, *outcomes.values(), strict=True)
        return DataTable(("episode", "score", "length", *outcomes), list(rows))

    def __str__(self) -> str:
        s = self.summary()
        success = cost = ""
        if self.successes:
            success = f", success rate {s['success']:.1%} (at any step {s['success_any']:.1%})"
        if self.costs:
            cost = f", mean cost {s['cost']:.4g}"
        return (
            f"{s['task']}: mean return {s['mean']:.1f} (std {s['std']:.1f}, min {s['min']:.1f}, max {s['max']:.1f})"
            f"{success}{cost} "
            f"over {s['episodes']} episodes of {s['lengths_mean']:.0f} steps on average, after "
            f"{s['checkpoint_env_steps']:,} env steps of training{self._cut_off()}"
        )

    def _cut_off(self) -> str:
        """What to know of the scores if episodes were cut off."""
        if not self.cut:
            return ""
        return f"; {self.cut} did not end and were cut off (run.eval_steps), so their scores are those of a part"


def load(logdir: str | pathlib.Path, checkpoint: checkpoints.Which = "newest", overrides: Sequence[str] = ()) -> Agent:
    """The agent of a run, from one of its checkpoints, which also holds its config and spaces.

    Args:
        logdir: directory of the run, which is only read.
        checkpoint: the newest one (if it is damaged, the newest that is not, with a warning); the best by evaluation;
            or that of a step.
        overrides: ``planner.KEY=value`` strings: how the agent acts, whatever it was trained with; and
            ``env.python=PATH``, which is elsewhere on another machine.

    Raises:
        CheckpointError: no usable checkpoint is there.
        ConfigError: an override is wrong, or is not about the planner.
    """
    agent, _ = load_saved(logdir, checkpoint, overrides)
    return agent


def load_saved(
    logdir: str | pathlib.Path, which: checkpoints.Which, overrides: Sequence[str] = ()
) -> tuple[Agent, checkpoints.Checkpoint]:
    """As `load`, and the checkpoint, which knows the counters of the run."""
    for override in overrides:
        if not override.startswith(("planner.", "env.python=")):
            raise ConfigError(
                f"'{override}' cannot be changed in an agent that was trained: only keys of the planner and "
                "env.python can, for example planner.horizon=12."
            )
    saved = checkpoints.load(logdir, which=which)
    for damaged in saved.damaged:
        warnings.warn(f"{damaged} The one before is used: {saved.path.name}.", stacklevel=3)
    agent = Agent(configs.override(saved.config, overrides), *saved.spaces)
    checkpoints.restore_agent(agent, saved)
    return agent, saved


def make_env(config: Config, render: bool = False, task: str = "") -> MakeEnv:
    """A function that makes environments of the config's task, or of another one with the config's options.

    Where the task is many environments in one object, it makes ``num_envs`` of them, or ``env.count``. It takes the
    keyword arguments ``env.kwargs`` as users' functions do, though it has them already.
    """
    own = config.env
    return lambda num_envs=None, **kwargs: envs.make_any(
        task or config.task,
        dataclasses.replace(own, kwargs={**own.kwargs, **kwargs}),
        render=render,
        num_envs=num_envs,
    )


def evaluate(
    agent: Agent,
    make: MakeEnv | str,
    episodes: int,
    *,
    seed: int = 0,
    mode: Mode = "mode",
    checkpoint_env_steps: int = 0,
    parallel: int = 0,
    watch: Callable[[Moment], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> Evaluation:
    """Play complete, fresh episodes in parallel environments.

    Every episode has its own seed, so the scores do not depend on how many are played in parallel; see
    `dreamer.evaluate.episodes`.

    Args:
        agent: the policy.
        make: makes an environment, or the name of a task.
        episodes: number of episodes, at least 1.
        seed: seed of the environments and of what the policy draws, 0 to 2**32 - 1.
        mode: take the policy's mode, or draw from it.
        checkpoint_env_steps: recorded in the result.
        parallel: most environments at once; 0: ``run.eval_envs`` of the agent's config, or else ``env.count``.
        watch: called with every moment of every episode; episodes are then played one by one, in environments that
            must render.
        stop: asked before every step; if it says so, playing ends at once.

    Raises:
        EnvError: an environment failed, or its spaces are not those of the agent.
        PlayStopped: ``stop`` said so.
    """
    if episodes < 1:
        raise ValueError(f"evaluate got episodes={episodes}, expected at least 1.")
    maker = make_env(agent.config, task=make) if isinstance(make, str) else envs.maker_of(make, agent.config.env.kwargs)
    seconds: list[float] = []
    played = play(
        agent, maker, episodes, seed=seed, mode=mode, parallel=parallel, watch=watch, stop=stop, seconds=seconds
    )
    return Evaluation(
        task=agent.config.task,
        scores=tuple(episode.score for episode in played),
        lengths=tuple(episode.length for episode in played),
        checkpoint_env_steps=checkpoint_env_steps,
        cut=sum(episode.cut for episode in played),
        action_ms=1000 * float(np.median(seconds)),
        successes=_outcomes(SUCCESS, [episode.log for episode in played]),
        successes_any=_outcomes(SUCCESS_ANY, [episode.log for episode in played]),
        costs=_outcomes(COST, [episode.log for episode in played]),
    )


def _outcomes(name: str, logs: Sequence[Mapping[str, float]]) -> tuple[float, ...]:
    """A number of every episode; 0 where only others report it, as some environments do only where there is one."""
    return tuple(log.get(name, 0.0) for log in logs) if any(name in log for log in logs) else ()


def evaluate_logdir(
    logdir: str | pathlib.Path,
    episodes: int,
    *,
    checkpoint: checkpoints.Which = "newest",
    seed: int = 0,
    mode: Mode = "mode",
    video: str | None = None,
    overrides: Sequence[str] = (),
    task: str = "",
) -> Evaluation:
    """Load a run and score it; optionally write the episodes as a video. ``task`` stands for that of the run.

    Raises:
        CheckpointError, ConfigError, EnvError, VideoError: see `load`, `evaluate` and `dreamer.evaluate.video`.
    """
    agent, saved = load_saved(logdir, checkpoint, overrides)
    options: dict[str, Any] = {"seed": seed, "mode": mode, "checkpoint_env_steps": saved.meta["env_steps"]}
    if video is None:
        return evaluate(agent, make_env(agent.config, task=task), episodes, **options)
    with Film(video, agent) as film:
        return evaluate(agent, make_env(agent.config, render=True, task=task), episodes, watch=film, **options)


@dataclasses.dataclass(frozen=True)
class RunEvaluation:
    """The evaluation of one checkpoint of a run."""

    run: str
    checkpoint: checkpoints.Which
    evaluation: Evaluation
    acting: str = ""
    """How the agent acts, where several ways are compared."""

    def figures(self) -> dict[str, Any]:
        """What ``--json`` prints: `Evaluation.summary`, `statistics.describe`, and the numbers of every episode.

        Where several ways of acting are compared, it has that of these episodes, ``acting``, and ``action_ms``. The
        outcomes of every episode are under ``successes``, ``successes_any`` and ``costs``, if they are reported.
        """
        evaluation = self.evaluation
        acting = {"acting": self.acting, "action_ms": evaluation.action_ms} if self.acting else {}
        every = {"scores": list(evaluation.scores), "lengths": list(evaluation.lengths)}
        for name in ("successes", "successes_any", "costs"):
            if values := getattr(evaluation, name):
                every[name] = list(values)
        return {"run": self.run, **acting, **evaluation.summary(), **statistics.describe([evaluation.scores]), **every}


def pool(scored: Sequence[RunEvaluation]) -> list[dict[str, Any]]:
    """Statistics over several runs of a task that act in the same way; of chosen steps, over those of the same step.

    Their intervals are stratified by run: they say how certain the scores of these very agents are, not those of agents
    from other seeds.
    """
    groups: dict[tuple[str, object, str], list[RunEvaluation]] = {}
    for one in scored:
        step = one.checkpoint if isinstance(one.checkpoint, int) else None
        groups.setdefault((one.evaluation.task, step, one.acting), []).append(one)
    return [
        {
            "task": task,
            **({"checkpoint_env_steps": step} if step is not None else {}),
            **({"acting": acting} if acting else {}),
            "runs": [one.run for one in group],
            "episodes": sum(len(one.evaluation.scores) for one in group),
            **statistics.describe([one.evaluation.scores for one in group]),
            **({"success": _success_rate(group)} if any(one.evaluation.successes for one in group) else {}),
        }
        for (task, step, acting), group in groups.items()
        if len({one.run for one in group}) > 1
    ]


def _success_rate(scored: Sequence[RunEvaluation]) -> float:
    """Share of successes among all episodes; where an evaluation reports none, there was none."""
    won = sum(sum(one.evaluation.successes) for one in scored)
    return float(won / sum(len(one.evaluation.scores) for one in scored))


def which_checkpoint(text: str) -> checkpoints.Which:
    """The checkpoint that the word or number after ``--checkpoint`` names."""
    if text.isdecimal():
        return int(text)
    words: dict[str, checkpoints.Which] = {"newest": "newest", "best": "best"}
    if text in words:
        return words[text]
    raise argparse.ArgumentTypeError(f"'{text}' is not newest, best, or the number of a step")
