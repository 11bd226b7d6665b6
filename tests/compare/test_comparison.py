"""Comparisons: published numbers for runs that have them, verdicts, intervals, aggregates, and frames to a score."""

import dataclasses
import functools

import numpy as np
import pytest

from dreamer import config as configs
from dreamer.compare import comparison, curves, released
from dreamer.evaluate import statistics
from tests.compare.test_curves import run

WALKER = ("task=dmc_walker_walk", "env.repeat=2")


def episodes(reference, shift=0.0, count=10):
    """Episodes just before every released number of frames, whose scores scatter around the released mean."""
    wiggles = np.linspace(-20, 20, count)
    return [
        (int(frames) - count + 1 + i, float(mean + shift * std + wiggle))
        for frames, mean, std in zip(reference.frames, reference.mean, reference.std, strict=True)
        for i, wiggle in enumerate(wiggles)
    ]


@functools.cache
def config(*overrides):
    return configs.load([], list(overrides))


def seeds(lists, *overrides, end=0):
    """Runs in memory, with seeds 0, 1, ..."""
    return [run(one, end, dataclasses.replace(config(*overrides), seed=n)) for n, one in enumerate(lists)]


def compare(lists, reach=(), overrides=WALKER, end=0):
    (group,) = curves.group(seeds(lists, *overrides, end=end))
    return comparison.compare(group, released.find(group.runs[0].config), reach)


@pytest.fixture
def walker():
    return released.get("dmc_proprio", "dmc_walker_walk")


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.0, "inside"), (0.99, "inside"), (-0.99, "inside"), (1.01, "above"), (-1.01, "below")]
)
def test_a_run_with_the_released_curve_has_its_numbers(shift, verdict, walker):
    rows = compare([episodes(walker, shift)]).rows
    assert [row.frames for row in rows] == walker.frames.tolist()
    np.testing.assert_allclose([row.score for row in rows], walker.mean + shift * walker.std, rtol=1e-12)
    assert [row.released for row in rows] == [walker.at(int(frames)) for frames in walker.frames]
    assert {row.verdict for row in rows} == {verdict}
    assert {row.episodes for row in rows} == {10}


def test_an_unfinished_run_is_compared_up_to_its_end(walker):
    done = [(frames, score) for frames, score in episodes(walker) if frames <= 100_000]
    rows = compare([[*done, *((150_000 - 10 + n, 700.0) for n in range(11))]]).rows
    assert [row.frames for row in rows] == [10_000, 25_000, 50_000, 100_000, 150_000]
    last = rows[-1]
    assert last.score == 700
    assert last.released is not None
    assert last.released.interpolated
    assert last.released.mean == pytest.approx((475.218 + 799.49) / 2)
    assert last.verdict == "inside"
    # A few frames beyond a released number do not get their own row.
    assert len(compare([[*done, (101_000, 500.0)]]).rows) == 4


def test_before_the_first_and_after_the_last_released_number_there_is_nothing_to_compare(walker):
    (row,) = compare([[(1000, 3.0), (5000, 5.0)]]).rows
    assert (row.frames, row.score, row.released, row.verdict) == (5000, 4.0, None, None)
    long = compare([[*episodes(walker), (700_000, 900.0)]]).rows[-1]
    assert (long.frames, long.released) == (700_000, None)
    (row,) = compare([[]], end=10_000).rows
    assert (row.score, row.verdict, row.episodes) == (None, None, 0)
    assert compare([[]]).rows == ()


def test_seeds_have_a_mean_with_an_interval_from_three_on(walker):
    lists = [episodes(walker, shift) for shift in (-2.0, 0.0, 1.0, 4.0)]
    rows = compare(lists).rows
    for row, mean, std in zip(rows, walker.mean, walker.std, strict=True):
        assert row.scores == pytest.approx((mean - 2 * std, mean, mean + std, mean + 4 * std))
        assert row.score == pytest.approx(mean + 0.75 * std)
        assert row.verdict == "inside"
        low, _ = row.interval
        assert row.interval == statistics.interval([row.scores], np.mean)
        assert low < row.score
        assert row.episodes == 40
    assert {row.interval for row in compare(lists[:2]).rows} == {None}
    # A run that has not got this far does not count.
    rows = compare([*lists[:3], episodes(walker)[:20]]).rows
    assert [len(row.scores) for row in rows[:3]] == [4, 4, 3]


def test_runs_and_references_reach_scores_at_the_same_numbers_of_frames(walker):
    lists = [[(frames, frames / 200) for frames in range(1000, 160_001, 1000)], [(160_000, 0.0)]]
    by_score = {line.score: line for line in compare(lists).frames_to_scores}
    # At 40,000 frames the mean of 37,000 to 40,000 and four episodes before is below 200.
    assert by_score[200.0] == comparison.FramesToScore(200.0, (50_000, None), 40_000)
    assert by_score[700.0] == comparison.FramesToScore(700.0, (150_000, None), 150_000)
    assert by_score[900.0] == comparison.FramesToScore(900.0, (None, None), 230_000)
    (wanted,) = compare(lists, reach=(450.0,)).frames_to_scores
    assert wanted == comparison.FramesToScore(450.0, (100_000, None), 100_000)


