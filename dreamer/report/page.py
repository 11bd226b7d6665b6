"""Assembles a report: findings, films, plots and tables as one self-contained HTML file."""

import base64
import dataclasses
import html
import math
import pathlib
import string
from collections.abc import Mapping, Sequence

import numpy as np

from dreamer.report import calibration
from dreamer.report import plots as report_plots
from dreamer.report.card import Card
from dreamer.report.findings import Finding
from dreamer.report.plots import Series
from dreamer.types import Spaces

_TEMPLATE = pathlib.Path(__file__).with_name("page.html")

LOG = ("loss, log scale",)
"""Labels of the axes that are logarithmic."""

DOTS = ("episodes",)
"""Series that are shown as dots."""

_WHAT = {
    "Return": "Sum of rewards of an episode.",
    "Success rate": "Share of episodes whose last step was a success.",
    "World-model errors on replay": "Mean loss of each prediction, and KL from posterior to prior. Healthy: falling.",
    "Losses of the critic": "Cross-entropy of imagined and of replayed returns.",
    "What is imagined": "Healthy: the value follows the imagined return.",
    "Entropy of the policy": "Healthy: falls, but not to its minimum at once.",
}
_WORDS = {"good": "good", "fair": "fair", "poor": "poor", "unknown": "not known"}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture or film of the page."""

    title: str
    caption: str
    kind: str
    """``svg+xml``, ``gif`` or ``png``."""
    data: bytes

    def to_html(self) -> str:
        """A figure that holds the picture itself."""
        source = f"data:image/{self.kind};base64,{base64.b64encode(self.data).decode()}"
        film = ' class="film"' if self.kind == "gif" else ""
        return (
            f"<figure{film}><h3>{html.escape(self.title)}</h3>"
            f'<img alt="{html.escape(self.title)}" src="{source}">'
            f"<figcaption>{html.escape(self.caption)}</figcaption></figure>"
        )


def page(
    title: str,
    facts: Mapping[str, str],
    warnings: Sequence[str],
    findings: Sequence[Finding],
    dreams: Sequence[Picture],
    card: Card,
    spaces: Spaces,
    curves: Mapping[str, tuple[Series, str]],
    changes: Mapping[str, str],
) -> str:
    """The page as text.

    Args:
        title: heading.
        facts: what is shown under it, by name.
        warnings: sentences about what could not be read.
        findings: lines of the report card.
        dreams: films and plots of single episodes.
        card: all numbers.
        spaces: observation spaces.
        curves: plots of the training by title, with the label of the y axis.
        changes: config keys that are not at their default, and their values.
    """
    body = [
        f"<h1>{html.escape(title)}</h1>",
        "<dl>" + "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items()),
        "</dl>",
        *(f'<p class="warning">{html.escape(text)}</p>' for text in warnings),
        _section(
            "World-model report card",
            f"From {card.episodes} fresh episodes ({card.agent_steps:,} steps) with the learned policy, on seeds that "
            "training did not use. Brackets hold 95 % bands over episodes. Sentences and colours follow fixed limits "
            "on the numbers: a mark is a place to look, not a proof.",
            [_finding(finding) for finding in findings],
        ),
        _section(
            "Dreams next to what happened",
            "The model sees the first steps (green), then dreams along the recorded actions without seeing anything "
            "more (orange). One dream each, of the longest episodes.",
            [picture.to_html() for picture in dreams],
        ),
        _section(
            "How errors compound",
            f"Squared error of what the model expects after k dreamt steps, from {int(card.starts[0])} start states "
            f"with at least {card.context} observed steps, against two guesses that need no model. Shaded: 95 % bands. "
            "The error should stay below both guesses within the actor's horizon.",
            [picture.to_html() for picture in _errors(card)],
        ),
        _section(
            "Where the error sits",
            f"Mean over the first {min(card.horizon, len(card.starts))} dreamt steps, by entry or pixel.",
            [picture.to_html() for picture in _where(card, spaces)],
        ),
        _section(
            "Calibration and latent states",
            "Whether probabilities mean what they say, how far dreams drift from what is seen, and how much of the "
            "latent state is in use.",
            [picture.to_html() for picture in _inside(card)],
        ),
        _table(card),
        _section(
            "Returns and values",
            "Each dot is a state of an episode: what was promised there, and what was earned.",
            [picture.to_html() for picture in _returns(card)],
        ),
        _section(
            "Training",
            "From metrics.jsonl of the run.",
            [
                Picture(name, _WHAT[name], "svg+xml", report_plots.lines(series, y, y in LOG, DOTS)).to_html()
                for name, (series, y) in curves.items()
            ],
        ),
        "<h2>Config</h2><p>Keys that differ from the defaults.</p>",
        _rows(["key", "value"], [[key, value] for key, value in changes.items()]),
        '<p class="soft">What each number means and how it is computed: docs/report.md. All numbers: report.json.</p>',
    ]
    text = string.Template(_TEMPLATE.read_text(encoding="utf-8"))
    return text.substitute(title=html.escape(title), body="\n".join(part for part in body if part))


def format_number(value: float) -> str:
    """A number in few digits."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _section(title: str, text: str, items: Sequence[str]) -> str:
    if not items:
        return ""
    return f'<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p><div class="grid">{"".join(items)}</div>'


