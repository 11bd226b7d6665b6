"""What is put around an environment before the adapter: the wrappers of users, and the mask that ``info`` holds."""

from typing import Any

import gymnasium
import numpy as np

from dreamer.config import EnvConfig
from dreamer.envs.errors import EnvError
from dreamer.envs.functions import explain_failure, load_function, require_gymnasium
from dreamer.envs.spaces import action_codec
from dreamer.spaces import MASK


def wrap(env: gymnasium.Env, config: EnvConfig, name: str = "") -> gymnasium.Env:
    """Put the wrappers of ``env.wrappers`` around an environment, the first one innermost, and `MaskFromInfo` last.

    Args:
        env: the environment.
        config: the options.
        name: the task, for messages; empty: none.

    Raises:
        EnvError: a wrapper cannot be imported, raises, or returns something else than a Gymnasium environment; or the
            action has no mask.
    """
    for path in config.wrappers:
        wrapper = load_function(path, path, role="Wrapper")
        with explain_failure(f"Wrapper '{path}'{f' around {name}' if name else ''}"):
            wrapped = wrapper(env)
        env = require_gymnasium(wrapped, path, role="Wrapper")
    return MaskFromInfo(env, name) if config.mask_from_info else env


class MaskFromInfo(gymnasium.Wrapper):
    """Observes ``info["action_mask"]`` of every reset and step in addition to what the environment observes.

    The observation is a Dict of both, in which that of the environment has an empty name: its flat keys stay as they
    are. The last observation of an episode, which no action follows, needs no mask.

    Args:
        env: an environment with one discrete action key.
        name: what errors call it.

    Raises:
        EnvError: it has no discrete action key, or several.
    """

    def __init__(self, env: gymnasium.Env, name: str) -> None:
        super().__init__(env)
        self._name = name or type(env.unwrapped).__qualname__
        actions = {leaf.key: leaf.space for leaf in action_codec(env.action_space, self._name).leaves()}
        masked = {key: space for key, space in actions.items() if space.kind == "discrete"}
        if len(masked) != 1:
            raise EnvError(
                f"Environment {self._name}: env.mask_from_info=true needs exactly one discrete action key, got "
                f"{sorted(masked)}: leave it out, and observe masks as {MASK}.KEY if there are several."
            )
        (space,) = masked.values()
        self._shape = (*space.shape, space.classes)
        mask = gymnasium.spaces.MultiBinary(self._shape)
        self.observation_space = gymnasium.spaces.Dict({"": env.observation_space, MASK: mask})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self._observe(self.env.reset(seed=seed, options=options), "reset")

    def step(self, action: Any) -> Any:
        return self._observe(self.env.step(action), "step")

    def _observe(self, result: Any, method: str) -> Any:
        if not isinstance(result, tuple) or len(result) not in (2, 5) or not isinstance(result[-1], dict):
            return result  # The adapter says what is wrong.
        obs, *rest, info = result
        is_last = any(rest[1:])  # Behind the reward of a step are terminated and truncated.
        mask = info.get(MASK, np.ones(self._shape, np.int8) if is_last else None)
        if mask is None:
            raise EnvError(
                f"Environment {self._name}: info of {method} has no '{MASK}', expected one after every reset and step "
                f"because of env.mask_from_info=true: report it, or leave the option out."
            )
        return ({"": obs, MASK: mask}, *rest, info)


__all__ = ["MaskFromInfo", "wrap"]
