"""The report command: what it reads, what it refuses, and a page that a browser shows without asking anybody."""

import json
import os
import pathlib
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dreamer
from dreamer import checkpoints
from dreamer import config as configs
from dreamer.report import __main__ as command
from dreamer.report import card as report_card
from dreamer.report import findings
from dreamer.report import page as report_page
from dreamer.report import writing as report
from dreamer.report.dream_batches import Budget
from dreamer.report.page import Picture
from dreamer.report.writing import ReportError
from tests import counter_world as world
from tests.small import run_config

COUNTERS = {"env_steps": 10, "updates": 2}


def write_lines(path: pathlib.Path, *lines, end="\n") -> pathlib.Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text + end)
    return path


# ---- metrics.jsonl


def test_half_a_line_at_the_end_is_fine(tmp_path):
    path = write_lines(tmp_path / "metrics.jsonl", COUNTERS, '{"env_steps": 20, "upd', end="")
    assert report.read_lines(path) == ([COUNTERS], [])


def test_what_was_done_twice_counts_once(tmp_path):
    path = write_lines(tmp_path / "metrics.jsonl", COUNTERS, COUNTERS | {"env_steps": COUNTERS["env_steps"] - 1})
    assert [line["env_steps"] for line in report.read_lines(path)[0]] == [COUNTERS["env_steps"] - 1]


def test_lines_that_are_no_metrics_are_named(tmp_path):
    bad = [
        "not json",
        "[1, 2]",
        "17",
        {"env_steps": 3},
        {"env_steps": "3", "updates": 1},
        {"env_steps": True, "updates": 1},
    ]
    path = write_lines(tmp_path / "metrics.jsonl", COUNTERS, *bad, COUNTERS)
    lines, sentences = report.read_lines(path)
    assert lines == [COUNTERS, COUNTERS]
    assert sentences == [
        f"In {path}, line 2, 3, 4 cannot be read as a JSON object, and was left out.",
        f"In {path}, line 6, 7 has no whole number from 0 on as its env_steps, and was left out.",
        f"In {path}, line 5 lacks the counters env_steps and updates, and was left out.",
    ]


def test_a_foreign_file_is_refused(tmp_path):
    path = write_lines(tmp_path / "metrics.jsonl", *[{"loss": 1.0}] * 8)
    with pytest.raises(
        ReportError, match=r"line 1, 2, 3, 4, 5 and 3 more lacks the counters env_steps and updates\. Put"
    ):
        report.read_lines(path)
    (tmp_path / "metrics.jsonl").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\n")
    with pytest.raises(ReportError, match=r"line 1, 2, 3 cannot be read as a JSON object"):
        report.read_lines(path)


def test_no_file_is_no_error(tmp_path):
    lines, sentences = report.read_lines(tmp_path / "metrics.jsonl")
    assert lines == [] and "no curves" in sentences[0]
    assert report.training_curves(lines) == {}


def test_curves_come_from_the_lines_that_have_them():
    lines: list[dict[str, Any]] = [
        {**COUNTERS, "episode/score": 5.0},
        {"env_steps": 20, "updates": 3, "loss/obs/image": 2.0, "loss/reward": None, "loss/dyn": 0.0, "loss/cont": 0.5},
        {"env_steps": 30, "updates": 4, "episode/score": 7, "loss/obs/image": 1.0, "eval/mean": 8.0},
    ]
    curves = report.training_curves(lines)
    assert list(curves) == ["Return", "World-model errors on replay"]
    returns, errors = curves["Return"][0], curves["World-model errors on replay"][0]
    assert {name: [x.tolist() for x in both] for name, both in returns.items()} == {
        "episodes": [[10, 30], [5, 7]],
        "evaluation": [[30], [8]],
    }
    # What is on a logarithmic axis is positive.
    assert {name: [x.tolist() for x in both] for name, both in errors.items()} == {
        "image": [[20, 30], [2, 1]],
        "continue": [[20], [0.5]],
    }


