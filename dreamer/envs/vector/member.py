"""One of the N environments of a `VectorEnv`, wherever it lives; and all N of them in this process."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium

from dreamer.envs.adapter import Adapter
from dreamer.envs.errors import EnvError, NotRestorable
from dreamer.envs.vector.slots import MAKE, SKIP, STEP, Slots


class Member:
    """Carries out the commands in one slot, and writes the answers there.

    Args:
        slots: where commands, actions and answers are.
        index: which slot.
        make: makes the environment.
        env: the environment, if it is made already.

    Attributes:
        env: the environment; None before it is made, and if it could not be made.
    """

    def __init__(self, slots: Slots, index: int, make: Callable[[], Adapter], env: Adapter | None = None) -> None:
        self.env = env
        self._make = make
        self._slots = slots
        self._index = index
        # An index with an ellipsis gives a view even of a single number.
        self._obs = {key: array[index, ...] for key, array in slots.obs.items()}
        self._action = {key: array[index, ...] for key, array in slots.action.items()}
        self._new = True
        self._over = False

    def make(self) -> None:
        """Make the environment anew; raises whatever making it raises."""
        with contextlib.suppress(Exception):  # Of one that is broken already.
            self.close()
        self.env = self._make()
        self._new = True

    def close(self) -> None:
        """Close the environment, if there is one."""
        env, self.env = self.env, None
        if env is not None:
            env.close()

    def get_state(self) -> dict[str, Any]:
        """State of the environment, and where in an episode it is; raises what `Adapter.get_state` raises."""
        if self.env is None:
            raise NotRestorable("The environment could not be made.")
        return {"new": self._new, "over": self._over, "env": self.env.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state; raises what `Adapter.set_state` raises, and must be made anew then."""
        assert self.env is not None
        self.env.set_state(state["env"])
        self._new, self._over = state["new"], state["over"]

    def obey(self) -> dict[str, float] | None:
        """Carry out the command in the slot.

        Returns:
            What the environment reports about the episode that ended just now, in ``info["log"]``; otherwise None.

        Raises:
            Exception: whatever the environment raises, or `EnvError` from its `Adapter`. The answer is void then.
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
        self._answer(obs, reward, False, terminated, info["env_steps"])
        return self._log(info.get("log", {})) if self._over else None

    def _reset(self) -> None:
        assert self.env is not None
        obs, _ = self.env.reset(seed=int(self._slots.seed[self._index]) if self._new else None)
        self._new = self._over = False
        self._answer(obs, 0.0, True, False, 0)

    def _answer(self, obs: dict[str, Any], reward: float, is_first: bool, is_terminal: bool, env_steps: int) -> None:
        for key, slot in self._obs.items():
            slot[...] = obs[key]
        slots, i = self._slots, self._index
        slots.reward[i] = reward
        slots.is_first[i] = is_first
        slots.is_last[i] = self._over
        slots.is_terminal[i] = is_terminal
        slots.env_steps[i] = env_steps

    def _log(self, log: Any) -> dict[str, float] | None:
        try:
            return {str(name): float(value) for name, value in log.items()} or None
        except (AttributeError, TypeError, ValueError):
            where = self.env.where() if self.env is not None else "Environment"
            raise EnvError(
                f"{where}: info['log'] is {log!r:.200}, expected a dict of numbers by name: fix the environment."
            ) from None


def refuse_different(env: Adapter, observation_space: gymnasium.Space, action_space: gymnasium.Space) -> None:
    """Raise `EnvError` unless the environment has these spaces, bounds included."""
    for role, got, expected in (
        ("observation", env.observation_space, observation_space),
        ("action", env.action_space, action_space),
    ):
        if got != expected:
            raise EnvError(
                f"Environment {env.name} was made with the {role} space {got}, expected {expected} as the first one "
                f"has: make_env must return environments with equal spaces."
            )


class Local:
    """All members in this process, one after another. What one raises is raised at once.

    Args:
        members: the members; their environments are made already.
        slots: their slots.

    Attributes:
        failures: 0, as none is survived.
    """

    failures = 0

    def __init__(self, members: Sequence[Member], slots: Slots) -> None:
        self._members = members
        self._slots = slots

    def run(self, command: int) -> dict[int, dict[str, float]]:
        """Have all carry out a command; returns their logs by index. Raises `EnvError`."""
        self._slots.command[:] = command
        logs = {}
        for index, member in enumerate(self._members):
            try:
                log = member.obey()
            except Exception as error:
                raise EnvError(explain(error, member.env.where() if member.env else "Environment", index)) from error
            if log:
                logs[index] = log
        return logs

    def get_states(self) -> list[dict[str, Any]]:
        """State of every member; raises `NotRestorable`."""
        with unrestorable("saved"):
            return [member.get_state() for member in self._members]

    def set_states(self, states: list[dict[str, Any]]) -> None:
        """Continue from states; raises `NotRestorable`, and they must be made anew then."""
        with unrestorable("restored"):
            for member, state in zip(self._members, states, strict=True):
                member.set_state(state)

    def counters(self) -> dict[str, Any]:
        """What there is to remember beside the members: nothing."""
        return {}

    def set_counters(self, counters: dict[str, Any], seeds: Callable[[int, int], int]) -> None:
        """Nothing is remembered, and nobody replaced."""

    def close(self, patience: float) -> None:
        """Close the environments; ``patience`` is for those that live elsewhere."""
        for member in self._members:
            member.close()


@contextlib.contextmanager
def unrestorable(what: str) -> Iterator[None]:
    """Raise `NotRestorable` for anything that is raised here, where environments are ``what``: saved or restored."""
    try:
        yield
    except NotRestorable:
        raise
    except Exception as error:
        raise NotRestorable(
            f"The state of an environment could not be {what} ({type(error).__name__}: {error}): mend its methods "
            f"get_state and set_state."
        ) from error


def explain(error: BaseException, where: str, index: int) -> str:
    """One sentence about an error; ``where`` says which environment and when, ``index`` is its number."""
    if isinstance(error, EnvError):
        return f"{error} (environment number {index})"
    return f"{where}: {type(error).__name__}: {error} (environment number {index}); fix the environment."


__all__ = ["Local", "Member", "explain", "refuse_different", "unrestorable"]
