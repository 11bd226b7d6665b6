"""Films episodes, together with how the agent sees them.

On the left is what the environment renders. Next to it is every observation key as it was and, below or in another
colour, as the decoder reconstructs it from the latent. Under both are the critic's value and the rewards up to now.
"""

import os
import pathlib
import subprocess
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dreamer.agent import Agent
from dreamer.algorithms import View
from dreamer.config import paths
from dreamer.equations.transforms import symlog
from dreamer.evaluate.episodes import Moment
from dreamer.types import Space

SUFFIXES = (".mp4", ".mkv", ".mov", ".avi")
"""Suffixes of files that can be written, all with the codec H.264."""

STAGE = 256
"""Least height of the pictures, in pixels."""

STRIP = 96
"""Height of the strip below them."""

PLOT = 220
"""Width of the plot of an observation that is not an image."""

_GAP = 8
"""Pixels between pictures."""

_LINE = 14
"""Height of a line of text in pixels."""

_BACK = (18, 20, 26)
_INK = (230, 230, 230)
_FAINT = (90, 96, 110)
_TRUE = (126, 166, 214)
_GUESS = (255, 170, 64)
_REWARD = (120, 200, 130)


class VideoError(RuntimeError):
    """A video that cannot be written; the message says what to do."""


class Film:
    """Writes a video, frame by frame: call it with every `Moment` of episodes that are played one after another.

    Args:
        path: the file, of one of `SUFFIXES`.
        agent: the agent that plays.
        fps: frames per second.

    Raises:
        VideoError: the suffix is another, or the encoder is missing; also later, if the encoder fails.
    """

    def __init__(self, path: str | os.PathLike[str], agent: Agent, fps: int = 30):
        self.path = paths.expand(path)
        if self.path.suffix.lower() not in SUFFIXES:
            raise VideoError(f"'{self.path}' cannot be written, expected a name that ends in {', '.join(SUFFIXES)}.")
        if not self.path.parent.is_dir():
            raise VideoError(f"'{self.path}' cannot be written: there is no directory '{self.path.parent}'. Create it.")
        if found := paths.obstacle(self.path):
            raise VideoError(f"'{self.path}' is {found}, expected a file or nothing. Choose another name.")
        self._nets = agent.state.nets
        self._spaces = agent.obs_spaces
        self._view = jax.jit(agent.algorithm.view)
        self._values: list[float] = []
        self._rewards: list[float] = []
        self._writer = _open(self.path.absolute(), fps)  # An environment may change the working directory.

    def __call__(self, moment: Moment) -> None:
        """Add a frame."""
        view: View = jax.device_get(self._view(self._nets, moment.memory))
        if moment.time == 0:
            self._values = []
            self._rewards = []
        if view.value is not None:
            self._values.append(float(view.value[0]))
        self._rewards.append(moment.reward)
        decoded = {key: np.asarray(prediction[0]) for key, prediction in view.predictions.items()}
        picture = compose(moment, decoded, self._spaces, self._values, self._rewards)
        try:
            with _ignore_fork_warnings():
                self._writer.append_data(picture)
        except (OSError, RuntimeError) as error:
            raise VideoError(
                f"'{self.path}' cannot be written because the video encoder stopped: {_first_line(error)}. Check the "
                "space on the disk, and that imageio-ffmpeg has the codec H.264 (pip install --force-reinstall "
                "imageio-ffmpeg)."
            ) from error

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._writer.close()


def compose(
    moment: Moment, decoded: dict[str, np.ndarray], spaces: dict[str, Space], values: list[float], rewards: list[float]
) -> np.ndarray:
    """One frame of the video.

    Args:
        moment: what to show.
        decoded: predictions of observation keys, as in `dreamer.nn.observations.Decoder`, without batch axis. What an
            agent does not predict is not shown.
        spaces: of the observation keys.
        values: the agent's value at every time of the episode up to now; empty if it has none.
        rewards: the reward on arriving there.

    Returns:
        uint8 ``[H, W, 3]`` with even sides, as video codecs require.
    """
    stage = enlarge_frame(moment.frame)
    height = len(stage)
    panels = [panel for key, space in spaces.items() for panel in _panel(key, space, moment.obs[key], decoded, height)]
    width = stage.shape[1] + sum(_GAP + panel.width for panel in panels)
    width += width % 2
    canvas = Image.new("RGB", (width, height + _GAP + STRIP), _BACK)
    canvas.paste(Image.fromarray(stage), (0, 0))
    left = stage.shape[1] + _GAP
    for panel in panels:
        canvas.paste(panel, (left, 0))
        left += panel.width + _GAP
    canvas.paste(_strip(moment, values, rewards, width, STRIP), (0, height + _GAP))
    return np.asarray(canvas)


