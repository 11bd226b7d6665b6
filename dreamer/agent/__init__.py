"""The machinery under every algorithm: training state, acting, the guarded gradient step, and the jit boundary."""

from dreamer.agent.runtime import Agent

__all__ = ["Agent"]
