"""Videos: what is where in a frame, files that players read, and what to do without an encoder."""

import gc
import os
from types import SimpleNamespace
from typing import Any

import imageio.v2 as imageio
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.agent import Agent
from dreamer.algorithms import Algorithm, View
from dreamer.evaluate import video
from dreamer.evaluate.episodes import Moment
from dreamer.types import Space
from tests.small import small_agent

SPACES = {"discrete": Space("discrete", (2,), 3), "image": Space("image", (8, 8, 3)), "vector": Space("vector", (4,))}
MEMORY = jnp.zeros((1, 2))


SEVEN = jnp.array([7.0])


def not_asked(*_):
    raise AssertionError("was asked")


class Blind(Agent):
    """An agent whose networks nobody asks."""

    def __init__(self):
        self.obs_spaces = SPACES
        self.algorithm = Algorithm(not_asked, not_asked, not_asked, not_asked)

    state: Any = SimpleNamespace(nets=None)


@pytest.fixture
def image():
    return np.arange(192, dtype=np.uint8).reshape(8, 8, 3)


def moment(image, time=0, reward=0.0, frame=None):
    obs = {
        "image": image,
        "vector": np.array([0.0, 1.0, -1.0, 3.0], np.float32),
        "discrete": np.array([2, 0], np.int32),
    }
    return Moment(np.zeros((64, 96, 3), np.uint8) if frame is None else frame, obs, MEMORY, reward, 5.0, 3, time)


def decoded(image, change=0.0):
    vector = np.log1p(np.array([0.0, 1.0, 1.0, 3.0])) * np.array([1, 1, -1, 1])
    logits = np.log(np.array([[0.2, 0.2, 0.6], [0.8, 0.1, 0.1]], np.float32))
    return {"image": image / 255.0 + change, "vector": vector.astype(np.float32), "discrete": logits}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((64, 64), (256, 256)), ((201, 130), (402, 260)), ((3, 5), (258, 430)), ((401, 7), (402, 8))],
)
def test_frames_are_enlarged_to_even_sides(shape, expected):
    frame = np.arange(shape[0] * shape[1] * 3, dtype=np.uint64).astype(np.uint8).reshape(*shape, 3)
    shown = video.enlarge_frame(frame)
    assert shown.shape == (*expected, 3)
    np.testing.assert_array_equal(shown[0, 0], frame[0, 0])
    np.testing.assert_array_equal(shown[-1, -1], frame[-1, -1])


def test_a_frame_shows_picture_observation_and_reconstruction(image, rng):
    frame = rng.integers(0, 256, (256, 300, 3), dtype=np.uint8)
    only = {"image": SPACES["image"]}
    picture = video.compose(moment(image, frame=frame), decoded(image), only, [1.0], [0.0])
    assert picture.shape == (256 + 8 + video.STRIP, picture.shape[1], 3) and picture.shape[1] % 2 == 0
    np.testing.assert_array_equal(picture[:256, :300], frame)
    # Each under its line of text, in half of the height.
    seen, guess = (picture[top + 14 : top + 128, 308:422] for top in (0, 128))
    pixels = (np.arange(8) * 114 / 8 + 7).astype(int)
    np.testing.assert_array_equal(seen[np.ix_(pixels, pixels)], image)
    np.testing.assert_array_equal(guess[np.ix_(pixels, pixels)], image)
    darker = video.compose(moment(image, frame=frame), decoded(image, -0.1), only, [1.0], [0.0])[142:256, 308:422]
    np.testing.assert_array_equal(darker[np.ix_(pixels, pixels)], np.clip(np.rint(255 * (image / 255.0 - 0.1)), 0, 255))


def columns(picture, color):
    """Rows of a colour in each column, as (first, last)."""
    found = [np.flatnonzero((column == color).all(-1)) for column in picture.swapaxes(0, 1)]
    return [(int(rows[0]), int(rows[-1])) if len(rows) else None for rows in found]


