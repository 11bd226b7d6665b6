"""Playing a task with random actions to see what is wrong with it: ``python -m dreamer.envs.check TASK``."""

from dreamer.envs.check.examination import check

__all__ = ["check"]
