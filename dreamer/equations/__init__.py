"""Equations of papers as pure functions without parameters: transforms, returns, distributions, divergences."""

from dreamer.equations.kl import kl_balance
from dreamer.equations.returns import lambda_return, survival_weights
from dreamer.equations.transforms import symexp, symlog

__all__ = ["kl_balance", "lambda_return", "survival_weights", "symexp", "symlog"]
