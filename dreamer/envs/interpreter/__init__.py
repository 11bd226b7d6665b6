"""Environments in processes of another Python (``env.python``), for packages that clash with those of the trainer.

`ForeignEnv` is such an environment, seen from here. Its process runs ``start``, which needs no package at all, then
``server``, which needs NumPy and Gymnasium: a test refuses it JAX. Both send plain data, see ``messages``, so that
versions of Python and NumPy may differ.
"""

from dreamer.envs.interpreter.foreign import ForeignEnv

__all__ = ["ForeignEnv"]
