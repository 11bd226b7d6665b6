"""Fresh episodes that training never saw, recorded for the report card of the world model."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from dreamer import envs
from dreamer.agent import Agent
from dreamer.algorithms.base import blank_stored
from dreamer.envs.driver import Driver, Row
from dreamer.envs.spaces import refuse_other_spaces
from dreamer.evaluate.episodes import most_envs
from dreamer.types import Batch

MOST_STEPS = 1000
"""Agent steps after which an episode is no longer recorded; it then counts as cut off by a time limit."""

_SEEDS = 0x68656C64
"""Separates these seeds from those of training and evaluation, whose second number is never this one."""


class HeldOut(NamedTuple):
    """E recorded episodes, padded to the length T of the longest."""

    batch: Batch
    """``[E, T, ...]``; every row starts with ``is_first``, so ``stored``, which is zero, is ignored."""
    length: np.ndarray
    """Steps of each episode, including the reset, int ``[E]``; what comes after is padding."""

    @property
    def valid(self) -> np.ndarray:
        """Bool ``[E, T]``: whether a step is not padding."""
        return np.arange(self.batch.reward.shape[1]) < self.length[:, None]


def collect(
    agent: Agent, make: Callable[[], gymnasium.Env], episodes: int, seed: int, most_steps: int = MOST_STEPS
) -> HeldOut:
    """Play complete, fresh episodes, with actions drawn from the policy as in training.

    Environments play in rounds, one episode each, so that short episodes are not favoured and endless ones end.

    Args:
        agent: the policy.
        make: makes an environment.
        episodes: how many, at least 1.
        seed: seed of the environments and of the policy.
        most_steps: agent steps after which an episode is no longer recorded.

    Raises:
        EnvError: an environment failed, or its spaces are not those of the agent.
    """
    if episodes < 1:
        raise ValueError(f"collect got episodes={episodes}, expected at least 1.")
    count = min(episodes, most_envs(agent.config))
    config = dataclasses.replace(agent.config.env, count=count, workers="sync", rehearse=False)
    with envs.VectorEnv(make, config, np.random.SeedSequence([seed, _SEEDS]), any_count=True) as vector:
        refuse_other_spaces(vector.obs_spaces, vector.action_spaces, trained=(agent.obs_spaces, agent.action_spaces))
        # What the policy draws depends on its count of steps. Each seed gets its own range of counts.
        before = agent.policy_steps
        agent.policy_steps = (seed % 2**12) << 20
        try:
            rows: list[list[Row]] = []
            while len(rows) < episodes:
                # A new driver resets the environments.
                rows += _play(Driver(vector, agent.policy, agent.initial(vector.num_envs)), most_steps)
        finally:
            agent.policy_steps = before
    return _stack(agent, rows[:episodes])


def _play(driver: Driver, most_steps: int) -> list[list[Row]]:
    """The rows of one episode of each environment, without the axis of environments."""
    kept: list[list[Row]] = [[] for _ in range(driver.envs.num_envs)]
    waiting = np.ones(len(kept), bool)
    for _ in range(most_steps + 1):
        row = driver.act()
        for index in np.flatnonzero(waiting).tolist():
            kept[index].append(_select(row, index))
        waiting &= ~row.step.is_last
        if not waiting.any():
            break
        driver.advance()
    return kept


def _select(row: Row, index: int) -> Row:
    """One environment of a row."""
    obs = {key: value[index] for key, value in row.step.obs.items()}
    action = {key: value[index] for key, value in row.action.items()}
    others = {name: getattr(row.step, name)[index] for name in ("reward", "is_first", "is_last", "is_terminal")}
    return row._replace(step=row.step._replace(obs=obs, **others), action=action)


def _stack(agent: Agent, episodes: list[list[Row]]) -> HeldOut:
    """Episodes of different lengths as arrays ``[E, T, ...]``."""
    length = np.array([len(episode) for episode in episodes])
    shape = (len(episodes), int(length.max()))

    def pad(values: list[list[Any]], shift: int = 0) -> np.ndarray:
        """Values of all rows, moved to later by ``shift`` steps, and zero where there are none."""
        example = np.asarray(values[0][0])
        out = np.zeros((*shape, *example.shape), example.dtype)
        for number, row in enumerate(values):
            out[number, shift : len(row)] = row[: len(row) - shift]
        return out

    def field(name: str) -> np.ndarray:
        return pad([[getattr(row.step, name) for row in episode] for episode in episodes])

    batch = Batch(
        obs={key: pad([[row.step.obs[key] for row in episode] for episode in episodes]) for key in agent.obs_spaces},
        # The action chosen at one step is the previous one of the next.
        prev_action={
            key: pad([[row.action[key] for row in episode] for episode in episodes], shift=1)
            for key in agent.action_spaces
        },
        reward=field("reward"),
        is_first=field("is_first"),
        is_last=field("is_last"),
        is_terminal=field("is_terminal"),
        stored=blank_stored(agent.algorithm, shape[0]),
    )
    return HeldOut(batch, length)
