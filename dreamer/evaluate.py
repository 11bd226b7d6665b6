"""Score a trained agent: ``python -m dreamer.evaluate LOGDIR --episodes 20 [--json] [--video out.mp4]``."""

import argparse
import dataclasses
import json
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from dreamer import CallableModule, envs
from dreamer import checkpoint as checkpoints
from dreamer.agent import Agent, Mode
from dreamer.compile_cache import keep_compiled_programs
from dreamer.config import Config, ConfigError
from dreamer.driver import Driver, Episode
from dreamer.sinks import DataTable

MakeEnv = Callable[[], gymnasium.Env]

sys.modules[__name__].__class__ = CallableModule  # dreamer.evaluate(...) calls the function below.


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

    def summary(self) -> dict[str, Any]:
        """Statistics by name; ``std`` is that of the sample (divisor n - 1), 0 for a single episode."""
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
        }

    def table(self) -> DataTable:
        """A row for each episode."""
        rows = zip(range(len(self.scores)), self.scores, self.lengths, strict=True)
        return DataTable(("episode", "score", "length"), list(rows))

    def __str__(self) -> str:
        s = self.summary()
        return (
            f"{s['task']}: mean return {s['mean']:.1f} (std {s['std']:.1f}, min {s['min']:.1f}, max {s['max']:.1f}) "
            f"over {s['episodes']} episodes of {s['lengths_mean']:.0f} steps on average, after "
            f"{s['checkpoint_env_steps']:,} env steps of training"
        )


def load(logdir: str | pathlib.Path, checkpoint: checkpoints.Which = "newest") -> Agent:
    """The agent of a run, from one of its checkpoints, which also holds its config and spaces.

    Args:
        logdir: directory of the run, which is only read.
        checkpoint: the newest one, with a warning the newest that is not damaged; the best by evaluation; or that of a
            step.

    Raises:
        CheckpointError: no usable checkpoint is there.
    """
    return load_saved(logdir, checkpoint)[0]


def load_saved(logdir: str | pathlib.Path, which: checkpoints.Which) -> tuple[Agent, checkpoints.Checkpoint]:
    """As `load`, and the checkpoint, which knows the counters of the run."""
    saved = checkpoints.load(logdir, which=which)
    for damaged in saved.damaged:
        warnings.warn(f"{damaged} The one before is used: {saved.path.name}.", stacklevel=3)
    agent = Agent(saved.config, *saved.spaces)
    checkpoints.restore_agent(agent, saved)
    return agent, saved


def make_env(config: Config, render: bool = False) -> MakeEnv:
    """A function that makes environments of the config's task."""
    return lambda: envs.make(config.task, config.env, render=render)


