"""How to act from a state of a model, and how that is learned from imagined experience."""

from dreamer.behaviors.base import BEHAVIORS, Behavior, ClassProbabilities, make

__all__ = ["BEHAVIORS", "Behavior", "ClassProbabilities", "make"]
