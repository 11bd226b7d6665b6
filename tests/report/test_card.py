"""The report card of a model of a world that counts, and the functions that its numbers are made of."""

import json

import numpy as np
import pytest

from dreamer.report import bootstrap, calibration
from dreamer.report import card as report_card
from dreamer.report.dream_batches import Budget, Points, choose_points, reach
from tests import counter_world as world

BUDGET = Budget(steps=8, context=2, starts=64, samples=3, rows=16, chunk=5)


def measure(faults, held_out, *overrides):
    nets, config = world.networks(faults, *overrides), world.config(*overrides)
    return report_card.measure(world.BEHAVIOR, nets, config, world.OBS_SPACES, held_out, budget=BUDGET)


@pytest.fixture(scope="module")
def perfect():
    """A model that is right, in episodes that a time limit cuts off."""
    return measure(world.Faults(label=1e-6), world.episodes([12, 9, 12, 10], [False] * 4))


@pytest.fixture(scope="module")
def faulty():
    """One that drifts, in episodes that end, one of them after a single step; actions are random."""
    moves = np.random.default_rng(0).integers(0, 2, (4, 11))
    held_out = world.episodes([12, 2, 12, 9], [True, True, True, False], moves)
    return measure(world.Faults(drift=0.5, posterior=(0.9, 0.1), cont=0.7, grey=0.7), held_out), held_out


def test_a_perfect_model(perfect):
    card = perfect
    assert (card.episodes, card.agent_steps, card.context, card.horizon) == (4, 39, 2, 3)
    # After eight steps, seven starts would be left, which are too few.
    assert card.starts.tolist() == [sum(max(0, n - 1 - k) for n in (12, 9, 12, 10)) for k in range(1, 8)]
    for curves in (card.obs["vector"], card.reward):
        np.testing.assert_allclose(curves.model.value, 0, atol=1e-5)
        np.testing.assert_allclose(curves.ratio, 0, atol=1e-4)
    # Everybody knows that it goes on, so a guess is never wrong.
    assert np.isnan(card.cont.ratio.value)
    np.testing.assert_allclose(card.pit, calibration.GRID, atol=1e-3)
    # With the policy of the model, what is imagined is what came.
    assert card.returns.correlation.value == pytest.approx(1, abs=1e-5)
    assert card.returns.bias.value == pytest.approx(0, abs=1e-2)
    np.testing.assert_allclose(card.kl.value, 0, atol=1e-6)
    np.testing.assert_allclose(card.prior_entropy.value, np.log(2), rtol=1e-5)
    assert card.most_entropy == pytest.approx(np.log(2))
    # Nothing is known to the end; the rest is the critic's.
    assert len(card.value.real) == 0 and len(card.value_bootstrapped.real) == 39
    assert card.terminals == 0 and calibration.calibration_error(card.reliability) < 1e-5


def test_baselines_are_those_of_the_recorded_steps(perfect):
    # The world counts on by 1: after k steps, the last observation is wrong by k in one of two entries.
    k = np.arange(1, 8)
    np.testing.assert_allclose(perfect.obs["vector"].repeat.value, k**2 / 2, rtol=1e-4)
    np.testing.assert_allclose(perfect.reward.repeat.value, k**2, rtol=1e-4)
    # From step 2 on, episodes of length n: what came k steps later, against the mean over all.
    lengths = np.array([12, 9, 12, 10])
    mean = np.concatenate([np.arange(n) for n in lengths]).mean()
    expected = [np.concatenate([np.arange(1 + k, n) for n in lengths]) for k in range(1, 8)]
    np.testing.assert_allclose(
        perfect.obs["vector"].mean.value, [((x - mean) ** 2).mean() / 2 for x in expected], rtol=1e-4
    )
    # Images are 51 and 52 in turn: the last one is wrong after an odd number of steps.
    np.testing.assert_allclose(perfect.obs["image"].repeat.value, np.where(k % 2, 1 / 255**2, 0), atol=1e-9)


def starts_of(lengths, context=2):
    """Episode and step of every start of a dream."""
    return [(e, t) for e, n in enumerate(lengths) for t in range(context - 1, n - 1)]


