"""Planning on the rules of a task: a whole run, and what is refused."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import algorithms
from dreamer import config as configs
from dreamer import train as training
from dreamer.config import ConfigError
from dreamer.logs.logger import read_metrics
from dreamer.types import Parts, Space
from tests.small import run_config


class Line:
    """A point on a line that begins at 1 and is moved by the action; the reward is minus its square."""

    obs_spaces: ClassVar = {"vector": Space("vector", (1,))}
    action_spaces: ClassVar = {"push": Space("continuous", (1,))}

    def reset(self, key):
        state = {"x": jnp.ones(1), "time": jnp.int32(0)}
        return state, {"vector": state["x"]}

    def step(self, state, action, key):
        state = {"x": state["x"] + action["push"], "time": state["time"] + 1}
        return state, {"vector": state["x"]}, -jnp.square(state["x"][0]), jnp.bool_(False), state["time"] == 5


TASK = "task=jax_tests.algorithms.test_mpc:Line"
MPC = ("algorithm=mpc", "env.observe_state=true", TASK)
PLANNER = "planner={kind: ilqr, horizon: 2, iterations: 2}"


def test_a_run_plans_and_says_what_it_expects(tmp_path):
    result = training.train(None, run_config(tmp_path / "run", *MPC, PLANNER, "run.env_steps=20"), quiet=True)
    assert result.evaluation is not None
    assert min(result.evaluation.scores) > -0.01
    expected = [
        line["planner/return"] for line in read_metrics(result.logdir / "metrics.jsonl") if "planner/return" in line
    ]
    assert expected
    assert all(-1.01 < value <= 0 for value in expected)


def make(*overrides):
    config = configs.load(["mpc"], [TASK, *overrides])
    obs_spaces = {**Line.obs_spaces, "simulator_state": Space("vector", (3,))}
    return algorithms.make(config, obs_spaces, Line.action_spaces)


def test_what_the_policy_remembers_does_not_change_its_shape():
    algorithm = make("planner={kind: mppi, candidates: 4, elites: 2, horizon: 2}")
    state, _ = jax.vmap(Line().reset)(jax.random.split(jax.random.key(0), 3))
    numbers = jnp.concatenate([jnp.zeros((3, 2)), state["x"]], 1)
    obs = {"vector": state["x"], "simulator_state": numbers}
    memory = algorithm.initial(3)
    step = jax.jit(lambda memory, key: algorithm.policy(Parts(), memory, obs, jnp.ones(3, bool), key, "mode"))
    _, after, _ = step(memory, jax.random.key(0))
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, memory)
    assert set(algorithm.acting(after)) == {"planner/return", "planner/spread"}
    assert np.isfinite(algorithm.acting(after)["planner/spread"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("planner.kind=none", "planner.kind=none cannot be used with algorithm=mpc: expected a planner"),
        ("env.repeat=2", "env.repeat=2 cannot be used with algorithm=mpc, whose model takes one step"),
        (
            "task=gym_Pendulum-v1",
            "those of task=gym_Pendulum-v1 are hidden behind its observations: use an environment",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        make(override)


def test_a_task_that_hides_its_state_is_refused():
    config = configs.load(["mpc"], [TASK, "env.observe_state=false"])
    with pytest.raises(ConfigError, match=r"found no observation 'simulator_state' .* use env\.observe_state=true"):
        algorithms.make(config, Line.obs_spaces, Line.action_spaces)
