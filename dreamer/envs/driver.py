"""Steps parallel environments with a policy, and counts steps and episodes.

The driver knows nothing about networks: a policy is any function with the signature of `Policy`.
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
    """One instant of all N environments."""

    step: Step
    """Their answers, ``[N, ...]``."""
    action: dict[str, np.ndarray]
    """The actions chosen after them, ``[N, ...]`` by action key."""
    stored: Stored
    """What replay stores with them, ``[N, ...]``."""


class Episode(NamedTuple):
    """A finished episode."""

    score: float
    """Sum of rewards."""
    length: int
    """Env steps."""
    env: int
    """Index of its environment."""
    log: Mapping[str, float] = MappingProxyType({})
    """Numbers that its environment reported, by name, and its outcome by `dreamer.envs.info.OUTCOMES`."""


class Driver:
    """Alternates between a policy and N environments.

    A turn has two halves, so that a caller can start the learner in between: `act` chooses actions for the latest
    observations, `advance` sends them.

    Args:
        envs: the environments; they are reset here, and `restore` replaces those episodes.
        policy: chooses actions.
        memory: the policy's memory at the start, ``[N, ...]``.
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

    @property
    def longest(self) -> int:
        """Env steps that the longest of the open episodes has so far."""
        return int(self._length.max())

    def state(self) -> dict[str, Any]:
        """The environments, their latest answers, and the policy's memory; see `dreamer.envs.restore.states`.

        Counters are not included: with several hosts, they are totals over all hosts. Call it after `advance`.

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
        """Continue from `state`, in the middle of episodes, as the driver that returned it would have.

        Raises:
            NotRestorable: it cannot; the message says why. New episodes have begun, as at the start.
        """
        leaves, structure = jax.tree.flatten(self._memory)
        try:
            if len(leaves) != len(state["memory"]):
                raise NotRestorable(
                    f"The policy remembers {len(leaves)} arrays, but {len(state['memory'])} were saved."
                )
            memory = [_from_bits(like, saved) for like, saved in zip(leaves, state["memory"], strict=True)]
            step = Step(**state["step"])
            self.envs.restore(state["envs"])
        except (NotRestorable, KeyError, TypeError) as error:
            self._step = self.envs.reset()
            raise NotRestorable(f"{error}") from error
        self._memory = jax.tree.unflatten(structure, memory)
        self._step = step
        self._score = state["score"]
        self._length = state["length"]

    @property
    def memory(self) -> Any:
        """What the policy remembers, ``[N, ...]``."""
        return self._memory

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
        # A reset is not a step: the agent's action was ignored.
        self.agent_steps += int((~step.is_first).sum())
        self.env_steps += int(step.env_steps.sum())
        ended = np.flatnonzero(step.is_last).tolist()
        self.episodes += len(ended)
        return [
            Episode(score=float(self._score[i]), length=int(self._length[i]), env=i, log=step.log.get(i, {}))
            for i in ended
        ]


def _bits(leaf: Any) -> np.ndarray:
    """A leaf of the policy's memory; bfloat16 as its bits."""
    array = np.asarray(leaf)
    return array.view(portable(array.dtype))


def _from_bits(like: Any, saved: np.ndarray) -> Any:
    """Inverse of `_bits`, for a leaf of this shape and dtype."""
    shape = np.shape(like)
    dtype = np.asarray(like).dtype
    if saved.shape != shape or saved.dtype != portable(dtype):
        raise NotRestorable(
            f"The policy remembers {dtype}{list(shape)}, but {saved.dtype}{list(saved.shape)} was saved."
        )
    return jnp.asarray(saved.view(dtype))
