"""The learner of the host loop: runs updates on replayed batches, and writes the latents they refresh back."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from dreamer.agent.runtime import Agent
from dreamer.logs import averages
from dreamer.replay import Replay, Ticket, TrainRatio
from dreamer.training.failure import Skip
from dreamer.types import Batch, Scalars, StoredLatent


class Pending(NamedTuple):
    """The newest update, which may still be computing."""

    ticket: Ticket
    latents: StoredLatent
    update: int
    batch: Batch | None = None
    """None if the run was resumed after this update."""
    metrics: Scalars | None = None
    """The same; an update whose latents were saved was not skipped."""

    def skipped(self) -> int:
        """Updates skipped in a row up to this one; waits for it."""
        return int(self.metrics[averages.IN_ROW]) if self.metrics else 0


class Learner:
    """Runs updates on replayed batches without ever waiting for them.

    The refreshed latents of an update are written back to replay after the next batch was drawn and its update started:
    by then they are usually done, and the accelerator is never idle in between. That is also when an update that was
    skipped is noticed; its latents are dropped.

    Attributes:
        skip: the newest update of which it is known, if it was skipped.
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
            latents, metrics = self.agent.update(batch)
            self.settle()
            self._pending = Pending(ticket, latents, self.updates, batch, metrics)
            self.updates += 1
            yield metrics

    def state(self) -> dict[str, Any]:
        """JSON-able counters; the latents that are still to be written back are in `replay_state`."""
        return {"updates": self.updates, "ratio": self.ratio.state()}

    def replay_state(self) -> dict[str, Any]:
        """What finds the contents of replay again, and the latents not yet written back, to continue exactly."""
        state = self.replay.commit()
        return {**state, "fields": {**state["fields"], **self.pending()}}

    def pending(self) -> dict[str, np.ndarray]:
        """Latents that are not yet written back, and where they belong."""
        if self._pending is None or self._pending.skipped():
            return {}
        ticket, latents = self._pending.ticket, self.agent.placement.fetch_rows(self._pending.latents)
        deter = np.asarray(latents.deter)
        # bfloat16 travels as its bits, like the latents in replay itself.
        deter = deter.view(np.uint16) if deter.dtype.itemsize == 2 else deter
        return {
            "pending/env": ticket.env,
            "pending/row": ticket.row,
            "pending/deter": deter,
            "pending/stoch": np.asarray(latents.stoch),
        }

    def restore(self, counters: dict[str, Any], replay: dict[str, Any]) -> str:
        """Inverse of `state` and `replay_state`; returns what of replay was damaged, in words."""
        fields = {key: np.asarray(value) for key, value in replay["fields"].items()}
        pending = {key: fields.pop(key) for key in tuple(fields) if key.startswith("pending/")}
        damage = self.replay.restore({**replay, "fields": fields})
        if pending:
            latents = StoredLatent(pending["pending/deter"].view(self.agent.latent_dtype), pending["pending/stoch"])
            ticket = Ticket(pending["pending/env"], pending["pending/row"])
            self._pending = Pending(ticket, latents, counters["updates"] - 1)
        self.updates = counters["updates"]
        self.ratio.restore(counters["ratio"])
        return damage

    def settle(self) -> None:
        """Wait for the newest update, and write its latents back unless it was skipped."""
        if self._pending is None:
            return
        pending, self._pending, self.skip = self._pending, None, None
        in_row = pending.skipped()
        if in_row and pending.batch and pending.metrics:
            bad = int(pending.metrics[averages.BAD])
            self.skip = Skip(pending.update, in_row, bad, pending.batch)
            self.on_skip(self.skip)
        else:
            self.replay.update_latents(pending.ticket, self.agent.placement.fetch_rows(pending.latents))
