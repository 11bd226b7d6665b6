"""N environments stepped together, answering in `Step`s."""

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dreamer.config import EnvConfig
from dreamer.envs.adapter import Adapter, adapt
from dreamer.envs.errors import EnvError, NotRestorable
from dreamer.envs.restore.rehearsal import rehearse, require_another
from dreamer.envs.vector.batched import Batched, BatchedPool, open_env
from dreamer.envs.vector.pool import LONGEST_START, Pool
from dreamer.envs.vector.slots import MAKE, RESET, STEP, Slots
from dreamer.envs.vector.sub_env import LocalPool, SubEnv, require_spaces
from dreamer.envs.vector.workers import Recipe, rehearse_apart
from dreamer.spaces import Step

_PATIENCE = 10.0
"""Seconds that workers get to close their environments."""


class VectorEnv:
    """``config.count`` copies of an environment, in this process or in worker processes; or those of one object.

    The step after ``is_last`` is the reset (next-step autoreset): its observation is the first of the new episode, its
    reward 0, and the action given for it is ignored. Returned arrays are never overwritten.

    With ``config.workers="sync"``, whatever an environment raises is raised at once. With ``"async"``, a failed
    environment is replaced and answers with the first observation of a new episode, as if the previous episode had
    been truncated after its last answer; see `Pool`.

    Workers are started by a fork server, never forked from this process: JAX runs threads, and a fork of a process with
    threads may deadlock. ``make_env`` is sent with cloudpickle, so lambdas and closures work, and definitions in the
    main script are sent along: workers do not import the main script, so it needs no ``if __name__ == "__main__"``
    guard.

    Attributes:
        num_envs: number of environments N.
        obs_spaces, action_spaces: `Space` by key, without the axis N.
        failures: number of failures of environments survived so far.
    """

    def __init__(
        self,
        make_env: Callable[[], Any],
        config: EnvConfig,
        seed: int | np.random.SeedSequence,
        on_message: Callable[[str], None] | None = None,
        *,
        any_count: bool = False,
    ) -> None:
        """Make the environments; nothing is reset yet.

        Where a state needs a rehearsal, and ``config.rehearse`` allows it, two others are made, played and closed
        before, one after the other.

        Args:
            make_env: returns a new environment each time: an `Adapter`, or any gymnasium.Env, which gets one; or once,
                for a number ``num_envs`` if it takes one, an object of ``config.count`` environments; see
                `dreamer.envs.vector.batched`.
            config: number, workers, limits, action repeat and checks.
            seed: decides the seeds of all environments and their replacements; see `seed_of`.
            on_message: called with a sentence about each failure survived, and about the first observation of each key
                that is outside its bounds; None prints it to stderr.
            any_count: whether an object of many environments may have another number of them.

        Raises:
            EnvError: an environment cannot be made, or sent to a worker.
        """
        sequence = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        self._sequence = sequence
        self._scratch = functools.partial(adapt, make_env, config)
        shared = config.workers == "async"
        first = open_env(make_env, config)
        self.num_envs = first.num_envs if isinstance(first, Batched) else config.count
        self.obs_spaces = first.obs_spaces
        self.action_spaces = first.action_spaces
        self.failures = 0
        self._started = False
        self._closed = False
        self._broken = False
        self._refusal = ""
        self._say = on_message or _print
        self._noted: set[str] = set()
        self._envs: LocalPool | Pool
        if isinstance(first, Batched):
            if first.num_envs != config.count and not any_count:
                first.close(quiet=True)
                raise EnvError(
                    f"Environment {first.name} has num_envs={first.num_envs}, expected env.count={config.count}: set "
                    f"one to match the other, or give the function that makes it a parameter num_envs."
                )
            if shared:
                self._say(f"env.workers=async means nothing to {first.name}, which steps all its rows itself.")
            self._refusal = first.refusal
            self._slots = self._make_slots(first.num_envs, shared=False)
            self._envs = BatchedPool(first, self._slots, self._note)
            return
        # Never more than `config.count` at once: what is rehearsed with is closed before the others are made.
        tried = first.needs_rehearsal and config.rehearse
        if first.needs_rehearsal and not tried:
            self._refusal = f"Whether {first.name} can be restored was not tried, because of env.rehearse=false."
        if shared:
            first.close()
            recipe = Recipe.of(make_env, config, first)
        try:
            if tried and shared:
                rehearse_apart(recipe, making=max(config.timeout, LONGEST_START), playing=config.timeout + _PATIENCE)
            elif tried:
                rehearse(first, self._scratch)
        except NotRestorable as error:
            self._refusal = str(error)
        envs = [] if shared else make_all(make_env, config, config.count, [] if tried else [first])
        self._slots = self._make_slots(config.count, shared=shared)
        if shared:
            seeds = functools.partial(seed_of, sequence, config.count)
            self._envs = Pool(recipe, config, self._slots, seeds, self._say, self._note)
        else:
            sub_envs = [SubEnv(self._slots, i, self._scratch, env) for i, env in enumerate(envs)]
            self._envs = LocalPool(sub_envs, self._slots, self._note)

    def _make_slots(self, count: int, *, shared: bool) -> Slots:
        """Slots with the first seeds."""
        slots = Slots(count, self.obs_spaces, self.action_spaces, shared=shared)
        slots.seed[:] = [seed_of(self._sequence, count, index, 0) for index in range(count)]
        return slots

    def reset(self) -> Step:
        """Reset all environments, the first time with their seeds; returns the first `Step` of N new episodes.

        Raises:
            EnvError: an environment failed, as in `step`.
        """
        self._require_open()
        self._started = True
        command = MAKE if self._broken else RESET
        self._broken = False
        return self._run(command)

    def step(self, action: dict[str, np.ndarray]) -> Step:
        """Step, or reset, each environment.

        Args:
            action: one array ``[N, ...]`` per action key, in the agent's units; see `Space`.

        Raises:
            EnvError: the action does not fit, which changes nothing; or an environment failed and was not replaced, and
                all environments are closed. The message includes the cause.
        """
        self._require_open()
        if not self._started:
            raise EnvError("VectorEnv.step was called before reset: call reset first.")
        self._check_action(action)
        for key, slot in self._slots.action.items():
            slot[...] = action[key]
        return self._run(STEP)

    def state(self) -> dict[str, Any]:
        """State of all environments, as in `dreamer.envs.restore.states`; their latest answers are not included.

        Environments whose state needs a rehearsal had one before they were made; see `dreamer.envs.restore.rehearsal`.

        Raises:
            NotRestorable: the environments cannot be restored, and why.
            EnvError: they are closed, were never reset, or a worker has just failed, which the next step replaces.
        """
        if self._closed:
            raise EnvError("The environments were closed already, after a failure, before they could be saved.")
        if not self._started:
            raise EnvError("VectorEnv.state was called before reset: call reset first.")
        if self._refusal:
            raise NotRestorable(self._refusal)
        try:
            members = self._envs.get_states()
        except NotRestorable as error:
            self._refusal = str(error)
            raise
        names = ("entropy", "spawn_key", "pool_size")
        seeds = {name: getattr(self._sequence, name) for name in names}
        return {"members": members, "seeds": seeds, "counters": self._envs.counters()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the state of another `VectorEnv`, with either kind of workers, as that one would have.

        Raises:
            NotRestorable: it cannot, and why. `reset` then begins new episodes, with the seeds of this one.
        """
        self._require_open()
        if not self._started:
            self.reset()  # Waits until the workers have made their environments.
        try:
            if len(state["members"]) != self.num_envs:
                count = len(state["members"])
                raise NotRestorable(f"{count} environments were saved, but there are {self.num_envs} now.")
            sequence = np.random.SeedSequence(**state["seeds"])
            self._envs.set_states(state["members"])
            self._envs.set_counters(state["counters"], functools.partial(seed_of, sequence, self.num_envs))
        except (EnvError, KeyError, TypeError, ValueError) as error:
            self._broken = True
            if isinstance(error, NotRestorable):
                raise
            raise NotRestorable(f"The environments could not be restored: {error}") from error
        self._sequence = sequence
        self.failures = self._envs.failures

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

    def _note(self, key: str, sentence: str) -> None:
        """Say what one environment notes, unless another has noted the same of this key."""
        if key not in self._noted:
            self._noted.add(key)
            self._say(sentence)

    def _close(self, patience: float) -> None:
        if not self._closed:
            self._closed = True
            self._envs.close(patience)
            del self._envs, self._slots  # Nothing else holds the shared memory.

    def _require_open(self) -> None:
        if self._closed:
            raise EnvError("The environments are closed, after close() or after a failure: make a new VectorEnv.")

    def _check_action(self, action: dict[str, np.ndarray]) -> None:
        if action.keys() != self.action_spaces.keys():
            raise EnvError(f"The action has the keys {sorted(action)}, expected exactly {sorted(self.action_spaces)}.")
        for key, value in action.items():
            slot = self._slots.action[key]
            if value.shape != slot.shape:
                raise EnvError(f"Action key '{key}' has shape {list(value.shape)}, expected {list(slot.shape)}.")
            if value.dtype != slot.dtype and not np.can_cast(value.dtype, slot.dtype, "same_kind"):
                raise EnvError(f"Action key '{key}' has dtype {value.dtype}, expected {slot.dtype}.")


def seed_of(sequence: np.random.SeedSequence, count: int, index: int, start: int) -> int:
    """Seed of environment ``index`` of ``count`` when first made (``start`` 0) or remade for the ``start``-th time.

    31 bits, because some simulators take signed 32-bit seeds. The sequence is left unchanged.
    """
    if start == 0:
        return int(sequence.generate_state(count)[index]) >> 1
    child = np.random.SeedSequence(
        sequence.entropy, spawn_key=(*sequence.spawn_key, index, start), pool_size=sequence.pool_size
    )
    return int(child.generate_state(1)[0]) >> 1


def make_all(
    make_env: Callable[[], Any], config: EnvConfig, count: int, ready: Sequence[Adapter] = ()
) -> list[Adapter]:
    """Make distinct environments with equal spaces until there are ``count``; closes all of them if that fails."""
    with contextlib.ExitStack() as undo:
        envs: list[Adapter] = list(ready)
        for env in envs:
            undo.callback(env.close)
        while len(envs) < count:
            env = adapt(make_env, config)
            for other in envs:
                require_another(env, other)
            envs.append(env)
            undo.callback(env.close)
            require_spaces(env, envs[0].observation_space, envs[0].action_space)
        undo.pop_all()
    return envs


def _print(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


__all__ = ["VectorEnv", "make_all", "seed_of"]
