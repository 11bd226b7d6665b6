"""What the numbers of a report card mean: each gets a verdict and a sentence, chosen by the limits below."""

import math
from typing import Literal, NamedTuple

import numpy as np

from dreamer.report import calibration
from dreamer.report.bootstrap import Band
from dreamer.report.card import Agreement, Card, Curves

Verdict = Literal["good", "fair", "poor", "unknown"]

LIMITS = {
    "open_loop": (0.5, 1.0),
    "continue_calibration": (0.02, 0.05),
    "reward_calibration": (0.1, 0.2),
    "reward_unexplained": (0.5, 0.9),
    "recurrent": (0.9, 0.95),
    "kl": (10.0, 30.0),
    "classes": (0.25, 0.75),
    "imagined_return": (0.2, 0.5),
    "value_bias": (0.25, 0.75),
}
"""Good up to the first number, fair up to the second, otherwise poor; docs/report.md says of what, and why."""

LEAST_SPREAD = 0.05
"""Returns that vary by less than this share of their mean are nearly all the same."""

UNUSED = 1.1
"""A latent variable with a perplexity below this carries next to no information."""


class Finding(NamedTuple):
    """One line of the report card."""

    name: str
    """For programs; the part before the slash is a key of `LIMITS`."""
    title: str
    value: float
    """In the unit that the title names; None in JSON if it is not known."""
    low: float
    """Lower end of the confidence band, NaN if there is none."""
    high: float
    """Its upper end."""
    verdict: Verdict
    sentence: str


def findings(card: Card) -> list[Finding]:
    """All lines, in the order of the page."""
    found = [_open_loop(f"open_loop/{key}", f"Dreamt {key}", curves, card) for key, curves in card.obs.items()]
    found += [
        _open_loop("open_loop/reward", "Dreamt reward", card.reward, card),
        _open_loop("open_loop/continue", "Dreamt end of episodes", card.cont, card),
        _continue(card),
        _reward(card),
        _reward_unexplained(card),
        _recurrent(card),
        _kl(card),
        _classes(card),
        _imagined_return(card),
        _value(card),
    ]
    return found


def judge(name: str, number: float) -> Verdict:
    """The verdict on a number that is better the smaller it is."""
    if not math.isfinite(number):
        return "unknown"
    good, fair = LIMITS[name.partition("/")[0]]
    return "good" if number <= good else "fair" if number <= fair else "poor"


def _finding(name: str, title: str, band: Band, verdict: Verdict, sentence: str) -> Finding:
    return Finding(name, title, float(band.value), float(band.low), float(band.high), verdict, sentence)


def _without_band(value: float) -> Band:
    return Band(np.asarray(value), np.asarray(np.nan), np.asarray(np.nan))


def _open_loop(name: str, title: str, curves: Curves, card: Card) -> Finding:
    verdict = judge(name, float(curves.ratio.value))
    steps = min(card.horizon, len(card.starts))
    title = f"{title}: error over {steps} steps, relative to a blind guess"
    if verdict == "unknown":
        return _finding(
            name, title, curves.ratio, verdict, "It never changed in these episodes, so nothing can be said."
        )
    useful = useful_steps(curves)
    until = f"up to step {useful}" if useful < len(card.starts) else f"for all {useful} steps"
    if not useful:
        until = "on the whole, but not at the first step"
    sentence = {
        "good": f"The dream is right about most of what changes; it beats both blind guesses {until}.",
        "fair": f"The dream knows more than a blind guess, but not much; it beats both {until}.",
        "poor": "A blind guess (nothing changes, or the mean) does as well or better: the actor learns from dreams "
        "that are wrong about this, unless the policy keeps things so still that nothing beats the guess.",
    }[verdict]
    return _finding(name, title, curves.ratio, verdict, sentence)


