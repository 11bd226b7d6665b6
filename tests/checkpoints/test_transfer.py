"""Starting from another run's parameters: what is taken, what stays fresh, and that no file can ask for too much."""

import contextlib
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore

from dreamer import algorithms, checkpoints
from dreamer.checkpoints import CheckpointError, DamagedError, manifest, transfer
from dreamer.config import ConfigError
from dreamer.types import Space
from tests.small import ACTION_SPACES, OBS_SPACES, same_tree, small_agent, small_config


def shapes(*overrides, obs=OBS_SPACES, actions=ACTION_SPACES):
    """Training state of an agent by shapes alone."""
    config = small_config(*overrides)
    return jax.eval_shape(algorithms.make(config, obs, actions).init, jax.random.key(0))


def load(path, only="all"):
    """Config of a run that begins with parameters of another one."""
    return small_config(f"load.from={path}", f"load.only={only}")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A run that has trained, as far as one can tell: everything differs from a fresh agent."""
    logdir = tmp_path_factory.mktemp("source")
    agent = small_agent()
    agent.state = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), agent.state)
    agent.policy_steps = 100
    checkpoints.save(logdir, 70, agent, {"fields": {"reward": np.zeros(3)}}, {"env_steps": 70})
    return logdir, checkpoints.load(logdir).state


@pytest.fixture(scope="module")
def fresh():
    """An agent that is the beginning of every test."""
    return small_agent("seed=9")


@pytest.mark.parametrize("only", transfer.PARTS)
def test_the_part_is_taken_and_all_else_is_fresh(source, fresh, only):
    logdir, saved = source
    taken = transfer.read(load(str(logdir), only), fresh.state.nets)
    state = transfer.begin_with(fresh.state, taken)
    before, after = (checkpoints.named_arrays(tree) for tree in (fresh.state, state))
    wanted = {name for name in before if name.startswith(tuple(f"nets.{part}" for part in transfer.PARTS[only]))}
    assert wanted
    assert set(taken.arrays) == {name.removeprefix("nets.") for name in wanted}
    assert taken.fresh == {}
    assert {name for name in after if not same_tree(before[name], after[name])} == {
        # The slow critic starts as a copy of the critic.
        name
        for name in before
        if name in wanted or name.replace("memory.", "nets.", 1).replace("slow_critic", "critic", 1) in wanted
    }
    assert all(same_tree(after[name], saved[name]) for name in wanted)
    assert same_tree(state.memory.behavior.slow_critic, state.nets.behavior.critic)
    assert taken.source == logdir / "checkpoints" / "000000000070"
    assert taken.listing().count("\ntaken  ") == len(wanted) and "fresh" not in taken.listing()


def test_an_agent_can_go_on_from_it(source, fresh):
    agent = small_agent("seed=9")
    agent.state = transfer.begin_with(agent.state, transfer.read(load(str(source[0])), agent.state.nets))
    assert same_tree(agent.acting_nets, agent.state.nets)
    assert agent.state.step == 0
    assert agent.policy_steps == 0
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(agent.state)]
    assert len(set(pointers)) == len(pointers)  # An update writes over its arrays, so none may be there twice.


def test_another_task_takes_what_fits(source):
    actions = {"move": Space("discrete", (), 5), "push": Space("continuous", (2,))}
    obs = {"vector": Space("vector", (4,)), "other": Space("vector", (2,))}
    taken = transfer.read(load(str(source[0])), shapes(obs=obs, actions=actions).nets)
    assert taken.fresh["behavior.actor.heads.move.kernel"] == "float32 [8, 3] there, float32 [8, 5] here"
    assert taken.fresh["world_model.decoder.heads.other.bias"] == "absent there, float32 [2] here"
    # What takes actions or encodes all vectors has another input, and all behind it is as it was.
    assert "world_model.rssm.in_action.linear.kernel" in taken.fresh
    assert {"world_model.rssm.mix.kernel", "behavior.actor.heads.push.kernel", "behavior.critic.head.kernel"} <= set(
        taken.arrays
    )
    said = taken.summary()
    count = len(taken.arrays) + len(taken.fresh)
    assert f"{len(taken.arrays)} of {count} tensors are taken from there, {len(taken.fresh)} stay fresh: " in said
    assert said.endswith(", ....") == (len(taken.fresh) > 3)
    assert set(re.findall(r"fresh  (\S+):", taken.listing())) == set(taken.fresh)


def test_a_model_of_another_kind_is_refused(source):
    logdir, kind = source[0], "world_model.kind=gaussian_rssm"
    with pytest.raises(
        ConfigError, match=r"world_model\.kind is rssm there and gaussian_rssm here.* Use world_model\.k"
    ):
        transfer.read(small_config(f"load.from={logdir}", kind), shapes(kind).nets)
    taken = transfer.read(small_config(f"load.from={logdir}", "load.only=encoder", kind), shapes(kind).nets)
    assert taken.arrays
    assert not taken.fresh


@pytest.mark.parametrize(
    ("only", "override", "refused"),
    [
        ("all", "rssm.cell=gru", "rssm.cell is block_gru there and gru here"),
        ("critic", "nets.critic_head=symlog_twohot", "nets.critic_head is symexp_twohot there and symlog_twohot here"),
        ("actor", "behavior.actor=tanh_normal", "behavior.actor is bounded_normal there and tanh_normal here"),
        ("encoder", "nets.symlog=false", "nets.symlog is True there and False here"),
        ("encoder", "nets.convolutions=same", "nets.convolutions is pool there and same here"),
        ("encoder", "rssm.cell=gru", ""),
        ("world_model", "behavior.actor=tanh_normal", ""),
    ],
)
def test_the_first_difference_in_what_parameters_mean_is_named(source, fresh, only, override, refused):
    config = small_config(f"load.from={source[0]}", f"load.only={only}", override)
    with pytest.raises(ConfigError, match=refused) if refused else contextlib.nullcontext():
        transfer.read(config, fresh.state.nets)


def test_nothing_that_fits_is_refused(source):
    logdir = source[0]
    wider = shapes("nets.units=16", "rssm={deter: 32, hidden: 16, stoch: 5}")
    with pytest.raises(
        ConfigError, match=r"no tensor that load\.only=encoder could take: none of .* example world_mod"
    ):
        transfer.read(load(str(logdir), "encoder"), wider.nets)


def test_a_part_that_the_agent_does_not_have_is_refused(source):
    blind = shapes("world_model.decoder=false")
    with pytest.raises(ConfigError, match=r"load\.only=decoder cannot be used: the agent of this run has no such part"):
        transfer.read(load(str(source[0]), "decoder"), blind.nets)


def test_where_it_can_be_from(source, tmp_path):
    logdir, saved = source
    nets = shapes().nets
    one = logdir / "checkpoints" / "000000000070"
    assert transfer.read(load(str(one)), nets).source == one
    with pytest.raises(CheckpointError, match=r"There is no checkpoint in .*/nowhere/checkpoints"):
        transfer.read(load(str(tmp_path / "nowhere")), nets)
    for step in (1, 2):
        checkpoints.write(tmp_path, step, checkpoints.Prepared(saved, {}, (one / "meta.json").read_text()))
    second = checkpoints.directory(tmp_path) / "000000000002"
    (second / "meta.json").write_text("")
    taken = transfer.read(load(str(tmp_path)), nets)
    assert taken.source.name == "000000000001" and taken.fresh == {}
    assert "'meta.json' has 0 bytes" in taken.summary() and "The one before is taken." in taken.summary()
    with pytest.raises(DamagedError, match=r"'meta.json' has 0 bytes"):
        transfer.read(load(str(second)), nets)


def test_members_start_from_the_same(source):
    nets = shapes().nets
    taken = transfer.read(load(str(source[0]), "critic"), nets)
    population = jax.tree.map(lambda x: np.zeros((3, *x.shape), x.dtype), shapes())
    state = transfer.begin_with(population, taken)
    for tree in (state.nets.behavior.critic, state.memory.behavior.slow_critic):
        for name, leaf in checkpoints.named_arrays(tree).items():
            own = taken.arrays[f"behavior.critic.{name}"]
            assert leaf.shape[0] == 3
            assert all(np.array_equal(leaf[i], own) for i in range(3))
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.nets.behavior.actor))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"shape": [10**9, 10**6]}, ""), ({"chunks": [10**9, 10**6]}, "chunks that are larger than itself")],
)
def test_no_file_can_ask_for_absurd_memory(source, tmp_path, change, message):
    """One who writes such a file writes a manifest that fits as well."""
    name = "nets.behavior.critic.head.kernel"
    meta = (source[0] / "checkpoints" / "000000000070" / "meta.json").read_text()
    state = {key: value for key, value in source[1].items() if key.startswith("nets.behavior.critic")}
    path = checkpoints.write(tmp_path, 1, checkpoints.Prepared(state, {}, meta)).path
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{path / 'state'}/"}).result()
    described = json.loads(store.read(f"{name}/.zarray").result().value)
    store.write(f"{name}/.zarray", json.dumps({**described, **change}).encode()).result()
    (path / "manifest.json").unlink()
    manifest.write(path)
    if message:
        with pytest.raises(CheckpointError, match=message):
            transfer.read(load(str(tmp_path), "critic"), shapes().nets)
    else:
        taken = transfer.read(load(str(tmp_path), "critic"), shapes().nets)
        assert list(taken.fresh) == ["behavior.critic.head.kernel"] and "[1000000000, 1000000] there" in taken.summary()
