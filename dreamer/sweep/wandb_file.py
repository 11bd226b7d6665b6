"""A sweep file in the format of Weights & Biases, to run the sweep there: ``wandb sweep FILE``."""

import math
from typing import Any

import yaml

from dreamer.config import ConfigError
from dreamer.sweep.plan import SweepPlan
from dreamer.sweep.values import PRESETS, Distribution, text


def render(plan: SweepPlan) -> str:
    """YAML for ``wandb sweep``, whose agents start ``python -m dreamer.train`` with the values that they get.

    Raises:
        ConfigError: the sweep tries presets, which cannot be parameters there.
    """
    if PRESETS in plan.grid:
        raise ConfigError(f"{plan.source} tries presets, and Weights & Biases only supports keys with values.")
    parameters: dict[str, Any] = {
        key: {"values": [_plain(value) for value in values]} for key, values in plan.grid.items()
    }
    parameters |= {key: _distribution(distribution) for key, distribution in plan.random.items()}
    parameters["seed"] = {"values": list(plan.seeds)}
    command = ["${env}", "${interpreter}", "-m", "dreamer.train", "--config", *plan.presets, *plan.overrides]
    # Directories are the usual ones, runs/TIME-TASK-SEED: agents cannot put the name of a run into its command.
    command += ["logger.wandb=true", "${args_no_hyphens}"]
    metric = {"eval": "eval/mean", "last": "episode/recent_score", "best": "episode/recent_score"}
    sweep: dict[str, Any] = {
        "name": plan.logdir.name,
        "program": "dreamer.train",
        "method": {"grid": "grid", "random": "random", "optuna": "bayes"}[plan.search],
        "metric": {"name": metric.get(plan.score, plan.score), "goal": plan.direction},
        "parameters": parameters,
        "command": command,
    }
    if plan.random:
        sweep["run_cap"] = plan.trials * math.prod(map(len, plan.grid.values())) * len(plan.seeds)
    return yaml.safe_dump(sweep, sort_keys=False, width=120)


def _plain(value: Any) -> Any:
    """A list as the text of an override, as agents need it."""
    return text(value) if isinstance(value, tuple) else value


def _distribution(distribution: Distribution) -> dict[str, Any]:
    if distribution.kind == "choice":
        return {"values": [_plain(value) for value in distribution.values]}
    low, high = distribution.values
    names = {"log_uniform": "log_uniform_values", "int_log_uniform": "q_log_uniform_values"}
    name = names.get(distribution.kind, distribution.kind)
    # q_log_uniform_values rounds to multiples of q.
    return {"distribution": name, "min": low, "max": high, **({"q": 1} if name.startswith("q_") else {})}


__all__ = ["render"]
