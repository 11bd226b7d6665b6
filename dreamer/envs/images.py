"""Images of any layout and size, as the agent sees them: bytes ``[H, W, C]``, gray and resized if that is asked for."""

import math
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from dreamer.envs.leaves import Codec, Image, Outside, Vector
from dreamer.spaces import Space

_CHANNELS = 16
"""Images have at most this many channels, and at least this many rows and columns, as far as one can tell."""

_COLOURS = 3
"""Channels that are gray together; more than these are frames of as many."""


class ImageLayout(NamedTuple):
    """What the axes of an image mean.

    ``axes`` are those of height and width, and then those that become channels, the slowest first.
    """

    name: str
    axes: tuple[int, ...]


_PLAIN = ImageLayout("", (0, 1))
_LAYOUTS = {
    ("hwc", 3): ImageLayout("", (0, 1, 2)),
    ("chw", 3): ImageLayout("channels or frames first", (1, 2, 0)),
    ("hwc", 4): ImageLayout("a stack of frames", (1, 2, 0, 3)),
    ("chw", 4): ImageLayout("a stack of frames with channels first", (2, 3, 0, 1)),
}


def find_layout(space: gymnasium.spaces.Box, wanted: str) -> ImageLayout | None:
    """The layout of a Box if it is an image, otherwise None.

    Bytes with two or three axes are images, and so are stacks of these. Other numbers are, if ``wanted`` says how their
    axes lie, they have bounds, and their shape is that of an image.

    Args:
        space: the Box.
        wanted: "hwc" or "chw"; "auto" guesses from the shape.
    """
    shape = space.shape
    is_stack = len(shape) == 4 and _is_stack(*shape)
    if space.dtype == np.uint8:
        is_image = len(shape) in (2, 3) or is_stack or (len(shape) == 4 and wanted != "auto")
    else:
        is_image = wanted != "auto" and (is_stack or is_image_like(shape)) and _has_range(space)
    if not is_image:
        return None
    return _PLAIN if len(shape) == 2 else _LAYOUTS[_guess(shape) if wanted == "auto" else wanted, len(shape)]


def is_image_like(shape: tuple[int, ...]) -> bool:
    """Whether the shape is that of an image with few channels, first or last."""
    large = [size for size in shape if size >= _CHANNELS]
    small = [size for size in shape if size <= 4]
    return len(shape) == 3 and len(large) == 2 and len(small) == 1


def _has_range(space: gymnasium.spaces.Box) -> bool:
    """Whether there are bounds to scale numbers from."""
    low, high = space.low.min(), space.high.max()
    return bool(np.isfinite(low) and np.isfinite(high) and low < high)


def _guess(shape: tuple[int, ...]) -> str:
    *_, first, second, last = shape
    if len(shape) == 4:
        return "hwc" if last <= 4 else "chw"
    thin = first <= 4 or (first < second and (second == last or 4 * first <= min(second, last)))
    return "chw" if last > _CHANNELS and thin else "hwc"


def _is_stack(frames: int, first: int, second: int, last: int) -> bool:
    height, width, channels = (first, second, last) if last <= 4 else (second, last, first)
    return channels <= 4 and frames < min(height, width) and min(height, width) >= _CHANNELS


class ImageConverter(Codec):
    """A Box that is an image, as uint8 ``[H, W, C]``, where it has another form.

    The channels of stacked frames follow one another. Numbers other than bytes are scaled from the bounds of their
    space to 0 to 255, and clipped.

    Args:
        key: its key.
        space: the Box.
        layout: what its axes mean.
        gray: whether three channels, or as many of each frame, become their luma (ITU-R 601).
        size: height and width that it is resized to, by area; empty: its own.
    """

    def __init__(
        self,
        key: str,
        space: gymnasium.spaces.Box,
        layout: ImageLayout,
        *,
        gray: bool = False,
        size: tuple[int, ...] = (),
    ) -> None:
        height, width, *rest = (space.shape[axis] for axis in layout.axes)
        channels = math.prod(rest)
        self.key = key
        self.is_gray = channels == 1 or (gray and channels % _COLOURS == 0)
        self.is_redrawn = (self.is_gray and channels > 1) or (bool(size) and tuple(size) != (height, width))
        shape = (*(size or (height, width)), channels // _COLOURS if self.is_gray and channels > 1 else channels)
        self.space = Space("image", shape)
        self.flat = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self._raw = Image(key, space) if space.dtype == np.uint8 else Vector(key, space)
        self._declared = space.shape
        self._axes = layout.axes
        self._plain = (height, width, channels)
        self._low = float(space.low.min())
        self._range = float(space.high.max()) - self._low

    def set_rows(self, rows: tuple[int, ...]) -> None:
        super().set_rows(rows)
        self._raw.set_rows(rows)

    def encode(self, value: Any, out: dict[str, np.ndarray], outside: Outside | None) -> None:
        self._raw.encode(value, out, outside)
        image = out[self.key].reshape(self.rows + self._declared)
        if image.dtype != np.uint8:
            image = np.rint((image - self._low) * (255 / self._range)).clip(0, 255).astype(np.uint8)
        lead = len(self.rows)
        image = image.transpose(*range(lead), *(lead + axis for axis in self._axes)).reshape(self.rows + self._plain)
        out[self.key] = self._redraw_rows(image) if self.is_redrawn else np.ascontiguousarray(image)

    def _redraw_rows(self, image: np.ndarray) -> np.ndarray:
        images = image.reshape(-1, *self._plain)
        return np.stack([self._redraw(each) for each in images]).reshape(self.rows + self.space.shape)

    def _redraw(self, image: np.ndarray) -> np.ndarray:
        depth = _COLOURS if image.shape[-1] % _COLOURS == 0 else 1  # Pillow knows images of one and three channels.
        frames = np.split(image, image.shape[-1] // depth, -1)
        return np.concatenate([self._redraw_frame(frame) for frame in frames], -1)

    def _redraw_frame(self, frame: np.ndarray) -> np.ndarray:
        from PIL import Image as Pillow  # The Python of env.python, which never draws, may lack it.

        height, width, _ = self.space.shape
        picture = Pillow.fromarray(np.ascontiguousarray(frame[..., 0] if frame.shape[-1] == 1 else frame))
        picture = picture.convert("L") if self.is_gray else picture
        return np.atleast_3d(np.asarray(picture.resize((width, height), Pillow.Resampling.BOX)))


__all__ = ["ImageConverter", "ImageLayout", "find_layout", "is_image_like"]
