"""The map of model-based reinforcement learning: one file for each published algorithm, and the protocol of all."""

from dreamer.algorithms.base import ALGORITHMS, Algorithm, View, make

__all__ = ["ALGORITHMS", "Algorithm", "View", "make"]
