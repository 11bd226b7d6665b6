"""The command that compares: what it prints and draws, and its errors."""

import json
import os
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from dreamer.compare import __main__ as compare
from dreamer.compare import released
from tests.compare.test_comparison import WALKER, episodes
from tests.compare.test_curves import write


@pytest.fixture
def runs(tmp_path):
    """Two runs on the same task, one as released and one above."""
    walker = released.get("dmc_proprio", "dmc_walker_walk")
    return [
        str(write(tmp_path / f"run{seed}", episodes(walker, shift), f"seed={seed}", *WALKER, end='{"env_st'))
        for seed, shift in ((4, 0.0), (5, 4.0))
    ]


def test_the_table(runs, capsys):
    assert compare.main([runs[0]]) == 0
    output = capsys.readouterr().out
    assert output.startswith(
        "dmc_walker_walk: 1 run, seed 4\n"
        "  compared with dreamerv3 in dmc_proprio: mean of 5 seeds, band of one standard deviation between them\n"
        "  other settings: rssm.deter=2048 there, 8192 here; run.train_ratio=512 there, 32 here\n"
    )
    assert "  100,000  475.2        10     475.2  [318.4, 632.0]  inside\n" in output
    # The run has no episodes between 100,000 and 199,991 frames.
    assert re.search(r"\n  700 +200,000 +150,000\n", output)
    assert "Frames are env steps, repeats of an action included." in output
    assert "last 10% of these frames" in output


