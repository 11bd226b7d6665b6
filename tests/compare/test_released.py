"""Released scores: the right table, the published numbers, and errors where there are none."""

import csv
import pathlib

import numpy as np
import pytest

from dreamer import config as configs
from dreamer.compare import released
from dreamer.compare.released import NoReference, Score


def config(*overrides, presets=()):
    return configs.load(presets, list(overrides))


@pytest.mark.parametrize(
    ("presets", "overrides", "suite"),
    [
        (["dmc_proprio"], ["task=dmc_walker_walk"], "dmc_proprio"),
        (["dmc_vision"], ["task=dmc_walker_walk"], "dmc_vision"),
        (["dmc_small"], [], "dmc_proprio"),
        (["dmc_vision"], ["task=dmc_quadruped_run"], "dmc_vision"),
        (["atari100k"], [], "atari100k"),
        (["atari100k"], ["run.env_steps=400001"], "atari57"),
        (["atari57"], ["task=atari_breakout"], "atari57"),
        (["atari100k"], ["task=atari_zaxxon"], "atari57"),
        ([], ["task=procgen_coinrun"], "procgen"),
    ],
)
def test_task_and_config_choose_the_table(presets, overrides, suite):
    run = config(*overrides, presets=presets)
    found = released.find(run)
    assert (found.suite, found.task, found.method) == (suite, run.task, "dreamerv3")


def test_a_published_row():
    found = released.get("dmc_proprio", "dmc_walker_walk")
    ppo = released.get("dmc_proprio", "dmc_walker_walk", "ppo_fixhp")
    pong = released.get("atari100k", "atari_pong")
    assert found.at(100_000) == Score(475.218, 156.817, 5, interpolated=False)
    assert found.at(500_000) == Score(880.966, 77.944, 5, interpolated=False)
    assert ppo.at(100_000) == Score(39.016, 1.72, 5, interpolated=False)
    assert pong.at(400_000) == Score(-4.9, 3.184, 5, interpolated=False)
    assert found.name == "dreamerv3 in dmc_proprio"


def test_between_released_frames_the_score_is_interpolated_and_outside_there_is_none():
    found = released.get("dmc_proprio", "dmc_walker_walk")
    middle = found.at(150_000)
    assert middle is not None
    assert middle.interpolated
    assert middle.mean == pytest.approx((475.218 + 799.49) / 2)
    assert middle.std == pytest.approx((156.817 + 74.819) / 2)
    assert middle.seeds == 5
    assert found.at(9_999) is None
    assert found.at(500_001) is None


@pytest.mark.parametrize(
    ("score", "expected"),
    [(90.0, "inside"), (110.0, "inside"), (100.0, "inside"), (110.1, "above"), (89.9, "below")],
)
def test_the_band_is_one_standard_deviation_to_either_side(score, expected):
    assert Score(100.0, 10.0, 5, interpolated=False).verdict(score) == expected
    assert Score(100.0, 0.0, 1, interpolated=False).verdict(score) == "one seed"


def test_frames_to_a_score():
    found = released.get("dmc_proprio", "dmc_walker_walk")
    assert [found.reach(score) for score in (200.0, 500.0, 700.0, 800.0, 900.0)] == [
        40_000,
        110_000,
        150_000,
        190_000,
        230_000,
    ]
    # At other scores, only the released rows count: 799 at 200,000 frames and 890 at 250,000.
    assert (found.reach(799.0), found.reach(801.0), found.reach(999.0)) == (200_000, 250_000, None)
    assert found.grid(700.0, 25_000) == [10_000, 20_000]
    assert found.grid(701.0, 60_000) == [10_000, 25_000, 50_000]
    assert released.get("dmc_vision", "dmc_walker_walk").grid(700.0, 45_000) == [20_000, 40_000]
    assert released.get("dmc_proprio", "dmc_hopper_hop").reach(200.0) is None
    # The thresholds are those of DreamerV3 alone.
    assert released.get("dmc_proprio", "dmc_walker_walk", "d4pg").reach(800.0) == 200_000


def test_scores_are_normalised_as_papers_do():
    assert released.normalise("atari_pong", -20.7) == 0
    assert released.normalise("atari_pong", 14.6) == 1
    assert released.normalise("atari_breakout", 30.5 + 28.8) == pytest.approx(2)
    assert released.normalise("dmc_walker_walk", 250.0) == 0.25
    assert released.normalise("crafter_reward", 1.0) is None


