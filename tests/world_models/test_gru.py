"""Cells of other years against the numbers of the released code; learned states before an episode; continue heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer.world_models.gru import GRUCell
from dreamer.world_models.latent import rssm
from tests.family_golden import load
from tests.small import ACTION_SPACES, OBS_SPACES, small_batch, small_config


def cell(kind, inputs, units, arrays):
    """A cell whose parameters are these arrays, by path."""
    made = GRUCell(kind, inputs, units, bias=True, init="glorot", dtype="float32", rngs=nnx.Rngs(params=0))
    for path, value in arrays.items():
        layer, _, name = path.partition(".")
        getattr(getattr(made, layer), name)[...] = jnp.asarray(value)
    return made


def test_the_cell_of_v2():
    data = {key.removeprefix("gru/"): value for key, value in load("v2_pieces").items()}
    made = cell(
        "norm_gru",
        3,
        6,
        {
            "gates.kernel": data["kernel"],
            "gates.bias": data["bias"],
            "norm.scale": data["norm_scale"],
            "norm.offset": data["norm_offset"],
        },
    )
    found = made(jnp.asarray(data["input"]), jnp.asarray(data["state"]))
    np.testing.assert_allclose(found, data["output"], atol=1e-6)


def test_the_cell_of_v1():
    data = {key.removeprefix("gru/"): value for key, value in load("v1_pieces").items()}
    made = cell(
        "gru",
        3,
        6,
        {
            "from_input.kernel": data["kernel"],
            "from_input.bias": data["bias"][0],
            "from_state.kernel": data["recurrent_kernel"],
            "from_state.bias": data["bias"][1],
        },
    )
    found = made(jnp.asarray(data["input"]), jnp.asarray(data["state"]))
    np.testing.assert_allclose(found, data["output"], atol=1e-6)


def test_the_cell_of_planet():
    data = {key.removeprefix("rssm/"): value for key, value in load("planet_pieces").items()}
    gates = {f"gates.{ours}": data[f"params/gru/{theirs}"] for ours, theirs in (("kernel", "w_ru"), ("bias", "b_ru"))}
    candidate = {
        f"candidate.{ours}": data[f"params/gru/{theirs}"] for ours, theirs in (("kernel", "w_c"), ("bias", "b_c"))
    }
    made = cell("early_reset_gru", 5, 6, gates | candidate)
    before = np.concatenate([data["prev/sample"], data["action"]], -1)
    inputs = jax.nn.elu(before @ data["params/img1/kernel"] + data["params/img1/bias"])
    found = made(jnp.asarray(inputs), jnp.asarray(data["prev/belief"]))
    np.testing.assert_allclose(found, data["prior/belief"], atol=1e-6)


def model(*overrides):
    return rssm(small_config(*overrides), OBS_SPACES, ACTION_SPACES, nnx.Rngs(params=0))


def test_a_learned_start_replaces_the_state_of_an_episode_and_learns():
    made = model("rssm={cell: norm_gru, initial: learned}")
    made.rssm.start[...] = jnp.linspace(-1, 1, 16)
    # Every row begins an episode, whatever was stored.
    batch = jax.tree.map(jnp.asarray, small_batch())
    batch = batch._replace(is_first=jnp.ones_like(batch.is_first))
    seen = made.observe(batch, jax.random.key(0))
    other = batch._replace(stored=jax.tree.map(lambda x: x + 1, batch.stored))
    np.testing.assert_array_equal(made.observe(other, jax.random.key(0)).states.deter, seen.states.deter)
    start = made.rssm.learned_start(2)
    np.testing.assert_allclose(start.deter[0], np.tanh(np.linspace(-1, 1, 16)), rtol=1e-5)
    mode = made.rssm.prior(start.deter).argmax(-1)
    np.testing.assert_array_equal(start.stoch.argmax(-1), mode)
    action = jnp.zeros((2, 5))
    np.testing.assert_allclose(seen.states.deter[:, 0], made.rssm.recurrence(start, action), rtol=1e-5)

    def total(made):
        return made.observe(batch, jax.random.key(0)).states.deter.sum()

    assert (jnp.abs(jax.grad(total)(made).rssm.start[...]) > 0).any()


@pytest.mark.parametrize("kind", ["mode", "none"])
def test_what_imagination_asks_the_continue_head(kind):
    made = model(f"world_model.cont={kind}", "behavior.cont_discount=false")
    batch = jax.tree.map(jnp.asarray, small_batch())
    seen = made.observe(batch, jax.random.key(0))
    cont = np.asarray(made.cont(seen.states))
    losses, _ = made.loss(seen, batch, small_config("behavior.cont_discount=false"))
    assert ("cont" in losses) == (kind == "mode")
    assert set(np.unique(cont)) <= ({0.0, 1.0} if kind == "mode" else {1.0})
    assert cont.shape == batch.reward.shape
