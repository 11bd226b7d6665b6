"""What the agent sees of an environment's observations: which keys of them."""

from fnmatch import fnmatchcase

from dreamer.config import EnvConfig
from dreamer.envs.errors import EnvError
from dreamer.spaces import is_mask


class View:
    """Which observation keys the agent sees, as ``env.keys`` and ``env.ignore`` say.

    Both are patterns as in a shell (`fnmatch`): ``*`` stands for any text, dots included. Action masks are seen
    whatever ``env.keys`` says, unless ``env.ignore`` names them.

    Args:
        config: the options.
        env: what errors call the environment.

    Attributes:
        kept, dropped: keys that were asked about, in this order.
    """

    def __init__(self, config: EnvConfig, env: str) -> None:
        self.kept: list[str] = []
        self.dropped: list[str] = []
        self._env = env
        self._keys = config.keys
        self._ignore = config.ignore

    def keeps(self, key: str) -> bool:
        """Whether the agent sees a key."""
        wanted = not self._keys or is_mask(key) or _matches(key, self._keys)
        keeps = wanted and not _matches(key, self._ignore)
        (self.kept if keeps else self.dropped).append(key)
        return keeps

    def require_sense(self) -> None:
        """Raise `EnvError` if a pattern fits none of the keys that were asked about, or the agent would see none."""
        keys = sorted([*self.kept, *self.dropped])
        for name, patterns in (("env.keys", self._keys), ("env.ignore", self._ignore)):
            for pattern in patterns:
                if not any(fnmatchcase(key, pattern) for key in keys):
                    raise EnvError(
                        f"Environment {self._env}: '{pattern}' in {name} fits no observation key, expected one of "
                        f"{keys}, or a pattern such as 'robot.*' for several: correct it, or leave it out."
                    )
        if self.dropped and all(map(is_mask, self.kept)):
            raise EnvError(
                f"Environment {self._env}: env.keys={[*self._keys]} and env.ignore={[*self._ignore]} leave nothing to "
                f"see, expected at least one of {keys} that is no action mask: let one of them stay."
            )


def _matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


__all__ = ["View"]
