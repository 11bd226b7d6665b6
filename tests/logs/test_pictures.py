"""Films and plots of dreams: their layout, formats, and errors."""

import io

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from dreamer.logs import pictures as dream_pictures
from dreamer.logs.pictures import DREAMT, NOTHING, SEEN, FilmError
from dreamer.types import Space

HEADER, BAR, MARGIN = 16, 4, 4


def images(channels=3, rows=2, steps=4):
    true = np.zeros((rows, steps, 5, 8, channels), np.uint8)
    true[..., -1] = 255
    predicted = np.zeros(true.shape, np.float32)
    predicted[..., -1] = 0.5
    return true, predicted


def film(channels=3):
    true, predicted = images(channels)
    # All frames differ, as Pillow merges equal ones.
    true[:, :, 0] = 50 * np.arange(4)[:, None, None]
    return dream_pictures.film(true, predicted, 2)


def test_a_film_shows_true_predicted_and_error_side_by_side():
    true, predicted = images(channels=1)
    valid = np.array([[True] * 4, [True, True, True, False]])
    frames = dream_pictures.film(true, predicted, 2, valid, least=10)
    # Enlarged by two, to a width of 16 and a height of 10.
    assert frames.dtype == np.uint8
    assert frames.shape == (4, HEADER + 2 * (10 + BAR + MARGIN), 3 * 16 + 2 * MARGIN, 3)
    top = HEADER
    for step, colour in ((0, SEEN), (1, SEEN), (2, DREAMT), (3, DREAMT)):
        assert (frames[step, top : top + BAR] == colour).all()
        row = frames[step, top + BAR : top + BAR + 10]
        assert (row[:, :16] == 255).all()
        assert (row[:, 20:36] == 128).all()
        # An error of a half is between red and yellow.
        assert (row[:, 40:56] == [255, 128, 0]).all()
    second = top + BAR + 10 + MARGIN
    assert (frames[3, second : second + BAR] == NOTHING).all()
    assert (frames[3, second + BAR : second + BAR + 10] == 255).all()
    assert (frames[2, second : second + BAR] == DREAMT).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_films_of_any_channels_have_even_sides(channels):
    true, predicted = images(channels)
    frames = dream_pictures.film(true, predicted, 2, least=7)
    _, height, width, colours = frames.shape
    assert height % 2 == width % 2 == 0
    assert colours == 3


def test_predictions_of_another_shape_are_refused():
    true, predicted = images()
    with pytest.raises(ValueError, match=r"expected both as \[B, T, H, W, C\]"):
        dream_pictures.film(true, predicted[:1], 2)


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_a_film_can_be_read_again(tmp_path, suffix):
    frames = film()
    path = tmp_path / f"film{suffix}"
    dream_pictures.write_film(path, frames, fps=10)
    with Image.open(path) as read:
        assert getattr(read, "n_frames", 1) == 4
        assert read.size == (frames.shape[2], frames.shape[1])
        read.seek(3)
        np.testing.assert_allclose(np.asarray(read.convert("RGB"), int), frames[3], atol=8)
        assert read.info["duration"] == 100


def test_an_mp4_has_all_frames(tmp_path):
    dream_pictures.write_film(tmp_path / "film.mp4", film())
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "film.mp4"))[0] == 4


def test_a_missing_codec_is_named(tmp_path, monkeypatch):
    frames = film()
    with pytest.raises(FilmError, match=r"expected a name that ends in \.gif, \.webp or \.mp4"):
        dream_pictures.write_film(tmp_path / "film.avi", frames)
    Image.init()
    monkeypatch.delitem(Image.SAVE_ALL, "WEBP")
    with pytest.raises(FilmError, match=r"written as webp: this Pillow has no encoder for it .* Write a \.gif"):
        dream_pictures.write_film(tmp_path / "film.webp", frames)
    imageio = pytest.importorskip("imageio.v2")

    def refuse(*args, **kwargs):
        raise RuntimeError("No ffmpeg exe could be found")

    monkeypatch.setattr(imageio, "get_writer", refuse)
    with pytest.raises(FilmError, match=r"no video encoder was found .* pip install imageio-ffmpeg"):
        dream_pictures.write_film(tmp_path / "film.mp4", frames)


def test_steps_after_a_reset_in_the_prediction_do_not_count():
    is_first = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 1, 0]])
    found = dream_pictures.after_resets(is_first, 2)
    assert found.tolist() == [[True] * 5, [True] * 5, [True, True, True, False, False]]


def test_a_plot_of_a_vector_shows_raw_units():
    true = np.array([[0.0, 10.0], [1.0, 20.0], [2.0, 40.0]], np.float32)
    predicted = np.sign(true) * np.log1p(np.abs(true))
    data = dream_pictures.plot(Space("vector", (2,)), true, predicted, 1, kind="png")
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        assert min(image.size) > 100
    drawn = dream_pictures.plot(Space("vector", (2,)), true, predicted, 1)
    assert drawn.startswith(b"<?xml")
    # The same numbers give the same bytes, and another prediction another picture.
    assert drawn == dream_pictures.plot(Space("vector", (2,)), true, predicted, 1)
    assert drawn != dream_pictures.plot(Space("vector", (2,)), true, predicted + 1, 1)


def test_a_directory_of_pictures(tmp_path):
    true, predicted = images()
    spaces = {
        "camera/front": Space("image", (5, 8, 3)),
        "label": Space("discrete", (2,), 3),
        "vector": Space("vector", (20,)),
    }
    obs = {
        "camera/front": true,
        "label": np.zeros((2, 4, 2), np.int32),
        "vector": np.zeros((2, 4, 20), np.float32),
    }
    guesses = {"camera/front": predicted, "label": np.zeros((2, 4, 2, 3)), "vector": np.ones((2, 4, 20))}
    is_first = np.zeros((2, 4), bool)
    paths = dream_pictures.write(tmp_path / "new", spaces, obs, guesses, 2, is_first)
    assert [path.name for path in paths] == ["camera_front.gif", "label.png", "vector.png"]
    assert all(path.stat().st_size > 500 for path in paths)
