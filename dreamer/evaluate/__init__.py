"""Scores of trained agents, and videos of how they see their episodes: ``python -m dreamer.evaluate``."""

import sys
from typing import Any

from dreamer import CallableModule
from dreamer.evaluate.episodes import MakeEnv, Moment
from dreamer.evaluate.scores import Evaluation, evaluate, evaluate_logdir, load, load_saved, make_env

# Makes dreamer.evaluate(...) call the function of that name.
sys.modules[__name__].__class__ = CallableModule


def __getattr__(name: str) -> Any:
    # Not imported above: `python -m dreamer.evaluate` runs that file itself.
    if name == "main":
        from dreamer.evaluate.__main__ import main

        return main
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


__all__ = ["Evaluation", "MakeEnv", "Moment", "evaluate", "evaluate_logdir", "load", "load_saved", "make_env"]
