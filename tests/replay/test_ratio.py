import json

import pytest

from dreamer.replay import TrainRatio


def run(ratio, steps, ready=True):
    return [ratio.updates_due(step, ready) for step in steps]


def test_counting_starts_when_replay_is_ready():
    ratio = TrainRatio(32.0, 64)
    assert run(ratio, [16, 512, 1008], ready=False) == [0, 0, 0]
    assert run(ratio, [1024]) == [0]  # No updates for the 1024 steps before.
    assert run(ratio, [1040, 1056]) == [8, 8]


def test_fractions_are_carried():
    ratio = TrainRatio(32.0, 1024)  # One update for every 32 agent steps.
    assert run(ratio, range(100, 100 + 8 * 13, 8)) == [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]
    ratio = TrainRatio(48.0, 64)
    assert run(ratio, range(6)) == [0, 0, 1, 1, 1, 0]


def test_several_updates_at_once():
    ratio = TrainRatio(512.0, 1024)
    assert run(ratio, [0, 3, 6, 16]) == [0, 1, 2, 5]


def test_the_same_count_gives_no_updates():
    ratio = TrainRatio(64.0, 64)
    assert run(ratio, [5, 6, 6, 7]) == [0, 1, 0, 1]


def test_long_run_keeps_the_ratio():
    ratio = TrainRatio(0.3, 16)
    updates = sum(run(ratio, range(0, 160_001, 4)))
    assert updates in (2999, 3000)
    assert ratio.true_ratio == pytest.approx(0.3, rel=1e-3)


def test_true_ratio_counts_from_the_start_of_learning():
    ratio = TrainRatio(32.0, 64)
    assert ratio.true_ratio == 0
    run(ratio, [1000], ready=False)
    run(ratio, [2000, 2001])
    assert ratio.true_ratio == 0  # Half an update was earned, none was run.
    run(ratio, [2003])
    assert ratio.true_ratio == pytest.approx(64 / 3)
    run(ratio, [2004])
    assert ratio.true_ratio == 32


def test_steps_while_not_ready_earn_nothing():
    ratio = TrainRatio(64.0, 64)
    run(ratio, [0, 1])
    assert run(ratio, [500, 900], ready=False) == [0, 0]
    assert run(ratio, [1000, 1002]) == [0, 2]


@pytest.mark.parametrize("split", range(8))
def test_restored_ratio_continues_exactly(split):
    steps = list(range(10, 50, 5))
    whole = TrainRatio(10.0, 64)
    expected = run(whole, steps)
    first, second = TrainRatio(10.0, 64), TrainRatio(10.0, 64)
    got = run(first, steps[:split])
    second.restore(json.loads(json.dumps(first.state())))
    assert got + run(second, steps[split:]) == expected
    assert second.true_ratio == whole.true_ratio
    assert sum(expected) == 5


def test_another_ratio_after_restore_gives_no_burst():
    saved = TrainRatio(32.0, 1024)
    run(saved, [0, 100_000, 100_031])
    higher = TrainRatio(1024.0, 1024)
    higher.restore(saved.state())
    assert run(higher, [100_032, 100_033]) == [1, 1]
    lower = TrainRatio(1.0, 1024)
    lower.restore(saved.state())
    assert sum(run(lower, range(100_032, 102_080))) in (2, 3)


def test_smaller_batches_after_restore_give_no_burst():
    saved = TrainRatio(1.0, 1024)
    run(saved, [0, 1000])  # 1000 replayed steps are owed: almost one old batch, 125 new ones.
    smaller = TrainRatio(1.0, 8)
    smaller.restore(saved.state())
    assert run(smaller, [1000, 1008]) == [0, 1]


def test_errors():
    with pytest.raises(ValueError, match=r"ratio is 0\.0"):
        TrainRatio(0.0, 64)
    with pytest.raises(ValueError, match="ratio is nan"):
        TrainRatio(float("nan"), 64)
    with pytest.raises(ValueError, match="replays 0 steps"):
        TrainRatio(1.0, 0)
    ratio = TrainRatio(1.0, 64)
    run(ratio, [10])
    with pytest.raises(ValueError, match="went back from 10 to 9"):
        run(ratio, [9])
    with pytest.raises(ValueError, match="lacks credit, previous"):
        ratio.restore({"agent_steps": 0, "replayed_steps": 0})
