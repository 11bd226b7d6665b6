"""Whether a world model learns what a reward needs to remember: the model alone, on cue episodes of a random policy.

    python scripts/memory.py 4 --updates 2400 loss.reward_lift=0
    python scripts/memory.py 16 --lean 0.9

The first argument is the delay of the task (`jax_cueN`), overrides change the preset `small`. With ``--lean``, the
random policy prefers an action: then the cue alone says something about the reward. Every few hundred updates, a line
says, over fresh episodes, what share of the reward is not explained beyond when it comes (1 until the model has found
out that cue and action decide it together, then 0), how much the recurrent state varies, its size, in which share of
episodes the cue can be read linearly from it, at the first step and at the last, and the losses.
"""

import argparse
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreamer import config as configs
from dreamer import world_models
from dreamer.agent.learning import LossOutput, begin, gradient_step
from dreamer.envs.native import autoreset
from dreamer.envs.native.probes import JaxCue
from dreamer.types import Batch, Metrics, Parts

FRESH_ROWS = 64
"""Sequences that a line is computed from."""

FOUND = 0.5
"""With a smaller share of the reward unexplained, the model has found what decides it."""


class Episodes(NamedTuple):
    """Whole episodes one after another in each row, the last one cut off, and what an observation does not show."""

    batch: Batch
    cue: jax.Array
    """0 or 1, ``[B, T]``."""
    time: jax.Array
    """Steps since the reset, ``[B, T]``."""


def episodes(env: JaxCue, stored: Any, steps: int, lean: float, key: jax.Array) -> Episodes:
    """Episodes of a policy that takes action 1 with probability ``lean``, in as many rows as ``stored`` has."""
    rows = len(jax.tree.leaves(stored)[0])
    begin_key, action_key, step_key = jax.random.split(key, 3)
    actions = jax.random.bernoulli(action_key, lean, (steps, rows)).astype(jnp.int32)

    def step(now: autoreset.Instances, inputs: tuple[jax.Array, jax.Array]) -> tuple[autoreset.Instances, Any]:
        action, key = inputs
        return autoreset.advance(env, now, {"action": action}, key), (now.step, now.state)

    start = autoreset.begin(env, rows, begin_key)
    _, (seen, state) = jax.lax.scan(step, start, (actions, jax.random.split(step_key, steps)))
    before = jnp.concatenate([jnp.zeros((1, rows), actions.dtype), actions[:-1]])
    seen, state, before = jax.tree.map(lambda x: x.swapaxes(0, 1), (seen, state, before))
    batch = Batch(
        obs=seen.obs,
        prev_action={"action": before},
        reward=seen.reward,
        is_first=seen.is_first,
        is_last=seen.is_last,
        is_terminal=seen.is_terminal,
        stored=stored,
    )
    return Episodes(batch, state.cue, state.time)


def readable(x: np.ndarray, cue: np.ndarray) -> float:
    """Share of the second half of the rows ``[N, D]`` whose cue ``[N]`` a ridge regression on the first half finds."""
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    half = len(x) // 2
    gram = x[:half].T @ x[:half]
    ridge = 1e-9 * np.trace(gram) * np.eye(len(gram))
    weights = np.linalg.solve(gram + ridge, x[:half].T @ (2.0 * cue[:half] - 1))
    return float(((x[half:] @ weights > 0) == cue[half:]).mean())


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("delay", type=int, help="steps from the cue to the choice")
    parser.add_argument("overrides", nargs="*", help="key=value, as for training")
    parser.add_argument("--lean", type=float, default=0.5, help="how often the policy takes action 1 (default 0.5)")
    parser.add_argument("--updates", type=int, default=3000, help="updates (default 3000)")
    parser.add_argument("--every", type=int, default=300, help="updates between lines (default 300)")
    args = parser.parse_intermixed_args()
    if args.delay < 1:
        parser.error(f"the delay is {args.delay}, expected at least 1")
    if not 0 <= args.lean <= 1:
        parser.error(f"--lean is {args.lean}, expected 0 to 1")
    try:
        config = configs.load(["small"], args.overrides)
    except configs.ConfigError as error:
        parser.error(str(error))
    env = JaxCue(args.delay)
    rows, steps = config.replay.batch_size, config.replay.batch_length
    if steps < args.delay + 2:
        parser.error(f"replay.batch_length is {steps}, expected at least {args.delay + 2}, one episode and its reset")
    init_key, data_key, key = jax.random.split(jax.random.key(config.seed), 3)
    model: Any = world_models.make(config, env.obs_spaces, env.action_spaces, nnx.Rngs(params=init_key))

    def blank(rows: int) -> Any:
        return model.pack(model.initial(rows))

    def loss(nets: Parts, memory: Parts, batch: Batch, key: jax.Array, config: configs.Config) -> LossOutput:
        seen = nets.world_model.observe(batch, key)
        losses, metrics = nets.world_model.loss(seen, batch, config)
        return LossOutput(losses, memory, stored=(), metrics=metrics)

    draw = jax.jit(functools.partial(episodes, env, blank(rows), steps, args.lean))
    draw_fresh = jax.jit(functools.partial(episodes, env, blank(FRESH_ROWS), steps, args.lean))
    update = jax.jit(lambda state, batch: gradient_step(loss)(state, batch, key, config))

    @jax.jit
    def look(nets: Parts, batch: Batch, key: jax.Array) -> tuple[Metrics, jax.Array]:
        model = nets.world_model
        states = model.observe(batch, key).states
        return world_models.diagnose_states(model, states, batch), model.recurrent(states)

    state = begin(config, Parts(world_model=model), Parts())
    metrics: Metrics = {}
    first: int | None = None
    for i in range(args.updates + 1):
        if i % args.every == 0:
            fresh = draw_fresh(jax.random.fold_in(data_key, 2**31 + i))
            found, recurrent = look(state.nets, fresh.batch, key)
            at = {name: np.asarray(fresh.time) == time for name, time in (("first", 1), ("last", args.delay + 1))}
            cues = [f"{readable(np.asarray(recurrent)[x], np.asarray(fresh.cue)[x]):.2f} at {k}" for k, x in at.items()]
            losses = [f"{name.partition('/')[2]} {float(x):.3f}" for name, x in metrics.items() if "loss/" in name]
            left = float(found["diagnose/reward_unexplained_by_step"])
            first = i if first is None and left < FOUND else first
            print(
                f"update {i:5d}  unexplained {left:.2f}  recurrent std "
                f"{float(found['diagnose/deter_std']):.4f} rms {float(found['diagnose/deter_rms']):.3f}  cue readable "
                f"{', '.join(cues)}  {' '.join(losses)}",
                flush=True,
            )
        state, _, metrics = update(state, draw(jax.random.fold_in(data_key, i)).batch)
    print(f"Not found in {args.updates} updates." if first is None else f"Found by update {first}.")


if __name__ == "__main__":
    main()
