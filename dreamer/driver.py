"""Steps parallel environments with a policy and keeps count of what happened.

The driver knows no networks: a policy is any function with the signature of `Policy`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamer.envs import VectorEnv
from dreamer.types import Observation, Step, StoredLatent

Policy = Callable[[Any, Observation, np.ndarray], tuple[dict[str, Any], Any, StoredLatent]]
"""``(memory, obs [N, ...], is_first [N]) -> (action [N, ...], memory, stored latent [N, ...])``."""


class Row(NamedTuple):
    """One instant of all environments: what they showed, what the policy chose, and the latent it chose it from."""

    step: Step
    action: dict[str, np.ndarray]
    latent: StoredLatent


class Episode(NamedTuple):
    """A finished episode: sum of rewards, length in env steps, and the numbers its environment had to report."""

    score: float
    length: int
    env: int
    log: Mapping[str, float] = MappingProxyType({})


class Driver:
    """Alternates between a policy and N environments.

    A turn has two halves, so that a caller can start the learner between them: `act` chooses actions for what the
    environments showed last, `advance` sends them.

    Args:
        envs: the environments; they are reset here.
        policy: chooses actions.
        memory: what the policy remembers at the start.
    """

    def __init__(self, envs: VectorEnv, policy: Policy, memory: Any):
        self.envs = envs
        self.agent_steps = 0
        self.env_steps = 0
        self.episodes = 0
        self._policy = policy
        self._memory = memory
        self._step = envs.reset()
        self._action: dict[str, np.ndarray] = {}
        self._score = np.zeros(envs.num_envs, np.float64)
        self._length = np.zeros(envs.num_envs, np.int64)

    def act(self) -> Row:
        """Choose actions; waits for the device. Call `advance` next."""
        action, self._memory, latent = self._policy(self._memory, self._step.obs, self._step.is_first)
        self._action, latent = jax.device_get((action, latent))
        return Row(self._step, self._action, latent)

    def advance(self) -> list[Episode]:
        """Send the actions of the last `act`, count, and return the episodes that ended.

        Raises:
            EnvError: an environment failed.
        """
        self._step = step = self.envs.step(self._action)
        self._score = np.where(step.is_first, 0.0, self._score) + step.reward
        self._length = np.where(step.is_first, 0, self._length) + step.env_steps
        # A reset is no step: the agent's action was ignored.
        self.agent_steps += int((~step.is_first).sum())
        self.env_steps += int(step.env_steps.sum())
        ended = np.flatnonzero(step.is_last).tolist()
        self.episodes += len(ended)
        return [Episode(float(self._score[i]), int(self._length[i]), i, step.log.get(i, {})) for i in ended]
