"""Acting by searching a model instead of asking a policy."""

from dreamer.planners.base import PLANNERS, Planner, make, search_metrics

__all__ = ["PLANNERS", "Planner", "make", "search_metrics"]
