"""What the world model and the critic of a run know about ends, and which losses teach it: ``scripts/ends.py LOGDIR``.

Replays the last steps of every episode in the run's replay, filtered by the model as in training, and prints the
predicted chance to go on and the value along them, separately for episodes that ended in a terminal state and for those
that were cut off. A model that has learned what ends an episode gives a terminal state a chance near 0, and a critic
that has learned from it falls on the way there.

Then prints the norm of each loss's gradient at the encoder and the RSSM on these sequences. The optimizer normalises
gradients, so that a loss whose gradient is a hundredth of another's teaches next to nothing.
"""

import argparse
import pathlib
from typing import Any

import jax
import numpy as np
import optax

import dreamer
from dreamer import checkpoints
from dreamer.agent import Agent
from dreamer.replay import read_contents
from dreamer.replay.layout import Layout
from dreamer.types import Batch, Parts

STEPS = 32
"""Length of the sequences, of which the last step ends an episode."""

MOST = 8
"""Sequences of each kind whose gradients are computed, at most."""


def endings(fields: dict[str, Any], layout: Layout, *, terminal: bool, longer_than: int) -> Batch | None:
    """Sequences ``[N, STEPS, ...]`` that end in a terminal state, or in a truncation; None: replay holds none."""
    kinds = np.asarray(fields["is_last"]) & (np.asarray(fields["is_terminal"]) == terminal)
    slots = np.arange(kinds.shape[1])
    # The running maximum of the slots of first steps is where each slot's episode began.
    kinds &= slots - np.maximum.accumulate(np.where(fields["is_first"], slots, 0), 1) > longer_than
    # Ends at slot STEPS or later have STEPS slots, and one more for the previous action, up to them.
    env, last = np.nonzero(kinds[:, STEPS:])
    if not len(last):
        return None
    # Slots of each sequence, [N, STEPS]. A sequence across the newest row of the ring would join two times.
    now = (last + STEPS)[:, None] + np.arange(1 - STEPS, 1)

    def take(name: str, slots: np.ndarray) -> np.ndarray:
        return np.asarray(fields[name])[env[:, None], slots]

    return layout.batch(
        now=lambda name: take(name, now),
        before=lambda name: take(name, now - 1),
        stored=lambda name: take(name, now[:, :1] - 1)[:, 0],
    )


def gradient_norms(agent: Agent, batch: Batch) -> dict[str, float]:
    """Norm of the gradient of every loss, with its weight, at the encoder and the RSSM; the largest first."""
    state, loss = agent.state, agent.algorithm.loss
    if loss is None:
        raise SystemExit(f"The algorithm '{agent.config.algorithm}' descends no loss.")

    @jax.jit
    def gradients(nets: Parts, memory: Any) -> dict[str, Any]:
        def losses(nets: Parts) -> dict[str, jax.Array]:
            out = loss(nets, memory, batch, jax.random.key(0), agent.config)
            return {name: weight * values.mean() for name, (weight, values) in out.losses.items()}

        return jax.jacrev(losses)(nets)

    norms = {}
    for name, gradient in gradients(state.nets, state.memory).items():
        model = gradient.world_model
        norms[name] = float(optax.global_norm((model.encoder, model.rssm)))
    return {name: norm for name, norm in sorted(norms.items(), key=lambda item: -item[1]) if norm}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logdir", help="directory of a run with a checkpoint")
    parser.add_argument("--longer-than", type=int, default=0, metavar="STEPS", help="only episodes longer than this")
    args = parser.parse_args()
    replay = checkpoints.load(args.logdir, with_replay=True).replay
    if replay is None or "rows_total" not in replay:
        parser.error(f"the checkpoint of {args.logdir} holds no replay of a run with loop=host on one host")
    fields = read_contents(pathlib.Path(args.logdir) / "replay" / "0", replay)
    agent = dreamer.load(args.logdir)
    layout = Layout.of(agent.obs_spaces, agent.action_spaces, agent.algorithm.stored)
    nets, batches = agent.state.nets, []
    for name, terminal in (("terminal", True), ("cut off", False)):
        batch = endings(fields, layout, terminal=terminal, longer_than=args.longer_than)
        if batch is None:
            print(f"{name}: no such episode")
            continue
        batches.append(jax.tree.map(lambda x: x[:MOST], batch))
        model = nets.world_model
        states = model.observe(batch, jax.random.key(0)).states
        going_on = np.asarray(model.cont(states))
        value = np.asarray(agent.algorithm.behavior.value(nets.behavior, model, states))
        print(f"{name}: {going_on.shape[0]} episodes; median over them, from {STEPS} steps before the end")
        for ago in (STEPS - 1, 15, 7, 3, 1, 0):
            step = STEPS - 1 - ago
            chance, worth = np.median(going_on[:, step]), np.median(value[:, step])
            print(f"  {ago:2d} steps before: chance to go on {chance:.3f}, value {worth:.1f}")
    if batches:
        both: Batch = jax.tree.map(lambda *xs: np.concatenate(xs), *batches)
        norms = ", ".join(f"{name} {norm:.2g}" for name, norm in gradient_norms(agent, both).items())
        print(f"gradient norms at the encoder and the RSSM: {norms}")


if __name__ == "__main__":
    main()
