"""The learner of the host loop: runs updates on replayed batches, and writes back the latents that they refresh."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from dreamer.agent import Agent, guard
from dreamer.logs import averages
from dreamer.replay import Replay, Ticket, TrainRatio
from dreamer.spaces import portable
from dreamer.training.failure import Skip
from dreamer.types import Batch, Scalars, Stored, named_leaves


class Pending(NamedTuple):
    """The newest update, which may still be computing."""

    ticket: Ticket
    """Rows ``[B]`` of replay that the batch came from."""
    stored: Stored
    """What replay is to keep of the batch, ``[B, T, ...]``, still on the device."""
    update: int
    """Its number, counted from 0."""
    batch: Batch | None = None
    """``[B, T, ...]``; None if the run was resumed after this update."""
    metrics: Scalars | None = None
    """``[M]``; None likewise: an update whose result was saved was not skipped."""

    def skips_in_row(self) -> int:
        """Updates skipped in a row up to this one; waits for it."""
        return int(self.metrics[averages.IN_ROW]) if self.metrics else 0


class Learner:
    """Runs updates on replayed batches without ever waiting for them.

    What an update returns for replay is written back after the next batch was drawn and its update started: by then it
    is usually done, and the accelerator is never idle in between. That is also when a skipped update is noticed; what
    it returned is dropped.

    Attributes:
        skip: the newest finished update if it was skipped, else None.
        on_skip: called with each update that was skipped.
    """

    def __init__(self, agent: Agent, replay: Replay, ratio: TrainRatio):
        self.agent = agent
        self.replay = replay
        self.ratio = ratio
        self.updates = 0
        self.skip: Skip | None = None
        self.on_skip: Callable[[Skip], object] = lambda skip: None
        self._pending: Pending | None = None

    def learn(self, agent_steps: int) -> Iterator[Scalars]:
        """Start the updates that ``agent_steps`` pay for; yields the metrics of each, still on the device."""
        for _ in range(self.ratio.updates_due(agent_steps, self.replay.ready)):
            batch, ticket = self.replay.sample()
            stored, metrics = self.agent.update(batch)
            self.settle()
            self._pending = Pending(ticket, stored, update=self.updates, batch=batch, metrics=metrics)
            self.updates += 1
            yield metrics

    @property
    def newest_batch(self) -> Batch | None:
        """The batch ``[B, T, ...]`` of the newest update; None before the first one of a process."""
        return self._pending.batch if self._pending else None

    def state(self) -> dict[str, Any]:
        """JSON-able counters; `replay_state` has what is still to be written back."""
        return {"updates": self.updates, "ratio": self.ratio.state()}

    def replay_state(self) -> dict[str, Any]:
        """The position of replay in its files, and what is not yet written back, to continue exactly."""
        state = self.replay.commit()
        return {**state, "fields": {**state["fields"], **self.pending()}}

    def pending(self) -> dict[str, np.ndarray]:
        """What is not yet written back, by path, and where it belongs; empty if there is nothing, or it was skipped."""
        if self._pending is None or self._pending.skips_in_row():
            return {}
        leaves = named_leaves(self.agent.placement.fetch_rows(self._pending.stored))
        if not leaves:  # The update leaves replay as it is.
            return {}
        ticket = self._pending.ticket
        found = {"pending/env": ticket.env, "pending/row": ticket.row}
        for name, leaf in leaves.items():
            array = np.asarray(leaf)
            # bfloat16 travels as its bits, like what is stored in replay itself.
            found[f"pending/{name}"] = array.view(portable(array.dtype))
        return found

    def restore(self, counters: dict[str, Any], replay: dict[str, Any]) -> str:
        """Inverse of `state` and `replay_state`; returns what was damaged in replay, in words."""
        fields = {key: np.asarray(value) for key, value in replay["fields"].items()}
        pending = {key: fields.pop(key) for key in tuple(fields) if key.startswith("pending/")}
        damage = self.replay.restore({**replay, "fields": fields})
        if pending:
            specs = self.agent.algorithm.stored
            leaves = [pending[f"pending/{name}"].view(spec.dtype) for name, spec in named_leaves(specs).items()]
            ticket = Ticket(pending["pending/env"], pending["pending/row"])
            stored = jax.tree.unflatten(jax.tree.structure(specs), leaves)
            self._pending = Pending(ticket, stored, update=counters["updates"] - 1)
        self.updates = counters["updates"]
        self.ratio.restore(counters["ratio"])
        return damage

    def settle(self) -> None:
        """Wait for the newest update, and write back what it returned unless it was skipped."""
        if self._pending is None:
            return
        pending = self._pending
        self._pending = None
        self.skip = None
        in_row = pending.skips_in_row()
        if in_row and pending.batch and pending.metrics:
            tensor = guard.tensor_name(int(pending.metrics[averages.BAD]), pending.metrics, self.agent.state)
            self.skip = Skip(update=pending.update, in_row=in_row, tensor=tensor, batch=pending.batch)
            self.on_skip(self.skip)
        else:
            self.replay.update_stored(pending.ticket, self.agent.placement.fetch_rows(pending.stored))
