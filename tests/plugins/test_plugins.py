"""Parts and algorithms that nothing else in the package knows: every loop, file and command works with them."""

import importlib.util
import json
import shutil

import jax
import numpy as np
import pytest

import dreamer
from dreamer import checkpoints
from dreamer import train as training
from dreamer.behaviors import Behavior
from dreamer.config import ConfigError
from dreamer.evaluate.__main__ import main as evaluate
from dreamer.logs.logger import read_metrics
from dreamer.replay import read_contents
from dreamer.report.__main__ import main as report
from dreamer.types import Space
from dreamer.world_models import WorldModel
from tests.plugins.toy_behavior import ToyBehavior
from tests.plugins.toy_model import ToyModel
from tests.small import of_preset, run_config, same_tree

TOY_PARTS = (
    "world_model.kind=tests.plugins.toy_model:ToyModel",
    "behavior.kind=tests.plugins.toy_behavior:ToyBehavior",
)
TOY_ALGORITHM = ("algorithm=tests.plugins.toy_algorithm:q_learning",)
SHIPPED = {
    "gaussian": ("world_model.kind=gaussian_rssm",),
    "undecoded": ("world_model={decoder: false, representation: next_embedding}", "loss.straighten=0.1"),
    "exploring": ("algorithm=plan2explore", "exploration={heads: 2, units: 8, layers: 1}"),
    "planned": ("planner={kind: cem, horizon: 2, candidates: 8, elites: 2, iterations: 2}",),
}
MODEL_FREE: dict[str, tuple[str, ...]] = {
    "dqn": ("algorithm=dqn", "q.target=quantile"),
    "sac": ("algorithm=sac", "task=gym_Pendulum-v1"),
}
if importlib.util.find_spec("mctx"):
    planner = "planner={kind: gumbel_muzero, simulations: 3}"
    # The first searches find next to nothing. Where a policy's gradient is rounding alone, epsilon keeps it so.
    MODEL_FREE["muzero"] = (
        "algorithm=muzero",
        "muzero={latent: 8, unroll: 2, td_steps: 2}",
        "optimizer.eps=1e-2",
        planner,
    )
ENSEMBLE = "ensemble={members: 2, elites: 2, layers: 1, units: 8}"
DYNA = "dyna={updates: 2, buffer: 24, rollout: [20, 40, 1, 2]}"
ENSEMBLES = {
    "dyna_q": ("algorithm=dyna_q", ENSEMBLE, DYNA),
    "mbpo": ("algorithm=mbpo", "task=gym_Pendulum-v1", ENSEMBLE, DYNA),
    "pets": (
        "algorithm=pets",
        ENSEMBLE,
        "pets.particles=2",
        "planner={kind: cem, horizon: 2, candidates: 8, elites: 2, iterations: 2}",
    ),
}
TABULAR = {"dyna_tabular": ("algorithm=dyna_tabular", "task=probe_maze", "tabular.planning=3")}
FAMILY = {
    "dreamer_v1": ("task=gym_Pendulum-v1",),
    "dreamer_v2": ("world_model.cont=probability", "behavior.cont_discount=true"),
    "dreamer_v3_2023": (),
    "planet": ("task=gym_Pendulum-v1", "planner={horizon: 2, candidates: 8, elites: 2, iterations: 2}"),
}
"""What is added to the preset of this name, as far as it says which algorithm it is."""


PLUGINS = {
    "parts": TOY_PARTS,
    "algorithm": TOY_ALGORITHM,
    **SHIPPED,
    **MODEL_FREE,
    **ENSEMBLES,
    **TABULAR,
    **{name: (*of_preset(name), *added) for name, added in FAMILY.items()},
}
ROUNDED = ("gaussian", "sac", "muzero", *ENSEMBLES, "exploring", "dreamer_v1", "dreamer_v3_2023", "planet")
"""Normal draws are a polynomial, and sums over heads or within a layer norm are vectorised along members: XLA may round
them otherwise in another program."""
IN_JAX = {
    **dict.fromkeys(("sac", "mbpo", "dreamer_v1", "planet"), "task=jax_Pendulum-v1"),
    "dyna_tabular": "task=jax_maze",
}

each = pytest.mark.parametrize("name", [name for name in PLUGINS if name not in FAMILY | TABULAR])


