"""Many environments in one object, which steps them together: Gymnasium's vectors, EnvPool, simulators on a GPU.

What `dreamer.envs.adapter` is for one environment, this is for N rows of one object; `VectorEnv` steps either. No
Python runs for each row, except where an episode ends and where ``info`` speaks of success or cost.

When rows are reset
-------------------
Everywhere else in this package, the step after the last one of an episode is its reset, whose action is ignored; see
`dreamer.types`. Gymnasium knows three modes (`gymnasium.vector.AutoresetMode`), which an object must declare:

* NEXT_STEP does the same, and so does EnvPool: nothing is lost. A bare `SyncVectorEnv` is put into this mode.
* DISABLED resets rows on demand, but every step is for all rows. A row that waits for its first observation is reset,
  sits through the step of the others, and is reset again: nothing is lost but that step.
* SAME_STEP has reset a row when its last observation arrives. Gymnasium's own vectors can reset it again on demand,
  as above. Elsewhere, the first step of an episode has an action that the agent did not choose, in the middle of its
  range, or the first class: the agent sees the first observation and the one after its own action, and the rewards of
  both steps come together. An episode that ends in that very step is left out. Where all rows end together there is
  nothing to sit through, and nothing is lost in any mode.
"""

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import vector as vectors
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from dreamer.config import EnvConfig
from dreamer.envs.adapter import Adapter, adapt, close, normalizers, view_notes, wrapper_note
from dreamer.envs.errors import EnvError, Mismatch, NotRestorable
from dreamer.envs.functions import describe_error, takes
from dreamer.envs.info import InfoReader
from dreamer.envs.leaves import Bounded
from dreamer.envs.spaces import action_codec, observation_codec
from dreamer.envs.vector.slots import STEP, Slots
from dreamer.envs.vector.sub_env import LocalPool
from dreamer.envs.views import ObservationView
from dreamer.spaces import Spaces, Step, mask_keys

_MEMBERS = ("num_envs", "single_observation_space", "single_action_space")
"""What every object of many environments has."""

_INFOS = ("is_success", "success", "cost", "log")
"""Keys of ``info`` that `InfoReader` understands."""

_LARGEST_REWARD = float(np.finfo(np.float32).max)


def is_batched(env: object) -> bool:
    """Whether an object is many environments that are stepped together."""
    base = getattr(env, "unwrapped", env)  # Gymnasium's wrappers do not pass attributes on.
    return not isinstance(env, type) and all(hasattr(base, name) for name in _MEMBERS)


def open_env(make_env: Callable[..., Any], config: EnvConfig) -> "Adapter | Batched":
    """Call ``make_env`` and wrap what it returns: one environment, or many in one object.

    Args:
        make_env: returns either, or its adapter. If it has a parameter ``num_envs``, it gets ``config.count``.
        config: as for the adapters.

    Raises:
        EnvError: it returns something else, or what it returns cannot be used.
    """
    number = {"num_envs": config.count} if takes(make_env, "num_envs") else {}
    with warnings.catch_warnings(), np.errstate():
        env = make_env(**number)
    if isinstance(env, Batched):
        return env
    return Batched(env, config) if is_batched(env) else adapt(lambda: env, config)


class _Answer(NamedTuple):
    """What all rows answered to a step."""

    obs: dict[str, np.ndarray]
    """Flat, ``[N, ...]`` by key; where an episode ended, its last observation."""
    reward: np.ndarray
    """float64 ``[N]``."""
    terminated: np.ndarray
    """bool ``[N]``."""
    truncated: np.ndarray
    """bool ``[N]``."""
    info: Mapping[str, Any]

    @property
    def is_over(self) -> np.ndarray:
        """Whether the object says that the episode is over, bool ``[N]``."""
        return self.terminated | self.truncated