def evaluate(
    agent: Agent,
    make: MakeEnv,
    episodes: int,
    *,
    seed: int = 0,
    mode: Mode = "mode",
    checkpoint_env_steps: int = 0,
    on_frame: Callable[[np.ndarray], None] | None = None,
) -> Evaluation:
    """Run complete, fresh episodes in parallel environments.

    Every environment plays the same number of episodes, decided beforehand: stopping at the first ``episodes`` to
    finish would favour short ones.

    Args:
        agent: the policy.
        make: makes an environment.
        episodes: number of episodes, at least 1.
        seed: seed of the environments.
        mode: take the policy's mode, or draw from it.
        checkpoint_env_steps: recorded in the result.
        on_frame: called with every rendered frame, ``uint8 [H, W, 3]``; plays episodes one after another.

    Raises:
        EnvError: an environment failed.
        ValueError: its spaces are not those of the agent.
    """
    if episodes < 1:
        raise ValueError(f"evaluate got episodes={episodes}, expected at least 1.")
    count = 1 if on_frame else next(n for n in range(min(episodes, 20), 0, -1) if episodes % n == 0)
    config = dataclasses.replace(agent.config.env, count=count, workers="sync")
    made: list[gymnasium.Env] = []

    def make_and_keep() -> gymnasium.Env:
        made.append(make())
        return made[-1]

    with envs.VectorEnv(make_and_keep, config, np.random.SeedSequence([seed, 1])) as vector:
        if (vector.obs_spaces, vector.action_spaces) != (agent.obs_spaces, agent.action_spaces):
            raise ValueError(
                f"The environment has observations {vector.obs_spaces} and actions {vector.action_spaces}, but the "
                f"agent was trained on {agent.obs_spaces} and {agent.action_spaces}."
            )

        def policy(memory: Any, obs: Any, is_first: Any) -> Any:
            return agent.policy(memory, obs, is_first, mode)

        driver = Driver(vector, policy, agent.initial(count))
        finished: list[list[Episode]] = [[] for _ in range(count)]
        # The same seed draws the same numbers, whatever the agent did before; and what it does next is not disturbed.
        before, agent.policy_steps = agent.policy_steps, (seed % 2**12) << 20
        try:
            while min(map(len, finished)) < episodes // count:
                if on_frame:
                    on_frame(np.asarray(made[-1].render()))
                driver.act()
                for episode in driver.advance():
                    finished[episode.env].append(episode)
        finally:
            agent.policy_steps = before
    chosen = [episode for env in finished for episode in env[: episodes // count]]
    return Evaluation(
        agent.config.task, tuple(e.score for e in chosen), tuple(e.length for e in chosen), checkpoint_env_steps
    )


def evaluate_logdir(
    logdir: str | pathlib.Path,
    episodes: int,
    *,
    checkpoint: checkpoints.Which = "newest",
    seed: int = 0,
    mode: Mode = "mode",
    video: str | None = None,
) -> Evaluation:
    """Load a run and score it; optionally write the episodes as a video.

    Raises:
        CheckpointError, EnvError: see `load` and `evaluate`.
    """
    agent, saved = load_saved(logdir, checkpoint)
    options: dict[str, Any] = {"seed": seed, "mode": mode, "checkpoint_env_steps": saved.meta["env_steps"]}
    if video is None:
        return evaluate(agent, make_env(saved.config), episodes, **options)
    import imageio.v2 as imageio  # Slow to import, and rarely needed.

    writer: Any = imageio.get_writer(video, fps=30, macro_block_size=1)
    with writer, warnings.catch_warnings():
        # The encoder's process is forked and replaced at once, which the threads of JAX do not mind.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        return evaluate(
            agent,
            make_env(saved.config, render=True),
            episodes,
            on_frame=lambda frame: writer.append_data(even(frame)),
            **options,
        )


def which_checkpoint(text: str) -> checkpoints.Which:
    """The word or number after ``--checkpoint``."""
    if text.isdecimal():
        return int(text)
    if text == "best":
        return "best"
    if text == "newest":
        return "newest"
    raise argparse.ArgumentTypeError(f"'{text}' is not newest, best, or the number of a step")


def even(frame: np.ndarray) -> np.ndarray:
    """``frame [H, W, 3]`` enlarged to at least 128 pixels and padded to even sides, which video codecs ask for."""
    factor = max(1, -(-128 // min(frame.shape[:2])))
    frame = frame.repeat(factor, 0).repeat(factor, 1)
    return np.pad(frame, [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)], mode="edge")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dreamer.evaluate", description="Score a trained agent.")
    parser.add_argument("logdir", help="directory of a run")
    parser.add_argument("--episodes", type=int, default=20, help="complete episodes to play (default 20)")
    parser.add_argument(
        "--checkpoint",
        metavar="WHICH",
        type=which_checkpoint,
        default="newest",
        help="newest (default), best by the evaluations of the run, or the number of a step",
    )
    parser.add_argument("--seed", type=int, default=1_000_000, help="seed of the environments")
    parser.add_argument("--sample", action="store_true", help="draw actions instead of taking the policy's mode")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--video", metavar="FILE", help="write the episodes as a video, for example out.mp4")
    args = parser.parse_args(argv)
    if args.episodes < 1:
        parser.error(f"--episodes is {args.episodes}, expected at least 1")
    mode: Mode = "sample" if args.sample else "mode"
    if argv is None:
        keep_compiled_programs()
    try:
        options: dict[str, Any] = {"seed": args.seed, "mode": mode, "video": args.video}
        result = evaluate_logdir(args.logdir, args.episodes, checkpoint=args.checkpoint, **options)
    except (checkpoints.CheckpointError, ConfigError, envs.EnvError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result.summary()) if args.json else result)
    if args.video and not args.json:
        print(f"Video: {args.video}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
