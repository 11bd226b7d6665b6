"""Many environments as one: in this process, in worker processes over shared memory, or in one object."""

from dreamer.envs.vector.batched import Batched
from dreamer.envs.vector.vector_env import VectorEnv

__all__ = ["Batched", "VectorEnv"]
