"""What an agent believes about its environment, and how it imagines."""

from dreamer.world_models.base import WORLD_MODELS, Dynamics, LatentVariableModel, WorldModel, make
from dreamer.world_models.imagine import follow, imagine
from dreamer.world_models.predict import predict

__all__ = ["WORLD_MODELS", "Dynamics", "LatentVariableModel", "WorldModel", "follow", "imagine", "make", "predict"]
