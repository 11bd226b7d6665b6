"""Metrics on disk: valid JSON lines, means over updates, and a log that survives a full disk."""

import errno
import io
import json
import math
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.envs.driver import Episode
from dreamer.envs.info import COST, SUCCESS, SUCCESS_ANY
from dreamer.logs import logger
from dreamer.logs.logger import RESUMED, Logger, Speed, duration, read_metrics, read_numbered, without_repeats
from dreamer.logs.plots import as_label, plot_learning_curve, plot_training

COUNTERS = {"env_steps": 10, "agent_steps": 5, "updates": 2, "episodes": 1, "seconds": 3.0}
RATES = {"rate/env_steps": 1.0, "rate/updates": 2.0, "train_ratio": 4.0, "eta_seconds": 9.0, "bottleneck": "learner"}


@pytest.fixture
def log(tmp_path):
    log = Logger(tmp_path, "test", 100, quiet=True)
    yield log
    log.close()


def lines(log):
    return [json.loads(line) for line in (log.logdir / "metrics.jsonl").read_text().splitlines()]


def test_a_line_holds_counters_rates_and_means_over_the_updates_since_the_last_line(log):
    for value in (1.0, 2.0, 6.0):
        log.add_update({"loss/total": jnp.float32(value), "loss/reward": jnp.float32(-value)})
    returned = log.tick(COUNTERS, RATES)
    log.add_update({"loss/total": jnp.float32(7), "loss/reward": jnp.float32(8)})
    log.tick(COUNTERS, RATES)
    log.tick(COUNTERS, RATES)
    expected = {**COUNTERS, **RATES}
    assert lines(log) == [
        expected | {"loss/total": 3.0, "loss/reward": -3.0},
        expected | {"loss/total": 7.0, "loss/reward": 8.0},
        expected,
    ]
    assert returned == expected | {"loss/total": 3.0, "loss/reward": -3.0}


def test_episodes_are_written_at_once_and_averaged_over_the_recent_ones(log):
    for score in range(12):
        log.add_episode(Episode(float(score), 3, 0), COUNTERS)
    assert lines(log)[4] == COUNTERS | {"episode/score": 4.0, "episode/length": 3}
    assert log.tick(COUNTERS, RATES)["episode/recent_score"] == np.mean(range(2, 12))


def test_logs_of_environments_are_written_and_summarized_over_all_episodes(tmp_path):
    def summarize(logs):
        return {"share": np.mean([log["wood"] > 0 for log in logs]).item()}

    log = Logger(tmp_path, "test", 100, quiet=True, summarize=summarize)
    for report in ({"wood": 2.0}, {}, {"wood": 0.0}):
        log.add_episode(Episode(1.0, 3, 0, report), COUNTERS)
    log.close()
    episode = COUNTERS | {"episode/score": 1.0, "episode/length": 3}
    assert lines(log) == [
        episode | {"episode/log/wood": 2.0, "episode/log/share": 1.0},
        episode,
        episode | {"episode/log/wood": 0.0, "episode/log/share": 0.5},
    ]


def test_without_a_summary_only_the_logs_of_environments_are_written(log):
    log.add_episode(Episode(1.0, 3, 0, {"wood": 2.0}), COUNTERS)
    assert lines(log) == [COUNTERS | {"episode/score": 1.0, "episode/length": 3, "episode/log/wood": 2.0}]
    assert not log.episode_logs


def test_the_outcome_of_an_episode_is_written_beside_its_score_and_not_summarized(tmp_path):
    log = Logger(tmp_path, "test", 100, quiet=True, summarize=lambda logs: {"names": len(logs[0])})
    log.add_episode(Episode(1.0, 3, 0, {SUCCESS: 0.0, SUCCESS_ANY: 1.0, COST: 2.5}), COUNTERS)
    log.add_episode(Episode(1.0, 3, 0, {SUCCESS: 1.0, SUCCESS_ANY: 1.0, "success": 7.0}), COUNTERS)
    log.close()
    first, second = lines(log)
    assert {name: first[name] for name in (SUCCESS, SUCCESS_ANY, COST)} == {SUCCESS: 0.0, SUCCESS_ANY: 1.0, COST: 2.5}
    assert not [name for name in first if name.startswith("episode/log/")]
    assert (second["episode/success"], second["episode/log/success"], second["episode/log/names"]) == (1.0, 7.0, 1)


