"""Which loss reaches which parameters, for every member of the family."""

import jax
import jax.numpy as jnp
import pytest

from dreamer.agent import Agent
from dreamer.types import Space, named_leaves
from tests.small import OBS_SPACES, of_preset, small_batch, small_config

MODEL = {"encoder", "rssm"}
"""What all losses of the model share: a state depends on what was seen before it."""

OF_MODEL = {
    "obs/label": MODEL | {"decoder"},
    "obs/vector": MODEL | {"decoder"},
    "reward": MODEL | {"reward"},
    "cont": MODEL | {"cont"},
    "dyn": MODEL,
    "rep": MODEL,
}
OF_BEHAVIOR = {"actor": {"actor"}, "critic": {"critic"}}
ENDS = ("world_model.cont=probability", "behavior.cont_discount=true")
REACH = {
    "dreamer_v1": (ENDS, OF_MODEL | OF_BEHAVIOR),
    "dreamer_v2": (ENDS, OF_MODEL | OF_BEHAVIOR),
    "dreamer_v3_2023": ((), OF_MODEL | OF_BEHAVIOR),
    # The critic's loss on replayed rewards trains the model, too.
    "dreamer_v3": ((), OF_MODEL | OF_BEHAVIOR | {"replay_critic": MODEL | {"critic"}}),
    "planet": (("planner={horizon: 2, candidates: 8, elites: 2}",), {k: v for k, v in OF_MODEL.items() if k != "cont"}),
    # Embeddings are targets: the encoder learns through the states alone.
    "decoder_free": (
        (),
        {k: v for k, v in OF_MODEL.items() if not k.startswith("obs/")}
        | OF_BEHAVIOR
        | {"replay_critic": MODEL | {"critic"}, "barlow": MODEL | {"representation"}},
    ),
}

PARTS = {
    "world_model.encoder.": "encoder",
    "world_model.rssm.": "rssm",
    "world_model.decoder.": "decoder",
    "world_model.reward_": "reward",
    "world_model.cont_": "cont",
    "world_model.representation.": "representation",
    "behavior.actor.": "actor",
    "behavior.critic.": "critic",
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", REACH)
def test_losses_reach_the_parameters_that_they_should(preset):
    overrides, expected = REACH[preset]
    # No free nats: below them, the KL would reach nothing.
    config = small_config(*of_preset(preset), *overrides, "rssm.free_nats=0")
    agent = Agent(config, OBS_SPACES, {"push": Space("continuous", (2,))})
    key = jax.random.key(0)
    # Fresh heads predict zeros, and nothing would pass through them.
    nets = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), agent.state.nets)
    batch = small_batch()
    stored = jax.tree.map(lambda x: jnp.zeros((2, *x.shape), x.dtype), agent.algorithm.stored)
    batch = batch._replace(prev_action={"push": batch.prev_action["push"]}, stored=stored)
    batch = jax.tree.map(jnp.asarray, batch)

    # The memory is an argument, as in every update. Fresh heads are zeros, and in a jitted function that holds them as
    # constants, XLA's library for CPUs reads beyond what it keeps of them: other numbers in every process, NaN in some.
    def means(nets, memory):
        assert agent.algorithm.loss is not None
        losses = agent.algorithm.loss(nets, memory, batch, key, config).losses
        return {name: value.mean() for name, (_, value) in losses.items()}

    @jax.jit
    def sizes(nets, memory, chosen):
        """Size of the gradient of the loss whose entry is 1, by path; one program for all of them."""
        gradient, _ = jax.vjp(means, nets, memory)[1](chosen)
        return {path: jnp.abs(x).sum() for path, x in named_leaves(gradient).items()}

    names = jax.eval_shape(means, nets, agent.state.memory)
    reached = {}
    for name in names:
        found = sizes(nets, agent.state.memory, {other: jnp.float32(other == name) for other in names})
        reached[name] = {
            part for path, size in found.items() for start, part in PARTS.items() if path.startswith(start) and size
        }
    assert reached == expected
