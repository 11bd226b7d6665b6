"""Plays a task with random actions to find out what is wrong with it: ``python -m dreamer.envs.check TASK``."""

from dreamer.envs.check.examination import check

__all__ = ["check"]
