"""Draws figures 8.2, 8.4 and 8.5 of Sutton and Barto's textbook: ``python scripts/dyna_figures.py``.

Takes seconds, and writes to ``docs/results/dyna``, or to the directory that is given.

Source: Sutton and Barto 2018, "Reinforcement learning: an introduction", second edition, chapter 8. The book does not
say which step sizes and bonuses its two lower figures have; those here are in the titles.
"""

import argparse
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from dreamer.algorithms.dyna_tabular import BLOCKING, DYNA, SHORTCUT, Gridworld, episode_lengths, learn

SEEDS = 30
PLANNING = {0: 30_000, 5: 8000, 50: 4000}
"""Steps that 50 episodes take at most, by the number of remembered steps after each real one."""
CHANGING = {"planning": 10, "alpha": 0.5}
BONUS = 1e-3


def run(mazes: Sequence[Gridworld], steps: Sequence[int], **options: Any) -> np.ndarray:
    """Rewards ``[SEEDS, T]``."""
    alone = functools.partial(learn, tuple(mazes), tuple(steps), **options)
    return np.asarray(jax.jit(jax.vmap(alone))(jax.random.split(jax.random.key(0), SEEDS)))


def draw_learning(path: pathlib.Path) -> None:
    """Figure 8.2: steps of each episode, and on average when one has at most 16 for the first time."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for planning, steps in PLANNING.items():
        lengths = [episode_lengths(rewards) for rewards in run([DYNA], [steps], planning=planning)]
        first = np.median([np.argmax(one <= 16) + 1 for one in lengths])
        shown = min(50, *map(len, lengths))
        mean = np.mean([one[:shown] for one in lengths], 0)
        axes.plot(np.arange(2, shown + 1), mean[1:], label=f"n = {planning}")
        print(f"n = {planning}: episode {first:g} is the first of at most 16 steps (median of {SEEDS} seeds)")
    axes.set(xlabel="episode", ylabel="steps", ylim=(0, 800), title=f"Dyna-Q, alpha 0.1, {SEEDS} seeds")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def draw_change(path: pathlib.Path, mazes: Sequence[Gridworld], steps: Sequence[int], title: str) -> None:
    """Figures 8.4 and 8.5: reward so far, with a maze that changes after the first number of steps."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for name, bonus in (("Dyna-Q+", BONUS), ("Dyna-Q", 0.0)):
        rewards = run(mazes, steps, bonus=bonus, **CHANGING)
        axes.plot(rewards.cumsum(1).mean(0), label=name)
        print(f"{title}, {name}: reward {rewards[:, steps[0] :].sum(1).mean():.1f} after the change")
    axes.axvline(steps[0], color="0.7", linestyle=":")
    axes.set(xlabel="step", ylabel="reward so far", title=f"{title}, n 10, alpha 0.5, kappa {BONUS:g}, {SEEDS} seeds")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    """Draw all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("directory", nargs="?", type=pathlib.Path, default=pathlib.Path("docs/results/dyna"))
    directory = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    draw_learning(directory / "figure_8_2.png")
    draw_change(directory / "figure_8_4.png", BLOCKING, (1000, 2000), "Blocking maze")
    draw_change(directory / "figure_8_5.png", SHORTCUT, (3000, 3000), "Shortcut maze")


if __name__ == "__main__":
    main()
