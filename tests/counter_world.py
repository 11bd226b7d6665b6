"""A world that counts, and a world model of it whose errors, divergence and returns follow from a few numbers.

Observations are the sum x of the actions so far (``vector``, as symexp(x), so that it is x in symlog space), whether x
is below 2 (``label``), and a grey image (``image``). The reward on arriving is x.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from dreamer import config as configs
from dreamer.behaviors.actor_critic import ActorCritic, ActorCriticNets
from dreamer.behaviors.heads import Actor, Critic
from dreamer.equations import distributions, transforms
from dreamer.report.held_out import HeldOut
from dreamer.types import Batch, Parts, Space
from dreamer.world_models.latent import LatentWorldModel
from dreamer.world_models.rssm import RSSM, StoredLatent

OBS_SPACES = {
    "image": Space("image", (4, 6, 1)),
    "label": Space("discrete", (), 2),
    "vector": Space("vector", (2,)),
}
ACTION_SPACES = {"move": Space("discrete", (), 2)}
BINS = 255


class Faults(NamedTuple):
    """What is wrong with the model."""

    drift: float = 0.0
    """Added to x at each step of the model, on top of the action."""
    noise: float = 0.0
    """The latent moves the prediction of the vector up or down by this, at random."""
    posterior: tuple[float, float] = (0.5, 0.5)
    """Probabilities of the latent once the observation is seen; before, they are equal."""
    leaning: float = 0.0
    """Added to the log-odds of the second class of that latent for each unit of x."""
    cont: float = 1.0
    """Probability of continuing."""
    fading: float = 0.0
    """Taken from it for each unit of x."""
    reward_noise: float = 0.0
    """The latent moves the reward up or down by this, at random."""
    label: float = 0.5
    """Probability of class 1."""
    grey: float = 0.5
    value: float = 2.0
    """Value of a state, as a multiple of x."""


def config(*overrides: str) -> configs.Config:
    """Two units, one latent variable of two classes, and no share of the uniform distribution."""
    rssm = "rssm={deter: 2, hidden: 2, stoch: 1, classes: 2, blocks: 1, unimix: 0}"
    behavior = "behavior={horizon: 3, return_horizon: 10, cont_discount: false, actor_unimix: 0}"
    return configs.load([], [rssm, behavior, "nets.dtype=float32", "task=probe_action", *overrides])


class CountingRSSM(RSSM):
    """``deter[0]`` counts."""

    def __init__(self, rssm, faults):
        self.config, self.faults = rssm, faults
        self.action_spaces, self.dtype, self.loops = tuple(ACTION_SPACES.items()), "float32", "auto"

    def recurrence(self, latent, action):
        return latent.deter + jnp.stack([action[:, 1] + self.faults.drift, jnp.zeros(len(action))], -1)

    def prior(self, deter):
        return jnp.zeros((*deter.shape[:-1], 1, 2))

    def posterior(self, deter, embed):
        leaning = self.faults.leaning * jnp.stack([jnp.zeros_like(deter[..., :1]), deter[..., :1]], -1)
        return jnp.broadcast_to(jnp.log(jnp.asarray(self.faults.posterior)), leaning.shape) + leaning


class CountingModel(LatentWorldModel):
    """Predicts from the count."""

    def __init__(self, rssm, faults):
        self.rssm, self.faults, self.mask_keys = CountingRSSM(rssm, faults), faults, ()
        self.decoder, self.feature_size = None, 4

    def encoder(self, obs):  # type: ignore[override]
        return jnp.zeros((len(obs["label"]), 1))

    def decode(self, state):
        x = state.deter[..., 0] + self.faults.noise * (2 * state.stoch[..., 0, 1] - 1)
        p = jnp.asarray([1 - self.faults.label, self.faults.label])
        return {
            "vector": jnp.stack([x, jnp.zeros_like(x)], -1),
            "label": jnp.broadcast_to(jnp.log(p), (*x.shape, 2)),
            "image": jnp.full((*x.shape, 4, 6, 1), self.faults.grey),
        }

    def reward_of(self, feature):
        return two_hot(feature[..., 0] + self.faults.reward_noise * (2 * feature[..., 3] - 1))

    def cont_logit(self, feature):
        p = jnp.clip(self.faults.cont - self.faults.fading * feature[..., 0], 1e-6, 1 - 1e-6)
        return jnp.log(p / (1 - p)).astype(jnp.float32)


class GoingUp(Actor):
    """Always takes action 1."""

    def __init__(self, behavior):
        self.config, self.spaces = behavior, tuple(ACTION_SPACES.items())

    def outputs(self, feature):
        return {"move": (jnp.broadcast_to(jnp.asarray([-50.0, 50.0]), (*feature.shape[:-1], 2)),)}


class Multiple(Critic):
    """The value is a multiple of the count."""

    def __init__(self, factor):
        self.factor = factor

    def logits(self, feature):
        return two_hot(self.factor * feature[..., 0]).logits


def two_hot(value) -> distributions.SymexpTwoHot:
    """The distribution whose mean is ``value``, on the two bins around it."""
    weights = transforms.two_hot(*transforms.neighbours(value, transforms.symexp_bins(BINS)), BINS)
    return distributions.SymexpTwoHot(jnp.log(jnp.maximum(weights, 1e-30)))


NONE = Faults()


BEHAVIOR = ActorCritic(config(), ACTION_SPACES, 4)


def networks(faults: Faults = NONE, *overrides: str) -> Parts:
    """The model, a policy and a critic."""
    c = config(*overrides)
    behavior = ActorCriticNets(GoingUp(c.behavior), Multiple(faults.value))
    return Parts(CountingModel(c.rssm, faults), behavior)


def episodes(lengths, terminal, moves=None) -> HeldOut:
    """Recorded episodes of these lengths; ``moves [E, T-1]`` are the actions, all 1 if left out."""
    count, steps = len(lengths), max(lengths)
    moves = np.ones((count, steps - 1), np.int32) if moves is None else np.asarray(moves, np.int32)
    x = np.concatenate([np.zeros((count, 1)), np.cumsum(moves, 1)], 1).astype(np.float32)
    at = np.arange(steps)[None]
    last = at == np.asarray(lengths)[:, None] - 1
    inside = at < np.asarray(lengths)[:, None]
    vector = np.stack([np.expm1(x), np.zeros_like(x)], -1).astype(np.float32)
    batch = Batch(
        obs={
            "image": np.full((count, steps, 4, 6, 1), 51, np.uint8) + (at[..., None, None, None] % 2).astype(np.uint8),
            "label": (x < 2).astype(np.int32),
            "vector": vector * inside[..., None],
        },
        prev_action={"move": np.concatenate([np.zeros((count, 1), np.int32), moves], 1)},
        reward=np.where(inside, x, 0).astype(np.float32),
        is_first=np.broadcast_to(at == 0, x.shape).copy(),
        is_last=last,
        is_terminal=last & np.asarray(terminal)[:, None],
        stored=StoredLatent(np.zeros((count, 2), np.float32), np.zeros((count, 1), np.uint8)),
    )
    return HeldOut(batch, np.asarray(lengths))


__all__ = ["ACTION_SPACES", "BEHAVIOR", "OBS_SPACES", "Faults", "config", "episodes", "networks"]
