"""Acting by searching a model instead of asking a policy."""

from dreamer.planners.base import PLANNERS, Planner, logged, make

__all__ = ["PLANNERS", "Planner", "logged", "make"]
