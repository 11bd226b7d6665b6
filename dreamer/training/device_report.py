"""What the program of the device loop reports to the host about a window of turns."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from dreamer.types import Metrics


class Report(NamedTuple):
    """What happened in a window of at most W turns; rows of turns that did not happen are zero."""

    ended: Bool[Array, "W N"]
    """Episodes that ended at each turn."""
    score: Float32[Array, "W N"]
    """Sum of rewards of each episode so far; final where it ended."""
    length: Int32[Array, "W N"]
    """Env steps of each episode so far; final where it ended."""
    steps: Int32[Array, "W"]
    """Environments that took a step rather than being reset."""
    logs: Float32[Array, "W N names"]
    """What the environments report of their episodes, by ``log_names``; valid where one ended."""
    metrics: Metrics
    """Scalars: means over the updates of the window, see `dreamer.logs.averages.divide`; NaN without updates."""

    @classmethod
    def empty(cls, turns: int, count: int, names: int, metrics: Metrics) -> "Report":
        """The report before the first turn.

        Args:
            turns: most turns of the window, W.
            count: environments, N.
            names: how many numbers an environment reports of an episode.
            metrics: zeros to which the metrics of updates are added.
        """
        size = (turns, count)
        return cls(
            ended=jnp.zeros(size, bool),
            score=jnp.zeros(size, jnp.float32),
            length=jnp.zeros(size, jnp.int32),
            steps=jnp.zeros(turns, jnp.int32),
            logs=jnp.zeros((*size, names), jnp.float32),
            metrics=metrics,
        )

    def with_turn(
        self,
        i: Int32[Array, ""],
        *,
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
