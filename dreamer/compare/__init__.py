"""Runs beside one another and beside published scores: python -m dreamer.compare."""
