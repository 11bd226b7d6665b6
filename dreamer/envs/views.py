"""What the agent sees of an environment's observations: which keys of them, as what, and how images look."""

from fnmatch import fnmatchcase

import gymnasium
import numpy as np

from dreamer.config import EnvConfig
from dreamer.envs.errors import EnvError
from dreamer.envs.images import ImageConverter, find_layout
from dreamer.envs.leaves import Codec, Discrete, Image
from dreamer.spaces import is_mask

_MOST_CLASSES = 2**16
"""More classes than this are hardly classes."""


class ObservationView:
    """Which observation keys the agent sees, which of them as classes, and how images look to it.

    ``env.keys`` and ``env.ignore`` are patterns as in a shell (`fnmatch`): ``*`` stands for any text, dots included.
    Action masks are seen whatever ``env.keys`` says, unless ``env.ignore`` names them. ``env.classes`` are patterns of
    keys of whole numbers that are classes. ``env.layout`` says what the axes of images mean, ``env.size`` and
    ``env.gray`` what becomes of them; see `dreamer.envs.images`.

    Args:
        config: the options.
        env: what errors call the environment.

    Attributes:
        kept, dropped: keys that were asked about, in this order.
        sources: for images that the agent sees otherwise than they are: what they are, by key.
        remarks: sentences about what was guessed, by key.
    """

    def __init__(self, config: EnvConfig, env: str) -> None:
        self.kept: list[str] = []
        self.dropped: list[str] = []
        self.sources: dict[str, str] = {}
        self.remarks: dict[str, str] = {}
        self._env = env
        self._config = config
        self._images: list[ImageConverter] = []
        self._whole: list[str] = []

    def keeps(self, key: str) -> bool:
        """Whether the agent sees a key."""
        wanted = not self._config.keys or is_mask(key) or _fits(key, self._config.keys)
        keeps = wanted and not _fits(key, self._config.ignore)
        (self.kept if keeps else self.dropped).append(key)
        return keeps

    def is_image(self, space: gymnasium.spaces.Box) -> bool:
        """Whether a Box is an image."""
        return find_layout(space, self._config.layout) is not None

    def classes(self, key: str, space: gymnasium.spaces.Box) -> Codec | None:
        """Codec of a Box whose whole numbers are classes, otherwise None; raises `EnvError` if these are too many."""
        if np.dtype(space.dtype).kind not in "iu":
            return None
        self._whole.append(key)
        start = int(space.low.min())
        count = int(space.high.max()) - start + 1
        if _fits(key, self._config.classes):
            if count > _MOST_CLASSES:
                raise EnvError(
                    f"Environment {self._env}: observation key '{key}' has the bounds {start} and {start + count - 1}, "
                    f"expected at most {_MOST_CLASSES:,} classes between them because of env.classes: declare the "
                    f"classes that there are as its bounds, or take it out of env.classes."
                )
            return Discrete(key, space.shape, count, start, space.dtype)
        if len(space.shape) == 2 and space.dtype != np.uint8 and count <= _MOST_CLASSES:
            self.remarks[key] = (
                f"observation key '{key}', {space.dtype} {list(space.shape)}, is taken for quantities from {start} to "
                f"{start + count - 1}: if these are classes, set env.classes={key}."
            )
        return None

    def image(self, key: str, space: gymnasium.spaces.Box) -> Codec | None:
        """Codec of a Box that is an image, otherwise None."""
        layout = find_layout(space, self._config.layout)
        if layout is None:
            return None
        converter = ImageConverter(key, space, layout, gray=self._config.gray, size=self._config.size)
        self._images.append(converter)
        if space.dtype == np.uint8 and not layout.name and not converter.is_redrawn:
            return Image(key, space)
        declared = f"{space.dtype} {list(space.shape)}"
        self.sources[key] = f"{declared}, {layout.name}" if layout.name else declared
        if layout.name and self._config.layout == "auto":
            self.remarks[key] = (
                f"observation key '{key}', {declared}, is taken for an image with {layout.name}: set env.layout to hwc "
                f"or chw if that is wrong; frames need not be stacked, because the agent remembers."
            )
        return converter

    def require_sense(self) -> None:
        """Raise `EnvError` if an option fits nothing of what was asked about, or the agent would see nothing."""
        config = self._config
        keys = sorted([*self.kept, *self.dropped])
        for option, patterns, candidates, what in (
            ("env.keys", config.keys, keys, "observation key"),
            ("env.ignore", config.ignore, keys, "observation key"),
            ("env.classes", config.classes, sorted(self._whole), "observation key of whole numbers"),
        ):
            for pattern in patterns:
                if not any(fnmatchcase(key, pattern) for key in candidates):
                    raise EnvError(
                        f"Environment {self._env}: '{pattern}' in {option} fits no {what}, expected one of "
                        f"{candidates}, or a pattern such as 'robot.*' for several: correct it, or leave it out."
                    )
        if self.dropped and all(map(is_mask, self.kept)):
            raise EnvError(
                f"Environment {self._env}: env.keys={[*config.keys]} and env.ignore={[*config.ignore]} leave nothing "
                f"to see, expected at least one of {keys} that is no action mask: let one of them stay."
            )
        if config.size and not self._images:
            raise self._no_image_error(f"env.size={[*config.size]}", "an image")
        if config.gray and not any(image.is_gray for image in self._images):
            raise self._no_image_error("env.gray=true", "an image of three colours")

    def _no_image_error(self, option: str, expected: str) -> EnvError:
        return EnvError(
            f"Environment {self._env}: {option} cannot be used, because none of the observation keys "
            f"{sorted(self.kept)} is {expected}: leave it out, or let the environment give images."
        )


def _fits(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


__all__ = ["ObservationView"]