def train(logdir, name, env_steps=60, *overrides):
    config = run_config(logdir, *PLUGINS[name], "run.eval_episodes=0", f"run.env_steps={env_steps}", *overrides)
    return training.train(None, config, quiet=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The log directory of a finished run of a plug-in, in the host loop."""
    done = {}

    def run(name):
        if name not in done:
            done[name] = train(tmp_path_factory.mktemp(name) / "run", name).logdir
        return done[name]

    return run


def everything(logdir, replay="replay/0"):
    saved = checkpoints.load(logdir, with_replay=True)
    assert saved.replay is not None
    fields = dict(saved.replay["fields"])
    if (logdir / replay).is_dir():
        fields |= read_contents(logdir / replay, saved.replay)
    return saved.state, {name: np.asarray(value) for name, value in fields.items()}


def test_the_toys_are_what_the_protocols_ask_for():
    spaces = {"vector": Space("vector", (3,))}, {"action": Space("discrete", (), 2)}
    config = run_config("unused")
    model = jax.eval_shape(lambda: ToyModel(config, *spaces, dreamer_rngs()))
    assert isinstance(model, WorldModel)
    assert isinstance(ToyBehavior(config, spaces[1], 8), Behavior)


def dreamer_rngs():
    from flax import nnx

    return nnx.Rngs(params=0)


@pytest.mark.slow
@each
def test_the_host_loop_trains_it(name, finished):
    lines = read_metrics(finished(name) / "metrics.jsonl")
    updates = [line for line in lines if "loss/total" in line]
    assert len(updates) > 5
    assert all(np.isfinite(line["loss/total"]) for line in updates)
    before, after = checkpoints.load(finished(name)).state, dreamer.load(finished(name)).state
    assert before["step"] == after.step > 5


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGINS)
def test_a_resumed_run_is_the_straight_one(name, finished, tmp_path):
    for env_steps in (31, 60):
        train(tmp_path / "twice", name, env_steps)
    (state, fields), (state_, fields_) = everything(finished(name)), everything(tmp_path / "twice")
    assert state.keys() == state_.keys()
    assert same_tree(state, state_)
    assert fields.keys() == fields_.keys()
    assert same_tree(fields, fields_)


@pytest.mark.slow
@each
def test_it_is_evaluated(name, finished, capsys):
    assert evaluate([str(finished(name)), "--episodes", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["scores"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parts", "gaussian", "undecoded"])
def test_a_report_says_what_there_is_to_say(name, finished, tmp_path, capsys):
    copy = shutil.copytree(finished(name), tmp_path / "copy")
    assert report([str(copy), "--episodes", "2"]) == 0
    said = capsys.readouterr()
    numbers = json.loads((copy / "report" / "report.json").read_text())
    titles = {finding["name"]: finding["verdict"] for finding in numbers["findings"]}
    assert ("open_loop/vector" in titles) == (name == "gaussian")
    assert ("no pictures of its dreams" in said.err) == (name != "gaussian")
    assert (titles["kl"] == "unknown") == (name == "parts")
    assert (titles["classes"] == "unknown") == (name != "undecoded")


def test_a_report_without_a_world_model_is_refused_in_one_sentence(finished, capsys):
    assert report([str(finished("algorithm"))]) == 2
    said = capsys.readouterr().err
    assert "has no world model to report on" in said
    assert "python -m dreamer.evaluate" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["parts", "algorithm", "gaussian", "exploring", *MODEL_FREE, *ENSEMBLES, *TABULAR, *FAMILY]
)
def test_a_population_in_the_device_loop_is_its_members_alone_and_resumes(name, tmp_path):
    loop = (IN_JAX.get(name, "task=jax_action"), "run.loop=device", "seed=3")
    together = train(tmp_path / "both", name, 60, *loop, "population=2")
    assert [member.agent.config.seed for member in together.members] == [3, 4]
    alone = train(tmp_path / "alone", name, 60, *loop)
    state, fields = everything(together.members[0].logdir)
    state_, fields_ = everything(alone.logdir)
    if name in ROUNDED:
        for key, value in state.items():
            if key.startswith("nets."):
                np.testing.assert_allclose(value, state_[key], rtol=0, atol=1e-3 * np.abs(value).max(), err_msg=key)
    else:
        assert same_tree(state, state_)
        assert same_tree(fields, fields_)
    for env_steps in (30, 60):
        train(tmp_path / "twice", name, env_steps, *loop, "population=2")
    for seed in (3, 4):
        straight = everything(tmp_path / "both" / f"seed_{seed}")
        resumed = everything(tmp_path / "twice" / f"seed_{seed}")
        assert same_tree(straight, resumed)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm=dreamers", r"algorithm=dreamers cannot be used\. Did you mean 'dreamer'\?"),
        ("world_model.kind=rsm", r"world_model\.kind=rsm cannot be used\. Did you mean 'rssm'\?"),
        ("behavior.kind=no_such_module:make", "importing no_such_module failed with ModuleNotFoundError"),
        ("behavior.kind=tests.small:nothing", "'tests.small' has no function 'nothing'"),
        ("planner.kind=cme", r"Did you mean 'cem'\?"),
        ("behavior.kind=none", r"behavior\.kind=none cannot be used with planner\.kind=none"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(override, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        training.train(None, run_config(tmp_path / "run", override), quiet=True)
