"""Verdicts and sentences follow from the numbers, by the limits that docs/report.md gives."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest

from dreamer.report import calibration, findings
from dreamer.report.bootstrap import Band
from dreamer.report.calibration import Bin
from dreamer.report.card import Agreement, Card, Curves
from dreamer.report.findings import LIMITS

ROOT = pathlib.Path(__file__).resolve().parents[2]
NONE = Band(*np.full((3, 0), np.nan))


def band(*values):
    return Band(np.array(values), np.array(values) - 0.1, np.array(values) + 0.1)


def number(value):
    return Band(np.asarray(value), np.asarray(value - 0.1), np.asarray(value + 0.1))


def curves(ratio, model=(1.0, 2.0, 3.0)):
    return Curves(band(*model), band(2.0, 2.0, 2.0), band(4.0, 4.0, 4.0), np.zeros(3), number(ratio))


def agreement(correlation, bias=0.0, real=(1.0, 2.0, 3.0)):
    real = np.array(real)
    return Agreement(number(correlation), number(bias), float(real.std()) if len(real) else np.nan, real, real)


@pytest.fixture
def card():
    """A card on which all is well."""
    return Card(
        episodes=2,
        scores=np.array([1.0, 2.0]),
        agent_steps=10,
        context=1,
        horizon=3,
        starts=np.array([20, 15, 10]),
        obs={"vector": curves(0.2)},
        reward=curves(0.2),
        cont=curves(0.2),
        where={},
        kl=band(3.0, 4.0, 5.0),
        prior_entropy=band(3.0, 4.0, 5.0),
        most_entropy=10.0,
        perplexity=np.array([3.0, 2.0, 1.05, 4.0]),
        classes=4,
        free_nats=1.0,
        reliability=[Bin(0.8, 0.95, 100, 0.9, 0.9, 0.85, 0.95)],
        terminals=10,
        pit=calibration.GRID,
        reward_varies=True,
        reward_unexplained=0.1,
        recurrent_std=0.1,
        recurrent_rms=0.3,
        returns=agreement(0.95),
        value=agreement(0.9),
        value_bootstrapped=agreement(0.9),
    )


def found(card, name):
    (one,) = [finding for finding in findings.findings(card) if finding.name == name]
    return one


def test_all_is_well(card):
    assert [finding.verdict for finding in findings.findings(card)] == ["good"] * 11
    assert all(
        finding.sentence.endswith(".") and finding.sentence.count("\n") == 0 for finding in findings.findings(card)
    )


@pytest.mark.parametrize("name", LIMITS)
def test_limits_are_inclusive_and_in_the_document(name):
    good, fair = LIMITS[name]
    verdicts = [findings.judge(name, x) for x in (0.0, good, good + 1e-9, fair, fair + 1e-9, float("nan"))]
    assert verdicts == ["good", "good", "fair", "fair", "poor", "unknown"]
    (row,) = re.findall(rf"^\| `{name}` \|.*$", (ROOT / "docs/report.md").read_text(), re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("| ").split(" | ")]
    assert [float(cells[2]), float(cells[3])] == [good, fair]


@pytest.mark.parametrize(("ratio", "verdict"), [(0.4, "good"), (0.7, "fair"), (1.3, "poor")])
def test_an_open_loop_error(card, ratio, verdict):
    one = found(dataclasses.replace(card, obs={"vector": curves(ratio)}), "open_loop/vector")
    assert (one.value, one.verdict) == (ratio, verdict)
    assert one.low == pytest.approx(ratio - 0.1) and "over 3 steps" in one.title


def test_how_far_the_dream_is_of_use(card):
    assert findings.useful_steps(curves(1, (1, 1.9, 2.5))) == 2
    assert findings.useful_steps(curves(1, (1, 1, 1))) == 3
    assert findings.useful_steps(curves(1, (3, 1, 1))) == 0
    assert "up to step 1." in found(card, "open_loop/vector").sentence
    all_along = dataclasses.replace(card, obs={"vector": curves(0.2, (1, 1, 1))})
    assert "for all 3 steps" in found(all_along, "open_loop/vector").sentence


def test_what_never_changes_is_not_judged(card):
    one = found(dataclasses.replace(card, reward=curves(np.nan)), "open_loop/reward")
    assert one.verdict == "unknown"
    assert "never changed" in one.sentence


def test_the_end_of_episodes(card):
    def judged(observed, terminals=10):
        table = [Bin(0.8, 0.95, 100, 0.9, observed, 0, 1)]
        return found(dataclasses.replace(card, reliability=table, terminals=terminals), "continue_calibration")

    assert [judged(x).verdict for x in (0.91, 0.93, 0.99)] == ["good", "fair", "poor"]
    assert judged(0.91, terminals=0).verdict == "unknown"
    assert "only the other half" in judged(0.91, terminals=0).sentence
    # Ends that never come are a fault even if none was seen.
    assert judged(1.0, terminals=0).verdict == "poor"


def test_the_reward_distribution(card):
    def judged(shift):
        pit = np.clip(calibration.GRID + shift, 0, 1)
        return found(dataclasses.replace(card, pit=pit), "reward_calibration")

    assert [judged(x).verdict for x in (0.05, 0.15, 0.5)] == ["good", "fair", "poor"]
    assert "90 % of them" in judged(0).sentence
    assert found(dataclasses.replace(card, pit=np.full(21, np.nan)), "reward_calibration").verdict == "unknown"


@pytest.mark.parametrize(
    ("left", "verdict"), [(0.4, "good"), (0.7, "fair"), (0.9, "fair"), (0.95, "poor"), (3.0, "poor")]
)
def test_what_is_left_of_the_reward(card, left, verdict):
    one = found(dataclasses.replace(card, reward_unexplained=left), "reward_unexplained")
    assert (one.value, one.verdict) == (left, verdict)
    assert ("not predicted better than without the state" in one.sentence) == (verdict == "poor")


def test_a_reward_that_never_varies_is_not_judged(card):
    one = found(dataclasses.replace(card, reward_unexplained=np.nan), "reward_unexplained")
    assert one.verdict == "unknown" and "all rewards were the same" in one.sentence


@pytest.mark.parametrize(
    ("std", "rms", "ratio", "verdict"),
    [(0.05, 0.25, 0.2, "good"), (0.02, 0.25, 0.08, "fair"), (0.006, 0.25, 0.024, "poor"), (0.0, 0.0, 0.0, "poor")],
)
def test_the_recurrent_state(card, std, rms, ratio, verdict):
    one = found(dataclasses.replace(card, recurrent_std=std, recurrent_rms=rms), "recurrent")
    assert one.value == pytest.approx(ratio) and one.verdict == verdict
    assert ("hardly varies" in one.sentence) == (verdict == "poor")


@pytest.mark.parametrize("rms", [np.nan, 0.3])
def test_a_recurrent_state_that_cannot_be_compared(card, rms):
    one = found(dataclasses.replace(card, recurrent_std=np.nan, recurrent_rms=rms), "recurrent")
    assert one.verdict == "unknown" and np.isnan(one.value)


@pytest.mark.parametrize(("nats", "verdict"), [(0.05, "fair"), (0.5, "good"), (5, "good"), (20, "fair"), (40, "poor")])
def test_divergence(card, nats, verdict):
    one = found(dataclasses.replace(card, kl=band(nats, 99, 99)), "kl")
    assert (one.value, one.verdict) == (nats, verdict)


@pytest.mark.parametrize(("unused", "verdict"), [(1, "good"), (2, "fair"), (4, "poor")])
def test_latent_variables(card, unused, verdict):
    perplexity = np.array([1.0] * unused + [3.0] * (4 - unused))
    one = found(dataclasses.replace(card, perplexity=perplexity), "classes")
    assert (one.value, one.verdict) == (unused / 4, verdict)


def test_imagined_returns(card):
    def judged(both):
        return found(dataclasses.replace(card, returns=both), "imagined_return")

    assert [judged(agreement(x)).verdict for x in (0.9, 0.6, 0.1)] == ["good", "fair", "poor"]
    same = judged(agreement(np.nan, 0.5, (2.0, 2.0)))
    assert same.verdict == "unknown"
    assert "All real returns are 2" in same.sentence
    assert "+0.5 on average" in same.sentence
    assert "No episode was long enough" in judged(agreement(np.nan, np.nan, ())).sentence
    alike = judged(agreement(0.1, 0.5, (14.0, 14.1, 14.2)))
    assert alike.verdict == "unknown"
    assert "vary by only 0.6%" in alike.sentence
    assert "+0.5 on average" in alike.sentence
    assert "All imagined returns are the same" in judged(agreement(np.nan)).sentence


def test_values(card):
    def judged(bias, **changes):
        return found(dataclasses.replace(card, value=agreement(0.9, bias), **changes), "value_bias")

    scale = np.std([1, 2, 3])
    assert [judged(x * scale).verdict for x in (0.1, -0.5, 1)] == ["good", "fair", "poor"]
    assert judged(0.5 * scale).value == pytest.approx(0.5)
    assert "more than" in judged(scale).sentence
    assert "less than" in judged(-scale).sentence
    nothing = dataclasses.replace(card, value=agreement(np.nan, np.nan, ()), value_bootstrapped=agreement(0.9, scale))
    one = found(nothing, "value_bias")
    assert one.verdict == "poor"
    assert "Episodes were cut off" in one.sentence
    # Two of three are known, and these are the ones that failed.
    some = dataclasses.replace(card, value=agreement(0.9, 5.0, (1.0, 2.0)), value_bootstrapped=agreement(0.9, 0.0))
    one = found(some, "value_bias")
    assert one.verdict == "good"
    assert "Episodes were cut off" in one.sentence