def useful_steps(curves: Curves) -> int:
    """Dreamt steps for which the model's error stays below that of both guesses."""
    worse = curves.model.value >= np.minimum(curves.repeat.value, curves.mean.value)
    return int(np.argmax(worse)) if worse.any() else len(worse)


def _continue(card: Card) -> Finding:
    error = calibration.calibration_error(card.reliability)
    name = "continue_calibration"
    title = "Probability of continuing: mean distance from what happened"
    if not card.terminals:
        sentence = (
            "No dream led up to the end of a task here, so only the other half can be judged: whether the model "
            "expects ends that do not come."
        )
        return _finding(
            name, title, _without_band(error), "poor" if judge(name, error) == "poor" else "unknown", sentence
        )
    verdict = judge(name, error)
    sentence = {
        "good": "Episodes end about as often as the model says.",
        "fair": "Episodes end somewhat more or less often than the model says; the table shows where.",
        "poor": "Episodes end much more or less often than the model says, so imagined returns count what is never "
        "reached, or miss what is.",
        "unknown": "Nothing was predicted.",
    }[verdict]
    return _finding(name, title, _without_band(error), verdict, sentence)


def _reward(card: Card) -> Finding:
    name = "reward_calibration"
    title = "Reward distribution: largest distance of the PIT from uniform"
    error = float(np.abs(card.pit - calibration.GRID).max())
    verdict = judge(name, error)
    inside = 100 * calibration.coverage(card.pit, 0.9) if verdict != "unknown" else 0.0
    sentence = {
        "good": f"Rewards fall where the head says: {inside:.0f} % of them into intervals that should hold 90 %.",
        "fair": f"Rewards fall roughly where the head says: {inside:.0f} % of them into intervals that should hold "
        "90 %.",
        "poor": f"Rewards do not fall where the head says: {inside:.0f} % of them into intervals that should hold "
        "90 %. If that is too few, the head is overconfident; if too many, underconfident; if about right, biased.",
        "unknown": "No reward was predicted.",
    }[verdict]
    return _finding(name, title, _without_band(error), verdict, sentence)


def _reward_unexplained(card: Card) -> Finding:
    name = "reward_unexplained"
    title = "Reward: share that is not explained, relative to a guess that knows the step alone"
    left = card.reward_unexplained
    verdict = judge(name, left)
    sentence = {
        "good": f"What the model knows explains {1 - left:.0%} of how rewards vary.",
        "fair": f"What the model knows explains {1 - left:.0%} of how rewards vary; the rest is chance, or was missed.",
        "poor": "The reward is not predicted better than without the state: what decides it is chance, or is not in "
        "the state, and then nothing can be learned from it in imagination.",
        "unknown": "At each step all rewards were the same, or the model gives them no distribution over bins.",
    }[verdict]
    return _finding(name, title, _without_band(left), verdict, sentence)


def _recurrent(card: Card) -> Finding:
    name = "recurrent"
    title = "Recurrent state: standard deviation between episodes at the same step, relative to its size"
    # A state that is 0 throughout varies as little as one can.
    ratio = card.recurrent_std / card.recurrent_rms if card.recurrent_rms != 0 else 0.0
    verdict = judge(name, 1 - ratio)
    sentence = {
        "good": "The recurrent state differs between episodes, so it can remember what they differ in.",
        "fair": "The recurrent state differs little between episodes: it remembers little of what they differ in.",
        "poor": "The recurrent state hardly varies: what must be remembered for more than a step is not, unless all "
        "episodes are alike.",
        "unknown": "The model has no recurrent state, or there are no two episodes to compare.",
    }[verdict]
    return _finding(name, title, _without_band(ratio), verdict, sentence)


