"""Layers, and loops over them, from which models and behaviours are built."""
