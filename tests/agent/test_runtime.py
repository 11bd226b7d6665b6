"""The agent's verbs: gradient routing, populations, determinism, tracing, precision, and reports."""

import weakref
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from dreamer import algorithms
from dreamer.agent import Agent
from dreamer.types import Space
from dreamer.world_models.rssm import StoredLatent
from tests.small import ACTION_SPACES, OBS_SPACES, same_tree, small_agent, small_batch, small_config, total_loss

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def agent():
    return small_agent()


def jitter(tree, scale=0.3):
    """Parameters moved at random, so that heads which start at zero let gradients through."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    moved = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, moved)


def jitter_slow(memory):
    """The same of what follows the networks."""
    behavior = memory.behavior
    return memory._replace(behavior=behavior._replace(slow_critic=jitter(behavior.slow_critic)))


def groups(nets) -> dict:
    """Parameters by the part of the agent they belong to."""
    m, r = nets.world_model, nets.world_model.rssm
    return {
        "encoder": m.encoder,
        "recurrence": (r.in_deter, r.in_stoch, r.in_action, r.mix, r.mix_norm, r.gates),
        "prior": (r.prior_mlp, r.prior_logits),
        "posterior": (r.posterior_mlp, r.posterior_logits),
        "decoder": m.decoder,
        "reward": (m.reward_mlp, m.reward_head),
        "cont": (m.cont_mlp, m.cont_head),
        "actor": nets.behavior.actor,
        "critic": nets.behavior.critic,
    }


FILTER = {"encoder", "recurrence", "posterior"}
ROUTES = {
    "obs/label": FILTER | {"decoder"},
    "obs/vector": FILTER | {"decoder"},
    "reward": FILTER | {"reward"},
    "cont": FILTER | {"cont"},
    "dyn": FILTER | {"prior"},
    "rep": FILTER,
    "actor": {"actor"},
    "critic": {"critic"},
    "replay_critic": FILTER | {"critic"},
}


def test_what_was_compiled_for_exploring_is_what_explores(caplog):
    agent = small_agent()
    agent.lower_explore(2)()
    memory, obs = agent.initial(2), {key: value[:, 0] for key, value in small_batch().obs.items()}
    with jax.log_compiles():
        _, memory, _ = agent.explore(memory, obs, np.ones(2, bool))
        agent.explore(memory, obs, np.zeros(2, bool))
        assert "_flat_policy" not in caplog.text
        agent.explore(agent.initial(1), {key: value[:1] for key, value in obs.items()}, np.ones(1, bool))
        assert "_flat_policy" in caplog.text


def test_the_first_state_is_freed_by_the_next():
    agent = small_agent()
    first = weakref.ref(jax.tree.leaves(agent.state.nets)[0])
    agent.state = jax.tree.map(jnp.copy, agent.state)
    assert first() is None


def test_an_update_has_its_phases(agent):
    arguments = *agent._split(agent._shapes), small_batch(), agent._update_key
    names = agent._jit_update.lower(*arguments).as_text(debug_info=True)
    for name in (
        "encoder",
        "filtering",
        "reconstruction",
        "heads",
        "prior",
        "imagination",
        "returns",
        "actor",
        "critic",
    ):
        assert f"jvp(phase:{name})" in names
    assert "phase:optimizer" in names


def test_memory_of_the_start_acts_as_a_reset():
    """Whoever acts by hand begins with `initial` and never says ``is_first``; before it, no class was chosen."""
    agent = small_agent()
    nets = jitter(agent.state.nets)
    obs = {key: value[:, 0] for key, value in small_batch().obs.items()}
    started = agent.algorithm.policy(nets, agent.initial(2), obs, jnp.zeros(2, bool), KEY, "sample")
    reset = agent.algorithm.policy(nets, started[1], obs, jnp.ones(2, bool), KEY, "sample")
    later = agent.algorithm.policy(nets, started[1], obs, jnp.zeros(2, bool), KEY, "sample")
    assert same_tree(started, reset)
    assert not same_tree(started, later)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "routes"),
    [
        ("behavior.replay_gradient=true", ROUTES),
        ("behavior.replay_gradient=false", {**ROUTES, "replay_critic": {"critic"}}),
    ],
)
def test_each_loss_trains_exactly_its_parts(override, routes):
    config = small_config("rssm.free_nats=0", override)
    agent = Agent(config, OBS_SPACES, ACTION_SPACES)
    nets, memory = jitter(agent.state.nets), jitter_slow(agent.state.memory)
    batch = jax.tree.map(jnp.asarray, small_batch())
    names = sorted(ROUTES)

    def losses(nets):
        _, out = total_loss(agent)(nets, memory, batch, KEY, config)
        assert sorted(out.losses) == names
        return jnp.stack([out.losses[name][1].mean() for name in names])

    @jax.jit
    def gradients(nets):
        _, pull = jax.vjp(losses, nets)
        # One by one: from eight at once on, XLA (of jaxlib 0.10.2) gets some gradients of norms wrong on CPUs.
        return jax.lax.map(pull, jnp.eye(len(names)))[0]

    found = gradients(nets)
    for i, name in enumerate(names):
        reached = {
            part
            for part, parameters in groups(found).items()
            if any(np.abs(np.asarray(x)[i]).max() > 0 for x in jax.tree.leaves(parameters))
        }
        assert reached == routes[name], name


@pytest.mark.slow
def test_every_parameter_is_trained():
    """After two updates of a jittered agent no parameter is where it was."""
    state = small_agent().state
    state = state._replace(nets=jitter(state.nets), memory=jitter_slow(state.memory))
    before = {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree_util.tree_flatten_with_path(state.nets)[0]}
    trained = small_agent()
    trained.state = state
    for seed in range(2):
        trained.update(small_batch(seed))
    after = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_flatten_with_path(trained.state.nets)[0]}
    assert [name for name in before if np.array_equal(before[name], after[name])] == []


@pytest.mark.slow
def test_a_population_is_one_vmap():
    config = small_config()
    algorithm = algorithms.make(config, OBS_SPACES, ACTION_SPACES)
    batches = [jax.tree.map(jnp.asarray, small_batch(seed)) for seed in range(2)]
    keys = [jax.random.key(seed) for seed in (3, 4, 5)]

    def init(key):
        state = algorithm.init(key)
        # The gradients of fresh heads, which predict zero, are rounding, and what they are divided by is, too.
        return state._replace(nets=jitter(state.nets), memory=jitter_slow(state.memory))

    def train(init, update, key):
        state, found = init(key), []
        for batch in batches:
            state, latents, metrics = update(state, batch, key)
            found.append((latents, metrics))
        return state, found

    def update(state, batch, key):
        return algorithm.update(state, batch, key, config)

    together = train(jax.jit(jax.vmap(init)), jax.jit(jax.vmap(update, in_axes=(0, None, 0))), jnp.stack(keys))
    init, update = jax.jit(init), jax.jit(update)
    for i, key in enumerate(keys):
        member = jax.tree.map(lambda x, i=i: x[i], together)
        for a, b in zip(jax.tree.leaves(train(init, update, key)), jax.tree.leaves(member), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    def train(seed):
        agent = small_agent(f"seed={seed}")
        outputs = [agent.update(small_batch(number)) for number in range(2)]
        return agent.state, outputs

    one, two, other = train(1), train(1), train(2)
    assert same_tree(one, two)
    assert not same_tree(one[0], other[0])


@pytest.mark.slow
def test_the_policy_that_explores_is_one_update_old():
    """So that it needs no result of the update that may still be computing."""
    agent, batch = small_agent(), small_batch()
    obs = {key: value[:, 0] for key, value in batch.obs.items()}

    def actions(act):
        agent.policy_steps = 0
        action, _, latent = act(agent.initial(2), obs, batch.is_first[:, 0])
        return jax.device_get((action, latent))

    newest = [actions(agent.policy)]
    for _ in range(2):
        assert same_tree(actions(agent.explore), newest[max(0, len(newest) - 2)])
        agent.update(batch)
        newest.append(actions(agent.policy))
        assert not same_tree(newest[-1], newest[-2])
    assert same_tree(actions(agent.explore), newest[-2])


def test_each_verb_is_traced_once(agent):
    state = agent.initial(2)
    for seed in range(3):
        batch = small_batch(seed)
        agent.update(batch)
        obs = {key: value[:, 0] for key, value in batch.obs.items()}
        _, state, _ = agent.policy(state, obs, batch.is_first[:, 0])
    assert agent._update._cache_size() == 1
    assert agent._policy._cache_size() == 1


def test_initial_predictions_are_exactly_zero(agent):
    fresh = small_agent()
    _, metrics = fresh.update(small_batch())
    for name in ("imagined/reward", "imagined/value", "imagined/slow_value", "imagined/return"):
        assert float(metrics[name]) == 0, name


@pytest.mark.slow
def test_updates_fit_one_batch():
    agent = small_agent("optimizer.lr=3e-3", "rssm.free_nats=0")
    history = [agent.update(small_batch())[1] for _ in range(150)]
    for name in ("loss/obs/vector", "loss/obs/label", "loss/reward", "loss/replay_critic"):
        first, last = float(history[0][name]), float(history[-1][name])
        assert last < 0.5 * first, (name, first, last)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16"])
def test_precision(dtype):
    exact, half = small_agent(), small_agent(f"nets.dtype={dtype}")
    half.state = half.state._replace(nets=jax.tree.map(jnp.copy, _renamed(exact.state.nets, half.state.nets)))
    stored = small_batch().stored
    batch = small_batch()._replace(stored=StoredLatent(stored.deter.astype(dtype), stored.stoch))
    latents, metrics = half.update(batch)
    _, expected = exact.update(small_batch())
    assert latents.deter.dtype == jnp.dtype(dtype)
    assert {x.dtype for x in jax.tree.leaves(half.state)} == {jnp.dtype("float32"), jnp.dtype("int32")}
    counts = {"guard/skipped_in_row", "guard/bad"}
    assert {x.dtype for name, x in metrics.items() if name not in counts} == {jnp.dtype("float32")}
    for name in ("loss/obs/vector", "loss/reward", "loss/cont"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=0.05)


def _renamed(nets, like):
    """Leaves of ``nets`` in the modules of ``like``, which differ in dtype only."""
    return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(nets))


def test_acting_is_deterministic_in_mode_and_checked(monkeypatch):
    agent, obs = small_agent(), {k: v[:, 0] for k, v in small_batch().obs.items()}
    one, _ = agent.act(obs, agent.initial(2))
    assert {k: v.shape for k, v in one.items()} == {"move": (2,), "push": (2, 2)}
    assert isinstance(one["push"], np.ndarray)
    with pytest.raises(ValueError, match=r"act\(\) got observations of shapes .*expected"):
        agent.act(obs, agent.initial(3))
    lists = {key: value.tolist() for key, value in obs.items()}
    agent.policy_steps = 0  # Latents are drawn anew at every step.
    np.testing.assert_array_equal(agent.act(lists, agent.initial(2))[0]["push"], one["push"])
    memory = agent.initial(2)
    for arguments, message in (
        ((obs["vector"], memory), r"got a ndarray, expected a dictionary with the keys 'label', 'vector'"),
        (({"vector": obs["vector"]}, memory), r"got observations of shapes .*expected .*'label'"),
        (({**obs, "label": np.zeros(2)}, memory), r"got float64 for key 'label', expected int32"),
        (({**obs, "vector": [[1.0], [2.0, 3.0]]}, memory), r"got no array for key 'vector'"),
        (({**obs, "vector": "left"}, memory), r"got no array for key 'vector'"),
        ((obs, None), r"got None as state, expected the memory of this agent: agent\.initial\(batch\)"),
        ((obs, (memory, memory)), r"got a tuple as state, expected"),
    ):
        with pytest.raises(ValueError, match=message):
            agent.act(*arguments)
    mode: Any = "greedy"
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # Only tests check the types of arguments.
    with pytest.raises(ValueError, match=r"got mode='greedy', expected one of .*'mode'"):
        agent.act(obs, memory, mode)


def test_one_array_is_enough_for_one_key():
    agent = Agent(small_config(), {"vector": Space("vector", (4,))}, ACTION_SPACES)
    array = np.ones((2, 4), np.float32)
    one, _ = agent.act(array, agent.initial(2))
    agent.policy_steps = 0
    other, _ = agent.act({"vector": array}, agent.initial(2))
    np.testing.assert_array_equal(one["push"], other["push"])
    with pytest.raises(ValueError, match=r"shapes \{'vector': \(4,\)\}, expected \{'vector': \(1, 4\)\}"):
        agent.act(array[0], agent.initial(1))


@pytest.mark.slow
def test_starts_limit_the_imagination(agent):
    few = small_agent("behavior.starts=2")
    _, metrics = few.update(small_batch())
    assert np.isfinite(float(metrics["loss/total"]))
    nets, memory = few.state.nets, few.state.memory
    _, out = jax.eval_shape(lambda: total_loss(few)(nets, memory, small_batch(), KEY, few.config))
    shapes = {name: values.shape for name, (_, values) in out.losses.items()}
    assert shapes["actor"] == (2, 2)
    assert shapes["replay_critic"] == (2, 1)
    assert shapes["reward"] == (2, 4)


def test_prediction_reconstructs_the_context_and_imagines_the_rest(agent):
    batch = small_batch()._replace(is_first=np.zeros((2, 4), bool))
    predictions, metrics = agent.predict(batch, context=2)
    assert predictions["vector"].shape == (2, 4, 4)
    assert {name.split("/")[1] for name in metrics} == {"open_loop", "repeat_last"}
    # What comes after the context cannot be seen: changing it must change the errors but not the predictions.
    changed = batch._replace(obs={**batch.obs, "vector": batch.obs["vector"] + np.array([0, 0, 5, 5])[None, :, None]})
    changed.obs["vector"] = changed.obs["vector"].astype(np.float32)
    blind, other = agent.predict(changed, context=2)
    assert same_tree(predictions, blind)
    assert not same_tree(metrics, other)


@pytest.mark.slow
def test_nnx_modules_survive_the_flat_boundary():
    """The contract this package relies on: modules are plain pytrees whose gradients have their type."""
    nets = small_agent().state.nets
    leaves, treedef = jax.tree.flatten(nets)
    again = jax.tree.unflatten(treedef, leaves)
    assert same_tree(nets, again) and [jax.tree.structure(again)] == [treedef]
    feature = jnp.ones((3, 28))
    gradient = jax.grad(lambda critic: critic(feature).log_prob(jnp.ones(3)).sum())(again.behavior.critic)
    assert type(gradient) is type(nets.behavior.critic)
    value = jax.jit(lambda critic: critic(feature).mean())
    assert same_tree(value(nets.behavior.critic), value(again.behavior.critic))
