"""What the program of the device loop tells the host about a window of turns."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from dreamer.types import Metrics


class Report(NamedTuple):
    """What happened in a window of at most W turns; rows of turns that did not happen are zero."""

    ended: Bool[Array, "W N"]
    """Episodes that ended at each turn."""
    score: Float32[Array, "W N"]
    length: Int32[Array, "W N"]
    steps: Int32[Array, "W"]
    """Environments that took a step, and were not reset."""
    logs: Float32[Array, "W N names"]
    """What the environments would tell of their episodes, by ``log_names``; it counts where one ended."""
    metrics: Metrics
    """Mean over the updates of the window, see `dreamer.agent.averages.divide`; NaN if there were none."""

    @classmethod
    def empty(cls, turns: int, count: int, names: int, metrics: Metrics) -> "Report":
        """The report before the first turn.

        Args:
            turns: most turns of the window, W.
            count: environments, N.
            names: numbers that an environment tells of an episode.
            metrics: zeros to which those of updates are added.
        """
        size = (turns, count)
        return cls(
            jnp.zeros(size, bool),
            jnp.zeros(size, jnp.float32),
            jnp.zeros(size, jnp.int32),
            jnp.zeros(turns, jnp.int32),
            jnp.zeros((*size, names), jnp.float32),
            metrics,
        )

    def with_turn(
        self,
        i: Int32[Array, ""],
        ended: Bool[Array, "N"],
        score: Float32[Array, "N"],
        length: Int32[Array, "N"],
        steps: Int32[Array, ""],
        logs: Float32[Array, "N names"],
    ) -> "Report":
        """The report with row ``i`` filled in."""
        return self._replace(
            ended=self.ended.at[i].set(ended),
            score=self.score.at[i].set(score),
            length=self.length.at[i].set(length),
            steps=self.steps.at[i].set(steps),
            logs=self.logs.at[i].set(logs),
        )


__all__ = ["Report"]
