"""Equations of papers as pure functions without parameters: transforms, returns, distributions."""
