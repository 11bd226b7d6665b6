"""Tree search: published trees, number by number, and what no search may do."""

import builtins
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dreamer import algorithms, behaviors
from dreamer.config import ConfigError
from dreamer.planners import Prior, make
from dreamer.types import Space
from tests.golden_values import load
from tests.planners.worlds import Sure, no_prior, no_value
from tests.small import small_config

SPACES = {"move": Space("discrete", (), 4)}
TREE = ("node_visits", "parents", "action_from_parent", "children_index", "children_visits")
NUMBERS = ("raw_values", "node_values", "children_prior_logits", "children_rewards", "children_discounts")

mctx = pytest.importorskip("mctx", reason="needs the extra search")


class Table:
    """A model of a few states, whose rewards, ends and successors are listed by state and action."""

    def __init__(self, following, reward, cont):
        self.following, self._reward, self._cont = (jnp.asarray(x) for x in (following, reward, cont))

    def start(self, at):
        return {"at": jnp.asarray(at), "reward": jnp.zeros(len(at)), "cont": jnp.ones(len(at))}

    def noise(self, key, batch):
        return ()

    def step(self, state, action, noise):
        edge = state["at"], action["move"]
        return {"at": self.following[edge], "reward": self._reward[edge], "cont": self._cont[edge]}

    def features(self, state):
        return state["reward"][..., None]

    def reward(self, state):
        return Sure(state["reward"])

    def cont(self, state):
        return state["cont"]

    def masks(self, state):
        return {}


def planner(kind, *overrides, classes=4):
    return make(small_config(f"planner.kind={kind}", *overrides), {"move": Space("discrete", (), classes)})


def even(classes):
    return Prior(no_prior.draw, lambda state: {"move": jnp.zeros((len(state["at"]), classes))})


@pytest.fixture(scope="module")
def data():
    return load("muzero")


def golden_search(data, kind, overrides, explores, masks):
    model = Table(data["model/next"], data["model/reward"], data["model/discount"])
    tree_search = dataclasses.replace(planner(kind, *overrides), explores=explores)
    prior = Prior(no_prior.draw, lambda state: {"move": jnp.asarray(data["model/logits"])[state["at"]]})
    leaf = lambda state: jnp.asarray(data["model/value"])[state["at"]]  # noqa: E731
    start = model.start(data["root/state"])
    return jax.jit(lambda key: tree_search.search(model, leaf, prior, start, key, masks))(jax.random.key(0))


