"""What makes a dream worth dreaming when no task says so: rewards for what is not known yet."""

from dreamer.exploration.base import BONUSES, Bonus, make
from dreamer.exploration.curiosity import Curious, CuriousState

__all__ = ["BONUSES", "Bonus", "Curious", "CuriousState", "make"]
