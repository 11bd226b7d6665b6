"""Many environments as one: in this process, or in worker processes over shared memory."""

from dreamer.envs.vector.vector_env import VectorEnv

__all__ = ["VectorEnv"]