def test_a_success_rate_is_drawn_where_episodes_report_it():
    flags = [0.0] * 5 + [1.0] * 10
    lines: list[dict[str, Any]] = [{"env_steps": i, "updates": 0, "episode/success": f} for i, f in enumerate(flags)]
    lines += [{"env_steps": 15, "updates": 0}, {"env_steps": 20, "updates": 0, "eval/success": 0.75}]
    curves, _ = report.training_curves(lines)["Success rate"]
    steps, rates = curves["mean of 10"]
    assert steps.tolist() == list(range(15))
    assert rates[[0, 4, 5, 9, 14]].tolist() == [0.0, 0.0, 1 / 6, 0.5, 1.0]
    assert [x.tolist() for x in curves["evaluation"]] == [[20.0], [0.75]]


def test_the_digest_knows_the_config_and_not_its_place():
    config = configs.Config()
    assert report.digest(config) == report.digest(configs.override(config, ["logdir=elsewhere"]))
    assert report.digest(config) != report.digest(configs.override(config, ["seed=1"]))
    assert len(report.digest(config)) == 12


# ---- what is refused


def test_a_logdir_without_a_checkpoint(tmp_path, capsys):
    assert command.main([str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"Error: There is no checkpoint in {tmp_path}/checkpoints.")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def loaded(monkeypatch):
    """A run that is there, up to what is played and measured."""
    agent = SimpleNamespace(
        config=world.config("task=no_such_module:make"),
        parameter_count=1,
        algorithm=SimpleNamespace(behavior=world.BEHAVIOR),
    )
    saved = SimpleNamespace(path=pathlib.Path("000000000010"), meta={"env_steps": 10})
    monkeypatch.setattr(report, "load_saved", lambda logdir, which: (agent, saved))


@pytest.mark.usefixtures("loaded")
def test_a_logdir_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "report").write_text("a file")
    assert command.main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"Error: The report cannot be written to {tmp_path}/report: ") and err.count("\n") == 1
    assert "Choose another directory with --out DIR." in err
    assert command.main([str(tmp_path), "--out", str(tmp_path / "report" / "below")]) == 2
    assert "Choose another --out." in capsys.readouterr().err


@pytest.mark.usefixtures("loaded")
def test_a_read_only_file_system(tmp_path, capsys, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    assert command.main([str(tmp_path)]) == 2
    assert "report: Read-only file system. Choose another directory with --out DIR." in capsys.readouterr().err


@pytest.mark.usefixtures("loaded")
def test_an_environment_that_cannot_be_made(tmp_path, capsys, monkeypatch):
    def count(agent, make, episodes, seed):
        make()

    monkeypatch.setattr(report, "collect", count)
    assert command.main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("Error: ")
    assert "no_such_module" in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("loaded")
def test_foreign_metrics(tmp_path, capsys):
    path = write_lines(tmp_path / "metrics.jsonl", {"step": 1})
    assert command.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"Error: {path} does not hold the metrics of a run: line 1 lacks")
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--episodes", "0"], "--episodes is 0, expected 1 to 10000"),
        (["--seed", "-1"], "--seed is -1, expected 0 to 4294967295"),
        (["--checkpoint", "oldest"], "'oldest' is not newest, best, or the number of a step"),
    ],
)
def test_wrong_options(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(["anywhere", *argv])
    assert caught.value.code == 2 and message in capsys.readouterr().err


# ---- the page


@pytest.fixture(scope="module")
def page():
    """A page about the model that drifts."""
    nets, config = world.networks(world.Faults(drift=0.2, noise=0.1, cont=0.9)), world.config()
    moves = np.random.default_rng(0).integers(0, 2, (4, 11))
    held_out = world.episodes([12, 2, 12, 9], [True, True, True, False], moves)
    card = report_card.measure(
        world.BEHAVIOR, nets, config, world.OBS_SPACES, held_out, budget=Budget(8, 2, 64, 3, 16, 5)
    )
    frames = np.random.default_rng(0).integers(0, 255, (5, 40, 60, 3)).astype(np.uint8)
    dreams = [Picture("image", "A film.", "gif", report.dream_pictures.encode(frames, "gif"))]
    names = ("loss/reward", "loss/critic", "imagined/value", "actor/entropy", "episode/score", "episode/success")
    lines = [{"env_steps": x, "updates": x, **dict.fromkeys(names, 1 / x)} for x in range(1, 20)]
    facts = {"task": "<b>counting</b>" + "_with_a_long_name" * 8}
    return report_page.page(
        "A <report> on $counting",
        facts,
        ["Something & nothing."],
        findings.findings(card),
        dreams,
        card,
        world.OBS_SPACES,
        report.training_curves(lines),
        {"rssm.deter": "2"},
    )


def test_the_page_says_what_was_measured(page):
    assert "A &lt;report&gt; on $counting" in page and "&lt;b&gt;counting&lt;/b&gt;" in page
    assert "Something &amp; nothing." in page and "<td>rssm.deter</td><td>2</td>" in page
    assert page.count('class="finding ') == 13
    # A film, errors of five quantities, where three of them sit, four of the inside, two returns and six curves.
    assert page.count("<img ") == 1 + 5 + 3 + 4 + 2 + 6 == page.count("data:image/")


def test_nothing_in_the_page_lies_elsewhere(page):
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert '<link rel="style' not in page


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_the_page(page, tmp_path, width):
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    path = tmp_path / "index.html"
    path.write_text(page, encoding="utf-8")
    said, asked = [], []
    with playwright.sync_playwright() as driver:
        # Root has no sandbox; the page is our own.
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            tab = browser.new_page(viewport={"width": width, "height": 844})
            tab.on("console", lambda message: said.append(message.text))
            tab.on("pageerror", lambda error: said.append(str(error)))
            tab.on("request", lambda request: asked.append(request.url))
            tab.goto(path.as_uri())
            tab.wait_for_load_state("load")
            sizes = tab.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
            assert len(sizes) == page.count("<img ") and min(sizes) > 0
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate("document.title") == "A <report> on $counting"
        finally:
            browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]