@pytest.mark.parametrize(
    ("name", "kind", "overrides", "explores"),
    [
        ("gumbel/sims8_considered16", "gumbel_muzero", ("planner={simulations: 8}",), True),
        ("gumbel/sims24_considered3", "gumbel_muzero", ("planner={simulations: 24, considered: 3}",), True),
        ("gumbel/sims24_noiseless", "gumbel_muzero", ("planner={simulations: 24}",), False),
        ("muzero/dirichlet0", "muzero", ("planner={simulations: 24}",), False),
    ],
)
def test_a_tree_is_the_published_one(name, kind, overrides, explores, data):
    masks = {} if "noiseless" in name else {"move": jnp.asarray(data["root/invalid"]) == 0}
    found = golden_search(data, kind, overrides, explores, masks)
    np.testing.assert_array_equal(found.action, data[f"{name}/action"])
    np.testing.assert_allclose(found.policy, data[f"{name}/action_weights"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.value, data[f"{name}/root_value"], rtol=1e-5)
    for field in TREE:
        np.testing.assert_array_equal(getattr(found.tree, field), data[f"{name}/tree/{field}"], err_msg=field)
    for field in NUMBERS:
        np.testing.assert_allclose(
            getattr(found.tree, field), data[f"{name}/tree/{field}"], rtol=1e-5, atol=1e-6, err_msg=field
        )


def visits_by_puct(data, root, simulations):
    """Visits of each node in the order of expansion, by the equations in plain NumPy."""
    softmax = lambda x: np.exp(x) / np.exp(x).sum()  # noqa: E731
    nodes = []

    def add(state):
        zeros = np.zeros((2, 4))  # Visits and mean values of the edges.
        nodes.append({"state": state, "n": 1, "value": data["model/value"][state], "edges": zeros, "children": {}})
        return nodes[-1]

    def score(node):
        n, q = node["edges"]
        known = [node["value"], *q[n > 0]]
        value = np.where(n > 0, (q - min(known)) / max(max(known) - min(known), 1e-8), 0)
        prior = softmax(data["model/logits"][node["state"]])
        return value + np.sqrt(node["n"]) * (1.25 + np.log((node["n"] + 19653) / 19652)) * prior / (1 + n)

    node = add(root)
    for _ in range(simulations):
        node, path = nodes[0], []
        while True:
            action = int(score(node).argmax())
            path.append((node, action))
            if action not in node["children"]:
                break
            node = node["children"][action]
        leaf = add(data["model/next"][node["state"], action])
        node["children"][action] = leaf
        total = leaf["value"]
        for node, action in reversed(path):
            edge = node["state"], action
            total = data["model/reward"][edge] + data["model/discount"][edge] * total
            node["value"] = (node["n"] * node["value"] + total) / (node["n"] + 1)
            node["n"] += 1
            node["edges"][0, action] += 1
            child = node["children"][action]
            node["edges"][1, action] = data["model/reward"][edge] + data["model/discount"][edge] * child["value"]
    return [node["edges"][0] for node in nodes]


def test_puct_has_the_square_root_of_the_visits_of_the_parent(data):
    found = golden_search(data, "muzero", ("planner={simulations: 24}",), explores=False, masks={})
    for row, root in enumerate(data["root/state"]):
        np.testing.assert_array_equal(found.tree.children_visits[row], visits_by_puct(data, root, 24))


KINDS = pytest.mark.parametrize("kind", ["muzero", "gumbel_muzero"])
BEST_IS_FORBIDDEN = Table(np.zeros((1, 3), int), np.array([[0.0, 1.0, 0.5]]), np.zeros((1, 3)))


@KINDS
@pytest.mark.parametrize("explores", [False, True])
def test_a_masked_class_is_never_chosen_nor_tried(kind, explores):
    tree_search = dataclasses.replace(planner(kind, "planner.simulations=16", classes=3), explores=explores)
    mask = jnp.array([[True, False, True], [True, True, True]])
    found = tree_search.search(
        BEST_IS_FORBIDDEN, no_value, even(3), BEST_IS_FORBIDDEN.start([0, 0]), jax.random.key(0), {"move": mask}
    )
    assert found.action[0] != 1
    assert found.policy[0, 1] == 0
    assert found.tree.children_visits[0, 0, 1] == 0
    assert found.tree.children_visits[1, 0, 1] > 0
    if not explores:
        assert found.action.tolist() == [2, 1]


@KINDS
def test_nothing_counts_after_the_end(kind):
    """Action 0 pays 1 and ends; behind the end wait huge rewards, and an even larger leaf. Action 1 pays 2."""
    model = Table([[1, 2], [1, 1], [2, 2]], [[1.0, 2.0], [900.0, 900.0], [0.0, 0.0]], [[0.0, 1.0], [1, 1], [0, 0]])
    leaf = lambda state: 1000.0 * (state["at"] == 1)  # noqa: E731
    tree_search = planner(kind, "planner.simulations=12", classes=2)
    action, plan, metrics = tree_search.plan(
        model, leaf, even(2), model.start([0]), (), jnp.zeros(1, bool), jax.random.key(0)
    )
    assert action["move"].tolist() == [1]
    assert plan == ()
    assert 0 < metrics["planner/return"] <= 2
    assert metrics["planner/spread"] > 0
    # The tree goes on behind the end, as trees have no ends; what it finds there is worth nothing to the root.
    found = tree_search.search(model, leaf, even(2), model.start([0]), jax.random.key(0))
    np.testing.assert_array_equal(found.tree.summary().qvalues, [[1, 2]])


def test_without_leaf_only_rewards_count():
    model = Table([[1, 2], [1, 1], [2, 2]], [[0.0, 0.1], [0.0, 0.0], [0.0, 0.0]], np.ones((3, 2)))
    leaf = lambda state: 1.0 * (state["at"] == 1)  # noqa: E731
    for overrides, expected in ((("planner.leaf=true",), 0), (("planner.leaf=false",), 1)):
        tree_search = planner("gumbel_muzero", "planner.simulations=8", *overrides, classes=2)
        found = tree_search.search(model, leaf, even(2), model.start([0]), jax.random.key(0))
        assert found.action.tolist() == [expected]


@KINDS
@pytest.mark.parametrize(
    ("spaces", "found"),
    [
        ({"push": Space("continuous", (2,))}, r"push \(continuous, shape \[2\]\)"),
        ({"move": Space("discrete", (2,), 3)}, r"move \(discrete, shape \[2\]\)"),
        ({"a": Space("discrete", (), 3), "b": Space("discrete", (), 2)}, r"a \(discrete, shape \[\]\), b "),
    ],
)
def test_other_actions_are_refused_in_one_sentence(kind, spaces, found):
    message = rf"planner.kind={kind} cannot be used: the actions are {found}.*expected one discrete action .*cem"
    with pytest.raises(ConfigError, match=message):
        make(small_config(f"planner.kind={kind}"), spaces)


def test_the_extra_is_named_where_the_library_is_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name == "mctx":
            raise ImportError("No module named 'mctx'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"needs mctx, which cannot be imported .* pip install 'dreamer\[search\]'"):
        planner("muzero")


def dreamer_policy(*overrides):
    """``(shapes of the nets, policy)`` of a Dreamer with one discrete action."""
    obs_spaces = {"vector": Space("vector", (4,))}
    made = algorithms.make(small_config("planner.simulations=3", *overrides), obs_spaces, SPACES)
    nets = jax.eval_shape(made.init, jax.random.key(0)).nets
    obs = {"vector": np.zeros((2, 4), np.float32)}

    def act(nets):
        return made.policy(nets, made.initial(2), obs, jnp.ones(2, bool), jax.random.key(0), "mode")

    return jax.eval_shape(act, nets)


@KINDS
def test_a_dreamer_searches_its_world_model(kind):
    action, memory, _ = dreamer_policy(f"planner.kind={kind}")
    assert (action["move"].shape, action["move"].dtype) == ((2,), jnp.int32)
    assert set(memory.search) == {"planner/return", "planner/spread"}


def test_a_behavior_without_probabilities_cannot_guide_a_tree():
    toy = "behavior.kind=tests.plugins.toy_behavior:ToyBehavior"
    with pytest.raises(ConfigError, match=rf"planner.kind=muzero cannot be used with {toy}, .* function log_probs"):
        dreamer_policy("planner.kind=muzero", toy)


def test_the_prior_is_the_policy_among_the_classes_that_are_allowed():
    config = small_config("behavior.actor_unimix=0.1", "behavior.actor_scale=1.0")
    behavior = behaviors.make(config, SPACES, 8)
    assert isinstance(behavior, behaviors.ClassProbabilities)
    nets, _ = behavior.init(nnx.Rngs(params=0))
    mask = jnp.array([[True, True, False, True]])
    feature = jnp.arange(8.0)[None] / 8
    log_probs = behavior.log_probs(nets, feature, {"move": mask})["move"]
    np.testing.assert_allclose(jnp.exp(log_probs).sum(-1), 1, rtol=1e-6)
    assert jnp.exp(log_probs[0, 2]) == 0
    assert (jnp.exp(log_probs)[mask] > 0.1 / 3 - 1e-6).all()
    assert log_probs.argmax(-1) == behavior.act(nets, feature, {"move": mask}, jax.random.key(0), "mode")["move"]
