"""Steps parallel environments with a policy and keeps count of what happened.

The driver knows no networks: a policy is any function with the signature of `Policy`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dreamer.envs import NotRestorable, VectorEnv
from dreamer.spaces import portable
from dreamer.types import Observation, Step, Stored

Policy = Callable[[Any, Observation, np.ndarray], tuple[dict[str, Any], Any, Stored]]
"""``(memory, obs [N, ...], is_first [N]) -> (action [N, ...], memory, stored [N, ...])``."""


class Row(NamedTuple):
    """One instant of all environments: what they showed, what the policy chose, and what is stored with that."""

    step: Step
    action: dict[str, np.ndarray]
    stored: Stored


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
        envs: the environments; they are reset here, which `restore` undoes.
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

    def state(self) -> dict[str, Any]:
        """The environments, what they answered last, and what the policy remembers; see `dreamer.envs.restore.states`.

        The counters are not part of it: of several hosts, they count what all of them did. Take it after `advance`.

        Raises:
            EnvError: see `VectorEnv.state`.
        """
        return {
            "envs": self.envs.state(),
            "step": {name: value for name, value in self._step._asdict().items() if name != "log"},
            "memory": [_bits(leaf) for leaf in jax.tree.leaves(self._memory)],
            "score": self._score,
            "length": self._length,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`, in the middle of episodes, as the driver that gave it would have.

        Raises:
            NotRestorable: it cannot, and why; new episodes were begun, as at the start.
        """
        leaves, structure = jax.tree.flatten(self._memory)
        try:
            if len(leaves) != len(state["memory"]):
                raise NotRestorable(f"The policy remembers {len(leaves)} arrays, not {len(state['memory'])} as saved.")
            memory = [_as(like, saved) for like, saved in zip(leaves, state["memory"], strict=True)]
            step = Step(**state["step"])
            self.envs.restore(state["envs"])
        except (NotRestorable, KeyError, TypeError) as error:
            self._step = self.envs.reset()
            raise NotRestorable(f"{error}") from error
        self._memory, self._step = jax.tree.unflatten(structure, memory), step
        self._score, self._length = state["score"], state["length"]

    def act(self) -> Row:
        """Choose actions; waits for the device. Call `advance` next."""
        action, self._memory, stored = self._policy(self._memory, self._step.obs, self._step.is_first)
        self._action, stored = jax.device_get((action, stored))
        return Row(self._step, self._action, stored)

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


def _bits(leaf: Any) -> np.ndarray:
    """A leaf of the policy's memory; bfloat16 as its bits."""
    array = np.asarray(leaf)
    return array.view(portable(array.dtype))


def _as(like: Any, saved: np.ndarray) -> Any:
    """Inverse of `_bits`, for a leaf of this shape and dtype."""
    shape, dtype = np.shape(like), np.asarray(like).dtype
    if saved.shape != shape or saved.dtype != portable(dtype):
        raise NotRestorable(
            f"The policy remembers {dtype}{list(shape)}, not {saved.dtype}{list(saved.shape)} as was saved."
        )
    return jnp.asarray(saved.view(dtype))