def _kl(card: Card) -> Finding:
    first = Band(*(x[0] for x in card.kl))
    value = float(first.value)
    name = "kl"
    title = "KL from posterior to prior after one step, nats"
    verdict = judge(name, value)
    if verdict == "good" and value < 0.1 * card.free_nats:
        sentence = (
            "The latent says almost nothing that the model did not expect: a world without surprise, or a collapsed "
            "posterior; look at the classes in use and the dreamt observations."
        )
        return _finding(name, title, first, "fair", sentence)
    sentence = {
        "good": "Observations surprise the model moderately, as in runs that learn.",
        "fair": "Each observation surprises the model a lot: the world is noisy, new to it, or too large for it.",
        "poor": "Each observation surprises the model so much that its dreams can hardly follow the world.",
        "unknown": "The model has no random variables, or their divergence is not finite.",
    }[verdict]
    return _finding(name, title, first, verdict, sentence)


def _classes(card: Card) -> Finding:
    if not len(card.perplexity):
        title = "Latent variables that are not in use, share"
        sentence = "The model has no categorical latent variables."
        return _finding("classes", title, _without_band(float("nan")), "unknown", sentence)
    unused = float((card.perplexity < UNUSED).mean())
    verdict = judge("classes", unused)
    middle = float(np.median(card.perplexity))
    sentence = {
        "good": "Most latent variables are in use;",
        "fair": "Many latent variables never change; a smaller model would do without them;",
        "poor": "Nearly all latent variables never change: the task is tiny, or the posterior has collapsed;",
        "unknown": "",
    }[verdict] + f" half of them use {middle:.1f} of {card.classes} classes or more."
    return _finding("classes", "Latent variables that are not in use, share", _without_band(unused), verdict, sentence)


def _imagined_return(card: Card) -> Finding:
    name = "imagined_return"
    both = card.returns
    title = f"Imagined and real return of {card.horizon} steps: correlation"
    if not np.isfinite(both.correlation.value):
        return _finding(name, title, both.correlation, "unknown", _no_correlation(both, "imagined"))
    mean = float(np.abs(both.real).mean())
    if both.scale < LEAST_SPREAD * mean:
        sentence = (
            f"Real returns vary by only {both.scale / mean:.1%}, so a correlation says little; imagined ones are off "
            f"by {float(both.bias.value):+.2g} on average, of {mean:.3g}."
        )
        return _finding(name, title, both.correlation, "unknown", sentence)
    verdict = judge(name, 1 - float(both.correlation.value))
    sentence = {
        "good": "Where dreams promise more, more is earned: the actor learns from the right differences.",
        "fair": "Where dreams promise more, more is often earned, but not reliably; chance in world and policy also "
        "lowers this number.",
        "poor": "What dreams promise says little about what is earned: the actor may learn to exploit a wrong model.",
        "unknown": "",
    }[verdict]
    return _finding(name, title, both.correlation, verdict, sentence)


def _no_correlation(both: Agreement, what: str) -> str:
    if not len(both.real):
        return "No episode was long enough to compare."
    if np.ptp(both.real) < 1e-9:
        return (
            f"All real returns are {both.real[0]:.4g}, so there is nothing to correlate; {what} ones are off by "
            f"{float(both.bias.value):+.2g} on average."
        )
    return f"All {what} returns are the same."


def _value(card: Card) -> Finding:
    known = card.has_real_returns
    both = card.value if known else card.value_bootstrapped
    scale = max(both.scale, 0.1 * float(np.abs(both.real).mean()), 1e-6)
    band = Band(*(np.asarray(x / scale) for x in both.bias))
    verdict = judge("value_bias", abs(float(band.value)))
    side = "more" if band.value > 0 else "less"
    title = "Critic: value minus real return, relative to how returns vary"
    sentence = {
        "good": "Values are about right on average.",
        "fair": f"Values promise somewhat {side} than is earned.",
        "poor": f"Values promise much {side} than is earned.",
        "unknown": "There is no value to compare.",
    }[verdict]
    if not known:
        title = "Critic: value minus real rewards and last value, relative to how these vary"
        sentence += " Episodes were cut off, so this partly says how well the critic agrees with itself."
    return _finding("value_bias", title, band, verdict, sentence)
