"""N environments stepped together, answering in `Step`s."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from dreamer.config import EnvConfig
from dreamer.envs import workers
from dreamer.envs.adapter import adapt
from dreamer.envs.errors import EnvError
from dreamer.types import Step


class VectorEnv:
    """``config.count`` copies of an environment, in this process or each in its own.

    The step after ``is_last`` is the reset (Gymnasium's next-step autoreset): its observation is the first of the new
    episode, its reward 0, and the action given for it is ignored. Returned arrays are never written again.

    With ``config.workers="async"``, workers are started by a fork server (where there is none, spawned), never forked
    from this process: JAX runs threads, and a fork of a process with threads may deadlock. ``make_env`` travels by
    cloudpickle, so lambdas and closures are fine, and what is defined in the main script travels with it: workers do
    not import the main script, which therefore needs no ``if __name__ == "__main__"`` guard.

    Attributes:
        num_envs: number of environments N.
        obs_spaces, action_spaces: `Space` by key, without the axis N.
    """

    def __init__(self, make_env: Callable[[], Any], config: EnvConfig, seed: int | np.random.SeedSequence) -> None:
        """Make the environments; nothing is reset yet.

        Args:
            make_env: returns a new environment each time: an `Adapter`, or any gymnasium.Env, which gets one.
            config: number, workers, action repeat and checks.
            seed: environment i is seeded with the i-th word of this sequence, at the first reset only.

        Raises:
            EnvError: an environment cannot be made, or sent to a worker.
        """
        seeds = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        # 31 bits: simulators with signed 32-bit seeds exist. generate_state leaves the sequence as it was.
        self._seeds: list[int | None] = [int(word) >> 1 for word in seeds.generate_state(config.count)]
        self.num_envs = config.count
        self._repeat = config.repeat
        self._is_last: np.ndarray | None = None
        self._closed = False
        self._envs: AsyncVectorEnv | SyncVectorEnv
        self._workers: AsyncVectorEnv | None = None
        if config.workers == "async":
            first = adapt(make_env, config)
            self.obs_spaces, self.action_spaces = first.obs_spaces, first.action_spaces
            first.close()
            self._envs = self._workers = workers.start(make_env, config, first)
        else:
            envs = [adapt(make_env, config) for _ in range(config.count)]
            self.obs_spaces, self.action_spaces = envs[0].obs_spaces, envs[0].action_spaces
            if len({id(env.unwrapped) for env in envs}) < config.count:
                raise EnvError("make_env returned the same environment twice, expected a new one from every call.")
            for env in envs:
                workers.refuse_different(env, envs[0].observation_space, envs[0].action_space)
            members = [workers.Member(env, config.repeat, i, remote=False) for i, env in enumerate(envs)]
            self._envs = SyncVectorEnv(
                [functools.partial(_identity, member) for member in members],
                copy=False,
                autoreset_mode=AutoresetMode.NEXT_STEP,
            )

    def reset(self) -> Step:
        """Reset all environments, the first time with their seeds; returns the first `Step` of N new episodes."""
        self._refuse_closed()
        seeds, self._seeds = self._seeds, [None] * self.num_envs
        with self._guarded():
            obs, infos = self._envs.reset(seed=seeds)
            self._raise_shipped(infos)
        false = np.zeros(self.num_envs, bool)
        self._is_last = false
        zero = np.zeros(self.num_envs, np.float32)
        return Step(self._keep(obs), zero, ~false, false.copy(), false.copy(), zero.astype(np.int32))

    def step(self, action: dict[str, np.ndarray]) -> Step:
        """Step, or reset, each environment.

        Args:
            action: one array ``[N, ...]`` per action key, in the agent's units; see `Space`.

        Raises:
            EnvError: the action does not fit, or an environment failed; the message carries the cause. After a failure
                all environments are closed, because the others are a step ahead or behind.
        """
        self._refuse_closed()
        if self._is_last is None:
            raise EnvError("VectorEnv.step was called before reset: call reset first.")
        batch = self._batch(action)
        with self._guarded():
            obs, reward, terminal, truncated, infos = self._envs.step(batch)
            self._raise_shipped(infos)
        is_first, self._is_last = self._is_last, terminal | truncated
        env_steps = np.where(is_first, np.int32(0), np.int32(self._repeat))
        if "env_steps" in infos:
            env_steps[infos["_env_steps"]] = infos["env_steps"][infos["_env_steps"]]
        # The library returns its flags as copies; is_first is ours and is_last is kept for the next step.
        return Step(self._keep(obs), reward.astype(np.float32), is_first, self._is_last.copy(), terminal, env_steps)

    def close(self) -> None:
        """Close the environments and end their processes; may be called twice."""
        if self._closed:
            return
        self._closed = True
        if self._workers is None:
            self._envs.close()
        else:
            workers.stop(self._workers, gently=True)

    def __enter__(self) -> "VectorEnv":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _batch(self, action: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if action.keys() != self.action_spaces.keys():
            raise EnvError(f"The action has the keys {sorted(action)}, expected exactly {sorted(self.action_spaces)}.")
        batch = {key: np.asarray(value) for key, value in action.items()}
        for key, value in batch.items():
            expected = (self.num_envs, *self.action_spaces[key].shape)
            if value.shape != expected:
                raise EnvError(f"Action key '{key}' has shape {list(value.shape)}, expected {list(expected)}.")
        return batch

    def _keep(self, obs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # The library reuses its arrays (copy=False; its deepcopy is slower than this).
        return {key: np.array(obs[key], dtype=space.dtype) for key, space in self.obs_spaces.items()}

    def _refuse_closed(self) -> None:
        if self._closed:
            raise EnvError("The environments are closed, after close() or after a worker failed: make a new VectorEnv.")

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Close everything on any failure, and explain the loss of a worker."""
        try:
            yield
        except EnvError:  # told by the environment or its worker, which still listens
            self.close()
            raise
        except (EOFError, ConnectionError) as error:
            if self._workers is None:
                raise
            self._closed = True
            codes = workers.stop(self._workers, gently=False)
            raise EnvError(
                f"A worker process ended without a word (exit codes {codes}; -9 usually means that memory ran out, -11 "
                f"a crash in native code): run with env.workers=sync to see more."
            ) from error
        except BaseException:
            self._closed = True
            if self._workers is not None:
                workers.stop(self._workers, gently=False)
            raise

    def _raise_shipped(self, infos: dict[str, Any]) -> None:
        if "error" in infos:
            raise EnvError(next(message for message in infos["error"] if message is not None))


def _identity(member: workers.Member) -> workers.Member:
    return member


__all__ = ["VectorEnv"]