def test_where_the_errors_sit_is_compared_with_the_better_guess(perfect):
    """Over the three steps of the actor's horizon."""
    lengths = (12, 9, 12, 10)
    mean = np.concatenate([np.arange(n) for n in lengths]).mean()
    near = [(t, k) for e, t in starts_of(lengths) for k in (1, 2, 3) if t + k < lengths[e]]
    repeat = sum(k**2 for _, k in near) / len(near)
    constant = sum((mean - (t + k)) ** 2 for t, k in near) / len(near)
    model, guess = perfect.where["vector"]
    np.testing.assert_allclose(model, [0, 0], atol=1e-5)
    np.testing.assert_allclose(guess, [min(repeat, constant), 0], rtol=1e-4)
    assert repeat < 0.8 * constant


def test_ends_are_compared_with_guesses_that_know_how_many_there_are(faulty):
    """Three of 31 steps after a reset are ends; the other guess is that it always goes on."""
    card, held_out = faulty
    lengths = held_out.length.tolist()
    ends = [
        [held_out.batch.is_terminal[e, t + k] for e, t in starts_of(lengths) if t + k < lengths[e]]
        for k in range(1, len(card.starts) + 1)
    ]
    average = 1 - 3 / 31
    np.testing.assert_allclose(card.cont.repeat.value, [np.mean(x) for x in ends], atol=1e-9)
    np.testing.assert_allclose(
        card.cont.mean.value, [np.square(average - (1.0 - np.array(x))).mean() for x in ends], rtol=1e-6
    )


def test_rewards_are_compared_with_their_mean_after_resets(perfect):
    lengths = (12, 9, 12, 10)
    mean = np.concatenate([np.arange(1, n) for n in lengths]).mean()
    for k, found in enumerate(perfect.reward.mean.value, 1):
        later = np.array([t + k for e, t in starts_of(lengths) if t + k < lengths[e]])
        assert found == pytest.approx(np.square(later - mean).mean(), rel=1e-5)


def test_where_episodes_are_cut_off_the_last_value_stands_in(perfect):
    """The critic says twice the count, and the discount is 0.9."""
    expected = []
    for n in (12, 9, 12, 10):
        for t in range(n - 1):
            rewards = sum(0.9 ** (s - t - 1) * s for s in range(t + 1, n))
            expected.append(rewards + 0.9 ** (n - 1 - t) * 2 * (n - 1))
    np.testing.assert_allclose(np.sort(perfect.value_bootstrapped.real), np.sort(expected), rtol=1e-3)


@pytest.fixture(scope="module")
def uneven():
    """A model whose latent, end and reward depend on the count, in episodes of one step after another."""
    faults = world.Faults(leaning=0.4, cont=1.0, fading=0.07, reward_noise=0.5)
    return measure(faults, world.episodes([12, 9, 12, 10], [True] * 4))


def test_a_divergence_is_that_of_the_step_it_is_about(uneven):
    p = 1 / (1 + np.exp(-0.4 * np.arange(12)))
    kl = np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p)
    lengths = (12, 9, 12, 10)
    for k, found in enumerate(uneven.kl.value, 1):
        expected = np.mean([kl[t + k] for e, t in starts_of(lengths) if t + k < lengths[e]])
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_reward_that_is_drawn_is_right_on_average(uneven):
    """Its draws differ from each other by a half to either side; without the correction, a twelfth would be left."""
    weights = uneven.starts / uneven.starts.sum()
    assert (uneven.reward.spread * weights).sum() == pytest.approx(0.25, abs=0.02)
    assert (uneven.reward.model.value * weights).sum() == pytest.approx(0, abs=0.03)


def test_calibration_compares_each_step_with_its_own_end(uneven):
    lengths = (12, 9, 12, 10)
    near = [(e, t + k) for e, t in starts_of(lengths) for k in (1, 2, 3) if t + k < lengths[e]]
    predicted = np.array([1 - 0.07 * t for _, t in near])
    goes_on = np.array([t < lengths[e] - 1 for e, t in near])
    expected = calibration.reliability(predicted, goes_on)
    assert len(expected) > 2
    assert [b.size for b in uneven.reliability] == [b.size for b in expected]
    np.testing.assert_allclose([b.predicted for b in uneven.reliability], [b.predicted for b in expected], rtol=1e-4)
    assert [b.observed for b in uneven.reliability] == [b.observed for b in expected]


