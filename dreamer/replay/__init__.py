"""Experience replay: sequences drawn from what happened, and how often to learn from them."""

from dreamer.replay.buffer import Replay, Ticket, read_contents
from dreamer.replay.layout import Layout, ReplayMemoryError, replay_rows, rows_until_ready
from dreamer.replay.ratio import TrainRatio
from dreamer.replay.storage import ReplayDiskError

__all__ = [
    "Layout",
    "Replay",
    "ReplayDiskError",
    "ReplayMemoryError",
    "Ticket",
    "TrainRatio",
    "read_contents",
    "replay_rows",
    "rows_until_ready",
]
