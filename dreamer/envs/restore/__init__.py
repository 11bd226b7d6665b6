"""Saves and restores environments in the middle of an episode."""
