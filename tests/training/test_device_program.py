"""The device loop: members are what they would be alone, and what the host loop would have made of the same rows."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer import config as configs
from dreamer.agent.runtime import Agent, Keys
from dreamer.config.population import SWEEPABLE, members
from dreamer.envs import native
from dreamer.logs import averages
from dreamer.replay import Layout, Replay, TrainRatio, device
from dreamer.training import device_program as device_loop
from dreamer.training.device_program import DeviceLoop, LoopKeys, LoopState, member_update
from dreamer.training.learner import Learner
from dreamer.types import Parts, Step, TrainState
from dreamer.world_models.rssm import StoredLatent
from tests.small import ACTION_SPACES, OBS_SPACES, latent_spec, same_tree, small_batch, small_config

WINDOW = 32
TURNS = 20
DUE = np.where(np.arange(WINDOW) < 8, 0, np.arange(WINDOW) % 3).astype(np.int32)


def config(*overrides):
    run = ["task=jax_memory", "run.loop=device", "env.count=3", "seed=4", "replay.capacity=36", "behavior.horizon=2"]
    return small_config(*run, *overrides)


@functools.cache
def loop(*overrides):
    chosen = config(*overrides)
    return DeviceLoop(chosen, members(chosen), native.build("memory"))


@functools.cache
def finished(*overrides):
    """State and report after all turns in one window."""
    own = loop(*overrides)
    return jax.device_get(own.run(own.begin(), DUE, TURNS))


def member(tree, index):
    return jax.tree.map(lambda x: np.asarray(x)[index], tree)


def close(one, two, **tolerance):
    """Assert that two pytrees with leaves of the same order hold nearly the same numbers."""
    named = jax.tree_util.tree_flatten_with_path(one)[0]
    for (path, a), b in zip(named, jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, **tolerance, err_msg=jax.tree_util.keystr(path))


def test_keys_are_all_different_and_those_of_the_agent():
    keys = LoopKeys.of(3)
    data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in (*keys.agent, keys.envs, keys.replay)}
    assert len(data) == 6
    assert same_tree(jax.random.key_data(jnp.stack(keys.agent)), jax.random.key_data(jnp.stack(Keys.of(3))))


@pytest.mark.slow
def test_windows_of_any_size_give_the_same_bits():
    own, state, done = loop(), loop().begin(), 0
    for turns in (1, 6, 3, 10):
        due = np.zeros(WINDOW, np.int32)
        due[:turns] = DUE[done : done + turns]
        state, _ = own.run(state, due, turns)
        done += turns
    assert done == TURNS and same_tree(state, finished()[0])
    # A window without turns changes nothing.
    before = jax.device_get(jax.tree.map(jnp.copy, state))
    state, _ = own.run(state, DUE, 0)
    assert same_tree(before, state)


@pytest.mark.slow
def test_the_report_tells_what_happened():
    state, report = finished()
    # Episodes of five steps and a reset: the rows of the ring tell the same.
    rows = {name: np.asarray(field)[0] for name, field in state.members.fields.items()}
    assert state.cursor.total == TURNS and rows["reward"].shape == (3, 12)
    slots = np.arange(TURNS - 12, TURNS) % 12
    ended = report.ended[0, TURNS - 13 : TURNS - 1].T  # A turn ends with the answer that the next one stores.
    np.testing.assert_array_equal(rows["is_last"][:, slots], ended)
    np.testing.assert_array_equal(rows["is_terminal"], rows["is_last"])
    assert report.ended[0, 4].all() and report.ended[0].sum() == 3 * 3
    assert (report.length[0][report.ended[0]] == 5).all() and set(report.score[0][report.ended[0]]) <= {-1.0, 1.0}
    assert report.steps[0, :7].tolist() == [3, 3, 3, 3, 3, 0, 3] and report.steps[0].sum() == 3 * (TURNS - 3)
    assert state.members.train.step[0] == DUE[:TURNS].sum()
    for name, value in report.metrics.items():
        assert np.isfinite(value).all(), name


class Scripted(Replay):
    """Replay on the host that draws what it is told."""

    place: device.Place

    def _draw_uniform(self, count):
        env, row = (np.asarray(x, np.int64) for x in self.place)
        return env, row - 1


@pytest.mark.slow
def test_the_host_loop_makes_the_same_of_the_same_rows():
    """Turn by turn, the agent on the host sees what the device loop saw, and is trained at the same places."""
    chosen = config("replay.online=false")
    own, env = loop("replay.online=false"), native.build("memory")
    keys = LoopKeys.of(chosen.seed)
    agent = Agent(chosen, env.obs_spaces, env.action_spaces)
    layout = Layout.of(env.obs_spaces, env.action_spaces, agent.algorithm.stored)
    replay = Scripted(chosen.replay, 3, layout, np.random.default_rng(0))
    learner = Learner(agent, replay, TrainRatio(1.0, 1))
    learner.ratio.updates_due(0, ready=True)  # From here on, each step that it is told of is an update.
    choose = jax.jit(lambda cursor, key: device.choose(cursor, key, chosen.replay, 3, 12)[0])
    state, memory = own.begin(), agent.initial(3)
    assert same_tree(member(state.members.train, 0), agent.state)
    # Fresh heads predict zeros: gradients are rounding then, of which normalised steps make something.
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), state.members.train.nets)
    own_memory = state.members.train.memory
    slow = own_memory.behavior._replace(slow_critic=jax.tree.map(jnp.copy, noisy.behavior.critic))
    train = state.members.train._replace(nets=noisy, memory=own_memory._replace(behavior=slow))
    state = state._replace(members=state.members._replace(train=train, acting=jax.tree.map(jnp.copy, noisy)))
    agent.state = jax.tree.map(jnp.copy, member(train, 0))
    for turn in range(TURNS):
        step: Step = member(state.members.instances.step, 0)
        action, memory, latent = agent.explore(memory, step.obs, step.is_first)
        due = np.zeros(WINDOW, np.int32)
        due[0] = DUE[turn]
        state, _ = own.run(state, due, 1)
        row = {name: np.asarray(field)[0, :, turn % 12] for name, field in state.members.fields.items()}
        np.testing.assert_array_equal(row["action/action"], action["action"])
        np.testing.assert_array_equal(row["reward"], step.reward)
        latent = StoredLatent(*map(np.asarray, latent))
        replay.add(step._replace(log={}), jax.device_get(action), latent)
        for _ in range(DUE[turn]):
            key = jax.random.fold_in(keys.replay, learner.updates)
            cursor = state.cursor._replace(total=jnp.int32(replay.rows_total))
            replay.place = choose(cursor, key)
            list(learner.learn(learner.updates + 1))
    assert learner.updates == DUE[:TURNS].sum() == state.members.train.step[0]
    close(member(state.members.train, 0), jax.device_get(agent.state), rtol=1e-4, atol=1e-5)
    slots = np.arange(TURNS - 12, TURNS) % 12  # The host tells the oldest row first.
    for name, field in replay.contents().items():
        same = np.asarray(state.members.fields[name])[0][:, slots]
        np.testing.assert_allclose(same, field, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_member_is_what_it_would_be_alone():
    together, report = finished("population.seeds=2", "population.sweep=['optimizer.lr=[1e-3, 4e-3]']")
    found = members(config("population.seeds=2", "population.lr=[1e-3,4e-3]"))
    assert [(m.config.seed, m.config.optimizer.lr) for m in found] == [(4, 1e-3), (5, 1e-3), (4, 4e-3), (5, 4e-3)]
    alone, alone_report = finished()  # Its learning rate is 1e-3, and its seed 4.
    assert together.cursor.total == alone.cursor.total == TURNS
    close(member(together.members, 0), member(alone.members, 0), rtol=1e-4, atol=1e-5)
    close(member(report, 0), member(alone_report, 0), rtol=1e-3, atol=1e-4)
    # The others saw and learned something else.
    for index in (1, 2, 3):
        other = member(together.members.train.nets, index)
        assert not same_tree(other, member(together.members.train.nets, 0))
    rates = report.metrics["optimizer/learning_rate"]
    np.testing.assert_allclose(rates, [1e-3, 1e-3, 4e-3, 4e-3], rtol=1e-6)


@pytest.mark.slow
def test_a_population_is_the_same_on_one_device_and_divided(monkeypatch):
    overrides = ("population.seeds=2", "population.sweep=['optimizer.lr=[1e-3, 4e-3]']")
    divided = loop(*overrides)
    assert divided.devices == 4 and len(divided.begin().members.train.step.sharding.device_set) == 4
    monkeypatch.setattr(device_loop, "member_devices", lambda config, members: jax.devices()[:1])
    chosen = config(*overrides)
    single = DeviceLoop(chosen, members(chosen), native.build("memory"))
    assert single.devices == 1
    state, report = single.run(single.begin(), DUE, TURNS)
    close(state, finished(*overrides)[0], rtol=1e-4, atol=1e-5)
    close(report, finished(*overrides)[1], rtol=1e-3, atol=1e-4)
    # A state that is fetched from either continues with the other, and members come one by one from both.
    moved = divided.place(jax.device_get(state))
    for index in (0, 3):
        own, cursor = divided.member(moved, index)
        assert same_tree(own, single.member(state, index)[0]) and cursor.total == TURNS
        assert {x.device for x in jax.tree.leaves((own, cursor))} == {jax.devices()[0]}
    further, _ = divided.run(moved, DUE, 1)
    assert further.cursor.total == TURNS + 1


@pytest.mark.slow
def test_members_that_devices_cannot_share_evenly_are_what_they_would_be_alone(monkeypatch):
    three = ("population.seeds=3",)
    divided = loop(*three)
    assert divided.devices == divided.places == 3
    state, report = divided.run(divided.begin(), DUE, TURNS)
    monkeypatch.setattr(device_loop, "member_devices", lambda config, members: jax.devices()[:2])
    chosen = config(*three)
    padded = DeviceLoop(chosen, members(chosen), native.build("memory"))
    assert padded.devices == 2 and padded.places == 4
    state_2, report_2 = padded.run(padded.begin(), DUE, TURNS)
    close(padded.fetch(report_2), divided.fetch(report), rtol=1e-3, atol=1e-4)
    assert padded.fetch(report_2).score.shape[0] == 3
    for index in range(3):
        close(padded.member(state_2, index), divided.member(state, index), rtol=1e-4, atol=1e-5)
    # What fills the last place is the last member.
    close(member(state_2.members, 3), member(state_2.members, 2), rtol=0, atol=0)


OF_OTHER_METHODS = {
    *(f"loss.{name}" for name in ("barlow", "infonce", "next_embedding", "redundancy")),
    "behavior.mix",
    "sac.target_entropy",
    "dqn.epsilon",
    "dqn.epsilon_updates",
}
"""Numbers that nothing reads in the agent of this test."""


@pytest.mark.slow
def test_every_number_that_may_be_swept_can_be_an_argument():
    """Updates with all of them traced equal those with all of them written into the program; each one does something.

    Changed alone, it makes others of the parameters, or of what the behaviour remembers, within four updates, except
    for numbers of methods that this agent does not have.
    """
    chosen = small_config("optimizer.warmup=2", "rssm.free_nats=0", "optimizer.kind=muon")
    values = {key: value for key, value in configs.flatten(chosen) if key in SWEEPABLE}
    assert values.keys() == set(SWEEPABLE)
    agent = Agent(chosen, OBS_SPACES, ACTION_SPACES)
    update, key = member_update(chosen, agent.algorithm), Keys.of(0).update
    batches = [jax.tree.map(jnp.asarray, small_batch(seed)) for seed in range(4)]
    # Fresh heads predict zeros, from which nothing can be told.
    rng = np.random.default_rng(1)
    nets = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), agent.state.nets)
    start = agent.state._replace(nets=nets)
    traced = jax.jit(lambda numbers, state, batch: update(state, batch, key, numbers)[0])
    written = jax.jit(lambda state, batch: agent.algorithm.update(state, batch, key, chosen)[0])

    def learned(numbers):
        state = start
        for batch in batches:
            state = traced({name: jnp.float32(value) for name, value in numbers.items()}, state, batch)
        return jax.device_get((state.nets, state.memory))

    once = traced({name: jnp.float32(value) for name, value in values.items()}, start, batches[0])
    close(once, written(start, batches[0]), rtol=1e-4, atol=1e-5)
    base = learned(values)
    assert same_tree(base, learned(values))
    others = {name: 0.7 * value + 0.05 for name, value in values.items()}
    # These two matter only above the range of the returns and the norm of a parameter.
    others |= {"behavior.return_limit": 1e12, "optimizer.clip_min": 1e3}
    idle = [name for name in SWEEPABLE if same_tree(base, learned(values | {name: others[name]}))]
    assert set(idle) == OF_OTHER_METHODS


def test_what_a_skipped_update_returned_does_not_reach_replay():
    """Of four updates that return their number as latents, the second is skipped."""
    settings = config("replay.online=false")
    layout = Layout.of(OBS_SPACES, ACTION_SPACES, latent_spec(1, 1, 2))
    ring = device.empty(layout.specs, 3, 12)
    lead = (settings.replay.batch_size, settings.replay.batch_length)
    zero = jnp.int32(0)

    def update(train, batch, key, numbers):
        number = train.step + 1
        skipped = number == 2
        latents = StoredLatent(jnp.full((*lead, 1), number, jnp.float32), jnp.zeros((*lead, 1), jnp.uint8))
        metrics = {averages.SKIPPED: skipped.astype(jnp.float32), averages.IN_ROW: zero, averages.BAD: zero}
        return train._replace(step=number, skipped_in_row=skipped.astype(jnp.int32)), latents, metrics

    nothing: Any = None  # What updates do not ask for.
    fixed = device_loop.Fixed(
        config=settings, env=nothing, algorithm=nothing, layout=layout, update=update, keys=LoopKeys.of(0), numbers={}
    )
    member = device_loop.MemberState(
        train=TrainState(zero, Parts(), Parts(), zero, ()),
        acting=Parts(),
        memory=(),
        instances=nothing,
        fields=ring.fields,
        place=device.nowhere(lead[0]),
        stored=StoredLatent(jnp.zeros((*lead, 1), jnp.float32), jnp.zeros((*lead, 1), jnp.uint8)),
        score=jnp.zeros(3),
        length=jnp.zeros(3, jnp.int32),
    )
    sums = {averages.SKIPPED: jnp.zeros(()), averages.IN_ROW: zero, averages.BAD: zero}
    cursor = ring.cursor._replace(total=jnp.int32(12))
    after, _, sums = device_loop.learn(fixed, member, cursor, jnp.int32(4), sums)
    assert after.train.step == 4 and sums[averages.SKIPPED] == 1
    # What the last one returned is written back with the next batch.
    assert set(np.unique(after.fields["latent/deter"]).tolist()) == {0, 1, 3}


def test_memory_is_known_beforehand():
    own = loop("population.seeds=3")
    replay, other = own.required_bytes()
    shapes = own.shapes()
    assert isinstance(shapes, LoopState) and shapes.members.train.step.shape == (3,)
    assert replay == 3 * 36 * (2 * 4 + 4 + 4 + 3 + 16 * 4 + 3)
    parameters = sum(x.size for x in jax.tree.leaves(shapes.members.train.nets))
    critic = sum(x.size for x in jax.tree.leaves(shapes.members.train.memory.behavior.slow_critic))
    # Parameters, those that act, gradients and two moments, and the slow critic; the rest is small.
    assert 0 < other - 4 * (5 * parameters + critic) < 20_000


def test_updates_take_turns_on_a_cpu():
    assert type(member_update(config(), loop().algorithm)).__name__ == "custom_vmap"