def enlarge_frame(frame: np.ndarray) -> np.ndarray:
    """``frame [H, W, 3]`` enlarged by a whole factor to at least `STAGE` pixels of height, padded to even sides."""
    # -(-a // b) rounds a / b up.
    factor = max(1, -(-STAGE // frame.shape[0]))
    frame = frame.repeat(factor, 0).repeat(factor, 1)
    return np.pad(frame, [(0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)], mode="edge")


def _panel(
    key: str, space: Space, seen: np.ndarray, decoded: dict[str, np.ndarray], height: int
) -> Iterator[Image.Image]:
    """The picture of an observation key, if it was decoded."""
    if key not in decoded:
        return
    if space.kind == "image":
        yield _images(key, seen, np.clip(np.rint(decoded[key] * 255), 0, 255).astype(np.uint8), height)
    elif space.kind == "vector":
        yield _bars(f"{key}, symlog", np.asarray(symlog(jnp.asarray(seen))), decoded[key], height)
    else:
        # Softmax of the logits.
        weights = np.exp(decoded[key] - decoded[key].max(-1, keepdims=True))
        probabilities = weights / weights.sum(-1, keepdims=True)
        onehot = np.eye(space.classes, dtype=np.float32)[seen]
        yield _bars(f"{key}, probability", onehot.ravel(), probabilities.ravel(), height)


def _images(key: str, seen: np.ndarray, guess: np.ndarray, height: int) -> Image.Image:
    """An image as it was, above its reconstruction."""
    room = height // 2 - _LINE
    original = Image.fromarray(_rgb(seen))
    decoded = Image.fromarray(_rgb(guess))
    width = max(1, round(original.width * room / original.height))
    panel = Image.new("RGB", (max(width, 7 * len(key) + 70), height), _BACK)
    draw = ImageDraw.Draw(panel)
    for name, image, top in (("seen", original, 0), ("decoded", decoded, height // 2)):
        _text(draw, (0, top), f"{key}, {name}")
        panel.paste(image.resize((width, room), Image.Resampling.NEAREST), (0, top + _LINE))
    return panel


def _rgb(image: np.ndarray) -> np.ndarray:
    """An image of any number of channels as one of three: gray if it has one; otherwise its first channels."""
    channels = [min(index, image.shape[-1] - 1) for index in range(3)] if image.shape[-1] < 3 else [0, 1, 2]
    return np.ascontiguousarray(image[..., channels])


def _bars(title: str, seen: np.ndarray, guess: np.ndarray, height: int) -> Image.Image:
    """Numbers as bars, with decoded numbers as marks across them."""
    panel = Image.new("RGB", (PLOT, height), _BACK)
    draw = ImageDraw.Draw(panel)
    _text(draw, (0, 0), title)
    _text(draw, (0, _LINE), "seen", _TRUE)
    _text(draw, (40, _LINE), "decoded", _GUESS)
    limit = max(1.0, float(np.abs(seen).max(initial=0)), float(np.abs(guess).max(initial=0)))
    low = -limit if min(seen.min(initial=0), guess.min(initial=0)) < 0 else 0.0
    top = 2 * _LINE + 6
    bottom = height - 8

    def at(value: float) -> float:
        return bottom - (value - low) / (limit - low) * (bottom - top)

    slot = PLOT / max(1, len(seen))
    for index, (true, predicted) in enumerate(zip(seen.tolist(), guess.tolist(), strict=True)):
        left = index * slot + 0.15 * slot
        right = index * slot + 0.85 * slot
        draw.rectangle((left, min(at(0.0), at(true)), right, max(at(0.0), at(true))), fill=_TRUE)
        draw.line((index * slot, at(predicted), (index + 1) * slot - 1, at(predicted)), fill=_GUESS, width=2)
    draw.line((0, at(0.0), PLOT, at(0.0)), fill=_FAINT)
    return panel


def _strip(moment: Moment, values: list[float], rewards: list[float], width: int, height: int) -> Image.Image:
    """The value as a line and rewards as bars over the latest times, the present at the right edge."""
    strip = Image.new("RGB", (width, height), _BACK)
    draw = ImageDraw.Draw(strip)
    text = f"episode {moment.episode}, step {moment.time}   return {moment.score:.1f}"
    _text(draw, (0, 0), text)
    pixels = 2  # Width of one step.
    latest = -(width // pixels)
    half = (height - _LINE) // 2
    for name, series, color, top in (
        ("value", values[latest:], _GUESS, _LINE),
        ("reward", rewards[latest:], _REWARD, _LINE + half),
    ):
        everything = values if name == "value" else rewards
        if not everything:
            continue
        low = min(0.0, min(everything))
        high = max(0.0, max(everything))
        scale = (half - 4) / ((high - low) or 1.0)
        base = top + half - 2

        def at(value: float, low: float = low, scale: float = scale, base: int = base) -> float:
            return base - (value - low) * scale

        places = [width - 1 - pixels * (len(series) - 1 - index) for index in range(len(series))]
        draw.line((0, at(0.0), width, at(0.0)), fill=_FAINT)
        if name == "reward":
            for place, value in zip(places, series, strict=True):
                if value:
                    draw.line((place, at(0.0), place, at(value)), fill=color, width=1)
        elif len(series) > 1:
            draw.line([(place, at(value)) for place, value in zip(places, series, strict=True)], fill=color, width=1)
        label = f"{name} {everything[-1]:.2f}"
        draw.rectangle((0, top, 7 * len(label), top + _LINE - 2), fill=_BACK)
        _text(draw, (0, top), label, color)
    return strip


def _text(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, color: tuple[int, int, int] = _INK) -> None:
    draw.text(place, text, fill=color, font=ImageFont.load_default())


def _open(path: pathlib.Path, fps: int) -> Any:
    """A writer of imageio, after a check that its encoder works."""
    try:
        import imageio.v2 as imageio  # Slow to import, and rarely needed.
        import imageio_ffmpeg

        with _ignore_fork_warnings():
            imageio_ffmpeg.get_ffmpeg_version()
            return imageio.get_writer(path, fps=fps, codec="libx264", macro_block_size=1)
    except (ImportError, OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
        raise VideoError(
            f"'{path}' cannot be written because no video encoder works: {_first_line(error)}. Install one "
            "with pip install --force-reinstall imageio-ffmpeg, or name one in IMAGEIO_FFMPEG_EXE."
        ) from error


def _ignore_fork_warnings() -> warnings.catch_warnings:
    """For the start of an encoder: its process is forked and replaced at once, which is safe with JAX's threads."""
    return warnings.catch_warnings(action="ignore", category=RuntimeWarning)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


__all__ = ["SUFFIXES", "Film", "VideoError", "compose", "enlarge_frame"]
