"""Learning curves as runs leave them: whole, unfinished, resumed, invalid, of one agent and of populations."""

import json
import pathlib

import numpy as np
import pytest

from dreamer import config as configs
from dreamer.compare import curves
from dreamer.compare.curves import CurveError, Point, RunCurve


def write(path, lines, *overrides, end=""):
    """A run directory with these lines of metrics; numbers are (env steps, score of an episode)."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(configs.to_yaml(configs.load([], [f"logdir={path}", *overrides])))
    texts = [
        line if isinstance(line, str) else json.dumps({"env_steps": line[0], "episode/score": line[1]})
        for line in lines
    ]
    (path / "metrics.jsonl").write_text("".join(f"{text}\n" for text in texts) + end)
    return path


def run(episodes, end=0, config=None):
    """A run in memory."""
    frames, scores = zip(*episodes, strict=True) if episodes else ((), ())
    end = end or (max(frames) if frames else 0)
    return RunCurve(
        pathlib.Path("run"), config or configs.Config(), np.array(frames, int), np.array(scores, float), end
    )


def test_a_run_that_is_still_training(tmp_path):
    path = write(tmp_path, [(10, 1.5), '{"env_steps": 15, "loss/total": 2}', (20, 2)], end='{"env_steps": 30, "epi')
    (found,) = curves.read(path)
    assert found.frames.tolist() == [10, 20]
    assert found.scores.tolist() == [1.5, 2.0]
    assert (found.end, found.suite_score, found.config.task) == (20, None, "gym_CartPole-v1")
    (empty,) = curves.read(write(tmp_path / "new", []))
    assert (empty.end, len(empty.frames), empty.at(100)) == (0, 0, None)


def test_the_later_lines_of_repeated_steps_count(tmp_path):
    lines = [(10, 1.0), (20, 2.0), (30, 3.0), '{"env_steps": 15, "save/seconds": 1}', (25, 9.0), "\0" * 8, (30, 8.0)]
    (found,) = curves.read(write(tmp_path, lines))
    assert found.frames.tolist() == [10, 25, 30]
    assert found.scores.tolist() == [1.0, 9.0, 8.0]


def test_the_crafter_score_is_that_of_the_last_episode(tmp_path):
    logged = [f'{{"env_steps": {n}, "episode/score": 1, "episode/log/crafter_score": {n / 10}}}' for n in (10, 25)]
    (found,) = curves.read(write(tmp_path, [*logged, '{"env_steps": 30}']))
    assert found.suite_score == 2.5


def test_success_is_averaged_over_the_same_episodes_as_scores(tmp_path):
    flags = [1, 0] * 10
    logged = [f'{{"env_steps": {n}, "episode/score": 1, "episode/success": {f}}}' for n, f in enumerate(flags, 1)]
    (found,) = curves.read(write(tmp_path / "told", [*logged, (21, 1.0)]))
    assert found.at(20) == Point(1.0, curves.LEAST, 0.5)
    assert found.at(21) == Point(1.0, curves.LEAST, 3 / 8)
    (silent,) = curves.read(write(tmp_path / "silent", [(1, 1.0)]))
    assert silent.at(1) == Point(1.0, 1, None)


@pytest.mark.parametrize(
    "line",
    [
        "step,return",
        "[1, 2]",
        "[" * 100_000,
        '{"env_steps": 3, "episode/score": NaN}',
        '{"step": 3}',
        '{"env_steps": "3"}',
        '{"env_steps": true}',
        '{"env_steps": -1}',
        '{"env_steps": 3, "episode/score": "high"}',
    ],
)
def test_invalid_lines_are_left_out_by_number(line, tmp_path):
    (found,) = curves.read(write(tmp_path, [(1, 1.0), line, (4, 2.0)]))
    assert found.frames.tolist() == [1, 4]
    (complaint,) = found.complaints
    assert complaint.startswith(f"In {tmp_path / 'metrics.jsonl'}, line 2 ")
    with pytest.raises(
        CurveError, match=r"metrics\.jsonl does not hold the metrics of a run: line 1 .*Give the direct"
    ):
        curves.read(write(tmp_path, [line]))


def test_a_score_that_was_not_finite_is_no_score(tmp_path):
    (found,) = curves.read(write(tmp_path, [(1, 1.0), '{"env_steps": 3, "episode/score": null}']))
    assert (found.frames.tolist(), found.end, found.complaints) == ([1], 3, ())


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl"])
def test_a_directory_that_is_not_a_run(missing, tmp_path):
    path = write(tmp_path / "run", [(1, 1.0)])
    (path / missing).unlink()
    with pytest.raises(CurveError, match=rf"run has no {missing}, expected the directory of a run"):
        curves.read(path)


def test_a_population_is_read_as_its_members(tmp_path):
    write(tmp_path, [(1, 0.0)], "population.seeds=2", "population.sweep=['optimizer.lr=[1e-4, 3e-4]']", "seed=3")
    for rate in ("0.0001", "0.0003"):
        for seed in (3, 4):
            overrides = (f"seed={seed}", f"optimizer.lr={rate}")
            write(tmp_path / f"lr_{rate}-seed_{seed}", [(10, float(seed))], *overrides)
    found = curves.read(tmp_path)
    assert [(run.config.seed, run.scores.tolist()) for run in found] == [(3, [3.0]), (4, [4.0])] * 2
    groups = curves.group(found)
    assert [(group.label, len(group.runs)) for group in groups] == [
        ("optimizer.lr=0.0001", 2),
        ("optimizer.lr=0.0003", 2),
    ]
    (tmp_path / "lr_0.0003-seed_4" / "metrics.jsonl").unlink()
    with pytest.raises(CurveError, match=r"seed_4 has no metrics\.jsonl: this member .* has not begun"):
        curves.read(tmp_path)


def test_runs_are_grouped_by_task_and_by_the_keys_that_affect_learning(tmp_path):
    overrides = [
        ("seed=1", "run.env_steps=10", "run.save_every=5", "env.workers=async", "devices=all"),
        ("seed=2",),
        ("seed=3", "run.train_ratio=64"),
        ("seed=4", "task=gym_Acrobot-v1"),
    ]
    runs = [run for n, keys in enumerate(overrides) for run in curves.read(write(tmp_path / str(n), [(1, 1.0)], *keys))]
    groups = [(group.task, group.label, [run.config.seed for run in group.runs]) for group in curves.group(runs)]
    assert groups == [
        ("gym_CartPole-v1", "run.train_ratio=32", [1, 2]),
        ("gym_CartPole-v1", "run.train_ratio=64", [3]),
        ("gym_Acrobot-v1", "", [4]),
    ]


def test_settings_that_differ_in_many_keys_are_named_by_a_directory(tmp_path):
    many = ("rssm.deter=64", "rssm.hidden=32", "rssm.stoch=4", "nets.units=8", "nets.depth=4", "optimizer.lr=1e-3")
    one, two = (curves.read(write(tmp_path / name, [(1, 1.0)], *keys)) for name, keys in (("v1", ()), ("v2", many)))
    assert [group.label for group in curves.group(one + two)] == ["v1: 6 settings differ", "v2: 6 settings differ"]
    few = curves.read(write(tmp_path / "v3", [(1, 1.0)], *many[1:]))
    assert [group.label for group in curves.group(one + few)][1].count("=") == 5


def test_a_score_is_the_mean_of_a_tenth_of_the_frames_or_of_eight_episodes():
    # Every frame from 1 on ends an episode that scores its number.
    dense = run([(n, float(n)) for n in range(1, 201)])
    assert dense.at(200) == Point(190.5, 20)
    assert dense.at(100) == Point(95.5, 10)
    assert dense.at(20) == Point(16.5, 8)
    assert dense.at(3) == Point(2.0, 3)
    assert dense.at(0) is None
    # An episode that ends exactly at the number of frames counts; later ones do not.
    assert run([(10, 1.0), (20, 5.0), (30, 99.0)]).at(20) == Point(3.0, 2)


def test_frames_to_a_score():
    found = run([(n * 10, float(n)) for n in range(1, 21)], end=205)
    assert found.at(100) == Point(6.5, 8)
    assert found.reach(5.0, [50, 100, 150]) == 100
    assert found.reach(17.0, [100, 200, 300]) is None
    assert found.reach(16.5, [100, 200]) == 200
