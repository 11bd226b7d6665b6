"""One of the N environments of a `VectorEnv`, in any process; and a pool of all N in this process."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium

from dreamer.envs.adapter import Adapter
from dreamer.envs.errors import EnvError, NotRestorable, not_restorable
from dreamer.envs.vector.slots import MAKE, SKIP, STEP, Slots


class SubEnv:
    """Executes the commands in one slot, and writes the answers there.

    Args:
        slots: where commands, actions and answers are.
        index: which slot.
        make: makes the environment.
        env: the environment, if it exists already.

    Attributes:
        env: the environment; None until it is made, and if it could not be made.
    """

    def __init__(self, slots: Slots, index: int, make: Callable[[], Adapter], env: Adapter | None = None) -> None:
        self.env = env
        self._make = make
        self._slots = slots
        self._index = index
        # Indexing with an ellipsis gives a view, even of a single number.
        self._obs = {key: array[index, ...] for key, array in slots.obs.items()}
        self._action = {key: array[index, ...] for key, array in slots.action.items()}
        self._new = True
        self._over = False

    def make(self) -> None:
        """Make the environment, in place of the present one; raises whatever making it raises."""
        with contextlib.suppress(Exception):
            self.close(quiet=True)  # It is broken already, and that was said.
        self.env = self._make()
        self._new = True

    def close(self, *, quiet: bool = False) -> None:
        """Close the environment, if there is one; see `Adapter.close`."""
        env = self.env
        self.env = None  # even if closing fails
        if env is not None:
            env.close(quiet=quiet)

    def get_state(self) -> dict[str, Any]:
        """State of the environment, and where in an episode it is; raises what `Adapter.get_state` raises."""
        if self.env is None:
            raise NotRestorable("The environment could not be made.")
        return {"new": self._new, "over": self._over, "env": self.env.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state; raises what `Adapter.set_state` raises, and must be remade after that."""
        assert self.env is not None
        self.env.set_state(state["env"])
        self._new = state["new"]
        self._over = state["over"]

    def take_notes(self) -> list[tuple[str, str]]:
        """See `Adapter.take_notes`."""
        return self.env.take_notes() if self.env is not None else []

    def execute(self) -> dict[str, float] | None:
        """Execute the command in the slot.

        Returns:
            If its episode has just ended, `Adapter.episode_log`, unless that is empty; otherwise None.

        Raises:
            Exception: whatever the environment raises, or `EnvError` from its `Adapter`. The answer is invalid then.
        """
        command = self._slots.command[self._index]
        if command == STEP and not self._over:
            return self._step()
        if command == SKIP:
            return None
        if command == MAKE:
            self.make()
        self._reset()
        return None

    def _step(self) -> dict[str, float] | None:
        assert self.env is not None
        obs, reward, terminated, truncated, info = self.env.step(self._action)
        self._over = terminated or truncated
        self._answer(obs, reward, is_first=False, is_terminal=terminated, env_steps=info["env_steps"])
        return self.env.episode_log or None

    def _reset(self) -> None:
        assert self.env is not None
        obs, _ = self.env.reset(seed=int(self._slots.seed[self._index]) if self._new else None)
        self._new = False
        self._over = False
        self._answer(obs, 0.0, is_first=True, is_terminal=False, env_steps=0)

    def _answer(self, obs: dict[str, Any], reward: float, *, is_first: bool, is_terminal: bool, env_steps: int) -> None:
        for key, slot in self._obs.items():
            slot[...] = obs[key]
        slots = self._slots
        i = self._index
        slots.reward[i] = reward
        slots.is_first[i] = is_first
        slots.is_last[i] = self._over
        slots.is_terminal[i] = is_terminal
        slots.env_steps[i] = env_steps


def require_spaces(env: Adapter, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> None:
    """Raise `EnvError` unless the environment has these spaces, including their bounds."""
    for role, got, expected in (
        ("observation", env.observation_space, observation_space),
        ("action", env.action_space, action_space),
    ):
        if got != expected:
            raise EnvError(
                f"Environment {env.name} was made with the {role} space {got}, expected {expected} like the "
                f"first one: make_env must return environments with equal spaces."
            )


class LocalPool:
    """All environments in this process, stepped one after another. What one raises is raised at once.

    Args:
        sub_envs: the environments, which are made already.
        slots: their slots.
        on_note: called with the key and the sentence of every note; see `Adapter.take_notes`.

    Attributes:
        failures: 0, because no failure is survived.
    """

    failures = 0

    def __init__(self, sub_envs: Sequence[SubEnv], slots: Slots, on_note: Callable[[str, str], None]) -> None:
        self._sub_envs = sub_envs
        self._slots = slots
        self._on_note = on_note

    def run(self, command: int) -> dict[int, dict[str, float]]:
        """Have all execute a command; returns their logs by index. Raises `EnvError`."""
        self._slots.command[:] = command
        logs = {}
        for index, sub_env in enumerate(self._sub_envs):
            try:
                log = sub_env.execute()
            except Exception as error:
                where = sub_env.env.where() if sub_env.env else "Environment"
                raise EnvError(explain(error, where, index)) from error
            if log:
                logs[index] = log
            for note in sub_env.take_notes():
                self._on_note(*note)
        return logs

    def get_states(self) -> list[dict[str, Any]]:
        """State of every environment; raises `NotRestorable`."""
        with state_errors("saved"):
            return [sub_env.get_state() for sub_env in self._sub_envs]

    def set_states(self, states: list[dict[str, Any]]) -> None:
        """Continue from states; raises `NotRestorable`, and all must be remade after that."""
        with state_errors("restored"):
            for sub_env, state in zip(self._sub_envs, states, strict=True):
                sub_env.set_state(state)

    def counters(self) -> dict[str, Any]:
        """State of the pool itself: none."""
        return {}

    def set_counters(self, counters: dict[str, Any], seeds: Callable[[int, int], int]) -> None:
        """Does nothing: this pool has no state, and replaces no environment."""

    def close(self, patience: float) -> None:
        """Close the environments; ``patience`` matters only for worker processes."""
        for sub_env in self._sub_envs:
            sub_env.close()


def state_errors(action: str) -> contextlib.AbstractContextManager[None]:
    """Turn any error into `NotRestorable`, while environments are being ``action``: saved or restored."""
    return not_restorable(
        f"The state of an environment could not be {action} ({{}}): fix its methods get_state and set_state."
    )


def explain(error: BaseException, where: str, index: int) -> str:
    """One sentence about an error; ``where`` says which environment and when, ``index`` is its number."""
    if isinstance(error, EnvError):
        return f"{error} (environment number {index})"
    return f"{where}: {type(error).__name__}: {error} (environment number {index}); fix the environment."


__all__ = ["LocalPool", "SubEnv", "explain", "require_spaces", "state_errors"]
