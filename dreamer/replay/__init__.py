"""Experience replay: what happened, drawn again as sequences, and how often to learn from it."""

from dreamer.replay.host import Replay, Ticket
from dreamer.replay.layout import LatentSpec, ReplayMemoryError, required_bytes
from dreamer.replay.ratio import TrainRatio

__all__ = ["LatentSpec", "Replay", "ReplayMemoryError", "Ticket", "TrainRatio", "required_bytes"]
