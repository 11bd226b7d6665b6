"""A sweep file in the format of Weights & Biases, for those whose sweeps live there: ``wandb sweep FILE``."""

import math
from typing import Any

import yaml

from dreamer.config import ConfigError
from dreamer.sweep.plan import Plan
from dreamer.sweep.values import PRESETS, Distribution, text


def render(plan: Plan) -> str:
    """YAML for ``wandb sweep``; its agents start ``python -m dreamer.train`` with the values that they are given.

    Raises:
        ConfigError: the sweep tries presets, which are no parameters there.
    """
    if PRESETS in plan.grid:
        raise ConfigError(f"{plan.source} tries presets, and Weights & Biases only knows keys with values.")
    parameters: dict[str, Any] = {
        key: {"values": [_plain(value) for value in found]} for key, found in plan.grid.items()
    }
    parameters |= {key: _distribution(found) for key, found in plan.random.items()}
    parameters["seed"] = {"values": list(plan.seeds)}
    command = ["${env}", "${interpreter}", "-m", "dreamer.train", "--config", *plan.presets, *plan.overrides]
    # Directories are the usual ones, runs/TIME-TASK-SEED: agents have no place for a run's own name in a command.
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
    """A list as the text of an override, since that is what agents make of it."""
    return text(value) if isinstance(value, tuple) else value


def _distribution(found: Distribution) -> dict[str, Any]:
    if found.kind == "choice":
        return {"values": [_plain(value) for value in found.values]}
    low, high = found.values
    name = {"log_uniform": "log_uniform_values", "int_log_uniform": "q_log_uniform_values"}.get(found.kind, found.kind)
    return {"distribution": name, "min": low, "max": high, **({"q": 1} if name.startswith("q_") else {})}


__all__ = ["render"]