# ---- all of it


@pytest.mark.slow
def test_the_command_reports_on_a_run(tmp_path, capsys):
    logdir = tmp_path / "run"
    dreamer.train(config=run_config(logdir, "task=probe_catch", "run={env_steps: 40, eval_episodes: 0}"), quiet=True)
    assert command.main([str(logdir), "--episodes", "3"]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"Report: {logdir}/report/index.html\n") and "Dreamt image" in printed
    first = {path.name: path.read_bytes() for path in (logdir / "report").iterdir()}
    assert set(first) == {"index.html", "report.json"}
    numbers = json.loads(first["report.json"])
    assert numbers["task"] == "probe_catch" and numbers["checkpoint"]["env_steps"] >= 40
    assert numbers["card"]["episodes"] == 3 and numbers["warnings"] == []
    assert [finding["name"] for finding in numbers["findings"]][:3] == [
        "open_loop/image",
        "open_loop/reward",
        "open_loop/continue",
    ]
    assert b"data:image/gif" in first["index.html"]
    # Twice the same, elsewhere; another seed, other numbers.
    assert command.main([str(logdir), "--episodes", "3", "--out", str(tmp_path / "one")]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()} == first
    assert command.main([str(logdir), "--episodes", "3", "--seed", "1", "--out", str(tmp_path / "two")]) == 0
    assert (tmp_path / "two" / "report.json").read_bytes() != first["report.json"]
    assert checkpoints.exists(logdir)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", ["", "index.html", "report.json", ".probe"])
@pytest.mark.parametrize("kind", ["a link", "a pipe"])
def test_a_report_is_not_written_through_what_is_no_file(tmp_path, place, kind):
    path = tmp_path / "report" / place
    path.parent.mkdir(exist_ok=True)
    elsewhere = tmp_path / "elsewhere"
    if kind == "a pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(elsewhere)
    with pytest.raises(ReportError, match=rf"is {kind}, expected a (file|directory) or nothing. Choose another"):
        report._prepare(tmp_path / "report", is_default=True)
    assert not elsewhere.exists()


def test_a_directory_that_is_named_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "report").symlink_to(tmp_path / "real")
    report._prepare(tmp_path / "report", is_default=False)
    assert not list((tmp_path / "real").iterdir())
