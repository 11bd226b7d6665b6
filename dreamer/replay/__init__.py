"""Experience replay: what happened, drawn again as sequences, and how often to learn from it."""

from dreamer.replay.host import Replay, Ticket, read_contents
from dreamer.replay.layout import LatentSpec, ReplayMemoryError
from dreamer.replay.ratio import TrainRatio
from dreamer.replay.ring import ReplayDiskError

__all__ = ["LatentSpec", "Replay", "ReplayDiskError", "ReplayMemoryError", "Ticket", "TrainRatio", "read_contents"]