def test_a_model_that_drifts(faulty):
    card, _ = faulty
    # Half a step at each step, also while it sees: x is off by (t + 1) / 2 in step t, and dreams go on from there.
    starts = np.concatenate([np.arange(1, n - 1) for n in (12, 2, 12, 9)])
    assert card.starts[0] == len(starts)
    assert card.obs["vector"].model.value[0] == pytest.approx(((starts + 2) ** 2 / 4).mean() / 2, rel=1e-4)
    np.testing.assert_allclose(card.kl.value, 0.9 * np.log(1.8) + 0.1 * np.log(0.2), rtol=1e-4)
    np.testing.assert_allclose(card.perplexity, np.exp(-0.9 * np.log(0.9) - 0.1 * np.log(0.1)), rtol=1e-4)
    assert card.where["image"][0].shape == (4, 6)
    np.testing.assert_allclose(card.where["image"][0], 0.5**2, rtol=0.02)


def test_what_the_reward_head_explains(perfect, faulty):
    card, held_out = faulty
    # It is sure of a reward that is off by more and more.
    assert card.reward_unexplained > 1
    assert measure(world.Faults(), held_out).reward_unexplained == pytest.approx(0, abs=1e-4)
    # Where all episodes are the same, the step says it all.
    assert np.isnan(perfect.reward_unexplained)


def test_a_recurrent_state_that_counts(perfect, faulty):
    """It counts along in all episodes alike; where actions are drawn, it differs as their sums do."""
    assert perfect.recurrent_std == 0 and perfect.recurrent_rms > 1
    card, held_out = faulty
    count = held_out.batch.reward + 0.5 * (1 + np.arange(12))
    seen = [count[held_out.valid[:, t], t] for t in range(12)]
    degrees = sum(len(x) - 1 for x in seen)
    spread = np.sqrt(sum(np.square(x - x.mean()).sum() for x in seen) / degrees)
    # The other of the two units is always 0.
    assert card.recurrent_std == pytest.approx(spread / 2, rel=1e-5)
    assert card.recurrent_rms == pytest.approx(np.sqrt(np.square(np.concatenate(seen)).mean() / 2), rel=1e-5)


def test_one_episode_has_no_other_to_differ_from():
    card = measure(world.Faults(), world.episodes([9], [False]))
    assert np.isnan(card.recurrent_std) and card.recurrent_rms > 0


def test_calibration_of_the_end(faulty):
    card, _ = faulty
    (only,) = card.reliability
    assert only.predicted == pytest.approx(0.7, abs=1e-5)
    assert only.observed == pytest.approx(1 - card.terminals / only.size)
    assert calibration.calibration_error(card.reliability) == pytest.approx(abs(0.7 - only.observed), abs=1e-6)
    brier = 0.3**2 * only.observed + 0.7**2 * (1 - only.observed)
    total = (card.cont.model.value * card.starts)[:3].sum() / card.starts[:3].sum()
    assert total == pytest.approx(brier, rel=1e-4)


def test_values_where_the_end_is_known(faulty):
    card, held_out = faulty
    to_go, unseen = report_card.returns_to_go(held_out.batch.reward, held_out.batch.is_terminal, held_out.length, 0.9)
    assert len(card.value.real) == 11 + 1 + 11
    expected = np.concatenate([to_go[e, : held_out.length[e] - 1] for e in (0, 1, 2)])
    np.testing.assert_allclose(np.sort(card.value.real), np.sort(expected))
    # The critic says twice the count that the model has, which drifts by half a step each time.
    x = held_out.batch.reward + 0.5 * (1 + np.arange(12))
    predicted = np.concatenate([2 * x[e, : held_out.length[e] - 1] for e in (0, 1, 2)])
    assert card.value.bias.value == pytest.approx((predicted - expected).mean(), rel=1e-3)
    assert card.value.correlation.value == pytest.approx(np.corrcoef(predicted, expected)[0, 1], abs=1e-3)
    assert card.value.scale == pytest.approx(expected.std(), rel=1e-5)
    assert unseen[3, 8] == 1


def test_the_discount_of_the_continue_head_is_taken_out():
    held_out = world.episodes([8, 8, 8], [False] * 3)
    card = measure(world.Faults(cont=0.9), held_out, "behavior.cont_discount=true")
    # The head was trained on 0.9 where it goes on, so 0.9 says that it surely goes on.
    assert calibration.calibration_error(card.reliability) < 1e-5
    # And the discount is not applied twice.
    assert card.returns.bias.value == pytest.approx(0, abs=1e-2)