def test_a_terminal_that_an_environment_closed_ends_nothing(tmp_path, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    log = Logger(tmp_path, "test", 100)
    terminal.close()
    log.say("Nobody reads this.")
    log.tick(COUNTERS, RATES)
    log.close()
    assert len(lines(log)) == 1


def test_numbers_that_json_cannot_hold_become_null(log):
    log.add_update({"nan": jnp.float32(math.nan), "inf": jnp.float32(math.inf), "fine": jnp.float32(1)})
    log.tick(COUNTERS, RATES | {"eta_seconds": -math.inf})
    text = (log.logdir / "metrics.jsonl").read_text()
    (line,) = [json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))]
    assert (line["nan"], line["inf"], line["fine"], line["eta_seconds"]) == (None, None, 1.0, None)


def test_an_unfinished_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n{"a": 3')
    assert read_metrics(path) == [{"a": 1}, {"a": 2}]


class FullDisk:
    """Replaces `open` in the logger: writes half of the data, then the disk is full."""

    def __init__(self, path, mode):
        self.file = open(path, mode)  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.file.close()

    def write(self, data):
        self.file.write(data[: len(data) // 2])
        self.file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize(("torn", "kept"), [('{"a": 1}\n{"a": 2', 1), ('{"a": 1}\n', 1), ('{"a"', 0), ("", 0)])
def test_a_resumed_run_starts_on_a_new_line(tmp_path, torn, kept):
    (tmp_path / "metrics.jsonl").write_text(torn)
    log = Logger(tmp_path, "test", 100, quiet=True)
    log.write({"a": 3})
    log.write({"a": 4})
    log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"a": 1}\n' * kept + '{"a": 3}\n{"a": 4}\n'


def test_a_partial_line_of_any_length_is_cut_off(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"a": 1}\n{"a": "' + "x" * 200_000)
    log = Logger(tmp_path, "test", 100, quiet=True)
    log.write({"a": 2})
    assert lines(log) == [{"a": 1}, {"a": 2}]


def test_damaged_lines_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n\0\0\0\n{"a": 2{"a": 3}\n7\n\xff\n{"a": 4}\n')
    assert read_metrics(path) == [{"a": 1}, {"a": 4}]


def test_repeated_steps_count_once():
    def written(*steps, **more):
        return [{"env_steps": step, **more} for step in steps]

    assert without_repeats([]) == []
    # Killed at 9 and resumed after 2 with step 4; killed at 6 and resumed with step 3, before it was back at 9.
    steps = [line["env_steps"] for line in without_repeats(written(1, 2, 2, 5, 9, 4, 6, 3, 3, 8))]
    assert steps == [1, 2, 2, 3, 3, 8]
    # A member that is ahead of another repeats nothing, and lines without env steps stay.
    lines = [*written(5, 7, member="a"), *written(3, 6, member="b"), {"note": 1}, *written(6, member="a")]
    assert without_repeats(lines) == [lines[0], *lines[2:]]


def test_what_takes_long_is_said_to_be_going_on(monkeypatch):
    said: list[str] = []
    twice, ended = threading.Event(), threading.Event()

    def say(message):
        assert not ended.is_set()
        said.append(message)
        if len(said) == 2:
            twice.set()

    log = Logger(None, title="", total_env_steps=1, quiet=True)
    monkeypatch.setattr(log, "say", say)
    with log.while_busy("compiling", every=0.01):
        assert twice.wait(60)
    ended.set()
    assert said[0] == "  Still compiling, for 0:00 now ..."
    with log.while_busy("compiling"):
        pass  # Nothing is said of what is over soon.
    log.close()


def episode(steps, **more):
    return {"env_steps": steps, "episode/score": 1.0, **more}


def test_a_resume_undoes_what_lies_beyond_its_checkpoint():
    tick = {"env_steps": 15}
    begin = {"env_steps": 10, RESUMED: 1}
    # Killed after an episode at 20. Before the resumed run says anything else, the same episode ends again.
    assert without_repeats([episode(10), episode(20), begin, episode(20)]) == [episode(10), begin, episode(20)]
    # What the first attempt has done between the checkpoint and the next line is undone, too.
    assert without_repeats([episode(10), tick, begin, episode(20)]) == [episode(10), begin, episode(20)]
    # An episode that ended at the step of the checkpoint was part of it, and two can end at the same step.
    assert without_repeats([episode(10), episode(10), begin]) == [episode(10), episode(10), begin]
    own = {"member": "a"}
    lines = [episode(20, **own), episode(20), {**begin, **own}, episode(20, **own)]
    assert without_repeats(lines) == lines[1:]


def test_without_word_of_a_resume_its_first_episode_ended_after_the_checkpoint():
    # Killed at 25, resumed from 10.
    lines = [episode(10), episode(20, again=False), {"env_steps": 25}, episode(20, again=True), episode(20)]
    assert without_repeats(lines) == [lines[0], *lines[3:]]


FOREIGN = {
    "[1, 2]": "cannot be read as a JSON object",
    "{": "cannot be read as a JSON object",
    "[" * 100_000: "cannot be read as a JSON object",
    '{"env_steps": ' + "9" * 5000 + "}": "cannot be read as a JSON object",
    '{"env_steps": ' + "9" * 400 + "}": "has no whole number from 0 on as its env_steps",
    '{"env_steps": "3"}': "has no whole number from 0 on as its env_steps",
    '{"env_steps": true}': "has no whole number from 0 on as its env_steps",
    '{"env_steps": -1}': "has no whole number from 0 on as its env_steps",
    '{"env_steps": 2.5}': "has no whole number from 0 on as its env_steps",
    '{"env_steps": null}': "has no whole number from 0 on as its env_steps",
    '{"seconds": "long"}': "has no number as its 'seconds'",
    '{"episode/score": NaN}': "has no finite number as its 'episode/score'",
    '{"episode/score": Infinity}': "has no finite number as its 'episode/score'",
    '{"episode/score": 1e400}': "has no finite number as its 'episode/score'",
    '{"episode/score": ' + "9" * 400 + "}": "has no finite number as its 'episode/score'",
    '{"loss/dyn": "high"}': "has no number as its 'loss/dyn'",
    '{"loss/dyn": {"a": 1}}': "has no number as its 'loss/dyn'",
    '{"note": [1]}': "has no number as its 'note'",
}


@pytest.mark.parametrize("text", FOREIGN, ids=lambda text: text[:40])
def test_lines_that_no_run_writes_are_left_out_by_number_and_reason(tmp_path, text):
    path = tmp_path / "metrics.jsonl"
    good = {"env_steps": 1, "bottleneck": "learner", "eta_seconds": None, "episode/score": None}
    path.write_text(f"{json.dumps(good)}\n{text}\n{json.dumps(good)}\n{text}\n")
    found = read_numbered(path)
    assert found.lines == {1: good, 3: good}
    assert found.faults == {FOREIGN[text]: [2, 4]}
    assert found.complaints() == [f"line 2, 4 {FOREIGN[text]}"]


def test_lines_that_were_lost_are_counted_at_the_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(logger, "MOST_UNWRITTEN", 3)
    log = Logger(tmp_path / "gone", "test", 100)
    for number in range(5):
        log.write({"a": number})
    log.close()
    log.close()
    said = capsys.readouterr().err
    assert said.count("5 line(s) of metrics could not be written and are lost") == 1, said


def test_nothing_is_written_to_a_directory_that_took_the_place_of_ours(tmp_path):
    logdir = tmp_path / "run"
    logdir.mkdir()
    log = Logger(logdir, "test", 100, quiet=True)
    log.write({"a": 1})
    moved = logdir.rename(tmp_path / "moved")
    logdir.mkdir()
    log.write({"a": 2})
    assert not list(logdir.iterdir())
    logdir.rmdir()
    moved.rename(logdir)
    log.write({"a": 3})
    log.close()
    assert [line["a"] for line in lines(log)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("left", "sentence"),
    [
        (None, "metrics.jsonl is gone, with 18 bytes that the run had written by then: "),
        (b"", "metrics.jsonl has 0 of the 18 bytes that the run had written by then: "),
        (b'{"a": 1}\n', "metrics.jsonl has 9 of the 18 bytes that the run had written by then: "),
        (b'{"a": 1}\n{"a": 2}\n', ""),
        (b'{"a": 1}\n{"a": 2}\n{"a": 3}\n', ""),
    ],
)
def test_a_resume_knows_whether_its_history_is_whole(tmp_path, left, sentence):
    first = Logger(tmp_path, "test", 100, quiet=True)
    assert first.bytes_written == 0
    for number in (1, 2):
        first.write({"a": number})
    assert first.bytes_written == 18
    if left is None:
        (tmp_path / "metrics.jsonl").unlink()
    else:
        (tmp_path / "metrics.jsonl").write_bytes(left)
    said = Logger(tmp_path, "test", 100, quiet=True).missing_history(18)
    assert sentence in said and bool(said) == bool(sentence)


NAMES = ["a $ b", "$x$", "$\\frac{1}{$", r"\$x_$", "a_b^c", "half \ud800 of one", "zero \0", "{", "%", "\\"]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_can_be_a_label(name, log):
    log.write({"env_steps": 3, "episode/score": 1.0, f"loss/{name}": 2.0})
    log.write({"env_steps": 4, "episode/score": 2.0})
    assert plot_learning_curve(log.logdir, name) is not None
    assert plot_training(log.logdir, log.logdir / "training.png", name) is not None
    assert not as_label(name).count("$") - as_label(name).count(r"\$")


def test_a_closed_terminal_stops_nothing(log, monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(errno.EIO, "Input/output error")

        def flush(self):
            self.write("")

    log._console = logger.Console(file=Gone())
    log.say("a message without a terminal")
    log.tick(COUNTERS, RATES)
    assert lines(log) == [COUNTERS | RATES]


def test_a_limited_number_of_lines_waits_for_space(log, monkeypatch):
    monkeypatch.setattr(logger, "MOST_UNWRITTEN", 3)
    with monkeypatch.context() as full:
        full.setattr(logger, "open", FullDisk, raising=False)
        for number in range(10):
            log.write({"number": number})
    log.close()
    assert [line["number"] for line in lines(log)] == [7, 8, 9]


@pytest.mark.slow
def test_a_learning_curve_that_cannot_be_written_is_left_out(log):
    assert plot_learning_curve(log.logdir, "title") is None
    log.add_episode(Episode(1.0, 3, 0), COUNTERS)
    (log.logdir / "learning_curve.png").mkdir()
    assert plot_learning_curve(log.logdir, "title") is None


def test_with_space_again_no_line_is_lost_or_doubled(log, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(log, "say", said.append)
    log.write({"number": 0})
    with monkeypatch.context() as full:
        full.setattr(logger, "open", FullDisk, raising=False)
        for number in (1, 2, 3):
            log.write({"number": number})
        assert [line["number"] for line in lines(log)] == [0]
    (failure,) = said
    assert "No space left on device" in failure
    assert str(log.logdir) in failure
    log.write({"number": 4})
    _, recovery = said
    assert recovery.endswith("metrics.jsonl works again.")
    assert [line["number"] for line in lines(log)] == [0, 1, 2, 3, 4]
    with monkeypatch.context() as full:
        full.setattr(logger, "open", FullDisk, raising=False)
        log.write({"number": 5})
    assert len(said) == 3, "a second failure is reported again"
    log.close()
    assert [line["number"] for line in lines(log)] == [0, 1, 2, 3, 4, 5]


def test_rates_over_a_window(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    speed = Speed(window=10.0)
    assert speed.rates(50, 7) == {"rate/env_steps": 0.0, "rate/updates": 0.0}
    now[0] = 104.0
    assert speed.rates(58, 8) == {"rate/env_steps": 2.0, "rate/updates": 0.25}
    now[0] = 112.0  # The first mark has left the window.
    assert speed.rates(90, 16) == {"rate/env_steps": 4.0, "rate/updates": 1.0}


def test_the_bottleneck_is_where_more_time_went_since_the_last_call():
    speed = Speed()
    speed.busy["learner"] += 2.0
    speed.busy["environment"] += 1.0
    assert speed.bottleneck() == "learner"
    speed.busy["environment"] += 0.1
    assert speed.bottleneck() == "environment"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (123, "2:03"), (3723, "1:02:03"), (math.inf, "-"), (math.nan, "-")],
)
def test_duration(seconds, text):
    assert duration(float(seconds)) == text


@pytest.mark.slow
@pytest.mark.parametrize("episodes", [0, 3, 25])
def test_the_learning_curve_is_drawn_from_any_number_of_episodes(log, episodes):
    log.tick(COUNTERS, RATES)
    for number in range(episodes):
        log.add_episode(Episode(float(number), 3, 0), COUNTERS | {"env_steps": number})
    path = plot_learning_curve(log.logdir, "title")
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 5000


def test_without_a_terminal_a_line_is_printed(tmp_path, capsys):
    log = Logger(tmp_path, "test", 100)
    log.tick(COUNTERS, RATES)
    log.close()
    printed = capsys.readouterr().err
    for part in ("env steps        10", "updates        2", "ratio    4.0", "ETA 0:09", "limited by learner"):
        assert part in printed
