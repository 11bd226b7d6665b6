"""What is put around an environment before the adapter: the wrappers of users."""

import gymnasium

from dreamer.config import EnvConfig
from dreamer.envs.errors import EnvError
from dreamer.envs.functions import explain_failure, load_function, require_gymnasium


def wrap(env: gymnasium.Env, config: EnvConfig, name: str = "") -> gymnasium.Env:
    """Put the wrappers of ``env.wrappers`` around an environment, the first one innermost.

    Args:
        env: the environment.
        config: the options.
        name: the task, for messages; empty: none.

    Raises:
        EnvError: a wrapper cannot be imported, raises, or returns something else than a Gymnasium environment.
    """
    for path in config.wrappers:
        wrapper = load_function(path, path, role="Wrapper")
        with explain_failure(f"Wrapper '{path}'{f' around {name}' if name else ''}"):
            wrapped = wrapper(env)
        if isinstance(wrapped, gymnasium.Env) and env.render_mode and wrapped.render_mode != env.render_mode:
            raise EnvError(
                f"Wrapper '{path}' returned an environment with render_mode={wrapped.render_mode!r}, expected "
                f"{env.render_mode!r} as before: derive it from gymnasium.Wrapper, or pass render_mode and render on."
            )
        env = require_gymnasium(wrapped, path, role="Wrapper")
    return env


__all__ = ["wrap"]