def _finding(finding: Finding) -> str:
    # A number that is not known is NaN.
    known = not math.isnan(finding.value)
    band = f' <span class="soft">[{format_number(finding.low)}, {format_number(finding.high)}]</span>'
    shown = format_number(finding.value) + ("" if math.isnan(finding.low) else band) if known else "-"
    return (
        f'<div class="finding {finding.verdict}"><span class="badge">{_WORDS[finding.verdict]}</span>'
        f'<h3>{html.escape(finding.title)}</h3><span class="number">{shown}</span>'
        f"<p>{html.escape(finding.sentence)}</p></div>"
    )


def _errors(card: Card) -> list[Picture]:
    shown = {**card.obs, "reward": card.reward, "continuing": card.cont}
    caption = "Mean squared error over dreamt steps. Dotted: variance among dreams of the same start."
    return [
        Picture(key, caption, "svg+xml", report_plots.errors(curves, card.horizon)) for key, curves in shown.items()
    ]


def _where(card: Card, spaces: Spaces) -> list[Picture]:
    pictures = []
    for key, (model, guess) in card.where.items():
        if spaces[key].kind == "image":
            plot = report_plots.heat(model, guess)
            caption = "Root mean squared error of each pixel, on one scale."
        else:
            plot = report_plots.entries(model, guess)
            caption = "Mean squared error of each entry; at most 40, the worst."
        pictures.append(Picture(key, caption, "svg+xml", plot))
    return pictures


def _inside(card: Card) -> list[Picture]:
    shown = []
    if np.isfinite(card.kl.value).any():
        nothing = f"{format_number(card.most_entropy)}, where it would know nothing"
        most = f"; the entropy of the prior stays between 0 and {nothing}" if card.classes else ""
        caption = f"Healthy: KL starts at a few nats and rises slowly{most}."
        shown.append(Picture("Drift of the dream", caption, "svg+xml", report_plots.divergence(card)))
    if card.classes:
        caption = "Perplexity of the mean posterior of each latent variable, without the uniform share."
        plot = report_plots.classes(card.perplexity, card.classes)
        shown.append(Picture("Classes in use", caption, "svg+xml", plot))
    caption = "Healthy: dots on the line. Steps within the actor's horizon of a dream."
    plot = report_plots.reliability(card.reliability)
    shown.append(Picture("Continuing: predicted and observed", caption, "svg+xml", plot))
    if not np.isnan(card.pit[0]):
        caption = (
            "PIT histogram. Healthy: flat. A hump: underconfident; high ends: overconfident; a slope: biased."
            if card.reward_varies
            else "PIT histogram. Healthy: flat. All rewards were the same here, so it says little."
        )
        shown.append(Picture("Reward distribution", caption, "svg+xml", report_plots.pit(card.pit)))
    return shown


def _table(card: Card) -> str:
    header = ["predicted to continue", "predictions", "mean prediction", "continued", "95 % interval"]
    rows = [
        [
            f"{b.low:g} to {b.high:g}",
            f"{b.size:,}",
            f"{b.predicted:.4f}",
            f"{b.observed:.4f}",
            f"{b.observed_low:.3f} to {b.observed_high:.3f}",
        ]
        for b in card.reliability
    ]
    error = format_number(calibration.calibration_error(card.reliability))
    text = f"Reliability of continuing: mean distance {error}, {card.terminals} ends of the task among these steps."
    return f"<h2>Continuing</h2><p>{text}</p>" + _rows(header, rows)


def _returns(card: Card) -> list[Picture]:
    shown = []
    if len(card.returns.real):
        plot = report_plots.agreement(card.returns, f"real return of {card.horizon} steps", "imagined return")
        caption = "Mean over dreams with the policy, from the state that was filtered from observations."
        shown.append(Picture("Imagined and real return", caption, "svg+xml", plot))
    known = card.has_real_returns
    both = card.value if known else card.value_bootstrapped
    if len(both.real):
        plot = report_plots.agreement(both, "real return to the end", "value")
        caption = "Discounted to the end of the episode" + (
            "." if known else "; episodes were cut off, so the critic's last value stands in for the rest."
        )
        shown.append(Picture("Values and real return", caption, "svg+xml", plot))
    return shown


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
