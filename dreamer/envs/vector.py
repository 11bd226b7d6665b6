"""N environments stepped together, answering in `Step`s."""

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from dreamer.config import EnvConfig
from dreamer.envs.adapter import Adapter, adapt
from dreamer.envs.errors import EnvError
from dreamer.envs.member import Local, Member, refuse_different
from dreamer.envs.pool import Pool
from dreamer.envs.slots import RESET, STEP, Slots
from dreamer.envs.workers import Recipe
from dreamer.steps import Step

_PATIENCE = 10.0
"""Seconds that workers have to close their environments."""


class VectorEnv:
    """``config.count`` copies of an environment, in this process or in worker processes.

    The step after ``is_last`` is the reset (next-step autoreset): its observation is the first of the new episode, its
    reward 0, and the action given for it is ignored. Returned arrays are never written again.

    With ``config.workers="sync"``, whatever an environment raises is raised at once. With ``"async"``, a failed
    environment is replaced and answers with the first observation of a new episode, as if the episode before had been
    cut off after its last answer; see `Pool`.

    Workers are started by a fork server, never forked from this process: JAX runs threads, and a fork of a process with
    threads may deadlock. ``make_env`` travels by cloudpickle, so lambdas and closures are fine, and what is defined in
    the main script travels with it: workers do not import the main script, which therefore needs no
    ``if __name__ == "__main__"`` guard.

    Attributes:
        num_envs: number of environments N.
        obs_spaces, action_spaces: `Space` by key, without the axis N.
        failures: failures of environments that were survived so far.
    """

    def __init__(
        self,
        make_env: Callable[[], Any],
        config: EnvConfig,
        seed: int | np.random.SeedSequence,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        """Make the environments; nothing is reset yet.

        Args:
            make_env: returns a new environment each time: an `Adapter`, or any gymnasium.Env, which gets one.
            config: number, workers, limits, action repeat and checks.
            seed: decides the seed of every environment, and of those that replace it; see `seed_of`.
            on_failure: told in words about each failure that was survived; None prints it to stderr.

        Raises:
            EnvError: an environment cannot be made, or sent to a worker.
        """
        sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        seeds = functools.partial(seed_of, sequence, config.count)
        shared = config.workers == "async"
        envs = _make_all(make_env, config, 1 if shared else config.count)
        self.num_envs = config.count
        self.failures = 0
        self.obs_spaces, self.action_spaces = envs[0].obs_spaces, envs[0].action_spaces
        self._started = self._closed = False
        self._envs: Local | Pool
        if shared:
            envs[0].close()
            recipe = Recipe.of(make_env, config, envs[0])
        self._slots = Slots(config.count, self.obs_spaces, self.action_spaces, shared=shared)
        self._slots.seed[:] = [seeds(index, 0) for index in range(config.count)]
        if shared:
            self._envs = Pool(recipe, config, self._slots, seeds, on_failure or _print)
        else:
            make = functools.partial(adapt, make_env, config)
            self._envs = Local([Member(self._slots, i, make, env) for i, env in enumerate(envs)], self._slots)

    def reset(self) -> Step:
        """Reset all environments, the first time with their seeds; returns the first `Step` of N new episodes.

        Raises:
            EnvError: an environment failed, as in `step`.
        """
        self._refuse_closed()
        self._started = True
        return self._run(RESET)

    def step(self, action: dict[str, np.ndarray]) -> Step:
        """Step, or reset, each environment.

        Args:
            action: one array ``[N, ...]`` per action key, in the agent's units; see `Space`.

        Raises:
            EnvError: the action does not fit, which changes nothing; or an environment failed and was not replaced. The
                message carries the cause, and all environments are closed.
        """
        self._refuse_closed()
        if not self._started:
            raise EnvError("VectorEnv.step was called before reset: call reset first.")
        self._refuse_misfit(action)
        for key, slot in self._slots.action.items():
            slot[...] = action[key]
        return self._run(STEP)

    def close(self) -> None:
        """Close the environments and end their processes; may be called twice."""
        self._close(_PATIENCE)

    def __enter__(self) -> "VectorEnv":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, command: int) -> Step:
        try:
            logs = self._envs.run(command)
        except BaseException as error:
            self._close(_PATIENCE if isinstance(error, EnvError) else 0.0)
            raise
        self.failures = self._envs.failures
        slots = self._slots
        return Step(
            {key: slot.copy() for key, slot in slots.obs.items()},
            slots.reward.copy(),
            slots.is_first.copy(),
            slots.is_last.copy(),
            slots.is_terminal.copy(),
            slots.env_steps.copy(),
            logs,
        )

    def _close(self, patience: float) -> None:
        if not self._closed:
            self._closed = True
            self._envs.close(patience)
            del self._envs, self._slots  # All that holds the shared memory.

    def _refuse_closed(self) -> None:
        if self._closed:
            raise EnvError("The environments are closed, after close() or after a failure: make a new VectorEnv.")

    def _refuse_misfit(self, action: dict[str, np.ndarray]) -> None:
        if action.keys() != self.action_spaces.keys():
            raise EnvError(f"The action has the keys {sorted(action)}, expected exactly {sorted(self.action_spaces)}.")
        for key, value in action.items():
            slot = self._slots.action[key]
            if value.shape != slot.shape:
                raise EnvError(f"Action key '{key}' has shape {list(value.shape)}, expected {list(slot.shape)}.")
            if value.dtype != slot.dtype and not np.can_cast(value.dtype, slot.dtype, "same_kind"):
                raise EnvError(f"Action key '{key}' has dtype {value.dtype}, expected {slot.dtype}.")


def seed_of(sequence: np.random.SeedSequence, count: int, index: int, start: int) -> int:
    """Seed of environment ``index`` of ``count`` when it is made for the first time (``start`` 0), or anew.

    31 bits, as simulators with signed 32-bit seeds exist. The sequence stays as it was.
    """
    if start == 0:
        return int(sequence.generate_state(count)[index]) >> 1
    child = np.random.SeedSequence(
        sequence.entropy, spawn_key=(*sequence.spawn_key, index, start), pool_size=sequence.pool_size
    )
    return int(child.generate_state(1)[0]) >> 1


def _make_all(make_env: Callable[[], Any], config: EnvConfig, count: int) -> list[Adapter]:
    """Make ``count`` environments that are new and alike; closes them again if that fails."""
    with contextlib.ExitStack() as undo:
        envs: list[Adapter] = []
        for _ in range(count):
            env = adapt(make_env, config)
            if any(env.unwrapped is other.unwrapped for other in envs):
                raise EnvError("make_env returned the same environment twice, expected a new one from every call.")
            envs.append(env)
            undo.callback(env.close)
            refuse_different(env, envs[0].observation_space, envs[0].action_space)
        undo.pop_all()
    return envs


def _print(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


__all__ = ["VectorEnv", "seed_of"]
