"""Planning by tree search: visit the actions that promise most, and back up what the model says of them.

Two searches of the library mctx share one tree, for one discrete action and for N rows at once:

* `MuZeroSearch` descends by PUCT, and takes the action that was visited most.
* `GumbelSearch` halves the actions of the root until one is left, which improves the policy with few simulations, too.

Each simulation adds one node, at the price of one step of the model. A node is a state of the model: in a world model
the root is what was filtered from observations, and what follows is drawn from the prior.

Sources: Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning with a learned model"; Danihelka
et al. 2022, "Policy improvement by planning with Gumbel".
"""

import abc
import dataclasses
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from dreamer.config import Config, ConfigError, PlannerConfig
from dreamer.planners.base import Leaf, Prior
from dreamer.types import Action, Masks, Metrics, Spaces, State
from dreamer.world_models.base import Dynamics


class SearchResult(NamedTuple):
    """What a search found in N states."""

    action: Int32[Array, "N"]
    policy: Float32[Array, "N C"]
    """How probable a policy should make each action after this search, which is more than it knew before."""
    value: Float32[Array, "N"]
    """Of the states, as the mean of all that was backed up."""
    tree: Any
    """The `mctx.Tree`."""

    def metrics(self) -> Metrics:
        """Value of the roots, and how much the values of the actions tried there vary."""
        root = self.tree.summary()
        spread = root.qvalues.std(-1, where=root.visit_counts > 0)
        return {"planner/return": self.value.mean(), "planner/spread": spread.mean()}


@dataclasses.dataclass(frozen=True)
class TreeSearch(abc.ABC):
    """A search for the best class of one discrete action.

    An edge is worth ``r + discount c V``, where r and c are what the model says of the state that the action leads to,
    and V is the mean of what was found from there on, the leaf's value first. After ``c = 0`` nothing counts.

    Attributes:
        config: simulations, and actions that a root considers.
        name: key of the action.
        discount: factor per step beside the model's ``cont``.
        explores: whether the root is searched with noise, as in training by self-play.
    """

    config: PlannerConfig
    name: str
    discount: float
    explores: bool = False

    def init(self, batch: int) -> tuple[()]:
        """Nothing: every search begins with a new tree."""
        return ()

    def plan(
        self,
        model: Dynamics,
        leaf: Leaf,
        prior: Prior,
        start: State,
        plan: tuple[()],
        is_first: Bool[Array, "N"],
        key: Array,
        masks: Masks | None = None,
    ) -> tuple[Action, tuple[()], Metrics]:
        """See `dreamer.planners.base.Planner`."""
        found = self.search(model, leaf, prior, start, key, masks)
        return {self.name: found.action}, (), found.metrics()

    def search(
        self, model: Dynamics, leaf: Leaf, prior: Prior, start: State, key: Array, masks: Masks | None = None
    ) -> SearchResult:
        """The tree that grows from each of N states; arguments are those of `plan`."""
        mctx = _mctx()

        def predict(state: State) -> tuple[Float32[Array, "N C"], Float32[Array, "N"]]:
            logits = prior.log_probs(state)[self.name]
            value = leaf(state)
            return logits, value if self.config.leaf else 0 * value

        def expand(_: Any, key: Array, action: Int32[Array, "N"], node: State) -> tuple[Any, State]:
            state = model.step(_with_keys(node, start), {self.name: action}, model.noise(key, len(action)))
            logits, value = predict(state)
            edge = mctx.RecurrentFnOutput(
                reward=model.reward(state).mean(),
                discount=self.discount * model.cont(state),
                prior_logits=logits,
                value=value,
            )
            return edge, _without_keys(state)

        logits, value = predict(start)
        root = mctx.RootFnOutput(prior_logits=logits, value=value, embedding=_without_keys(start))
        allowed = (masks or {}).get(self.name)
        output = self._run(mctx, root, expand, key, None if allowed is None else ~allowed)
        return SearchResult(
            output.action, output.action_weights, output.search_tree.summary().value, output.search_tree
        )

    @abc.abstractmethod
    def _run(self, mctx: ModuleType, root: Any, expand: Any, key: Array, forbidden: Bool[Array, "N C"] | None) -> Any:
        """The search of the library."""


