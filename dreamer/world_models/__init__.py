"""What an agent believes about its environment, and how it imagines."""

from dreamer.world_models.base import WORLD_MODELS, Dynamics, LatentVariableModel, RecurrentModel, WorldModel, make
from dreamer.world_models.diagnosis import diagnose_states
from dreamer.world_models.imagine import follow, imagine
from dreamer.world_models.predict import predict

__all__ = [
    "WORLD_MODELS",
    "Dynamics",
    "LatentVariableModel",
    "RecurrentModel",
    "WorldModel",
    "diagnose_states",
    "follow",
    "imagine",
    "make",
    "predict",
]
