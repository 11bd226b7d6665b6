"""Published planners, number by number, through the real code with only the random draws replaced.

The numbers are those of the official PlaNet and PETS, and of mbrl-lib's CEM, MPPI and iCEM. Their actions have other
bounds; everything here is scaled to [-1, 1].
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.planners import shooting
from dreamer.planners.shooting import KeptElites
from dreamer.types import Space
from tests.golden_values import load
from tests.planners.worlds import World, no_prior, no_value
from tests.small import small_config

SPACES = {"push": Space("continuous", (2,))}
HORIZON = 4


class Weighted(World):
    """The reward of step t is ``-sum weight[t] (a - target[t])^2`` in units of the golden actions."""

    def __init__(self, data):
        self.low, self.high = data["low"][:1], data["high"][:1]
        self.target, self.weight = jnp.asarray(data["target"]), jnp.asarray(data["weight"])

    def golden(self, unit):
        return self.low + (np.asarray(unit) + 1) / 2 * (self.high - self.low)

    def unit(self, golden):
        return 2 * (np.asarray(golden) - self.low) / (self.high - self.low) - 1

    def step(self, state, action, noise):
        at = state["time"]
        off = self.low + (action["push"] + 1) / 2 * (self.high - self.low) - self.target[at]
        return {"time": at + 1, "reward": -(self.weight[at] * jnp.square(off)).sum(-1)}

    def start(self):
        return {"time": jnp.zeros(1, jnp.int32), "reward": jnp.zeros(1)}


class Linear(World):
    """``s' = s transition + a action_matrix``; reward ``-|s' - goal|^2 - cost |a|^2``."""

    def __init__(self, data):
        self.data = {name.removeprefix("planner/"): jnp.asarray(x) for name, x in data.items() if "planner/" in name}

    def step(self, state, action, noise):
        position = state["position"] @ self.data["transition"] + action["push"] @ self.data["action_matrix"]
        cost = self.data["action_cost"] * jnp.square(action["push"]).sum(-1)
        reward = -jnp.square(position - state["goal"]).sum(-1) - cost
        return {**state, "position": position, "reward": reward}

    def start(self):
        return {"position": self.data["state"], "goal": self.data["goal"], "reward": jnp.zeros(2)}


@pytest.fixture(scope="module")
def data():
    return load("planners")


@pytest.fixture
def draws(monkeypatch):
    """Lists of the draws to come, by the name of the function of `jax.random`."""
    queues: dict[str, list[Any]] = {"normal": [], "truncated_normal": [], "permutation": []}

    def shaped(name):
        return lambda key, *arguments: jnp.asarray(queues[name].pop(0)).reshape(arguments[-1])

    for name in ("normal", "truncated_normal"):
        monkeypatch.setattr(jax.random, name, shaped(name))
    monkeypatch.setattr(jax.random, "permutation", lambda key, count: queues["permutation"].pop(0))
    with jax.disable_jit():  # A loop then calls the replaced functions at each iteration.
        yield queues


def make(kind, *overrides):
    settings = f"planner={{horizon: {HORIZON}, leaf: false, min_std: 0}}"
    discounted = "behavior.cont_discount=true"
    return getattr(shooting, kind)(small_config(settings, discounted, *overrides), SPACES)


def plan(planner, model, before=None):
    start = model.start()
    rows = len(jax.tree.leaves(start)[0])
    before = planner.init(rows) if before is None else before
    no = jnp.zeros(rows, bool)
    return planner.plan(model, no_value, no_prior, start, before, no, jax.random.key(0))


def begin(planner, mean):
    """The plan with this mean ``[H, 2]`` before the search."""
    fresh = planner._fresh(1)
    return fresh._replace(mean={"push": jnp.asarray(mean, jnp.float32)[None]})


def found(action, following):
    """The mean ``[N, H, 2]``, of which the first action was taken and the rest is the next plan."""
    return np.concatenate([action["push"][:, None], following.mean["push"][:, :-1]], 1)


def close(ours, theirs, tolerance=1e-5):
    """Equal to ``tolerance`` of the largest magnitude."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_planet(draws):
    golden = load("planet_pieces")
    for count in (1, 2, 5):
        draws["normal"][:] = list(golden["planner/noise"])
        planner = make(
            "cem",
            f"planner={{candidates: 60, elites: 8, iterations: {count}}}",
            "planner={fit: variance, momentum: 0, min_std: 1e-3}",
        )
        action, following, _ = plan(planner, Linear(golden))
        close(found(action, following), golden["planner/mean"][count - 1])


def test_pets(data, draws):
    model = Weighted(data)
    for count in (1, 2, 5):
        draws["truncated_normal"][:] = list(data["cem/draws"])
        planner = make(
            "cem",
            f"planner={{candidates: 40, elites: 8, iterations: {count}}}",
            "planner={fit: truncated, momentum: 0.1, init_std: 0.5}",
        )
        action, following, metrics = plan(planner, model, begin(planner, model.unit(data["cem/x0"])))
        close(model.golden(found(action, following))[0], data["cem/original_pets/mean"][count - 1])
    first = data["cem/truncated/values"][0]
    assert first.max() < float(metrics["planner/return"])


def test_mppi(data, draws):
    model = Weighted(data)
    scale = 2 / (model.high - model.low)
    planner = make(
        "mppi",
        "planner={candidates: 30, elites: 30, iterations: 2, momentum: 0, min_std: 1, prior: 0}",
        f"planner={{temperature: {data['mppi/gamma']}, smoothing: {1 - data['mppi/beta']}}}",
    )
    draws["normal"][:] = list(data["mppi/draws"] * scale)
    before = np.zeros((HORIZON, 2))
    for call in range(2):
        action, following, metrics = plan(planner, model, begin(planner, model.unit(before)))
        close(model.golden(found(action, following))[0], data["mppi/mean"][call])
        close(metrics["planner/return"], data["mppi/values"][2 * call + 1].max())
        # That code repeats the last step of the mean where this one begins anew.
        before = np.concatenate([data["mppi/mean"][call][1:], data["mppi/mean"][call][-1:]])


def test_icem(data, draws):
    model = Weighted(data)
    keep = int(data["icem/keep"]) / int(data["icem/num_elites"])
    settings = (
        f"planner={{candidates: 24, elites: 5, iterations: 3, keep: {keep}, decay: {data['icem/decay']}}}",
        f"planner={{fit: variance, momentum: 0.1, init_std: 0.5, noise_beta: {data['icem/exponent']}}}",
    )
    draws["permutation"][:] = [*(data[f"icem/permutation_{n}"] for n in range(1, 6)), np.arange(5)]
    elites = make("icem", *settings).init(1).elites
    for call in (1, 2):
        # In the first call there are no elites to begin with.
        planner = make("icem", *settings, f"planner.warm_start={call == 2}".lower())
        for iteration in range(3):
            number = 3 * (call - 1) + iteration + 1
            draws["normal"] += [data[f"icem/draws_{part}_{number}"] for part in ("real", "imag")]
            draws["normal"] += [data["icem/end_draws_1"]] if iteration == 0 else []
        before = KeptElites(begin(planner, model.unit(data["cem/x0"])), elites)
        action, following, metrics = plan(planner, model, before)
        elites = following.elites
        assert not draws["normal"]
        close(model.golden(action["push"])[0], data[f"icem/call{call}/solution"][0])
        close(metrics["planner/return"], max(data[f"icem/call{call}/values_{n}"].max() for n in (1, 2, 3)))
        kept = data["icem/permutation_3"][:2] if call == 1 else [0, 1]
        close(model.golden(elites["push"])[0], data[f"icem/call{call}/elites"][kept])