def test_vectors_are_bars_with_marks_where_the_decoder_puts_them(image):
    spaces = {"vector": SPACES["vector"]}
    plot = video.compose(moment(image), decoded(image), spaces, [1.0], [0.0])[34:256, -video.PLOT :]
    marks, bars = columns(plot, video._GUESS), columns(plot, video._TRUE)
    middles = [video.PLOT * (2 * i + 1) // 8 for i in range(4)]
    # A decoder that is right puts its mark at the end of every bar: the third one points down.
    for middle in middles[1:]:
        (high, low), mark = bars[middle], marks[middle]
        assert low - high > 20
        assert min(abs(high - mark[0]), abs(low - mark[1])) <= 2
    assert bars[middles[1]][1] < bars[middles[2]][1] and bars[middles[3]][0] < bars[middles[1]][0]
    wrong = {"vector": decoded(image)["vector"] * np.array([1, -1, 1, 1], np.float32)}
    plot = video.compose(moment(image), wrong, spaces, [1.0], [0.0])[34:256, -video.PLOT :]
    assert columns(plot, video._GUESS)[middles[1]][0] > columns(plot, video._TRUE)[middles[1]][1]


def test_classes_are_bars_of_probabilities(image):
    spaces = {"discrete": SPACES["discrete"]}
    plot = video.compose(moment(image), decoded(image), spaces, [1.0], [0.0])[34:256, -video.PLOT :]
    bars, marks = columns(plot, video._TRUE), columns(plot, video._GUESS)
    middles = [video.PLOT * (2 * i + 1) // 12 for i in range(6)]
    heights = np.array([213 - marks[middle][0] for middle in middles]) / 213
    np.testing.assert_allclose(heights, [0.2, 0.2, 0.6, 0.8, 0.1, 0.1], atol=0.03)
    tall = [(bars[middle][1] - bars[middle][0]) > 150 if bars[middle] else False for middle in middles]
    assert tall == [False, False, True, True, False, False]


def test_the_strip_shows_values_and_rewards_up_to_now(image):
    values, rewards = [0.0] * 60 + [10.0] * 40, [0.0] * 99 + [2.0]
    picture = video.compose(moment(image, 99, 2.0), decoded(image), {"image": SPACES["image"]}, values, rewards)
    strip = picture[-video.STRIP :]
    line = columns(strip, video._GUESS)
    assert line[-2] == (16, 16) and line[-2 * 41 - 4][0] > 40
    assert sum(rows is not None for rows in columns(strip[60:], video._REWARD)[-20:]) == 1
    # Before there was anything, and below zero.
    video.compose(moment(image), decoded(image), SPACES, [-3.0], [-1.0])


# The reader of imageio is a process, and leaves its pipes open.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_file_with_the_frames_of_a_known_decoder(image, tmp_path):
    agent = Blind()
    predictions = {key: value[None] for key, value in decoded(image).items()}
    agent.algorithm = agent.algorithm._replace(view=lambda *_: View(predictions, SEVEN))
    path = tmp_path / "out.mp4"
    with video.Film(path, agent) as film:
        for time in range(5):
            film(moment(image, time, float(time)))
        film(moment(image, 0))
        assert film._values == [7.0] and film._rewards == [0.0]
    expected = video.compose(moment(image, 0, 0.0), decoded(image), SPACES, [7.0], [0.0])
    frames = [np.asarray(frame) for frame in imageio.mimread(path, memtest=False)]
    gc.collect()
    assert len(frames) == 6 and frames[0].shape == expected.shape
    assert np.abs(frames[0].astype(float) - expected).mean() < 6
    assert np.abs(frames[4].astype(float) - expected).mean() > np.abs(frames[5].astype(float) - expected).mean()


@pytest.mark.parametrize("name", ["out.gif", "out", "out.webm"])
def test_other_kinds_of_files_are_refused(name, tmp_path):
    with pytest.raises(video.VideoError, match=rf"{name}' cannot be written, expected a name that ends in \.mp4, "):
        video.Film(tmp_path / name, Blind())
    with pytest.raises(video.VideoError, match="there is no directory"):
        video.Film(tmp_path / "none" / "out.mp4", Blind())


@pytest.mark.parametrize("encoder", ["/bin/false", "/no/such/encoder"])
def test_a_missing_encoder_is_reported_in_one_sentence(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", encoder)
    agent = Blind()
    with pytest.raises(video.VideoError, match=r"no video encoder works: .* pip install .*IMAGEIO_FFMPEG_EXE\.$"):
        video.Film(tmp_path / "out.mp4", agent)


# What could not be sent is left in a pipe to nobody.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
def test_an_encoder_that_stops_is_told_in_one_sentence(image, tmp_path, monkeypatch):
    encoder = tmp_path / "encoder"
    encoder.write_text(
        '#!/bin/sh\n[ "$1" = -version ] && echo "ffmpeg version 5" && exit 0\necho no codec >&2\nexit 1\n'
    )
    encoder.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(encoder))
    predictions = {key: value[None] for key, value in decoded(image).items()}
    agent = Blind()
    agent.algorithm = agent.algorithm._replace(view=lambda *_: View(predictions, SEVEN))

    def film():
        with video.Film(tmp_path / "out.mp4", agent) as film:
            for time in range(20):
                film(moment(image, time))

    with pytest.raises(video.VideoError, match=r"the video encoder stopped: .* has the codec H\.264"):
        film()


@pytest.mark.slow
def test_the_networks_are_asked_for_predictions_and_values():
    agent = small_agent()
    memory = agent.initial(2)
    predictions, value = agent.algorithm.view(agent.state.nets, memory)
    assert {key: array.shape for key, array in predictions.items()} == {"label": (2, 3), "vector": (2, 4)}
    np.testing.assert_array_equal(value, np.zeros(2))  # Fresh critics know of nothing.


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["a link", "a pipe"])
def test_a_video_is_not_written_through_what_is_no_file(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "out.mp4"
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "elsewhere.mp4")
    with pytest.raises(video.VideoError, match=rf"'{path}' is {kind}, expected a file or nothing"):
        video.Film("~/out.mp4", Blind())
    assert not (tmp_path / "elsewhere.mp4").exists()