class MuZeroSearch(TreeSearch):
    """PUCT: an action is tried for its value and its prior, times the square root of the visits of its state.

    To explore, Dirichlet noise is mixed into the priors of the root, and an action is drawn as often as it was visited.
    """

    def _run(self, mctx: ModuleType, root: Any, expand: Any, key: Array, forbidden: Bool[Array, "N C"] | None) -> Any:
        exploration: dict[str, float] = {} if self.explores else {"dirichlet_fraction": 0.0, "temperature": 0.0}
        return mctx.muzero_policy(
            (), key, root, expand, self.config.simulations, invalid_actions=forbidden, **exploration
        )


class GumbelSearch(TreeSearch):
    """Sequential halving at the root, and below it visits in proportion to a policy that the values found improve.

    To explore, the actions that a root considers are drawn from the prior, by Gumbel noise on its logarithms.
    """

    def _run(self, mctx: ModuleType, root: Any, expand: Any, key: Array, forbidden: Bool[Array, "N C"] | None) -> Any:
        return mctx.gumbel_muzero_policy(
            (),
            key,
            root,
            expand,
            self.config.simulations,
            invalid_actions=forbidden,
            max_num_considered_actions=self.config.considered,
            gumbel_scale=1.0 if self.explores else 0.0,
        )


def _mctx() -> ModuleType:
    """The library; raises `ConfigError`."""
    try:
        import mctx
    except ImportError as error:
        raise ConfigError(
            f"Tree search needs mctx, which cannot be imported ({error}): install it with pip install "
            "'dreamer[search]', or use another planner.kind, such as cem."
        ) from error
    return mctx


def _is_key(x: Array) -> bool:
    return bool(jnp.issubdtype(x.dtype, jax.dtypes.prng_key))


def _without_keys(state: State) -> State:
    """The state with random keys as plain numbers, of which a tree can be made."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, state)


def _with_keys(node: State, like: State) -> State:
    """Inverse of `_without_keys`."""
    return jax.tree.map(lambda x, like: jax.random.wrap_key_data(x) if _is_key(like) else x, node, like)


def _make(kind: type[TreeSearch], config: Config, action_spaces: Spaces) -> TreeSearch:
    name, space = next(iter(action_spaces.items()))
    if len(action_spaces) > 1 or space.kind != "discrete" or space.shape:
        found = ", ".join(f"{key} ({space.kind}, shape {list(space.shape)})" for key, space in action_spaces.items())
        raise ConfigError(
            f"planner.kind={config.planner.kind} cannot be used: the actions are {found}, expected one discrete action "
            "of one number. Use planner.kind=cem, which plans for any."
        )
    _mctx()
    behavior = config.behavior
    # With cont_discount, the model's continuation holds the discount.
    discount = 1.0 if behavior.cont_discount else 1 - 1 / behavior.return_horizon
    return kind(config.planner, name, discount)


def muzero(config: Config, action_spaces: Spaces) -> TreeSearch:
    """PUCT with the discount of the behaviour.

    Raises:
        ConfigError: the action is not one class, or mctx is not installed.
    """
    return _make(MuZeroSearch, config, action_spaces)


def gumbel_muzero(config: Config, action_spaces: Spaces) -> TreeSearch:
    """Sequential halving with the discount of the behaviour.

    Raises:
        ConfigError: the action is not one class, or mctx is not installed.
    """
    return _make(GumbelSearch, config, action_spaces)


__all__ = ["GumbelSearch", "MuZeroSearch", "SearchResult", "TreeSearch", "gumbel_muzero", "muzero"]
