"""Plays complete episodes with an agent, each with its own random numbers.

Episode k begins with seed k of the environment, and the policy draws from a key of that episode and the time in it. So
it is the same episode however many are played alongside, before or after it, except for the rounding of sums that are
computed for several at once.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamer import envs
from dreamer.agent import Agent
from dreamer.algorithms.base import Memory
from dreamer.config import Config
from dreamer.envs.spaces import refuse_other_spaces
from dreamer.envs.vector.batched import open_env
from dreamer.envs.vector.sub_env import explain
from dreamer.envs.vector.vector_env import make_all
from dreamer.types import Mode

MakeEnv = Callable[..., Any]
"""Makes a Gymnasium environment; or, if it has a parameter ``num_envs``, that many in one object."""


class PlayStopped(Exception):
    """Playing was asked to stop before all episodes were played; the message says how many were."""


class Moment(NamedTuple):
    """One instant of an episode, after the agent has seen it; the timing is that of `dreamer.types`."""

    frame: np.ndarray
    """What the environment renders, uint8 ``[H, W, 3]``."""
    obs: Mapping[str, np.ndarray]
    """Observation, without batch axis."""
    memory: Memory
    """What the policy remembers now, with a batch axis of 1."""
    reward: float
    """Received on arriving here, over all repeats of the action."""
    score: float
    """Sum of rewards so far."""
    episode: int
    """Number of the episode, from 0."""
    time: int
    """Agent steps since the reset."""


class PlayedEpisode(NamedTuple):
    """A complete episode, or the part of it that was played."""

    score: float
    """Sum of rewards."""
    length: int
    """Env steps."""
    cut: bool
    """Whether it was cut off, because it did not end."""
    log: Mapping[str, float]
    """Numbers that its environment reported, by name."""


@dataclasses.dataclass
class _Player:
    """One of the environments, and the episode it is in."""

    env: envs.Adapter
    episode: int
    """Number of the episode."""
    most_steps: int
    """Agent steps after which it is cut off."""
    obs: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    time: int = 0
    """Agent steps since the reset."""
    reward: float = 0.0
    score: float = 0.0
    """Sum of rewards since the reset."""
    length: int = 0
    """Env steps since the reset."""
    over: bool = False
    """Whether the episode has ended, or was cut off."""
    cut: bool = False
    """Whether it was cut off."""
    idle: bool = False
    """Whether there is no further episode to play."""

    def reset(self, seed: int) -> None:
        """Begin the episode."""
        with _environment_errors(self):
            self.obs, _ = self.env.reset(seed=seed)
        self.time = 0
        self.length = 0
        self.reward = 0.0
        self.score = 0.0
        self.over = False
        self.cut = False

    def step(self, action: dict[str, np.ndarray]) -> None:
        """Go on with the episode."""
        with _environment_errors(self):
            self.obs, self.reward, terminated, truncated, info = self.env.step(action)
        self.time += 1
        self.length += info["env_steps"]
        self.score += self.reward
        self.cut = self.time >= self.most_steps and not (terminated or truncated)
        self.over = terminated or truncated or self.cut


def play(
    agent: Agent,
    make: MakeEnv,
    episodes: int,
    *,
    seed: int = 0,
    mode: Mode = "mode",
    parallel: int = 0,
    watch: Callable[[Moment], None] | None = None,
    stop: Callable[[], bool] | None = None,
    seconds: list[float] | None = None,
) -> list[PlayedEpisode]:
    """Play episodes to their end, or to ``run.eval_steps`` of the agent's config.

    Args:
        agent: the policy.
        make: makes an environment, or many in one object; these play in rounds, one episode in each row.
        episodes: number of episodes, at least 1.
        seed: decides the environments and the draws of the policy; the first episodes are those of a shorter list.
        mode: take the policy's mode, or draw from it.
        parallel: most environments at once; 0: as many as the agent's config says, see `most_envs`.
        watch: called with every moment of every episode, one episode after another, including the last observation;
            the environment must render.
        stop: asked before every step; if it says so, playing ends at once.
        seconds: what each choice of actions took, for one environment, is appended; the first includes compilation.

    Returns:
        The episodes, in the order of their seeds.

    Raises:
        EnvError: an environment failed, or its spaces are not those of the agent.
        PlayStopped: ``stop`` said so.
    """
    count = 1 if watch else min(episodes, parallel or most_envs(agent.config))
    # 31 bits, because some simulators take signed 32-bit seeds.
    seeds = [int(number) >> 1 for number in np.random.SeedSequence([seed, 1]).generate_state(episodes)]
    config = dataclasses.replace(agent.config.env, count=count, workers="sync")
    seconds = [] if seconds is None else seconds
    finished: dict[int, PlayedEpisode] = {}
    with contextlib.ExitStack() as stack:
        most = agent.config.run.eval_steps
        first = open_env(make, config)
        if isinstance(first, envs.Batched):
            stack.callback(first.close)
            if watch:
                raise envs.EnvError(f"{first.name} cannot be watched: it is many environments in one object.")
            _refuse_other_spaces(agent, first)
            return _play_rows(agent, first, seeds, seed, mode, stop, seconds)
        players = [_Player(env, index, most) for index, env in enumerate(make_all(make, config, count, [first]))]
        for player in players:
            stack.callback(player.env.close)
        _refuse_other_spaces(agent, players[0].env)
        for player in players:
            player.reset(seeds[player.episode])
        memory = agent.initial(count)
        while len(finished) < episodes:
            if stop is not None and stop():
                raise PlayStopped(f"{len(finished)} of {episodes} episodes were played.")
            begin = time.perf_counter()
            action, memory = _act(agent, players, memory, seed, mode)
            seconds.append((time.perf_counter() - begin) / count)
            if watch:
                watch(_moment(players[0], memory))
            for index, player in enumerate(players):
                if player.over and not player.idle:
                    finished[player.episode] = PlayedEpisode(
                        player.score, player.length, player.cut, player.env.episode_log
                    )
                    # Which episodes count is decided beforehand: taking those that end first would favour short ones.
                    player.idle = player.episode + count >= episodes
                    if not player.idle:
                        player.episode += count
                        player.reset(seeds[player.episode])
                elif not player.idle:
                    player.step({key: value[index, ...] for key, value in action.items()})
    return [finished[number] for number in range(episodes)]


def _play_rows(
    agent: Agent,
    batch: envs.Batched,
    seeds: Sequence[int],
    seed: int,
    mode: Mode,
    stop: Callable[[], bool] | None,
    seconds: list[float],
) -> list[PlayedEpisode]:
    """As `play`, in the N rows of one object, which can only be stepped together.

    They play in rounds: each row plays one episode, and waits until the others are through, so that every episode has
    its own seed, and which ones count is decided beforehand. ``seeds`` has the seed of each episode.
    """
    played: list[PlayedEpisode] = []
    memory = agent.initial(batch.num_envs)
    while len(played) < len(seeds):
        begin = len(played)
        rows = min(batch.num_envs, len(seeds) - begin)
        numbers = begin + np.arange(batch.num_envs)
        step = batch.reset([seeds[number % len(seeds)] for number in numbers])
        found: dict[int, PlayedEpisode] = {}
        score = np.zeros(batch.num_envs)
        length = np.zeros(batch.num_envs, np.int64)
        steps = 0
        while len(found) < rows:
            if stop is not None and stop():
                raise PlayStopped(f"{begin + len(found)} of {len(seeds)} episodes were played.")
            times = np.full(batch.num_envs, steps, np.uint32)
            start = time.perf_counter()
            action, memory = agent.act_in_episodes(step.obs, memory, seed, numbers.astype(np.uint32), times, mode)
            chosen = jax.device_get(action)
            seconds.append((time.perf_counter() - start) / batch.num_envs)
            step = batch.step(chosen)
            steps += 1
            score += step.reward
            length += step.env_steps
            cut = steps >= agent.config.run.eval_steps
            for row in range(rows):
                if row not in found and (step.is_last[row] or cut):
                    log = step.log.get(row, {})
                    found[row] = PlayedEpisode(float(score[row]), int(length[row]), not step.is_last[row], log)
        played += [found[row] for row in range(rows)]
    return played


def most_envs(config: Config) -> int:
    """How many environments an evaluation, which plays in this process, may have at once.

    No more than one process has in training, unless the config says otherwise: some simulators allow one instance per
    process, and there is only one of a robot.
    """
    in_one_process = config.env.count if config.env.workers == "sync" else min(config.env.count, config.env.per_worker)
    return config.run.eval_envs or in_one_process


def _act(agent: Agent, players: list[_Player], memory: Any, seed: int, mode: Mode) -> tuple[dict[str, np.ndarray], Any]:
    """Actions ``[N, ...]`` of all players, and the new memory."""
    obs = {key: np.stack([player.obs[key] for player in players]) for key in players[0].obs}
    episode = np.array([player.episode for player in players], np.uint32)
    time = np.array([player.time for player in players], np.uint32)
    action, memory = agent.act_in_episodes(obs, memory, seed, episode, time, mode)
    return jax.device_get(action), memory


def _moment(player: _Player, memory: Memory) -> Moment:
    with _environment_errors(player):
        frame = np.asarray(player.env.render())
    if frame.ndim != 3 or frame.shape[-1] != 3 or frame.dtype != np.uint8:
        what = f"{list(frame.shape)} {frame.dtype}" if frame.ndim else f"{frame.item()!r:.60}"
        raise envs.EnvError(
            f"Environment {player.env.name}: render() returned {what}, expected uint8 [height, width, 3] because its "
            f"render_mode is 'rgb_array': return such an image."
        )
    return Moment(
        frame=frame,
        obs=player.obs,
        memory=memory,
        reward=player.reward,
        score=player.score,
        episode=player.episode,
        time=player.time,
    )


def _refuse_other_spaces(agent: Agent, env: envs.Adapter | envs.Batched) -> None:
    refuse_other_spaces(env.obs_spaces, env.action_spaces, trained=(agent.obs_spaces, agent.action_spaces))


@contextlib.contextmanager
def _environment_errors(player: _Player) -> Iterator[None]:
    """Turn whatever an environment raises into an `EnvError`."""
    try:
        yield
    except Exception as error:
        raise envs.EnvError(explain(error, player.env.where(), player.episode)) from error


__all__ = ["MakeEnv", "Moment", "PlayStopped", "PlayedEpisode", "most_envs", "play"]
