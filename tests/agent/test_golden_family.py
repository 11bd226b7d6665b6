"""Dreamer V2, V1 and PlaNet, number by number, through the real code with only the random draws replaced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreamer.agent.learning import weighted_total
from dreamer.types import named_leaves
from tests import family_golden as golden

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def fixed_draws():
    """A uniform draw is 0.37 and a normal one 0.5: the golden rule, for the code as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "uniform", lambda key, shape=(), *a, **k: jnp.full(shape, 0.37, jnp.float32))
        patch.setattr(jax.random, "normal", lambda key, shape=(), *a, **k: jnp.full(shape, 0.5, jnp.float32))
        yield


def close(ours, theirs, tolerance=1e-5):
    """Equal to ``tolerance`` of the largest magnitude."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * (np.abs(theirs).max() + 1e-8))


def value_and_grad(agent, batch):
    """The total, what the loss returns, and the gradient, at the parameters of an agent."""
    state = agent.state

    def function(nets):
        total = weighted_total(agent.algorithm.loss)
        return jax.value_and_grad(total, has_aux=True)(nets, state.memory, batch, jax.random.key(0), agent.config)

    (_, output), gradient = jax.jit(function)(state.nets)
    return output, gradient


def check_gradients(gradient, data, names, prefixes):
    """Every gradient; prefixes of official names by part of the nets, those of the model unless given."""
    for path, ours in named_leaves(gradient).items():
        prefix = next((prefix for part, prefix in prefixes.items() if f"{part}." in path), "grads/model")
        np.testing.assert_allclose(
            ours,
            theirs := golden.official(data, prefix, names[path], path),
            rtol=0,
            atol=2e-5 * np.abs(theirs).max() + 1e-8,
            err_msg=path,
        )


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        ("v2_categorical", "reinforce"),
        ("v2_categorical", "dynamics"),
        ("v2_gaussian", "reinforce"),
        ("v2_gaussian", "dynamics"),
        ("v2_gaussian", "mix"),
    ],
)
def test_dreamer_v2(name, gradient):
    data, agent, batch = golden.v2_agent(name, f"behavior.gradient={gradient}")
    output, found = value_and_grad(agent, batch)
    means = {key: value.mean() for key, (_, value) in output.losses.items()}
    theirs = "both" if gradient == "mix" else gradient
    close(means["actor"], data[f"losses/actor_{theirs}"])
    close(means["critic"], data["losses/critic"])
    close(means["reward"], data["losses/reward"])
    close(means["cont"], data["losses/discount"])
    # The constants of a normal density are left out here.
    close(0.5 * means["obs/vector"] + 2.5 * np.log(2 * np.pi), data["losses/vector"])
    close(0.8 * means["dyn"] + 0.2 * means["rep"], data["losses/kl"])
    close(output.stored.deter, data["post/deter"])
    names = golden.v2_names(name == "v2_gaussian")
    check_gradients(found, data, names, {"actor": f"grads/actor_{theirs}", "critic": "grads/critic"})


@pytest.mark.parametrize("name", ["v1_plain", "v1_pcont"])
def test_dreamer_v1(name):
    data, agent, batch = golden.v1_agent(name)
    output, found = value_and_grad(agent, batch)
    means = {key: value.mean() for key, (_, value) in output.losses.items()}
    close(means["actor"], data["losses/actor"])
    close(means["critic"], data["losses/value"])
    close(-means["reward"], data["likes/reward"])
    close(-0.5 * means["obs/vector"] - 2.5 * np.log(2 * np.pi), data["likes/vector"])
    close(means["dyn"], data["losses/div"])
    close(means["rep"], data["losses/div"])
    close(output.stored.deter, data["post/deter"])
    close(output.stored.stoch, data["post/stoch"])
    check_gradients(found, data, golden.v1_names(name == "v1_pcont"), {"actor": "grads/actor", "critic": "grads/value"})


def test_planet():
    data, agent, batch = golden.planet_agent()
    output, found = value_and_grad(agent, batch)
    means = {key: value.mean() for key, (_, value) in output.losses.items()}
    close(-means["reward"], data["log_prob/reward"])
    close(-0.5 * means["obs/vector"] - 2.5 * np.log(2 * np.pi), data["log_prob/vector"])
    # The official loss subtracts the free nats, which are a constant: max(0, KL - free).
    close(means["dyn"] - data["config/free_nats"], data["losses/divergence"])
    close(output.stored.deter, data["post/belief"])
    close(output.stored.stoch, data["post/sample"])
    check_gradients(found, data, golden.planet_names(), {"world_model": "grads"})


def three_updates(agent, batch):
    """Parameters after one and after three updates on one batch, and the metrics of each."""
    state = agent.state
    update = jax.jit(lambda state: agent.algorithm.update(state, batch, jax.random.key(0), agent.config))
    states, metrics = [], []
    for _ in range(3):
        state, _, found = update(state)
        states.append(state)
        metrics.append(found)
    return states, metrics


def check_parameters(nets, before, data, names, prefix):
    """Parameters after updates: their steps, to 1e-3 of the largest step of a tensor."""
    old = named_leaves(before)
    for path, ours in named_leaves(nets).items():
        theirs = golden.official(data, prefix, names[path], path)
        step = np.abs(theirs - np.asarray(old[path])).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3 * step + 1e-7, err_msg=path)


@pytest.mark.parametrize("name", ["v2_categorical", "v2_gaussian"])
def test_updates_of_dreamer_v2(name):
    """The model moves first, and imagination goes on in what it has become."""
    data, agent, batch = golden.v2_agent(name, "behavior.gradient=mix")
    names = golden.v2_names(name == "v2_gaussian")
    states, metrics = three_updates(agent, batch)
    for i, found in enumerate(metrics):
        close(found["loss/actor"], data[f"update_{i + 1}/actor_loss"])
        close(found["loss/critic"], data[f"update_{i + 1}/critic_loss"])
    for count in (1, 3):
        nets = states[count - 1].nets
        check_parameters(nets, agent.state.nets, data, names, f"after_{count}")
        slow = {ours: theirs.replace("critic/", "slow_critic/") for ours, theirs in names.items()}
        for path, ours in named_leaves(states[count - 1].memory.behavior.slow_critic).items():
            close(
                ours, golden.official(data, f"after_{count}", slow[f"behavior.critic.{path}"], f"critic.{path}"), 1e-4
            )


@pytest.mark.parametrize("name", ["v1_plain", "v1_pcont"])
def test_updates_of_dreamer_v1(name):
    """All gradients are taken at the same parameters."""
    data, agent, batch = golden.v1_agent(name)
    states, metrics = three_updates(agent, batch)
    for i, found in enumerate(metrics):
        close(found["loss/actor"], data[f"update_{i + 1}/actor_loss"])
        close(found["loss/critic"], data[f"update_{i + 1}/value_loss"])
    for count in (1, 3):
        names = golden.v1_names(name == "v1_pcont")
        check_parameters(states[count - 1].nets, agent.state.nets, data, names, f"after_{count}")


def test_updates_of_planet():
    data, agent, batch = golden.planet_agent()
    states, _ = three_updates(agent, batch)
    for count in (1, 3):
        check_parameters(states[count - 1].nets, agent.state.nets, data, golden.planet_names(), f"after_{count}")
