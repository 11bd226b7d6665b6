"""Acting by searching a model instead of asking a policy."""

from dreamer.planners.base import PLANNERS, Planner, Prior, make, search_metrics

__all__ = ["PLANNERS", "Planner", "Prior", "make", "search_metrics"]