class Batched:
    """Wraps an object of N environments: flat keys, checked values, and one meaning for every flag.

    Values and flags are those of `Adapter`, and `step` has the timing of `VectorEnv`. ``config.clip_reward`` and
    ``config.check`` mean the same. ``config.repeat`` must be the attribute ``action_repeat`` of the object (1 without
    one), and ``config.time_limit`` needs rows that can be reset one by one: a row cannot be stepped without the others.

    Observations, rewards and flags may be arrays or tensors of any library, on any device. Where observations are
    torch's, so are the actions that the object gets, on the same device.

    Args:
        env: the object.
        config: how it is used.
        name: what errors call it.

    Attributes:
        env: the wrapped object.
        name: what errors call it.
        num_envs: number of rows N.
        single_action_space: of one row, as the object declares it.
        view: what of the observations the agent sees.
        obs_spaces, action_spaces: `Space` by flat key, without the axis N, sorted by key.

    Raises:
        EnvError: a space is not supported, it does not say when it resets rows, or ``config`` asks for what it cannot.
    """

    def __init__(self, env: Any, config: EnvConfig, name: str = "") -> None:
        base = getattr(env, "unwrapped", env)
        self.env = env
        self.name = name or getattr(getattr(env, "spec", None), "id", "") or type(base).__qualname__
        count, observation_space, action_space = (getattr(env, name, getattr(base, name)) for name in _MEMBERS)
        for role, space in zip(_MEMBERS[1:], (observation_space, action_space), strict=True):
            if not isinstance(space, gymnasium.Space):
                raise EnvError(f"Environment {self.name}: its {role} is {space!r:.60}, expected a gymnasium.Space.")
        self.num_envs = count
        self.single_action_space = action_space
        self.view = ObservationView(config, self.name)
        self._observation = observation_codec(observation_space, self.name, self.view)
        self._row = observation_codec(observation_space, self.name, ObservationView(config, self.name))
        self._action = action_codec(action_space, self.name)
        self._observation.set_rows((count,))
        self._action.set_rows((count,))
        leaves = sorted(self._observation.leaves(), key=lambda leaf: leaf.key)
        self.obs_spaces: Spaces = {leaf.key: leaf.space for leaf in leaves}
        actions = sorted(self._action.leaves(), key=lambda leaf: leaf.key)
        self.action_spaces: Spaces = {leaf.key: leaf.space for leaf in actions}
        try:
            self._masks = mask_keys(self.obs_spaces, self.action_spaces)
        except ValueError as error:
            raise EnvError(f"Environment {self.name}: {error}.") from None
        own = isinstance(base, SyncVectorEnv | AsyncVectorEnv)
        if isinstance(env, SyncVectorEnv):
            # It asks for its mode at every step. Wrappers around it may have asked already.
            env.autoreset_mode = env.metadata["autoreset_mode"] = vectors.AutoresetMode.NEXT_STEP
        self._mode = self._declared_mode()
        self._takes_seeds = own or getattr(base, "takes_seeds", False)
        self._resets_rows = own or self._mode is vectors.AutoresetMode.DISABLED
        repeat = getattr(base, "action_repeat", 1)
        self._repeat = repeat if isinstance(repeat, int | np.integer) else 1  # Else it has another meaning.
        self._refuse_config(config)
        self._clip = config.clip_reward or math.inf
        self._time_limit = config.time_limit or math.inf
        self._bounded = [leaf for leaf in leaves if isinstance(leaf, Bounded) and config.check]
        self._infos = [InfoReader(self._note) for _ in range(count)]
        self._noted: set[str] = set()
        self._notes = [*view_notes(self.view, self.name)]
        self._notes += [(f"wrapper {layer}", wrapper_note(self.name, layer)) for layer in normalizers(env)]
        self._torch: Any = None
        self._turn = 0
        self._closed = False
        self._over = np.ones(count, bool)
        self._unseen_end = np.zeros(count, bool)
        self._length = np.zeros(count, np.int64)
        self._outside: dict[str, np.ndarray] = {}
        self._obs: dict[str, np.ndarray] = {}
        self._fresh: dict[str, np.ndarray] = {}
        self._early_reward = np.zeros(count)
        self._early_steps = np.zeros(count, np.int32)

    def reset(self, seeds: Sequence[int] | None = None) -> Step:
        """Begin N episodes; ``seeds`` has one of each row. Objects that take one seed get the first."""
        self._turn = 0
        self._early_steps[:] = 0
        self._early_reward[:] = 0.0
        for reader in self._infos:
            reader.begin()
        seed: Any = None if seeds is None else [int(seed) for seed in seeds]
        obs = self._encode(self._reset(seed if seed is None or self._takes_seeds else seed[0]))
        return self._finish(self._only(obs), first=np.ones(self.num_envs, bool))

    def step(self, action: Mapping[str, np.ndarray]) -> Step:
        """Step every row, except for those whose episode is over: these answer with the first observation of the next.

        Args:
            action: ``[N, ...]`` by action key, in the agent's units; see `Space`.

        Raises:
            EnvError: the action does not fit, or the answer does not fit the object's own spaces.
        """
        if not self._obs:
            raise self._error("step was called before reset: call reset first")
        self._turn += 1
        first = self._over
        # Rows whose first observation does not come by itself with the next step.
        waiting = self._unseen_end if self._mode is vectors.AutoresetMode.NEXT_STEP else first
        if not waiting.any():
            answer = self._step(action)
            if (first & answer.is_over).any():
                raise self._error(
                    "a row ended in the step that should have reset it, expected what its autoreset mode NEXT_STEP "
                    "means: declare the mode that it has in metadata['autoreset_mode']"
                )
        elif waiting.all() and self._mode is not vectors.AutoresetMode.NEXT_STEP:
            # No row has a step to take.
            answer = self._only(self._encode(self._reset(rows=waiting)) if self._resets_rows else self._fresh)
        elif self._resets_rows:
            # The step is for the others: rows that wait sit through it, and are reset afterwards.
            if self._mode is vectors.AutoresetMode.DISABLED:
                # In this mode, a row may not even be stepped before it is reset.
                ended = waiting & ~self._unseen_end
                self._fresh = self._encode(self._reset(rows=ended)) if ended.any() else self._obs
            answer = self._step(
                action if self._mode is vectors.AutoresetMode.NEXT_STEP else self._idle(waiting, action)
            )
            answer = answer._replace(obs=_merge(waiting, self._encode(self._reset(rows=waiting)), answer.obs))
        else:
            answer = self._step_past(waiting, action)
        return self._finish(answer, first)

    def _step_past(self, waiting: np.ndarray, action: Mapping[str, np.ndarray]) -> _Answer:
        """A step in which the rows that wait for their first observation, which is known, cannot but take part."""
        fresh = self._fresh
        answer = self._step(self._idle(waiting, action))
        ended = waiting & answer.is_over
        going = waiting & ~ended
        self._early_reward[going] = answer.reward[going]
        self._early_steps[going] = self._repeat
        self._read_infos(answer, going)
        # Those that ended are in yet another episode, whose first observation came with this step.
        return answer._replace(obs=_merge(waiting, _merge(ended, self._fresh, fresh), answer.obs))

    def _idle(self, waiting: np.ndarray, action: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The actions, and in rows that wait the middle of its range, or the first class that is allowed."""
        idle = {key: np.zeros_like(value) for key, value in action.items()}
        idle |= {key: self._fresh[mask].argmax(-1).astype(np.int32) for key, mask in self._masks.items()}
        return _merge(waiting, idle, action)

    def _step(self, action: Mapping[str, np.ndarray]) -> _Answer:
        """Step the object."""
        try:
            native = self._action.decode(dict(action))
        except Mismatch as error:
            raise self._error(str(error)) from None
        with self._explained():
            result = self.env.step(native if self._torch is None else self._as_tensors(native))
        if not (isinstance(result, tuple) and len(result) == 5):
            raise self._error(
                "step returned something else than Gymnasium's tuple (observations, rewards, terminations, "
                "truncations, infos): return all five"
            )
        reward = self._array("rewards", result[1], np.float64)
        terminated, truncated = (
            self._array(name, value, np.bool_)
            for name, value in zip(("terminations", "truncations"), result[2:4], strict=True)
        )
        if not (np.abs(reward) <= _LARGEST_REWARD).all():
            row = int(np.argmin(np.abs(reward) <= _LARGEST_REWARD))
            raise self._error(f"the reward of row {row} is {reward[row]}, expected a number that float32 can hold")
        if not isinstance(info := result[4], dict):
            raise self._error(f"step returned the infos {info!r:.60}, expected a dict: return {{}} for none")
        obs = self._encode(result[0])
        if self._mode is vectors.AutoresetMode.SAME_STEP:
            self._fresh = obs
            obs = self._last_observations(info, terminated | truncated, obs)
        return _Answer(obs, reward, terminated, truncated, info)

    def _finish(self, answer: _Answer, first: np.ndarray) -> Step:
        """Count, clip, and end or begin episodes; ``first`` are the rows that begin one."""
        going = ~first
        reward = np.where(first, 0.0, np.clip(answer.reward + self._early_reward, -self._clip, self._clip))
        env_steps = np.where(first, 0, self._repeat + self._early_steps).astype(np.int32)
        self._early_reward[going] = 0.0
        self._early_steps[going] = 0
        self._length = np.where(first, 0, self._length + env_steps)
        ended = going & answer.is_over
        self._over = ended | (going & (self._length >= self._time_limit))
        self._unseen_end = self._over & ~ended
        self._obs = answer.obs
        self._refuse_forbidding()
        self._count_outside(first)
        self._read_infos(answer, going)
        logs = {row: self._log(answer, row) for row in np.flatnonzero(self._over).tolist()}
        return Step(
            answer.obs,
            reward.astype(np.float32),
            is_first=first,
            is_last=self._over,
            is_terminal=going & answer.terminated,
            env_steps=env_steps,
            log={row: log for row, log in logs.items() if log},
        )

    def _only(self, obs: dict[str, np.ndarray]) -> _Answer:
        """The answer of rows that only have first observations."""
        nothing = np.zeros(self.num_envs)
        return _Answer(obs, nothing, nothing > 0, nothing > 0, {})

    # Observations

    def _encode(self, obs: Any) -> dict[str, np.ndarray]:
        """Flat observations of all rows, in new arrays."""
        if self._turn == 0:
            self._torch = _first_tensor(obs)
        out: dict[str, np.ndarray] = {}
        try:
            self._observation.encode(_to_numpy(obs), out, None)
        except Mismatch as error:
            raise self._error(f"{error}; the first index is that of the row") from None
        return out

    def _last_observations(
        self, info: dict[str, Any], ended: np.ndarray, obs: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The observations, with the last one of each episode that ended in place of the first one of the next."""
        if not ended.any():
            return obs
        final = _to_numpy(info.get("final_obs", info.get("final_observation")))
        if final is None:
            self._note(
                "final_obs",
                "the last observations of episodes are missing in info['final_obs'], so those before stand for them",
            )
            return _merge(ended, self._obs, obs)
        if not (isinstance(final, np.ndarray) and final.dtype == object):
            return _merge(ended, self._encode(final), obs)
        obs = {key: value.copy() for key, value in obs.items()}
        for row in np.flatnonzero(ended):
            out: dict[str, np.ndarray] = {}
            try:
                self._row.encode(_to_numpy(final[row]), out, None)
            except Mismatch as error:
                raise self._error(f"info['final_obs'] of row {row}: {error}") from None
            for key, value in out.items():
                obs[key][row] = value
        return obs

    def _count_outside(self, first: np.ndarray) -> None:
        """Count observations outside their bounds, by row, since the episode began."""
        for counts in self._outside.values():
            counts[first] = 0
        for leaf in self._bounded:
            flat = self._obs[leaf.key]
            if (outside := leaf.outside(flat)) is None:
                continue
            rows = outside.reshape(self.num_envs, -1).any(1)
            self._outside.setdefault(leaf.key, np.zeros(self.num_envs, np.int64))[rows] += 1
            row = int(rows.argmax())
            self._note(leaf.key, f"in row {row}, {leaf.explain(flat[row], outside[row])}. It is used as it is")

    def _refuse_forbidding(self) -> None:
        for key, mask in self._masks.items():
            # No action follows the last observation, and many games have no legal move left there.
            if not (self._over | self._obs[mask].any(-1).reshape(self.num_envs, -1).all(1)).all():
                raise self._error(
                    f"observation key '{mask}' forbids every class of action key '{key}' in a row, expected at least "
                    f"one 1 along its last axis: end the episode where nothing can be done, or allow a no-op"
                )

    # Infos

    def _read_infos(self, answer: _Answer, rows: np.ndarray) -> None:
        said = answer.info.keys() | (answer.info.get("final_info") or {}).keys()
        if said & {"is_success", "success", "cost"}:
            for row in np.flatnonzero(rows).tolist():
                self._infos[row].read(self._info_of(answer, row))

    def _log(self, answer: _Answer, row: int) -> dict[str, float]:
        """`Adapter.episode_log` of a row whose episode ends with this answer."""
        outside = {f"outside/{key}": float(counts[row]) for key, counts in self._outside.items() if counts[row]}
        log = self._infos[row].log(self._info_of(answer, row))
        self._infos[row].begin()
        return {**log, **outside}

    def _info_of(self, answer: _Answer, row: int) -> dict[str, Any]:
        """What the infos of all rows say about one, as far as `InfoReader` understands it."""
        # In mode SAME_STEP, the rest speaks of the episode that has begun meanwhile.
        final = answer.info.get("final_info") if answer.is_over[row] else None
        return _info_of_row(answer.info if final is None else final, row, self.num_envs)

    # The object

    def _reset(self, seed: Any = None, rows: np.ndarray | None = None) -> Any:
        """Reset all rows, or some; returns the observations of all."""
        options: dict[str, Any] = {} if seed is None else {"seed": seed}
        if rows is not None:
            options["options"] = {"reset_mask": rows.copy()}
        with self._explained():
            result = self.env.reset(**options)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise self._error("reset returned something else than Gymnasium's tuple (observations, infos): return both")
        return result[0]

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn whatever the object raises into an `EnvError` of one sentence."""
        try:
            yield
        except Exception as error:
            raise self._error(f"{describe_error(error)}; fix the environment") from error

    def _as_tensors(self, native: Any) -> Any:
        """Actions as tensors, on the device of the observations."""
        if isinstance(native, dict):
            return {key: self._as_tensors(value) for key, value in native.items()}
        if isinstance(native, tuple):
            return tuple(map(self._as_tensors, native))
        return sys.modules["torch"].as_tensor(native, device=self._torch.device)

    def _array(self, what: str, value: Any, dtype: Any) -> np.ndarray:
        """Rewards or flags as a new array ``[N]``."""
        array = np.asarray(_to_numpy(value))
        if array.shape != (self.num_envs,) or array.dtype.kind not in "biuf":
            raise self._error(
                f"step returned {what} of shape {list(array.shape)} and dtype {array.dtype}, expected one number for "
                f"each of {self.num_envs} rows"
            )
        return array.astype(dtype)

    def _declared_mode(self) -> "vectors.AutoresetMode":  # The Gymnasium of env.python may be too old to have it.
        mode = (getattr(self.env, "metadata", None) or {}).get("autoreset_mode")
        expected = ", ".join(map(str, vectors.AutoresetMode))
        try:
            return vectors.AutoresetMode(mode)
        except ValueError:
            raise EnvError(
                f"Environment {self.name} steps {self.num_envs} rows at once, and metadata['autoreset_mode'] is "
                f"{mode!r}, expected one of {expected}: set it, because it decides which "
                f"observations belong to which episode."
            ) from None

    def _refuse_config(self, config: EnvConfig) -> None:
        for option, is_set in (("env.wrappers", config.wrappers), ("env.mask_from_info", config.mask_from_info)):
            if is_set:
                raise EnvError(
                    f"{option} cannot be used with {self.name}, which is many environments in one object: wrap them "
                    f"in the function that makes it."
                )
        if self._repeat != config.repeat:
            raise EnvError(
                f"Environment {self.name} steps all its rows at once and has action_repeat={self._repeat} (1 if it "
                f"has no such attribute), expected env.repeat={config.repeat}: set one to match the other, and let "
                f"the simulator repeat actions."
            )
        if config.time_limit and not self._resets_rows:
            raise EnvError(
                f"env.time_limit={config.time_limit} cannot be used with {self.name}, whose rows cannot be reset one "
                f"by one: set the limit in the simulator, as env.kwargs.max_episode_steps=N does for Gymnasium's ids "
                f"and EnvPool."
            )

    def take_notes(self) -> list[tuple[str, str]]:
        """See `Adapter.take_notes`."""
        notes = self._notes
        if notes:
            self._notes = []
        return notes

    @property
    def refusal(self) -> str:
        """Why its state is not saved."""
        return (
            f"{self.name} steps {self.num_envs} rows in one object, whose state in the middle of episodes is unknown."
        )

    def where(self) -> str:
        """Name and turn, for messages."""
        return f"Environment {self.name}, step {self._turn} with {self.num_envs} rows"

    def close(self, *, quiet: bool = False) -> None:
        """See `Adapter.close`."""
        if not self._closed:
            self._closed = True
            close(self.env, self.name, quiet=quiet)

    def _note(self, key: str, sentence: str) -> None:
        if key not in self._noted:
            self._noted.add(key)
            self._notes.append((key, f"{self.where()}: {sentence}, and this is not said again."))

    def _error(self, message: str) -> EnvError:
        return EnvError(f"{self.where()}: {message}.")


class BatchedPool(LocalPool):
    """The rows of a `Batched` in the place of the environments of a `VectorEnv`. What it raises is raised at once.

    Args:
        env: the rows.
        slots: their slots.
        on_note: called with the key and the sentence of every note; see `Adapter.take_notes`.
    """

    def __init__(self, env: Batched, slots: Slots, on_note: Callable[[str, str], None]) -> None:
        super().__init__([], slots, on_note)
        self._env = env
        self._new = True

    def run(self, command: int) -> dict[int, dict[str, float]]:
        slots = self._slots
        step = self._env.step(slots.action) if command == STEP else self._reset()
        for key, slot in slots.obs.items():
            slot[...] = step.obs[key]
        for name in ("reward", "is_first", "is_last", "is_terminal", "env_steps"):
            getattr(slots, name)[...] = getattr(step, name)
        for note in self._env.take_notes():
            self._on_note(*note)
        return {row: dict(log) for row, log in step.log.items()}

    def _reset(self) -> Step:
        seeds = self._slots.seed.tolist() if self._new else None
        self._new = False
        return self._env.reset(seeds)

    def get_states(self) -> list[dict[str, Any]]:
        raise NotRestorable(self._env.refusal)

    def set_states(self, states: list[dict[str, Any]]) -> None:
        raise NotRestorable(self._env.refusal)

    def close(self, patience: float) -> None:
        self._env.close()


def _merge(rows: np.ndarray, these: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """New arrays with some rows of ``these``, and the other rows of ``others``."""
    return {
        key: np.where(rows.reshape(-1, *[1] * (value.ndim - 1)), these[key], value) for key, value in others.items()
    }


def _info_of_row(info: Mapping[str, Any], row: int, count: int, keys: Collection[str] = _INFOS) -> dict[str, Any]:
    """What infos say of one row: its entry of every array ``[N]``, unless a mask ``_KEY`` says that it has none."""
    found: dict[str, Any] = {}
    for key in keys:
        value, mask = info.get(key), info.get(f"_{key}")
        if value is None or (mask is not None and not _to_numpy(mask)[row]):
            continue
        if isinstance(value, dict):
            found[key] = _info_of_row(
                value, row, count, [name for name in value if f"_{name}" in value or name[:1] != "_"]
            )
        else:
            array = np.asarray(_to_numpy(value))
            found[key] = array[row if array.shape[:1] == (count,) else ()]
    return found


def _to_numpy(tree: Any) -> Any:
    """Arrays and tensors of any library as NumPy's, in any nesting of dicts and sequences."""
    if isinstance(tree, np.ndarray | np.generic) or tree is None:
        return tree
    if isinstance(tree, Mapping):
        return {key: _to_numpy(value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(map(_to_numpy, tree)) if type(tree) in (tuple, list) else tuple(map(_to_numpy, tree))
    # On a device, torch wants a tensor to be fetched first; it may also have a gradient.
    for method in ("detach", "cpu"):
        tree = getattr(tree, method, lambda tree=tree: tree)()
    if callable(getattr(tree, "numpy", None)):
        return tree.numpy()
    return np.from_dlpack(tree) if hasattr(tree, "__dlpack__") and not hasattr(tree, "__array__") else np.asarray(tree)


def _first_tensor(tree: Any) -> Any:
    """The first tensor of torch in any nesting of dicts and sequences; None: there is none."""
    if isinstance(tree, Mapping | tuple | list):
        parts = tree.values() if isinstance(tree, Mapping) else tree
        return next((found for part in parts if (found := _first_tensor(part)) is not None), None)
    return tree if type(tree).__module__.partition(".")[0] == "torch" else None


__all__ = ["Batched", "BatchedPool", "is_batched", "open_env"]