def test_all_of_it_fits_into_json(perfect, faulty):
    for card in (perfect, faulty[0]):
        text = json.dumps(card.to_json(), allow_nan=False)
        plain = json.loads(text)
        assert plain["obs"]["vector"]["ratio"].keys() == {"value", "low", "high"}
        assert plain["returns"]["pairs"] == len(card.returns.real)
        assert plain["reward_coverage"].keys() == {"0.5", "0.9"}


def test_returns_of_a_window_by_hand():
    reward = np.array([[0, 1, 2, 3, 4], [0, 5, 6, 0, 0]], np.float32)
    terminal = np.zeros((2, 5), bool)
    terminal[1, 2] = True
    points = Points(np.array([0, 0, 1, 1]), np.array([0, 3, 0, 1]))
    real, covered = report_card.window_returns(reward, terminal, np.array([5, 3]), points, 0.5, 3)
    np.testing.assert_allclose(real, [1 + 2 / 2 + 3 / 4, 4, 5 + 6 / 2, 6])
    # The second would need steps after a time limit; the last two run into the end of the task.
    assert covered.tolist() == [True, False, True, True]


def test_returns_to_go_by_hand():
    reward = np.array([[0, 1, 2, 3], [0, 5, 6, 0]], np.float32)
    terminal = np.zeros((2, 4), bool)
    terminal[1, 2] = True
    to_go, unseen = report_card.returns_to_go(reward, terminal, np.array([4, 3]), 0.5)
    np.testing.assert_allclose(to_go, np.array([[1 + 1 + 0.75, 2 + 1.5, 3, 0], [5 + 3, 6, 0, 0]]))
    np.testing.assert_allclose(unseen, np.array([[0.125, 0.25, 0.5, 1], [0, 0, 0, 0]]))


def test_errors_count_recorded_steps_alone(rng):
    model = np.array([[1.0, 2], [3, 100], [5, 6]])
    valid = np.array([[True, True], [True, False], [True, True]])
    repeat, mean = np.full((3, 2), 10.0), np.full((3, 2), 8.0)
    near = valid & np.array([True, False])
    found = report_card.error_curves((model, repeat, mean, model), valid, near, np.array([0, 1, 1]), 2, rng)
    np.testing.assert_allclose(found.model.value, [3, 4])
    np.testing.assert_allclose(found.spread, [3, 4])
    assert found.ratio.value == pytest.approx(9 / 24)
    # Two episodes: all draws are one of them alone, or both.
    np.testing.assert_allclose([found.ratio.low, found.ratio.high], [1 / 8, 8 / 16])


def test_the_uniform_share_is_no_class_in_use():
    logits = np.log(np.array([[[[1 - 1e-9, 1e-9]]], [[[1 - 1e-9, 1e-9]]]]))
    assert report_card.classes_in_use(logits, np.ones((2, 1), bool))[0] == pytest.approx(1, abs=1e-6)
    turns = np.log(np.array([[[[1 - 1e-9, 1e-9]], [[1e-9, 1 - 1e-9]]]]))
    assert report_card.classes_in_use(turns, np.ones((1, 2), bool))[0] == pytest.approx(2)
    assert report_card.classes_in_use(turns, np.array([[True, False]]))[0] == pytest.approx(1, abs=1e-6)


def test_starts_have_a_context_and_something_to_predict(rng):
    points = choose_points(np.array([2, 6, 4]), 3, 100, rng)
    assert list(zip(*points, strict=True)) == [(1, 2), (1, 3), (1, 4), (2, 2)]
    assert len(choose_points(np.array([50, 50]), 3, 10, rng).step) == 10


def test_curves_end_where_few_starts_are_left(rng):
    length = np.array([30, 30])
    points = choose_points(length, 1, 1000, rng)
    # 2 * (30 - k) starts are left after k steps; at least 10.
    assert reach(length, points, 50) == 25
    assert reach(length, points, 7) == 7
    assert reach(np.array([30, 3]), choose_points(np.array([30, 3]), 1, 1000, rng), 50) == 2


def test_bands_hold_the_number(faulty):
    band = faulty[0].obs["vector"].ratio
    assert band.low <= band.value <= band.high and isinstance(band, bootstrap.Band)
