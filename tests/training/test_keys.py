"""Random draws are independent: no key is used twice, in nothing that an agent or an environment in JAX does."""

import collections

import jax
import numpy as np
import pytest

from dreamer.config.population import members
from dreamer.envs import native
from dreamer.replay import device
from dreamer.training.device_program import DeviceLoop, LoopKeys
from tests.small import small_agent, small_batch, small_config

CONSUMERS = ("bernoulli", "bits", "categorical", "gumbel", "normal", "randint", "split", "truncated_normal", "uniform")
"""Functions of `jax.random` that use a key up. With `jax.random.fold_in`, one key makes many."""


class Recorder:
    """Notes every key that a program uses up while it runs, compiled or not."""

    def __init__(self, monkeypatch):
        self.uses = []
        self.repeated = []
        self.phase = self.within = ""
        for name in CONSUMERS:
            monkeypatch.setattr(jax.random, name, self.listening(name, getattr(jax.random, name)))

    def listening(self, name, function):
        def call(key, *args, **kwargs):
            # `jax.eval_shape` traces functions that never run, and so does each compilation: the callback runs with
            # the program.
            uses, phase = (self.repeated, self.within) if self.within else (self.uses, None)
            jax.debug.callback(lambda data: self.note(uses, phase, name, data), jax.random.key_data(key))
            return function(key, *args, **kwargs)

        return call

    def note(self, uses, phase, name, data):
        for words in np.asarray(data).reshape(-1, 2).tolist():
            uses.append((phase or self.phase, name, tuple(words)))

    def apart(self, name, function):
        """The function, with what it uses in ``repeated``, as it may repeat itself."""

        def call(*args):
            self.within = name
            try:
                return function(*args)
            finally:
                self.within = ""

        return call

    def begin(self, phase):
        """What is used from here on counts as this phase's."""
        jax.effects_barrier()
        self.phase = phase

    def used_twice(self):
        """Keys used more than once, each with all its uses."""
        jax.effects_barrier()
        places = collections.defaultdict(list)
        for phase, name, words in self.uses:
            places[words].append((phase, name))
        return {words: found for words, found in places.items() if len(found) > 1}


@pytest.fixture
def recorder(monkeypatch):
    return Recorder(monkeypatch)


@pytest.mark.slow
def test_an_agent_uses_no_key_twice(recorder):
    recorder.begin("init")
    agent = small_agent()
    batch = small_batch()
    obs, first = {key: value[:, 0] for key, value in batch.obs.items()}, np.ones(2, bool)
    for number in range(2):
        recorder.begin(f"update {number}")
        agent.update(small_batch(number))
    memory = agent.initial(2)
    for step in range(3):
        recorder.begin(f"acting {step}")
        _, memory, _ = agent.policy(memory, obs, first & (step == 0))
    memory = agent.initial(2)
    for time in range(3):
        recorder.begin(f"evaluation {time}")
        # Two episodes next to each other.
        times = np.full(2, time, np.uint32)
        _, memory = agent.act_in_episodes(obs, memory, 0, np.arange(2, dtype=np.uint32), times, "sample")
    recorder.begin("report")
    agent.predict(batch, context=2)
    assert recorder.used_twice() == {}
    phases = ["init", "update 0", "update 1", *(f"{what} {i}" for what in ("acting", "evaluation") for i in range(3))]
    assert list(dict.fromkeys(phase for phase, *_ in recorder.uses)) == [*phases, "report"]


@pytest.mark.slow
def test_a_device_loop_uses_no_key_twice(recorder, monkeypatch):
    """Two updates and three resets of every environment: the first, and after each of two episodes of five steps."""
    monkeypatch.setattr(device, "choose", recorder.apart("replay", device.choose))
    # The keys of a member follow from its seed whenever they are asked for.
    monkeypatch.setattr(LoopKeys, "of", recorder.apart("seed", LoopKeys.of))
    config = small_config("task=jax_memory", "run.loop=device", "env.count=3", "replay.capacity=36")
    loop = DeviceLoop(config, members(config), native.build("memory"))
    due = np.zeros(16, np.int32)
    due[[10, 12]] = 1
    _, report = loop.run(loop.begin(), due, 14)
    assert np.asarray(report.ended).sum() == 2 * 3
    assert recorder.used_twice() == {}
    assert sum(name == "randint" for _, name, _ in recorder.uses) == 3 * 3
    # In every turn a batch is drawn ahead, with the number of the update that it is for: two, and the one to come.
    replay = {words for phase, _, words in recorder.repeated if phase == "replay"}
    assert len(replay) == 3 and replay.isdisjoint(words for *_, words in recorder.uses)
