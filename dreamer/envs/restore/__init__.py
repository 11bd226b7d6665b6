"""Saving and restoring environments in the middle of an episode."""
