"""Pictures of open-loop predictions: films of images, true | predicted | error, and plots of vectors.

Takes host arrays, as `Algorithm.predict` gives them, and knows no networks; a run may call it while it trains.
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
"""Entries of a vector that are plotted; the first ones."""

_MARGIN, _BAR, _HEADER = 4, 4, 16


class FilmError(ValueError):
    """A film cannot be written; the message says why and what to do."""


def film(
    true: np.ndarray, predicted: np.ndarray, context: int, valid: np.ndarray | None = None, least: int = 160
) -> np.ndarray:
    """Frames that show each sequence as a row, true | predicted | error, under a bar in the colour of the step.

    Args:
        true: recorded images, uint8 ``[B, T, H, W, C]``; of other than three channels, the last is shown in grey.
        predicted: predictions in 0 to 1, same shape.
        context: steps that the model saw.
        valid: steps that count, bool ``[B, T]``: what follows a reset after the context does not. None: all.
        least: images are enlarged by a whole number until their sides have this many pixels.

    Returns:
        uint8 ``[T, height, width, 3]`` with even sides, as video codecs ask for.
    """
    if true.shape != predicted.shape or true.ndim != 5:
        raise ValueError(f"film got images {true.shape} and {predicted.shape}, expected both as [B, T, H, W, C].")
    rows, steps, height, width, _ = true.shape
    valid = np.ones((rows, steps), bool) if valid is None else valid
    factor = max(1, -(-least // min(height, width)))
    high, wide = height * factor, width * factor
    size = (_HEADER + rows * (high + _BAR + _MARGIN), 3 * wide + 2 * _MARGIN)
    out = np.full((steps, size[0] + size[0] % 2, size[1] + size[1] % 2, 3), 255, np.uint8)
    for t in range(steps):
        out[t, :_HEADER] = _header(out.shape[2], wide, t, context)
        for row in range(rows):
            shown = _rgb(true[row, t] / 255.0), _rgb(np.clip(predicted[row, t].astype(np.float32), 0, 1))
            parts = [*shown, _heat(np.abs(shown[0] - shown[1]).mean(-1))]
            top = _HEADER + row * (high + _BAR + _MARGIN)
            colour = SEEN if t < context else DREAMT if valid[row, t] else NOTHING
            out[t, top : top + _BAR, : size[1]] = colour
            for number, part in enumerate(parts):
                left = number * (wide + _MARGIN)
                if valid[row, t] or t < context:
                    part = part.repeat(factor, 0).repeat(factor, 1)
                    out[t, top + _BAR : top + _BAR + high, left : left + wide] = np.round(255 * part)
    return out


def after_resets(is_first: np.ndarray, context: int) -> np.ndarray:
    """Bool ``[B, T]``: steps before the first reset after the context, for `film` and `plot`."""
    later = np.asarray(is_first, bool).copy()
    later[:, :context] = False
    return ~np.logical_or.accumulate(later, 1)


def write_film(path: pathlib.Path, frames: np.ndarray, fps: int = 8) -> None:
    """Write frames ``uint8 [T, H, W, 3]`` as ``.gif``, ``.webp`` or ``.mp4``.

    Raises:
        FilmError: the suffix is another, or what encodes it is not installed.
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
    """Frames ``uint8 [T, H, W, 3]`` as the bytes of a ``gif`` or ``webp`` that repeats for ever.

    Raises:
        FilmError: Pillow was built without it.
    """
    images, out = [Image.fromarray(frame) for frame in frames], io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {"optimize": False}
    try:
        images[0].save(
            out, kind.upper(), save_all=True, append_images=images[1:], duration=1000 // fps, loop=0, **options
        )
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
            # The encoder's process is forked and replaced at once, which the threads of JAX do not mind.
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
    """Plot what was predicted of a vector, or of classes, over what was true; one panel for each entry.

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
        true, predicted = true.reshape(steps, -1), predicted.argmax(-1).reshape(steps, -1)
    else:
        predicted = np.sign(predicted) * np.expm1(np.abs(predicted.astype(np.float64)))
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
        directory: where to; made if need be.
        spaces: observation spaces.
        obs: recorded observations ``[B, T, ...]``.
        predictions: what `Algorithm.predict` gave, ``[B, T, ...]``; what it lacks is left out.
        context: as it was given there.
        is_first: bool ``[B, T]``; steps after a reset are left blank.
        rows: sequences in a film; a plot shows the first.

    Raises:
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    valid, paths = after_resets(is_first, context), []
    for key, space in spaces.items():
        if key not in predictions:
            continue
        true, predicted = np.asarray(obs[key]), np.asarray(predictions[key])
        name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in key)
        if space.kind == "image":
            paths.append(directory / f"{name}.gif")
            write_film(paths[-1], film(true[:rows], predicted[:rows], context, valid[:rows]))
        else:
            paths.append(directory / f"{name}.png")
            paths[-1].write_bytes(plot(space, true[0], predicted[0], context, valid[0], "png"))
    return paths


def _rgb(image: np.ndarray) -> np.ndarray:
    """``[H, W, C]`` in 0 to 1 as three channels; of a stack of frames, the newest."""
    return image if image.shape[-1] == 3 else image[..., -1:].repeat(3, -1)


def _heat(error: np.ndarray) -> np.ndarray:
    """``[H, W]`` in 0 to 1 as black, red, yellow, white."""
    return np.clip(3 * error[..., None] - np.arange(3), 0, 1)


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _header(width: int, column: int, step: int, context: int) -> np.ndarray:
    """What the columns are, and which step it is."""
    image = Image.new("RGB", (width, _HEADER), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    words = ("true", "predicted" if step >= context else "seen", f"error {max(0, step - context + 1):+d}")
    for number, word in enumerate(words):
        draw.text((number * (column + _MARGIN) + 2, 2), word, fill=(40, 40, 40))
    return np.asarray(image)