def test_without_a_reference_the_scores_stand_alone():
    (group,) = curves.group([run([(n, float(n)) for n in range(1, 1001)])])
    found = comparison.compare(group, None, [600.0])
    assert [row.frames for row in found.rows] == [100 * n for n in range(1, 11)]
    assert found.rows[-1].score == np.mean(range(901, 1001))
    assert found.rows[-1].verdict is None
    assert found.frames_to_scores == (comparison.FramesToScore(600.0, (632,), None),)
    assert found.differences() == {}


def test_settings_that_differ_from_the_released_ones_are_named(walker):
    same = ("env.repeat=2", "rssm.deter=2048", "run.train_ratio=512")
    assert compare([episodes(walker)], overrides=(WALKER[0], *same)).differences() == {}
    other = compare([episodes(walker)], overrides=(WALKER[0], *same, "run.train_ratio=256"))
    assert other.differences() == {"run.train_ratio": (512.0, 256.0)}


def suite(name, tasks, shifts, *overrides):
    """Aggregates over runs with the released curves of some tasks, shifted by ``shifts`` standard deviations."""
    runs = []
    for task in tasks:
        lists = [episodes(released.get(name, task), shift) for shift in shifts]
        runs += [
            dataclasses.replace(member, config=dataclasses.replace(member.config, task=task))
            for member in seeds(lists, *overrides)
        ]
    return comparison.aggregate(
        [comparison.compare(group, released.find(group.runs[0].config)) for group in curves.group(runs)]
    )


def test_an_aggregate_over_the_same_tasks():
    games = ["atari_breakout", "atari_pong", "atari_qbert"]
    (total,) = suite("atari100k", games, [0.0], "run.env_steps=400000")
    last = total.rows[-1]
    assert (last.frames, last.tasks) == (400_000, tuple(games))
    assert last.mean_interval is None
    # By hand, with the scores of random and of human players.
    qbert = released.get("atari100k", "atari_qbert").at(400_000)
    assert qbert is not None
    by_hand = [(8.894 - 1.7) / 28.8, (-4.9 + 20.7) / 35.3, (qbert.mean - 163.9) / 13291.1]
    assert (last.mean, last.median) == pytest.approx((np.mean(by_hand), np.median(by_hand)))
    assert (last.released_mean, last.released_median) == pytest.approx((last.mean, last.median))
    assert [row.frames for row in total.rows] == [10_000, 25_000, 50_000, 100_000, 200_000, 300_000, 400_000]
    assert total.title == "atari100k, 3 tasks"


def test_an_aggregate_of_all_tasks_is_the_released_one():
    (total,) = suite("dmc_proprio", released.tasks("dmc_proprio"), [0.0])
    row = total.rows[-1]
    assert (row.frames, len(row.tasks), row.mean_interval) == (500_000, 18, None)
    assert (row.mean, row.median) == pytest.approx((0.7578, 0.8685), abs=1e-4)


def test_an_aggregate_of_several_seeds_draws_from_those_of_each_task():
    tasks = ["dmc_walker_walk", "dmc_cheetah_run"]
    (total,) = suite("dmc_proprio", tasks, [-1.0, 1.0, 3.0])
    row = total.rows[-1]
    bands = [released.get("dmc_proprio", task).at(500_000) for task in tasks]
    mean, std = (np.array([getattr(band, name) for band in bands]) / 1000 for name in ("mean", "std"))
    assert row.mean == pytest.approx((mean + std).mean())
    assert row.mean_interval is not None
    assert row.median_interval == row.mean_interval
    # The extremes are resamples with the same run three times on both tasks, one in 729 each.
    low, high = row.mean_interval
    assert (mean - std).mean() < low < row.mean < high < (mean + 3 * std).mean()


def test_settings_are_aggregated_separately_and_one_task_is_not_aggregated():
    runs = []
    for task, *overrides in (["dmc_walker_walk"], ["dmc_walker_run"], ["dmc_walker_walk", "run.train_ratio=64"]):
        runs += seeds([episodes(released.get("dmc_proprio", task))], f"task={task}", *overrides)
    groups = curves.group(runs)
    comparisons = [comparison.compare(group, released.find(group.runs[0].config)) for group in groups]
    assert len(comparisons) == 3
    (total,) = comparison.aggregate(comparisons)
    assert [member.group.runs[0].config.run.train_ratio for member in total.comparisons] == [32, 32]
    assert comparison.aggregate([comparison.compare(group, None) for group in groups]) == []


def test_the_statistic_over_tasks_is_that_of_means_over_runs():
    rows = [np.array([[1.0, 3.0], [2.0, 2.0]]), np.array([[10.0, 10.0, 13.0], [0.0, 0.0, 0.0]])]
    np.testing.assert_array_equal(comparison._over_tasks(np.mean)(*rows, axis=-1), [6.5, 1.0])
    assert run([(1, 1.0)]).at(1) == curves.Point(1.0, 1)
