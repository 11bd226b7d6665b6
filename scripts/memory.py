"""Whether a world model learns what a reward needs to remember: the model alone, on cue episodes of a random policy.

    python scripts/memory.py 4 --updates 2400 loss.dyn=0.1 loss.reward_lift=1.5

The first argument is the delay of the task (`probe_cueN`), overrides change the preset `small`. Every few hundred
updates, a line says what each loss is, how much the recurrent state varies, in which share of fresh episodes the cue
can be read linearly from it, and how the predicted last reward correlates with the real one: 0 until the model has
found out that cue and action decide it together, 1 afterwards.
"""

import argparse
import collections
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx

from dreamer import config as configs
from dreamer import world_models
from dreamer.agent.optimizer import make_optimizer
from dreamer.config import Config
from dreamer.types import Batch, Space

OBS_SPACES = {"vector": Space("vector", (3,))}
ACTION_SPACES = {"action": Space("discrete", (), 2)}
FRESH = 6
"""Batches that each line is computed from."""


class Episodes(NamedTuple):
    """A batch of whole episodes of a random policy, one after another, the last one cut off."""

    batch: Batch
    cue: np.ndarray
    """-1 or 1, ``[B, T]``."""
    time: np.ndarray
    """Steps since the reset, ``[B, T]``."""


def episodes(config: Config, delay: int, stored: Any, rng: np.random.Generator) -> Iterator[Episodes]:
    """Batches of the rules of `dreamer.envs.suites.probes.Cue`, without end."""
    rows, steps, length = config.replay.batch_size, config.replay.batch_length, delay + 2
    count = -(-steps // length)
    shape = (rows, count, length)

    def cut(x: np.ndarray) -> np.ndarray:
        return x.reshape(rows, count * length, *x.shape[3:])[:, :steps]

    while True:
        cue = np.broadcast_to(rng.integers(0, 2, (rows, count, 1)), shape)
        action = rng.integers(0, 2, shape)
        at = np.broadcast_to(np.arange(length), shape)
        shown = np.stack([np.where(at == 0, 1 - 2 * cue, 0), at == 0, at == delay], -1).astype(np.float32)
        before = np.concatenate([np.zeros((rows, count, 1), int), action[..., :-1]], -1)
        last = at == delay + 1
        reward = np.where(last, np.where(before == cue, 1, -1), 0).astype(np.float32)
        batch = Batch(
            obs={"vector": cut(shown)},
            prev_action={"action": cut(before).astype(np.int32)},
            reward=cut(reward),
            is_first=cut(at == 0),
            is_last=cut(last),
            is_terminal=cut(last),
            stored=stored,
        )
        yield Episodes(batch, cut(2 * cue - 1), cut(at))


def readable(x: np.ndarray, sign: np.ndarray) -> float:
    """Share of the second half of the rows whose sign a ridge regression on the first half finds."""
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    half = len(x) // 2
    gram = x[:half].T @ x[:half]
    ridge = 1e-9 * np.trace(gram) * np.eye(len(gram))
    weights = np.linalg.solve(gram + ridge, x[:half].T @ sign[:half])
    return float((np.sign(x[half:] @ weights) == sign[half:]).mean())


def summary(deter: np.ndarray, predicted: np.ndarray, seen: Sequence[Episodes], delay: int) -> str:
    """What the recurrent state carries, ``deter [N, D]``, and what is made of it, ``predicted [N]``."""
    cue, at, reward = (
        np.concatenate([np.ravel(x) for x in column])
        for column in zip(*((each.cue, each.time, each.batch.reward) for each in seen), strict=True)
    )
    spread = np.mean([deter[at == k].std(0).mean() for k in range(1, delay + 2)])
    last = at == delay + 1
    constant = predicted[last].std() == 0
    correlation = 0.0 if constant else np.corrcoef(predicted[last], reward[last])[0, 1]
    return (
        f"deter rms {np.sqrt(np.square(deter).mean()):.3f} std within a step {spread:.4f}  cue readable "
        f"{readable(deter[at == 1], cue[at == 1]):.2f} at first {readable(deter[last], cue[last]):.2f} at last  "
        f"reward correlates {correlation:.2f}"
    )


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("delay", type=int, help="steps from the cue to the choice")
    parser.add_argument("overrides", nargs="*", help="key=value, as for training")
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--every", type=int, default=300, help="updates between lines")
    args = parser.parse_intermixed_args()
    config = configs.load(["small"], args.overrides)
    model = world_models.make(config, OBS_SPACES, ACTION_SPACES, nnx.Rngs(params=jax.random.key(config.seed)))
    optimizer = make_optimizer(config.optimizer)
    moments = optimizer.init(model)
    data = episodes(
        config, args.delay, model.pack(model.initial(config.replay.batch_size)), np.random.default_rng(config.seed)
    )

    @jax.jit
    def update(model: Any, moments: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any, dict[str, jax.Array]]:
        def total(model: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
            losses, _ = model.loss(model.observe(batch, key), batch, config)
            means = {name: value.mean() for name, (_, value) in losses.items()}
            return sum(losses[name][0] * mean for name, mean in means.items()), means

        gradient, means = jax.grad(total, has_aux=True)(model)
        step, moments = optimizer.update(gradient, moments, model)
        return optax.apply_updates(model, step), moments, means

    @jax.jit
    def look(model: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        states = model.observe(batch, key).states
        return states.deter, model.reward(states).mean()

    key, look_key = jax.random.split(jax.random.key(config.seed))
    means: dict[str, list[jax.Array]] = collections.defaultdict(list)
    start = time.time()
    for i in range(args.updates + 1):
        if i % args.every == 0:
            fresh = [next(data) for _ in range(FRESH)]
            looks = [look(model, each.batch, jax.random.fold_in(look_key, i + k)) for k, each in enumerate(fresh)]
            deter = np.concatenate([np.reshape(x, (-1, x.shape[-1])) for x, _ in looks])
            predicted = np.concatenate([np.ravel(x) for _, x in looks])
            losses = " ".join(f"{name} {np.mean(values):.3f}" for name, values in means.items())
            said = summary(deter, predicted, fresh, args.delay)
            print(f"update {i:5d}  {losses}  {said}  {time.time() - start:.0f} s", flush=True)
            means.clear()
        model, moments, losses = update(model, moments, next(data).batch, jax.random.fold_in(key, i))
        for name, value in losses.items():
            means[name].append(value)


if __name__ == "__main__":
    main()
