"""The train ratio: how many updates the steps taken so far pay for."""

from typing import Any


class TrainRatio:
    """Turns agent steps into updates, so that on average ``ratio`` steps are replayed for each step taken.

    Every agent step earns ``ratio`` replayed steps, every update spends ``replayed_per_update`` of them, and what is
    left over is carried to the next call. Steps taken while replay is not ready earn nothing, so learning never starts
    with a burst that catches up on the prefill. Only the steps since the previous call are ever multiplied by the
    ratio: restoring into a run with another ratio changes the rate from there on, without a burst either.

    Args:
        ratio: replayed steps per agent step (``run.train_ratio``).
        replayed_per_update: steps in one batch, ``batch_size * batch_length``.

    Raises:
        ValueError: if either is not positive.
    """

    def __init__(self, ratio: float, replayed_per_update: int) -> None:
        if not ratio > 0:
            raise ValueError(f"The train ratio is {ratio}, expected a positive number.")
        if replayed_per_update < 1:
            raise ValueError(f"An update replays {replayed_per_update} steps, expected at least 1.")
        self._ratio = float(ratio)
        self._replayed_per_update = int(replayed_per_update)
        self._previous: int | None = None  # Agent steps at the last call; None until replay is ready.
        self._credit = 0.0  # Replayed steps earned and not spent; below one update between calls.
        self._agent_steps = 0
        self._replayed_steps = 0

    def updates_due(self, agent_steps: int, ready: bool) -> int:
        """Number of updates to run now, which the caller then runs.

        Args:
            agent_steps: agent steps taken so far, over all environments. The first call with ``ready`` sets the origin
                and answers 0.
            ready: whether replay holds enough to learn from (`Replay.ready`).

        Raises:
            ValueError: if ``agent_steps`` is lower than at the previous call: a counter was not restored.
        """
        if self._previous is not None and agent_steps < self._previous:
            raise ValueError(
                f"The agent steps went back from {self._previous} to {agent_steps}. Restore the step counter and the "
                "train ratio from the same checkpoint."
            )
        taken = 0 if self._previous is None or not ready else agent_steps - self._previous
        self._previous = agent_steps if ready else None
        self._agent_steps += taken
        self._credit += taken * self._ratio
        updates = int(self._credit // self._replayed_per_update)
        self._credit -= updates * self._replayed_per_update
        self._replayed_steps += updates * self._replayed_per_update
        return updates

    @property
    def true_ratio(self) -> float:
        """Replayed steps per agent step since counting started, for display; 0 before the first counted step."""
        return self._replayed_steps / self._agent_steps if self._agent_steps else 0.0

    def state(self) -> dict[str, Any]:
        """Everything needed to continue exactly, ready for JSON. The ratio itself belongs to the config."""
        return {
            "previous": self._previous,
            "credit": self._credit,
            "agent_steps": self._agent_steps,
            "replayed_steps": self._replayed_steps,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state`, perhaps with another ratio or batch; raises `ValueError` if keys are missing."""
        missing = sorted(self.state().keys() - state.keys())
        if missing:
            raise ValueError(f"The saved train ratio lacks {', '.join(missing)}; it holds {', '.join(sorted(state))}.")
        self._previous = None if state["previous"] is None else int(state["previous"])
        # The saved credit may be worth several updates if batches are smaller now; less than one is carried.
        self._credit = float(state["credit"]) % self._replayed_per_update
        self._agent_steps = int(state["agent_steps"])
        self._replayed_steps = int(state["replayed_steps"])
