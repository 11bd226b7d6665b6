"""Compares runs with one another and with published scores: python -m dreamer.compare."""