def test_json(runs, capsys):
    assert compare.main([*runs, "--json", "--reach", "600", "--method", "d4pg"]) == 0
    (comparison,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert comparison["reference"] == {"suite": "dmc_proprio", "task": "dmc_walker_walk", "method": "d4pg"}
    assert [(run["seed"], run["frames"], run["episodes"]) for run in comparison["runs"]] == [
        (4, 500_000, 90),
        (5, 500_000, 90),
    ]
    row = next(row for row in comparison["budgets"] if row["frames"] == 100_000)
    assert row["released"] == {"mean": 364.41, "std": 132.098, "seeds": 10, "interpolated": False}
    assert row["scores"] == pytest.approx([475.218, 475.218 + 4 * 156.817])
    assert row["verdict"] == "above"
    assert row["interval"] is None
    assert comparison["reach"] == [{"score": 600.0, "runs": [200_000, 50_000], "released": 200_000}]


def test_aggregates_are_printed(tmp_path, capsys):
    paths = []
    for task in ("dmc_walker_walk", "dmc_cheetah_run"):
        reference = released.get("dmc_proprio", task)
        paths.append(str(write(tmp_path / task, episodes(reference), f"task={task}", "env.repeat=2")))
    assert compare.main(paths) == 0
    output = capsys.readouterr().out
    walk, run = (released.get("dmc_proprio", f"dmc_{task}").at(500_000) for task in ("walker_walk", "cheetah_run"))
    assert walk is not None
    assert run is not None
    mean = f"{(walk.mean + run.mean) / 2000:.3f}"
    assert "dmc_proprio, 2 tasks: normalised (returns divided by 1000), dreamerv3 on the same tasks" in output
    line = next(line for line in output.splitlines() if line.startswith("  500,000      2"))
    assert line.split() == ["500,000", "2", *[mean] * 4]
    assert compare.main([*paths, "--json"]) == 0
    (total,) = json.loads(capsys.readouterr().out)["aggregates"]
    assert total["suite"] == "dmc_proprio"
    assert total["budgets"][-1]["tasks"] == ["dmc_walker_walk", "dmc_cheetah_run"]


def test_a_task_without_released_scores(tmp_path, capsys):
    logged = [f'{{"env_steps": {n}, "episode/score": 1, "episode/log/crafter_score": 2.5}}' for n in (10, 20)]
    path = str(write(tmp_path / "run", logged, "task=crafter_reward"))
    assert compare.main([path]) == 2
    assert "Error: There is no released score for the task 'crafter_reward'." in capsys.readouterr().err
    assert compare.main([path, "--reference", "none", "--reach", "1"]) == 0
    output = capsys.readouterr().out
    assert "compared with nothing" in output
    assert f"Crafter score 2.5 % of {path}" in output
    assert re.search(r"\n  frames to score  here  released\n  1 +10 +-\n", output)


def test_a_success_rate_has_a_column_where_it_is_reported(tmp_path, capsys):
    paths = []
    for seed, flag in enumerate((0, 1)):
        logged = [f'{{"env_steps": {n}, "episode/score": 2.5, "episode/success": {flag}}}' for n in (10, 20)]
        paths.append(str(write(tmp_path / str(seed), logged, "task=mine:make", f"seed={seed}")))
    assert compare.main([*paths, "--reference", "none"]) == 0
    assert re.search(r"episodes  success.*\n.*(\n.*)*  20 +2\.50 +2 +4 +50%", capsys.readouterr().out)
    assert compare.main([*paths, "--reference", "none", "--json"]) == 0
    (comparison,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert comparison["budgets"][-1]["success"] == 0.5


@pytest.mark.parametrize("argv", [["nowhere"], ["{run}", "--reference", "x"], ["{run}", "--out", "{tmp}/none/x.png"]])
def test_an_error_is_one_line(argv, runs, tmp_path, capsys):
    assert compare.main([word.format(run=runs[0], tmp=tmp_path) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert err.endswith(".\n")


def test_a_picture_in_an_unsupported_format(runs, tmp_path, capsys):
    assert compare.main([runs[0], "--out", str(tmp_path / "x.mp4")]) == 2
    err = capsys.readouterr().err
    assert "x.mp4' cannot be written: Format 'mp4' is not supported" in err
    assert err.count("\n") == 1


def colour_rows(image: np.ndarray, color: tuple[int, int, int]) -> set[int]:
    """Rows of an image with a colour."""
    return set(np.flatnonzero((np.abs(image.astype(int) - color).max(-1) <= 2).any(1)).tolist())


def test_the_picture(runs, tmp_path, capsys):
    path = tmp_path / "out.png"
    assert compare.main([*runs, "--out", str(path)]) == 0
    assert capsys.readouterr().out.endswith(f"Picture: {path}\n")
    image = np.asarray(Image.open(path).convert("RGB"))
    assert image.shape == (552, 864, 3)
    # The second run scores far above the first one: its line is higher.
    first = colour_rows(image, (0x1F, 0x4E, 0x79))
    second = colour_rows(image, (0xC0, 0x5A, 0x1A))
    assert min(second) < min(first)
    assert colour_rows(image, (0x8A, 0x8F, 0x98))


@pytest.mark.slow
def test_a_picture_of_many_seeds_tasks_and_an_aggregate(tmp_path):
    paths = []
    for task in ("dmc_walker_walk", "dmc_cheetah_run", "dmc_finger_spin"):
        reference = released.get("dmc_proprio", task)
        for seed in range(3 if task == "dmc_walker_walk" else 1):
            overrides = (f"task={task}", f"seed={seed}", "env.repeat=2")
            paths.append(str(write(tmp_path / f"{task}{seed}", episodes(reference, seed - 1.0), *overrides)))
    paths.append(str(write(tmp_path / "new", [], "task=dmc_walker_stand")))
    path = tmp_path / "out.png"
    assert compare.main([*paths, "--out", str(path)]) == 0
    # Five panels in two rows of three; the sixth is blank.
    image = np.asarray(Image.open(path).convert("RGB"))
    assert image.shape == (936, 1656, 3)
    assert (image[-450:, -540:] == 255).all()
    assert not (image[-450:, :540] == 255).all()


def test_the_documentation_names_every_suite():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "compare.md").read_text()
    for suite in released.suites():
        assert f"`{suite}`" in text


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["a link", "a pipe", "a directory"])
def test_a_picture_is_not_drawn_through_what_is_no_file(tmp_path, capsys, kind):
    run = str(write(tmp_path / "run", [(10, 1.0), (20, 2.0)]))
    path = tmp_path / "compare.png"
    precious = tmp_path / "precious"
    precious.write_text("precious")
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a link":
        path.symlink_to(precious)
    else:
        path.mkdir()
    assert compare.main([run, "--reference", "none", "--out", str(path)]) == 2
    said = capsys.readouterr().err
    assert said == f"Error: The picture '{path}' cannot be written: it is {kind}, expected a file or nothing.\n"
    assert precious.read_text() == "precious"
    assert not list(tmp_path.glob(".new*"))


def test_names_with_dollars_and_homes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("one", "two"):
        write(tmp_path / name, [(10, 1.0), (20, 2.0)], "task=gym_$x_$-v1", f"load.from=${name}_{{$")
    assert compare.main(["~/one", "~/two", "--reference", "none", "--out", "~/a picture"]) == 0
    assert f"Picture: {tmp_path / 'a picture.png'}" in capsys.readouterr().out
    with Image.open(tmp_path / "a picture.png") as picture:
        assert picture.size[0] > 100


def test_lines_that_were_left_out_are_named(tmp_path, capsys):
    run = write(tmp_path, [(10, 1.0), '{"env_steps": 15, "episode/score": "high"}', (20, 2.0)])
    assert compare.main([str(run), "--reference", "none"]) == 0
    said = capsys.readouterr()
    assert said.err == (
        f"Warning: In {run / 'metrics.jsonl'}, line 2 has no number as its 'episode/score', and was left out.\n"
    )
    assert "1 run, seed 0" in said.out
