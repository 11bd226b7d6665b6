"""Pictures of open-loop predictions: films of images, true | predicted | error, and plots of vectors.

Takes host arrays, as `Algorithm.predict` gives them, and needs no networks; a run can call it while it trains.
"""

import io
import math
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dreamer.types import Space, Spaces

SEEN, DREAMT, NOTHING = (70, 140, 70), (214, 120, 30), (190, 190, 190)
"""Colours of a step that the model sees, of one that it dreams, and of one after the end of the episode."""

MOST_ENTRIES = 12
"""Only this many entries of a vector are plotted, the first ones."""

_MARGIN, _BAR, _HEADER = 4, 4, 16


class FilmError(ValueError):
    """A film cannot be written; the message gives the reason and a remedy."""


def film(
    true: np.ndarray, predicted: np.ndarray, context: int, valid: np.ndarray | None = None, least: int = 160
) -> np.ndarray:
    """Frames that show each sequence as a row, true | predicted | error, under a bar in the colour of the step.

    Args:
        true: recorded images, uint8 ``[B, T, H, W, C]``; unless there are three channels, the last is shown in grey.
        predicted: predictions in 0 to 1, same shape.
        context: steps that the model saw.
        valid: steps to show, bool ``[B, T]``: those after a reset in the prediction are left blank. None: all.
        least: images are enlarged by a whole number until their sides have at least this many pixels.

    Returns:
        uint8 ``[T, height, width, 3]`` with even sides, as video codecs require.
    """
    if true.shape != predicted.shape or true.ndim != 5:
        raise ValueError(f"film got images {true.shape} and {predicted.shape}, expected both as [B, T, H, W, C].")
    rows, steps, height, width, _ = true.shape
    valid = np.ones((rows, steps), bool) if valid is None else valid
    factor = max(1, -(-least // min(height, width)))  # Rounded up.
    high = height * factor
    wide = width * factor
    out_height = _HEADER + rows * (high + _BAR + _MARGIN)
    out_width = 3 * wide + 2 * _MARGIN
    # x + x % 2 is the next even number.
    out = np.full((steps, out_height + out_height % 2, out_width + out_width % 2, 3), 255, np.uint8)
    for t in range(steps):
        out[t, :_HEADER] = _header(out.shape[2], wide, t, context)
        for row in range(rows):
            image = _rgb(true[row, t] / 255.0)
            prediction = _rgb(np.clip(predicted[row, t].astype(np.float32), 0, 1))
            parts = [image, prediction, _heat(np.abs(image - prediction).mean(-1))]
            top = _HEADER + row * (high + _BAR + _MARGIN)
            colour = SEEN if t < context else DREAMT if valid[row, t] else NOTHING
            out[t, top : top + _BAR, :out_width] = colour
            for number, part in enumerate(parts):
                left = number * (wide + _MARGIN)
                if valid[row, t] or t < context:
                    part = part.repeat(factor, 0).repeat(factor, 1)
                    out[t, top + _BAR : top + _BAR + high, left : left + wide] = np.round(255 * part)
    return out


def after_resets(is_first: np.ndarray, context: int) -> np.ndarray:
    """Bool ``[B, T]``: steps before the first reset that follows the context, for `film` and `plot`."""
    later = np.asarray(is_first, bool).copy()
    later[:, :context] = False
    return ~np.logical_or.accumulate(later, 1)


def write_film(path: pathlib.Path, frames: np.ndarray, fps: int = 8) -> None:
    """Write frames ``uint8 [T, H, W, 3]`` as ``.gif``, ``.webp`` or ``.mp4``.

    Raises:
        FilmError: the suffix is another, or the encoder is not installed.
        OSError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix in (".gif", ".webp"):
        path.write_bytes(encode(frames, suffix[1:], fps))
    elif suffix == ".mp4":
        _write_mp4(path, frames, fps)
    else:
        raise FilmError(f"A film cannot be written to '{path}': expected a name that ends in .gif, .webp or .mp4.")


def encode(frames: np.ndarray, kind: str, fps: int = 8) -> bytes:
    """Frames ``uint8 [T, H, W, 3]`` as the bytes of a ``gif`` or ``webp`` that repeats forever.

    Raises:
        FilmError: Pillow was built without this encoder.
    """
    first, *others = [Image.fromarray(frame) for frame in frames]
    out = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {"optimize": False}
    try:
        first.save(out, kind.upper(), save_all=True, append_images=others, duration=1000 // fps, loop=0, **options)
    except (KeyError, OSError) as error:
        raise FilmError(
            f"A film cannot be written as {kind}: this Pillow has no encoder for it ({error}). Write a .gif, or "
            "install Pillow from its wheel: pip install --force-reinstall pillow."
        ) from error
    return out.getvalue()


def _write_mp4(path: pathlib.Path, frames: np.ndarray, fps: int) -> None:
    import imageio.v2 as imageio  # Slow to import, and rarely needed.

    try:
        writer: Any = imageio.get_writer(str(path), fps=fps, macro_block_size=1)
        with writer, warnings.catch_warnings():
            # The forked process runs the encoder at once, so JAX's threads are not at risk.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            for frame in frames:
                writer.append_data(frame)
    except (ImportError, RuntimeError, ValueError) as error:
        raise FilmError(
            f"A film cannot be written as mp4: no video encoder was found ({error}). Write a .gif, or install one: "
            "pip install imageio-ffmpeg."
        ) from error


def plot(
    space: Space,
    true: np.ndarray,
    predicted: np.ndarray,
    context: int,
    valid: np.ndarray | None = None,
    kind: str = "svg",
) -> bytes:
    """Plot predictions of a vector, or of classes, over the true values; one panel for each entry.

    Args:
        space: of the observation key.
        true: recorded values of one sequence, ``[T, *shape]``.
        predicted: outputs of the decoder, ``[T, n]`` in symlog space or logits ``[T, *shape, classes]``.
        context: steps that the model saw.
        valid: steps that count, bool ``[T]``; None: all.
        kind: ``svg`` or ``png``.
    """
    from matplotlib import rc_context  # Slow to import, and rarely needed.
    from matplotlib.figure import Figure

    steps = len(true)
    if space.kind == "discrete":
        true = true.reshape(steps, -1)
        predicted = predicted.argmax(-1).reshape(steps, -1)
    else:
        # The inverse of symlog.
        predicted = np.sign(predicted) * np.expm1(np.abs(predicted.astype(np.float64)))
    # Up to the first step that is not valid.
    end = steps if valid is None or valid.all() else max(context, int(np.argmin(valid)))
    entries = min(MOST_ENTRIES, true.shape[1])
    columns = min(2, entries)
    lines = math.ceil(entries / columns)
    figure = Figure(figsize=(3.9, 0.7 + 1.1 * lines), dpi=144, layout="constrained")
    for entry in range(entries):
        axes = figure.add_subplot(lines, columns, entry + 1)
        axes.axvspan(-0.5, context - 0.5, color=_hex(SEEN), alpha=0.12, linewidth=0)
        axes.plot(np.arange(end), true[:end, entry], color="#222222", linewidth=1.4, label="true")
        axes.plot(np.arange(end), predicted[:end, entry], color=_hex(DREAMT), linewidth=1.4, label="predicted")
        axes.set_title(f"[{entry}]", fontsize=8, loc="left", pad=2)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=8
    )
    figure.supxlabel("step; shaded: seen by the model, then dreamt", fontsize=8)
    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "dreamer"}):  # The same bytes for the same numbers.
        figure.savefig(out, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def write(
    directory: pathlib.Path,
    spaces: Spaces,
    obs: Mapping[str, Any],
    predictions: Mapping[str, Any],
    context: int,
    is_first: np.ndarray,
    rows: int = 4,
) -> list[pathlib.Path]:
    """Write ``KEY.gif`` for each image and ``KEY.png`` for each other key, of the first sequences of a batch.

    Args:
        directory: directory of the files; created if it does not exist.
        spaces: observation spaces.
        obs: recorded observations ``[B, T, ...]``.
        predictions: what `Algorithm.predict` gave, ``[B, T, ...]``; what it lacks is left out.
        context: steps that the model saw, as passed there.
        is_first: bool ``[B, T]``; steps after a reset are left blank.
        rows: sequences in a film; a plot shows the first one only.

    Raises:
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    valid = after_resets(is_first, context)
    paths = []
    for key, space in spaces.items():
        if key not in predictions:
            continue
        true = np.asarray(obs[key])
        predicted = np.asarray(predictions[key])
        name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in key)
        if space.kind == "image":
            paths.append(directory / f"{name}.gif")
            write_film(paths[-1], film(true[:rows], predicted[:rows], context, valid[:rows]))
        else:
            paths.append(directory / f"{name}.png")
            paths[-1].write_bytes(plot(space, true[0], predicted[0], context, valid[0], "png"))
    return paths


def _rgb(image: np.ndarray) -> np.ndarray:
    """``[H, W, C]`` in 0 to 1 as three channels; of a stack of frames, the latest."""
    return image if image.shape[-1] == 3 else image[..., -1:].repeat(3, -1)


def _heat(error: np.ndarray) -> np.ndarray:
    """``[H, W]`` in 0 to 1 as black, red, yellow, white."""
    # Each third of the range fills one channel: first red, then green, then blue.
    return np.clip(3 * error[..., None] - np.arange(3), 0, 1)


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _header(width: int, column: int, step: int, context: int) -> np.ndarray:
    """The strip at the top of a frame: the names of the columns, and the number of the predicted step."""
    image = Image.new("RGB", (width, _HEADER), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    words = ("true", "predicted" if step >= context else "seen", f"error {max(0, step - context + 1):+d}")
    for number, word in enumerate(words):
        draw.text((number * (column + _MARGIN) + 2, 2), word, fill=(40, 40, 40))
    return np.asarray(image)