@pytest.mark.parametrize(
    ("suite", "method", "frames", "mean", "median"),
    [
        # Rows of aggregates.csv of the same release, over all tasks.
        ("dmc_proprio", "dreamerv3", 500_000, 0.7578, 0.8685),
        ("dmc_vision", "dreamerv3", 1_000_000, 0.7865, 0.864),
        ("atari100k", "dreamerv3", 400_000, 1.2303, 0.4549),
        ("atari57", "dreamerv3", 200_000_000, 33.6872, 8.3078),
        ("atari57", "dreamerv3", 1_000_000, 0.0844, 0.0217),
    ],
)
def test_means_over_all_tasks_are_the_released_aggregates(suite, method, frames, mean, median):
    scores = []
    for task in released.tasks(suite):
        score = released.get(suite, task, method).at(frames)
        normal = released.normalise(task, score.mean) if score else None
        assert normal is not None
        scores.append(normal)
    assert (np.mean(scores), np.median(scores)) == pytest.approx((mean, median), abs=1e-4)


@pytest.mark.parametrize(
    ("overrides", "name", "method", "message"),
    [
        (
            ["task=dmc_walker_wolk"],
            "",
            "",
            r"no released score for the task 'dmc_walker_wolk'\. Did you mean 'dmc_walker",
        ),
        (["task=playground_WalkerWalk"], "", "", r"Did you mean 'dmc_walker_walk'\? Choose.*--reference SUITE/TASK"),
        (["task=gym_CartPole-v1"], "", "", r"the suites atari100k, atari57, dmc_proprio, dmc_vision, .*procgen\.$"),
        (["task=dmc_walker_walk", "env.dmc.obs=both"], "", "", "sees env.dmc.obs=both, .* for dmc_proprio, dmc_vision"),
        (["task=dmc_quadruped_run"], "", "", "sees env.dmc.obs=proprio, .* --reference dmc_vision"),
        (["task=dmc_walker_walk"], "dmc_propio", "", r"no reference 'dmc_propio'\. Did you mean 'dmc_proprio'\? There"),
        (["task=x"], "procgen/procgen_coinrn", "", r"has no task 'procgen_coinrn'\. Did you mean 'procgen_coinrun' or"),
        (
            ["task=dmc_walker_walk"],
            "",
            "td3",
            r"dmc_proprio has no method 'td3' on dmc_walker_walk\. .*dreamerv3, d4pg",
        ),
    ],
)
def test_an_error_names_the_nearest_references(overrides, name, method, message):
    with pytest.raises(NoReference, match=message):
        released.find(config(*overrides), name, method)


def test_a_reference_can_be_chosen_by_name():
    found = released.find(config("task=playground_WalkerWalk"), "dmc_vision/dmc_walker_walk", "drqv2")
    assert (found.suite, found.task, found.method) == ("dmc_vision", "dmc_walker_walk", "drqv2")
    found = released.find(config("task=dmc_walker_walk"), "dreamerv1_dmc_vision")
    assert (found.method, found.at(105_000)) == ("dreamer", found.at(int(found.frames[0])))


def test_tables_are_complete_and_small():
    paths = sorted(released.TABLES.iterdir())
    assert sum(path.stat().st_size for path in paths) < 400_000
    assert {path.suffix for path in paths} == {".csv", ".md"}
    for suite in released.suites():
        for task in released.tasks(suite):
            for method in released.methods(suite, task):
                found = released.get(suite, task, method)
                assert (np.diff(found.frames) > 0).all()
                assert (found.std >= 0).all()
                assert (found.seeds >= 1).all()
    text = (released.TABLES / "README.md").read_text()
    assert [path.name for path in paths if path.suffix == ".csv" and path.name not in text] == []


def test_every_atari_game_that_was_released_can_be_normalised():
    with (pathlib.Path(released.TABLES) / "atari_human.csv").open() as file:
        games = {f"atari_{row['game']}" for row in csv.DictReader(file)}
    assert games == set(released.tasks("atari57"))
    assert games >= set(released.tasks("atari100k"))
