"""One environment, whatever its spaces, behind flat keys, checked values and one meaning for every flag."""

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np

from dreamer.config import EnvConfig
from dreamer.envs.errors import EnvError, Mismatch
from dreamer.envs.functions import require_gymnasium
from dreamer.envs.images import is_image_like
from dreamer.envs.info import InfoReader
from dreamer.envs.leaves import Outside, Vector
from dreamer.envs.restore import attributes
from dreamer.envs.spaces import action_codec, observation_codec
from dreamer.envs.views import ObservationView
from dreamer.envs.wrappers import wrap
from dreamer.spaces import MASK, Spaces, is_mask, mask_keys

_LARGEST_REWARD = float(np.finfo(np.float32).max)

USED_AS_IT_IS = "It is used as it is, and this is not said again."
"""How a note about an observation outside its bounds ends."""

_said: set[str] = set()
"""What `close` has said in this process: dozens of environments of a kind are closed together."""


class Adapter(gymnasium.Env):
    """Wraps any Gymnasium environment; itself a Gymnasium environment with Dict spaces of flat, sorted keys.

    Observations are dictionaries of new arrays as described by `obs_spaces`; actions are dictionaries as described by
    `action_spaces`, continuous ones in [-1, 1]: clipped, and scaled to the environment's bounds, here and nowhere else.
    See `dreamer.envs.spaces` for the names of keys and the supported spaces.

    Every action is applied ``config.repeat`` times, or until the episode ends or an action mask (see
    `dreamer.spaces.mask_keys`) forbids it. The rewards are summed, and the sum is clipped to plus and minus
    ``config.clip_reward``. ``info["env_steps"]`` says how often the action was really applied (0 at a reset). An
    environment with an attribute ``action_repeat``, a whole number, does this itself: it knows which frames to skip,
    and its own ``info["env_steps"]`` says how many it did. From others, a key of that name means something else.

    Every repeat gets a fresh copy of the action, which an environment may overwrite. With ``config.time_limit``, an
    episode is truncated after that many env steps, also between two repeats.

    ``terminated`` means that the task ended the episode (``is_terminal`` and ``is_last``), ``truncated`` alone that
    something else did, for example a time limit (``is_last`` only). Both are passed on unchanged.

    Observations that are not finite, or of another shape or dtype than their space, are refused. Those that leave the
    bounds of their space are used as they are, because these bounds matter to nobody else: they are counted, and noted
    when a key does so for the first time; with ``config.check=False`` nothing is compared with bounds.

    Attributes:
        name: what errors call the environment.
        env: the wrapped environment.
        view: what of the observations the agent sees.
        obs_spaces, action_spaces: `Space` by flat key, sorted by key.
        outside: how many observations of this episode were outside their bounds, by key; keys that never were are left
            out.
        episode_log: numbers about the episode, once it has ended: ``info["log"]`` by name, its outcome as in
            `dreamer.envs.info`, and ``outside`` as ``outside/KEY``.
    """

    observation_space: gymnasium.spaces.Dict
    action_space: gymnasium.spaces.Dict

    def __init__(self, env: object, config: EnvConfig, name: str = "") -> None:
        """Wrap ``env``, in the wrappers of ``config`` first.

        Raises:
            EnvError: it is not a Gymnasium environment, has an unsupported space, or does not suit an option.
        """
        env = wrap(require_gymnasium(env, name), config, name)
        self.env = env
        self.name = name or (env.spec.id if env.spec else type(env.unwrapped).__qualname__)
        self.metadata = env.metadata
        self.render_mode = env.render_mode
        self.spec = env.spec
        for role in ("observation_space", "action_space"):
            if not isinstance(getattr(env, role, None), gymnasium.Space):
                raise EnvError(
                    f"Environment {self.name} has no {role}; expected a gymnasium.Space: set it in __init__."
                )
        self.view = ObservationView(config, self.name)
        self._observation = observation_codec(env.observation_space, self.name, self.view)
        self._action = action_codec(env.action_space, self.name)
        observations = sorted(self._observation.leaves(), key=lambda leaf: leaf.key)
        actions = sorted(self._action.leaves(), key=lambda leaf: leaf.key)
        self.obs_spaces: Spaces = {leaf.key: leaf.space for leaf in observations}
        self.action_spaces: Spaces = {leaf.key: leaf.space for leaf in actions}
        self.observation_space = gymnasium.spaces.Dict({leaf.key: leaf.flat for leaf in observations})
        self.action_space = gymnasium.spaces.Dict({leaf.key: leaf.flat for leaf in actions})
        try:
            self._masks = mask_keys(self.obs_spaces, self.action_spaces)
        except ValueError as error:
            raise EnvError(f"Environment {self.name}: {error}.") from None
        own_repeat = getattr(env.unwrapped, "action_repeat", None)
        if isinstance(own_repeat, bool) or not isinstance(own_repeat, int | np.integer):
            own_repeat = None  # A method, for example, of another meaning.
        if own_repeat not in (None, config.repeat):
            raise EnvError(
                f"Environment {self.name} has action_repeat={own_repeat}, expected env.repeat={config.repeat}: set "
                f"one to match the other."
            )
        self._repeat = config.repeat if own_repeat is None else 1
        self._own_repeat = None if own_repeat is None else int(own_repeat)
        self._clip = config.clip_reward or math.inf
        self._time_limit = config.time_limit or math.inf
        self._check = config.check
        self._has_mask_from_info = config.mask_from_info
        self.outside: dict[str, int] = {}
        self.episode_log: dict[str, float] = {}
        self._info = InfoReader(self._note)
        self._noted: set[str] = set()
        self._notes: list[tuple[str, str]] = []
        self._episode = 0
        self._step = 0
        self._length = 0
        self._running = False
        self._closed = False
        for leaf in observations:
            if isinstance(leaf, Vector) and is_image_like(leaf.declared[0]):
                self._notes.append((f"layout of {leaf.key}", self._layout_note(leaf)))
        self._notes += view_notes(self.view, self.name)
        for layer in normalizers(env):
            self._notes.append((f"wrapper {layer}", wrapper_note(self.name, layer)))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; ``seed`` goes to the environment. Returns the observation and info; raises `EnvError`."""
        self._episode += 1
        self._step = 0
        self._length = 0
        self.outside = {}
        self.episode_log = {}
        self._info.begin()
        result = self.env.reset(seed=seed, options=options)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise self._error(
                f"reset returned {_outline(result)}, expected Gymnasium's tuple (observation, info): "
                f"return both, with info = {{}} if there is nothing to report"
            )
        obs, info = result
        if not isinstance(info, dict):
            raise self._info_error("reset", info)
        if MASK in info and not (self._masks or self._has_mask_from_info):
            self._note(
                f"info['{MASK}']",
                f"info['{MASK}'] is not used: with env.mask_from_info=true, the agent chooses only what it allows",
            )
        self._running = True
        return self._encode(obs), {**info, "env_steps": 0}

    def step(self, action: dict[str, Any]) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Apply an action ``config.repeat`` times.

        Args:
            action: one array or scalar per action key, in the agent's units; see `Space`.

        Returns:
            Observation, sum of rewards, terminated, truncated, and the last info with ``env_steps`` added.

        Raises:
            EnvError: the episode is over or was not started, the action does not fit `action_spaces`, or the
                environment's answer does not fit its own spaces.
        """
        if not self._running:
            raise self._error("step was called after the end of an episode, expected reset: call reset first")
        try:
            native = self._action.decode(action)
        except Mismatch as error:
            raise self._error(str(error)) from None
        total = 0.0
        repeats = 0
        env_steps = 0
        while True:
            self._step += 1
            if repeats and not isinstance(native, int):
                native = self._action.decode(action)  # The environment may have written into the last one.
            result = self.env.step(native)
            if not (isinstance(result, tuple) and len(result) == 5):
                raise self._error(
                    f"step returned {_outline(result)}, expected Gymnasium's tuple (observation, reward, "
                    f"terminated, truncated, info): return all five, with truncated = False if there is no time limit"
                )
            obs, reward, terminated, truncated, info = result
            if not isinstance(info, dict):
                raise self._info_error("step", info)
            total += self._reward(reward)
            repeats += 1
            env_steps += 1 if self._own_repeat is None else self._applied(info)
            if self._length + env_steps >= self._time_limit and not terminated:
                truncated = True
            if info:
                self._info.read(info)
            if terminated or truncated:
                self._running = False
                break
            if repeats == self._repeat or (self._masks and self._is_forbidden(obs, action)):
                break
        self._length += env_steps
        if not -_LARGEST_REWARD <= total <= _LARGEST_REWARD:
            raise self._error(
                f"the rewards of {env_steps} repeats sum to {total}, expected a number that float32 can hold: scale "
                f"them"
            )
        total = min(max(total, -self._clip), self._clip)
        flat = self._encode(obs, is_last=not self._running)
        if not self._running:
            self.episode_log = self._log(info)
        return flat, total, bool(terminated), bool(truncated), {**info, "env_steps": env_steps}

    def render(self) -> Any:
        """Whatever the wrapped environment renders."""
        return self.env.render()

    def close(self, *, quiet: bool = False) -> None:
        """Close the wrapped environment; may be called twice.

        Nothing that happens afterwards depends on it, so a failure is only said, once for all environments of a kind in
        this process, and with ``quiet`` not at all.
        """
        if self._closed:
            return
        self._closed = True
        self._running = False
        close(self.env, self.name, quiet=quiet)

    @property
    def unwrapped(self) -> gymnasium.Env:
        """The innermost wrapped environment."""
        return self.env.unwrapped

    @property
    def needs_rehearsal(self) -> bool:
        """Whether a state should be tried before it is trusted; see `dreamer.envs.restore.attributes`."""
        return attributes.needs_rehearsal(self.env)

    def get_state(self) -> dict[str, Any]:
        """State of the environment in the middle of an episode, as in `dreamer.envs.restore.states`.

        An environment, or a wrapper on behalf of all that it wraps, gives it with methods ``get_state`` and
        ``set_state``. For all others it is what their attributes hold; see `dreamer.envs.restore.attributes`.

        Raises:
            NotRestorable: the state is not plain data; or whatever the environment raises.
        """
        return {
            "episode": self._episode,
            "step": self._step,
            "length": self._length,
            "running": self._running,
            "outside": dict(self.outside),
            "info": self._info.state(),
            "env": attributes.get_state(self.env),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from the state of another environment of the same task, as that one would have.

        Raises:
            NotRestorable: that environment was built differently; or whatever the environment raises. The environment
                is unusable then.
        """
        attributes.set_state(self.env, state["env"])
        self._episode = state["episode"]
        self._step = state["step"]
        self._length = state.get("length", self._step)  # Older states have none.
        self._running = state["running"]
        self.outside = dict(state.get("outside", {}))  # Older states have neither.
        if "info" in state:
            self._info.set_state(state["info"])

    def take_notes(self) -> list[tuple[str, str]]:
        """What is to be said since this was last called: key and sentence, once in the life of this object per key."""
        notes = self._notes
        if notes:
            self._notes = []
        return notes

    def where(self) -> str:
        """Name, step and episode, for messages."""
        return f"Environment {self.name}, step {self._step} of episode {self._episode}"

    def _encode(self, obs: Any, *, is_last: bool = False, is_seen: bool = True) -> dict[str, np.ndarray]:
        """The flat observation; bounds count if the agent sees it."""
        out: dict[str, np.ndarray] = {}
        outside: Outside | None = {} if self._check and is_seen else None
        try:
            self._observation.encode(obs, out, outside)
        except Mismatch as error:
            raise self._error(str(error)) from None
        if outside:
            self._count(outside)
        for key, mask in self._masks.items():
            # No action follows the last observation, and many games have no legal move left there.
            if not is_last and not out[mask].any(-1).all():
                raise self._error(
                    f"observation key '{mask}' forbids every class of action key '{key}', expected at least one 1 "
                    f"along its last axis: end the episode where nothing can be done, or allow a no-op"
                )
        return out

    def _count(self, outside: Outside) -> None:
        for key, sentence in outside.items():
            self.outside[key] = self.outside.get(key, 0) + 1
            self._note(key, f"{sentence}. It is used as it is")

    def _note(self, key: str, sentence: str) -> None:
        if key not in self._noted:
            self._noted.add(key)
            self._notes.append((key, f"{self.where()}: {sentence}, and this is not said again."))

    def _layout_note(self, leaf: Vector) -> str:
        shape, dtype = leaf.declared
        return (
            f"Environment {self.name}: observation key '{leaf.key}' has the shape of an image, {list(shape)} {dtype}, "
            f"and is flattened to {leaf.space.shape[0]} numbers: for convolutions, declare it as Box(0, 255, [height, "
            f"width, channels], uint8), or set env.layout if it has finite bounds."
        )

    def _applied(self, info: dict[str, Any]) -> int:
        """How often an environment that repeats actions itself applied the last one."""
        assert self._own_repeat is not None
        steps = info.get("env_steps")
        if isinstance(steps, int | np.integer) and 1 <= steps <= self._own_repeat:
            return int(steps)
        if steps is not None:
            expected = f"1 to action_repeat={self._own_repeat}"
            self._note("info['env_steps']", f"info['env_steps'] is {steps!r:.80}, expected {expected}. It is ignored")
        return self._own_repeat

    def _log(self, info: dict[str, Any]) -> dict[str, float]:
        outside = {f"outside/{key}": float(count) for key, count in self.outside.items()}
        return {**self._info.log(info), **outside}

    def _is_forbidden(self, obs: Any, action: dict[str, Any]) -> bool:
        """Whether the masks of an observation between two repeats forbid the action."""
        flat = self._encode(obs, is_seen=False)
        # The mask has the action's axes and one more for the classes: look up the entry of each chosen class.
        allowed = (
            np.take_along_axis(flat[mask], np.asarray(action[key])[..., None], -1).all()
            for key, mask in self._masks.items()
        )
        return not all(allowed)

    def _reward(self, reward: Any) -> float:
        try:
            value = float(reward if isinstance(reward, (float, int)) else np.asarray(reward).item())
        except (TypeError, ValueError):
            advice = (
                "return a float, for example a weighted sum"
                if np.size(np.asarray(reward, object)) > 1
                else "return a float"
            )
            raise self._error(f"the reward is {_outline(reward)}, expected one number: {advice}") from None
        if not math.isfinite(value):
            raise self._error(f"the reward is {value}, expected a finite number: fix the environment")
        return value

    def _info_error(self, method: str, info: Any) -> EnvError:
        return self._error(
            f"{method} returned the info {_outline(info)}, expected a dict: return {{}} if there is nothing to report"
        )

    def _error(self, message: str) -> EnvError:
        return EnvError(f"{self.where()}: {message}.")


def adapt(make_env: Callable[[], object], config: EnvConfig) -> Adapter:
    """Call ``make_env`` and wrap the result in an `Adapter`, unless it is one. Raises `EnvError`.

    Filters of warnings and NumPy's handling of floating-point errors, which belong to the whole process, are as before
    afterwards.
    """
    with warnings.catch_warnings(), np.errstate():
        env = make_env()
    return env if isinstance(env, Adapter) else Adapter(env, config)


def close(env: Any, name: str, *, quiet: bool) -> None:
    """Close what an adapter wraps; see `Adapter.close`."""
    try:
        env.close()
    except (Exception, SystemExit) as error:
        sentence = f"Environment {name}: close failed with {type(error).__name__}: {error}. Nothing is lost."
        if not quiet and sentence not in _said:
            _said.add(sentence)
            with contextlib.suppress(OSError, ValueError):  # Environments close the terminal, too.
                print(sentence, file=sys.stderr)


def normalizers(env: Any) -> Iterator[str]:
    """Names of the wrappers of an environment that keep running statistics, as NormalizeObservation does."""
    yield from getattr(env, "normalizers", ())  # Of an environment in another Python.
    while isinstance(env, gymnasium.Wrapper | gymnasium.vector.VectorWrapper):
        if any(_is_running_mean(value) for value in vars(env).values()):
            yield type(env).__name__
        env = env.env


def view_notes(view: ObservationView, name: str) -> Iterator[tuple[str, str]]:
    """What was guessed about observations, and masks that are left out, by key; ``name`` is that of the environment."""
    for key, remark in view.remarks.items():
        yield f"view of {key}", f"Environment {name}: {remark}"
    for mask in filter(is_mask, view.dropped):
        yield mask, f"Environment {name}: env.ignore leaves out '{mask}', so forbidden classes may be chosen."


def wrapper_note(name: str, wrapper: str) -> str:
    """What to know of a wrapper that keeps running statistics; ``name`` is that of the environment."""
    return (
        f"Environment {name} has the wrapper {wrapper}, whose running statistics are not saved with the agent, and "
        f"differ between environments and in evaluation: leave it out, because symlog copes with any scale."
    )


def _is_running_mean(value: Any) -> bool:
    try:
        moments = [getattr(value, name) for name in ("mean", "var", "count")]
    except Exception:  # Whatever the attributes of a stranger do.
        return False
    return not any(map(callable, moments))


def _outline(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} values"
    if isinstance(value, np.ndarray):
        return f"an array of shape {list(value.shape)}"
    return f"{value!r:.60} ({type(value).__name__})"


__all__ = ["Adapter", "adapt"]
